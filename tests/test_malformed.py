# SPDX-License-Identifier: Apache-2.0
"""More than a hundred mistakes: each ends in one line on stderr that says what is wrong and where.

Everything runs in this process, through the command line; most cases fail while something is read.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from satori_fast.cli import main
from satori_fast.data.arithmetic import domain_words
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.storage import sealed_line
from tests.stages.test_run import TINY
from tests.tiny_models import tiny_model

START = "schema_version = 1\n"
SMALLEST = START + 'tokenizer.kind = "words"\ndata.num_train = 5\n'
QUESTIONS = [{"problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(12)]


def failing_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that must fail."""
    capsys.readouterr()
    code = main(arguments)
    err = capsys.readouterr().err
    assert code in (1, 2), (code, err)
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("satori-fast: ")]
    assert len(lines) == 1, err
    others = [
        line for line in err.splitlines() if not re.match(r"satori-fast: |WARNING |INFO ", line)
    ]
    assert others == [], err
    return lines[0].removeprefix("satori-fast: ")


# --- the config file ------------------------------------------------------------------------------

# Text of the file (or bytes), and what the line says of it.
FILES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "schema_version is None"),
    "no_version": ('name = "a"\n', "schema_version is None"),
    "old_version": ("schema_version = 0\n", "schema_version is 0"),
    "text_version": ('schema_version = "1"\n', "schema_version is '1'"),
    "not_toml": ("schema_version 1\n", "not valid TOML"),
    "yaml": ("schema_version: 1\nname: a\n", "not valid TOML"),
    "json": ('{"schema_version": 1}', "not valid TOML"),
    "open_string": (START + 'name = "a\n', "not valid TOML"),
    "open_table": (START + "[model\n", "not valid TOML"),
    "twice_a_key": (START + "seed = 1\nseed = 2\n", "not valid TOML"),
    "twice_a_table": (START + "[model]\n[model]\n", "not valid TOML"),
    "python_none": (START + "[model]\npath = None\n", "not valid TOML"),
    "leading_zero": (START + "seed = 007\n", "not valid TOML"),
    "latin_1": (b"schema_version = 1\nname = 'caf\xe9'\n", "not valid TOML"),
    "utf_16": ('schema_version = 1\nname = "a"\n'.encode("utf-16"), "not valid TOML"),
    "binary": (b"\x7fELF\x00\x01\x02\xff", "not valid TOML"),
    "control_character": (b"schema_version = 1\nname = 'a\x07'\n", "not valid TOML"),
    "unknown_key": (START + "sede = 3\n", "nearest valid key is seed"),
    "unknown_section": (START + "[rolout]\n", "nearest valid key is rollout"),
    "unknown_inner_key": (START + "[rollout]\nmax_slot = 3\n", "rollout.max_slots"),
    "unknown_key_of_an_optimizer": (
        START + "[reinforce.optimizer]\nlr = 1.0\n",
        "unknown key reinforce.optimizer.lr",
    ),
    "section_as_value": (START + "model = 3\n", "model is a section"),
    "value_as_section": (START + "[seed]\na = 1\n", "seed"),
    "text_for_a_number": (SMALLEST + "[rollout]\nmax_slots = 'many'\n", "rollout.max_slots"),
    "fraction_for_a_whole_number": (SMALLEST + "[rollout]\nmax_slots = 2.5\n", "max_slots"),
    "number_for_a_text": (SMALLEST + "name = 3\n", "name = 3"),
    "number_for_a_switch": (SMALLEST + "[model]\nrecompute = 1\n", "model.recompute"),
    "list_for_a_text": (SMALLEST + "output_dir = ['a']\n", "output_dir"),
    "text_for_a_list": (SMALLEST + "stages = 'reinforce'\n", "stages"),
    "negative_seed": (SMALLEST + "seed = -1\n", "seed = -1"),
    "no_slots": (SMALLEST + "[rollout]\nmax_slots = 0\n", "rollout.max_slots = 0"),
    "negative_temperature": (SMALLEST + "[rollout]\ntemperature = -0.5\n", "temperature"),
    "share_above_one": (SMALLEST + "[rollout]\ntop_p = 1.5\n", "rollout.top_p"),
    "unknown_choice": (SMALLEST + "[rollout]\nengine = 'sglang'\n", "rollout.engine"),
    "unknown_recipe": (SMALLEST + "[reinforce]\nrecipe = 'dpo'\n", "reinforce.recipe"),
    "unknown_stage": (SMALLEST + "stages = ['train']\n", "stages"),
    "no_stage": (SMALLEST + "stages = []\n", "at least one"),
    "stage_twice": (SMALLEST + "stages = ['reinforce', 'reinforce']\n", "at most once"),
    "context_above_packing": (
        SMALLEST + "[rollout]\nmax_seqlen = 9000\n",
        "packing.max_tokens_per_microbatch = 8192 is below",
    ),
    "prompt_fills_the_context": (
        SMALLEST + "[rollout]\nmax_seqlen = 512\n",
        "leaves no room for a response",
    ),
    "pair_above_packing": (
        SMALLEST + "stages = ['preference']\n[rollout]\nmax_seqlen = 8000\n",
        "two sequences",
    ),
    "no_tokenizer": (SMALLEST.replace("words", "model"), "needs model.path"),
    "endless_data": (START + 'tokenizer.kind = "words"\n', "data.num_train is missing"),
    "one_sample": (
        SMALLEST + "[reinforce]\nrecipe = 'grpo'\nsamples_per_problem = 1\n",
        "nothing to compare",
    ),
    "base_is_missing": (START + 'base = "none.toml"\n', "none.toml does not exist"),
    "base_is_a_folder": (START + 'base = "."\n', "is a folder"),
    "base_is_itself": (START + 'base = "bad.toml"\n', "leads back"),
    "base_is_a_number": (START + "base = 3\n", "does not exist"),
    "password_in_an_endpoint": (
        SMALLEST + "[synthesize.generator]\nurl = 'http://me:hush-hush@10.0.0.1/v1'\n",
        "synthesize.generator.url",
    ),
    "password_in_a_server": (
        SMALLEST + "[rollout]\nserver_url = ['http://me:hush-hush@127.0.0.1:1']\n",
        "rollout.server_url",
    ),
    "unknown_parser": (SMALLEST + "[srl]\nparser = 'lines'\n", "srl.parser = 'lines'"),
    "unknown_key_of_steps": (SMALLEST + "[srl]\ntell_titles = true\n", "srl.tell_title"),
    "scripted_rewriter": (SMALLEST + "[srl.rewriter]\nkind = 'scripted'\n", "srl.rewriter.kind"),
    "no_observation": (
        SMALLEST + "[srl.agent]\nmax_observation_characters = 9\n",
        "srl.agent.max_observation_characters = 9",
    ),
    "password_in_a_rewriter": (
        SMALLEST + "[srl.rewriter]\nurl = 'http://me:hush-hush@10.0.0.1/v1'\n",
        "srl.rewriter.url",
    ),
    "key_in_flags": (
        SMALLEST + "[rollout]\nserver_args = ['--api-key', 'hush-hush']\n",
        "VLLM_API_KEY",
    ),
    "key_in_a_flag": (
        SMALLEST + "[rollout]\nserver_args = ['--api-key=hush-hush']\n",
        "VLLM_API_KEY",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_config_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, said = FILES[name]
    path = tmp_path / "bad.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    line = failing_line(["show", str(path)], capsys)
    assert said in line and (str(path) in line or str(tmp_path) in line)
    assert "hush-hush" not in line


def test_a_config_that_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = tmp_path / "loop.toml"
    loop.symlink_to(loop)
    below = tmp_path / "file"
    below.write_text("")
    for path in (tmp_path / "none.toml", tmp_path, loop, below / "a.toml", Path("x" * 300)):
        for verb in ("run", "synthesize", "eval", "show"):
            assert str(path) in failing_line([verb, str(path)], capsys)


# --- the command line -----------------------------------------------------------------------------

# Arguments behind a good config, and what is said.
OVERRIDES: dict[str, tuple[list[str], str]] = {
    "no_value": (["--seed"], "--seed has no value"),
    "no_key": (["3"], "'3' is not of the form"),
    "empty_key": (["--", "3"], "not of the form"),
    "one_dash": (["-seed", "3"], "'-seed' is not of the form"),
    "unknown": (["--reinforce.num_step", "3"], "reinforce.num_steps"),
    "no_section": (["--seed.a", "3"], "seed"),
    "section": (["--model", "3"], "model is a section"),
    "ill_typed": (["--rollout.max_slots", "many"], "rollout.max_slots = 'many'"),
    "out_of_range": (["--rollout.top_p", "0"], "rollout.top_p"),
    "key_without_dots": (["--num_steps", "3"], "unknown key num_steps"),
    "dots_alone": (["--.", "3"], "unknown key"),
    "line_breaks": (["--rollout.engine", "a\nb\nc"], "rollout.engine"),
    "password": (["--synthesize.critic.url", "http://a:hush-hush@h/v1"], "synthesize.critic.url"),
    "shrug": (["--se\u00e9d", "3"], "unknown key"),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_wrong_override(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "good.toml"
    path.write_text(SMALLEST)
    arguments, said = OVERRIDES[name]
    line = failing_line(["show", str(path), *arguments], capsys)
    assert said in line and "hush-hush" not in line


USAGES: dict[str, list[str]] = {
    "nothing": [],
    "no_such_verb": ["train"],
    "no_verb": ["--seed", "3"],
    "verb_in_capitals": ["RUN"],
    "run_of_nothing": ["run"],
    "eval_of_nothing": ["eval"],
    "synthesize_of_nothing": ["synthesize"],
    "report_of_nothing": ["report"],
    "export_of_nothing": ["export"],
    "export_to_nowhere": ["export", "folder"],
    "model_without_a_value": ["eval", "a.toml", "--model"],
    "stage_without_a_value": ["export", "a", "b", "--stage"],
    "switch_with_a_value": ["run", "a.toml", "--resume=yes"],
    "output_without_a_value": ["report", "a", "--output"],
    "report_with_an_override": ["report", "a", "--seed", "3"],
    "export_with_an_override": ["export", "a", "b", "--seed", "3"],
    "show_with_an_override_alone": ["show", "--seed=3"],
}


@pytest.mark.parametrize("name", USAGES)
def test_a_wrong_usage(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    failing_line(USAGES[name], capsys)


# --- report and export ----------------------------------------------------------------------------

LINE = '{"stage": "rl", "step": 0}\n'
STAGE = {"stage": "rl", "wall_s": 1.0, "tokens_per_s": {}, "seconds": {}}
# Files of a run folder, and what the line names.
FOLDERS: dict[str, tuple[dict[str, str | bytes], str]] = {
    "empty": ({}, "holds no run"),
    "config_alone": ({"config.toml": SMALLEST}, "holds no run"),
    "config_not_toml": ({"metrics.jsonl": LINE, "config.toml": "a b"}, "config.toml"),
    "config_not_utf8": ({"metrics.jsonl": LINE, "config.toml": b"a = '\xff'"}, "config.toml"),
    "summary_empty": ({"summary.json": ""}, "summary.json"),
    "summary_cut": ({"summary.json": '{"name": "a", "stages": ['}, "summary.json"),
    "summary_a_list": ({"summary.json": "[]"}, "summary.json"),
    "summary_without_stages": ({"summary.json": '{"name": "a"}'}, "summary.json"),
    "summary_not_utf8": ({"summary.json": b'{"name": "\xff"}'}, "summary.json"),
    "progress_cut": ({"metrics.jsonl": LINE, "progress.json": "{"}, "progress.json"),
    "progress_a_list": ({"metrics.jsonl": LINE, "progress.json": "[1]"}, "progress.json"),
    "progress_of_something_else": ({"metrics.jsonl": LINE, "progress.json": "{}"}, "progress.json"),
    "analysis_cut": ({"metrics.jsonl": LINE, "analysis.json": "{"}, "analysis.json"),
    "analysis_a_list": ({"metrics.jsonl": LINE, "analysis.json": "[]"}, "analysis.json"),
    "analysis_of_something_else": (
        {"metrics.jsonl": LINE, "analysis.json": '{"stages": [{"a": 1}]}'},
        "analysis.json",
    ),
    "metrics_not_json": ({"metrics.jsonl": "step 1\n" + LINE}, "metrics.jsonl:1"),
    "metrics_not_objects": ({"metrics.jsonl": "[1]\n" + LINE}, "metrics.jsonl:1"),
    "metrics_without_a_stage": ({"metrics.jsonl": '{"step": 0}\n' + LINE}, "metrics.jsonl"),
    "samples_not_json": ({"metrics.jsonl": LINE, "samples.jsonl": "a\n" + LINE}, "samples.jsonl:1"),
    "samples_of_something_else": (
        {"metrics.jsonl": LINE, "samples.jsonl": '{"a": 1}\n'},
        "samples.jsonl",
    ),
}


def folder_of(parent: Path, files: dict[str, str | bytes]) -> Path:
    folder = parent / "a_run"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_a_report_of_a_damaged_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, said = FOLDERS[name]
    folder = folder_of(tmp_path, files)
    line = failing_line(["report", str(folder)], capsys)
    assert said in line and str(folder) in line


def test_a_report_to_where_no_file_can_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path, {"metrics.jsonl": LINE})
    blocked = folder / "metrics.jsonl" / "page.html"
    for output in (tmp_path / "none" / "page.html", blocked, folder):
        line = failing_line(["report", str(folder), "--output", str(output)], capsys)
        assert str(output) in line or str(output.parent) in line
    for given in (tmp_path / "none", folder / "metrics.jsonl"):
        assert str(given) in failing_line(["report", str(given)], capsys)


MODEL = {"models/rl/config.json": "{}"}
EXPORTS: dict[str, tuple[dict[str, str | bytes], list[str], str]] = {
    "no_model": ({"metrics.jsonl": LINE}, [], "holds no model"),
    "no_such_stage": (MODEL, ["--stage", "sft"], "no model of stage 'sft'"),
    "no_progress": (MODEL, [], "progress.json"),
    "progress_cut": ({**MODEL, "progress.json": "{"}, [], "progress.json"),
    "progress_a_list": ({**MODEL, "progress.json": "[]"}, [], "progress.json"),
    "progress_without_models": (
        {**MODEL, "progress.json": '{"finished": []}'},
        [],
        "progress.json",
    ),
    "progress_of_another": (
        {**MODEL, "progress.json": '{"models": {"policy": "models/sft"}}'},
        [],
        "no model of stage 'sft'",
    ),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_of_a_damaged_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, options, said = EXPORTS[name]
    folder = folder_of(tmp_path, files)
    line = failing_line(["export", str(folder), str(tmp_path / "to"), *options], capsys)
    assert said in line and str(folder) in line
    assert not (tmp_path / "to").exists()


def test_an_export_to_where_something_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path, MODEL)
    file = tmp_path / "file"
    file.write_text("mine")
    for destination in (file, tmp_path, file / "below"):
        line = failing_line(["export", str(folder), str(destination), "--stage", "rl"], capsys)
        assert str(file) in line or str(tmp_path) in line
    assert file.read_text() == "mine"


# --- models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model folder."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_word_tokenizer(domain_words())
    tiny_model("qwen2", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def cut(name: str, share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
INDEX = "model.safetensors.index.json"
DAMAGES: dict[str, Callable[[Path], Any]] = {
    "gone": shutil.rmtree,
    "no_config": remove("config.json"),
    "config_empty": write("config.json", ""),
    "config_cut": cut("config.json", 0.5),
    "config_a_list": write("config.json", "[]"),
    "config_without_a_type": write("config.json", "{}"),
    "config_of_another_family": write("config.json", '{"model_type": "bert"}'),
    "config_of_no_family": write("config.json", '{"model_type": "nonesuch"}'),
    "no_weights": remove("model.safetensors"),
    "weights_empty": write("model.safetensors", ""),
    "weights_cut": cut("model.safetensors", 0.5),
    "weights_cut_in_their_header": cut("model.safetensors", 0.001),
    "weights_a_pointer": write("model.safetensors", LFS),
    "weights_a_folder": lambda f: (
        (f / "model.safetensors").unlink(),
        (f / "model.safetensors").mkdir(),
    ),
    "no_tokenizer": lambda f: [p.unlink() for p in f.glob("token*")],
    "tokenizer_cut": cut("tokenizer.json", 0.5),
    "tokenizer_config_cut": cut("tokenizer_config.json", 0.5),
    "index_empty": lambda f: ((f / "model.safetensors").unlink(), write(INDEX, "")(f)),
    "index_without_a_map": lambda f: ((f / "model.safetensors").unlink(), write(INDEX, "{}")(f)),
    "index_to_nothing": lambda f: (
        (f / "model.safetensors").unlink(),
        write(INDEX, '{"weight_map": {"model.norm.weight": "none.safetensors"}}')(f),
    ),
}


# What libraries say of these is one line, and a folder is not in it.


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    DAMAGES[name](folder)
    config = tmp_path / "run.toml"
    config.write_text(TINY.replace('kind = "words"', 'kind = "model"'))
    command = ["eval", str(config), "--model", str(folder), "--evaluation.num_problems", "4"]
    line = failing_line(command, capsys)
    assert str(folder) in line


# --- data -----------------------------------------------------------------------------------------

GOOD = "".join(json.dumps(row) + "\n" for row in QUESTIONS)
DATA: dict[str, tuple[str, str | bytes | None]] = {
    "missing": ("none.jsonl", None),
    "empty": ("a.jsonl", ""),
    "no_json": ("a.jsonl", "What is 1 + 1?\n"),
    "numbers": ("a.jsonl", "1\n2\n"),
    "other_fields": ("a.jsonl", '{"x": 1, "y": 2}\n'),
    "json_cut": ("a.json", json.dumps(QUESTIONS)[:-20]),
    "json_text": ("a.json", '"text"'),
    "parquet_of_text": ("a.parquet", GOOD),
    "no_suffix": ("a.tsv", "problem\tanswer\n1\t2\n"),
}


@pytest.mark.parametrize("name", DATA)
def test_damaged_data(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file_name, content = DATA[name]
    path = tmp_path / file_name
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    config = tmp_path / "run.toml"
    config.write_text(TINY)
    command = ["run", str(config), "--output_dir", str(tmp_path / "runs")]
    assert str(path) in failing_line([*command, "--data.source", str(path)], capsys)


ROLLOUTS: dict[str, str | None] = {
    "missing": None,
    "empty": "",
    "no_seal": '{"rollouts": {"temperature": 1.0}}\n',
    "no_header": sealed_line({"group": 0, "response_ids": [3, 0]}),
    "old_header": sealed_line({"rollouts": {"temperature": 1.0, "format": "trials"}}),
}


@pytest.mark.parametrize("name", ROLLOUTS)
def test_stored_rollouts_that_are_none(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, content = tmp_path / "rollouts.jsonl", ROLLOUTS[name]
    if content is not None:
        path.write_text(content)
    config = tmp_path / "run.toml"
    config.write_text(TINY)
    command = [
        "run",
        str(config),
        "--output_dir",
        str(tmp_path / "runs"),
        "--stages",
        "['offline']",
    ]
    command += ["--data.format", "trials", "--offline.rollouts", str(path)]
    line = failing_line(command, capsys)
    assert "offline.rollouts: " in line and str(path) in line


EXPERT_QUESTION = {"question": "start 9 plus 9 swap times 2 minus 1", "answer": "5"}
STEPS = "1. **plus 9** 9 + 9 = 18\n2. **swap** swap 18 = 81\n"
TICKS = "I look.\n\n```\nls\n```"
XML = "<function=bash>\n<parameter=command>ls</parameter>\n</function>"
MIXED = [
    {"role": role, "content": text}
    for role, text in (("user", "q"), ("assistant", TICKS), ("user", "a.py"), ("assistant", XML))
]
# Rows of a file of expert solutions (their responses, or whole rows), further options, and what
# the line says.
EXPERTS: dict[str, tuple[list[Any] | str | None, list[str], str]] = {
    "missing": (None, [], "does not exist"),
    "empty": ("", [], "is empty: no row to read"),
    "no_json": ("1. **Add** 1\n", [], "not valid JSON"),
    "no_rows": ("[]", [], "holds no row"),
    "no_solution": ([{**EXPERT_QUESTION, "text": "9"}], [], "no row has the field 'response'"),
    "empty_solution": ([""], [], "empty field 'response'"),
    "no_mapping": (["9"], ["--srl.mapping", "steps"], "no field mapping named 'steps'"),
    "no_steps": (["It is 9."], [], "1 x no_steps (the first: "),
    "lines_without_titles": (["1. 9 + 9\n2. swap"], [], "1 x no_steps"),
    "out_of_order": (["2. **b** x\n1. **a** y"], [], "1 x out_of_order"),
    "a_number_left_out": (["1. **a** x\n3. **b** y"], [], "1 x out_of_order"),
    "a_title_without_text": (["1. **a**\n2. **b** y"], [], "1 x title_without_text"),
    "an_open_title": (["1. **a x\n2. **b** y"], [], "1 x untitled_step"),
    "one_step": (["1. **a** x"], [], "1 x too_few_steps"),
    "one_paragraph": (["a b"], ["--srl.parser", "paragraphs"], "1 x too_few_steps"),
    "several": (["9", STEPS.replace("2.", "3."), "8"], [], "2 x no_steps (the first: "),
    "graded_as_wrong": (
        [{"question": "q", "deepseek_attempt": "1. \\boxed{2}", "deepseek_grade": "No"}],
        ["--srl.mapping", "s1k_1_1"],
        "0 of 1 rows could be used: deepseek_grade says that the solution is wrong",
    ),
    "unknown_words": (
        [
            {
                "question": f"start {number} plus 9 swap",
                "answer": "5",
                "response": STEPS.replace("plus", "add") + "3. **answer** \\boxed{ 5 }",
            }
            for number in range(10, 60)
        ],
        ["--data.heldout_fraction", "0.3"],
        "the tokenizer does not know the word 'add'",
    ),
    "messages_not_json": (
        [{"messages": "[", "instance_id": "a", "resolved": True}],
        ["--srl.parser", "agent"],
        "messages is not JSON",
    ),
    "not_resolved": (
        [{"messages": "[]", "instance_id": "a", "resolved": False}],
        ["--srl.parser", "agent"],
        "not resolved",
    ),
    "messages_that_mix_forms": (
        [{"messages": json.dumps(MIXED), "instance_id": "a", "resolved": True}],
        ["--srl.parser", "agent"],
        "messages mix forms",
    ),
    "no_rewriter": (["9"], ["--srl.parser", "rewrite"], "srl.rewriter.model is missing"),
    "rewriter_nowhere": (
        ["9"],
        ["--srl.parser", "rewrite", "--srl.rewriter.model", "m", "--srl.rewriter.url", "h"],
        "srl.rewriter.url: 'h' is not of the form",
    ),
    "rewriter_elsewhere": (
        ["9"],
        [
            *("--srl.parser", "rewrite", "--srl.rewriter.model", "m"),
            *("--srl.rewriter.url", "http://10.1.2.3/v1"),
        ],
        "srl.rewriter.api_key_variable is missing",
    ),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_who_show_no_steps(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, options, said = EXPERTS[name]
    path = tmp_path / "expert.jsonl"
    if isinstance(content, list):
        whole = [
            row if isinstance(row, dict) else {**EXPERT_QUESTION, "response": row}
            for row in content
        ]
        content = "".join(json.dumps(row) + "\n" for row in whole)
    if content is not None:
        path.write_text(content)
    config = tmp_path / "run.toml"
    config.write_text(TINY.replace("levels = [1]", 'levels = [4]\nsource = "chains"'))
    command = ["run", str(config), "--output_dir", str(tmp_path / "runs"), "--stages", "['srl']"]
    command += ["--data.format", "plain", "--srl.expert", str(path)]
    if "agent" not in options and "--srl.mapping" not in options:
        command += ["--srl.mapping", "coat"]
    line = failing_line([*command, *options], capsys)
    assert said in line and ("srl.expert: " in line or "srl.rewriter" in line)
    assert str(path) in line or "expert/" in line or "srl.rewriter" in line
    assert not list((tmp_path / "runs").glob("*/steps"))


# --- run folders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "name_is_a_file", "below_a_file"])
def test_a_run_folder_that_cannot_be(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(TINY)
    file = tmp_path / "file"
    file.write_text("mine")
    places = {"file": file, "name_is_a_file": tmp_path, "below_a_file": file / "runs"}
    name = "file" if kind == "name_is_a_file" else "tiny"
    command = ["run", str(config), "--output_dir", str(places[kind]), "--name", name]
    assert str(file) in failing_line(command, capsys)
    assert file.read_text() == "mine"


# --- servers --------------------------------------------------------------------------------------

SERVERS: dict[str, tuple[list[str], str]] = {
    "no_scheme": (["--rollout.server_url", "127.0.0.1:1"], "rollout.server_url"),
    "no_host": (["--rollout.server_url", "http://"], "rollout.server_url"),
    "other_scheme": (["--rollout.server_url", "ftp://127.0.0.1:1"], "rollout.server_url"),
    "public": (["--rollout.server_url", "http://10.1.2.3:1"], "rollout.server_allow_public"),
    "no_port": (["--rollout.server_url", "http://127.0.0.1:x"], "rollout.server_url"),
    "nobody": (["--rollout.server_url", "http://127.0.0.1:9"], "http://127.0.0.1:9"),
}


@pytest.mark.parametrize("name", SERVERS)
def test_a_wrong_server(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.toml"
    config.write_text(TINY)
    command = ["run", str(config), "--output_dir", str(tmp_path), "--rollout.engine", "server"]
    command += ["--rollout.server_start_timeout_s", "0.1", "--stages", "['reinforce']"]
    arguments, said = SERVERS[name]
    assert said in failing_line([*command, *arguments], capsys)


ENDPOINTS: dict[str, tuple[list[str], str]] = {
    "nobody": (["url", "http://127.0.0.1:9/v1"], "http://127.0.0.1:9/v1"),
    "no_scheme": (["url", "127.0.0.1:9"], "synthesize.generator.url"),
    "elsewhere": (["url", "http://10.1.2.3/v1"], "api_key_variable"),
    "no_key": (["api_key_variable", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
}


@pytest.mark.parametrize("name", ENDPOINTS)
def test_a_wrong_endpoint(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "hush-hush")
    config = tmp_path / "run.toml"
    config.write_text(TINY)
    (key, value), said = ENDPOINTS[name]
    command = ["synthesize", str(config), "--output_dir", str(tmp_path)]
    command += ["--synthesize.generator.kind", "endpoint", "--synthesize.generator.model", "m"]
    command += ["--synthesize.generator.max_retries", "0"]
    if name == "no_key":
        command += ["--synthesize.generator.url", "http://10.1.2.3/v1"]
    line = failing_line([*command, f"--synthesize.generator.{key}", value], capsys)
    assert said in line and "hush-hush" not in line


def test_there_are_more_than_a_hundred() -> None:
    tables = (FILES, OVERRIDES, USAGES, FOLDERS, EXPORTS, DAMAGES, DATA, SERVERS, ENDPOINTS)
    assert sum(map(len, (*tables, EXPERTS))) > 150
