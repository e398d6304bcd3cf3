# SPDX-License-Identifier: Apache-2.0
"""What the documents tell a reader to type works, and what they name exists.

Every command of every document and of the configs' opening comments is of a known kind:

    satori-fast       parsed by the real command line, its config and overrides loaded and, for
                      `run`, shrunk as by --dry-run. Really run: one small `run` of Satori's stages
                      and its --resume; about it every `report` and `export`, and one `eval`;
                      every `show`. Configs shrunk and run whole: tests/stages/test_dry_run.py.
    torchrun          its options by torch's own parser, what follows as the command that it starts
    python -m, -c     the module's --help, or its code, is run; paths and flags exist
    make              target and variables exist
    pip               the extras exist
    vllm              where vLLM is installed its sources have the flags; never run here
    curl, ssh, ...    other people's programs: not run
"""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shutil
import sys
import tomllib
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from satori_fast import cli
from satori_fast.backbone.optimizer import OptimizerSettings
from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.backbone.step import build_learner
from satori_fast.config import Config, describe, load_config, to_toml
from satori_fast.data.prompts import SATORI_TEMPLATE
from satori_fast.grading import GradingPool
from satori_fast.planning.layouts import Layout
from satori_fast.planning.memory import layer_numbers, parameter_bytes
from satori_fast.planning.sizes import KNOWN
from satori_fast.rewards.outcome import OutcomeReward
from satori_fast.rewards.terms import score
from satori_fast.rewards.worker import checked_values
from satori_fast.stages.dry_run import shrunk
from tests.algorithms.test_advantages import make_trajectory
from tests.architecture.documents import (
    OTHERS,
    OURS,
    ROOT,
    Block,
    Command,
    blocks,
    commands,
    documents,
    inline_code,
)

QUICKSTART = "configs/quickstart.toml"
CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))
COMMANDS = [command for path in [*documents(), *CONFIGS] for command in commands(path)]
BLOCKS = [block for document in documents() for block in blocks(document)]
# Names that stand for a reader's own config.
OWN_CONFIGS = {"CONFIG", "config.toml"}
# Modules that take no options and do their work at once: they are only looked up.
WITHOUT_OPTIONS = {"benchmarks.plots"}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")


def of_program(*programs: str) -> Any:
    chosen = [command for command in COMMANDS if command.program in programs]
    return pytest.mark.parametrize("command", chosen, ids=str)


def loaded(words: tuple[str, ...]) -> tuple[Any, Config | None]:
    """The options of a `satori-fast` command, and its config where the verb takes one."""
    known = tuple(QUICKSTART if word in OWN_CONFIGS else word for word in words)
    options, overrides = cli._parser().parse_known_args(known)
    if str(getattr(options, "target", "")).endswith(".toml"):  # eval CONFIG.toml
        options.config = options.target
    if getattr(options, "config", None) is None:
        assert not overrides, f"{words[0]} takes no overrides"
        return options, None
    return options, load_config(options.config, overrides)


# --- commands, kind by kind ----------------------------------------------------------------------


def test_every_command_is_of_a_known_kind() -> None:
    unknown = [str(command) for command in COMMANDS if command.program not in OURS | OTHERS]
    assert unknown == []
    documented = {command.place.partition(":")[0] for command in COMMANDS}
    assert {"README.md", "docs/satori_7b.md", "configs/satori/7b_32gpu.toml"} <= documented


@of_program("satori-fast")
def test_command_line_and_overrides(command: Command, tmp_path: Path) -> None:
    check_own(command.words[1:], tmp_path)


def check_own(words: tuple[str, ...], folder: Path) -> None:
    options, config = loaded(words)
    if config is not None and options.act is cli._run:
        small = shrunk(config, str(folder))
        assert small.reinforce.recipe == config.reinforce.recipe


@of_program("torchrun")
def test_torchrun(command: Command, tmp_path: Path) -> None:
    from torch.distributed.run import get_args_parser

    words = [word for word in command.words[1:] if word != "..."]
    options = get_args_parser().parse_args(words)
    assert options.module, f"{command}: starts a module with -m"
    assert options.training_script == "satori_fast"
    check_own(tuple(options.training_script_args), tmp_path)


@of_program("python")
def test_python(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, subject, *rest = command.words[1:]
    if kind == "-c":
        exec(compile(subject, command.place, "exec"), {})
        return
    assert kind == "-m"
    if subject == "satori_fast":
        loaded(tuple(rest))
    elif subject == "pytest":
        paths = [word.partition("::")[0] for word in rest if "/" in word]
        assert [path for path in paths if not Path(path).exists()] == []
    elif subject in WITHOUT_OPTIONS:
        assert importlib.util.find_spec(subject) is not None and not rest
    else:
        monkeypatch.setattr(sys, "argv", [subject, "--help"])
        with pytest.raises(SystemExit) as caught:
            runpy.run_module(subject, run_name="__main__")
        assert caught.value.code == 0
        known = capsys.readouterr().out
        if subject == "satori_fast.rollout.vllm_server":
            known += flags_of_vllm()
        assert [word for word in rest if word.startswith("--") and word not in known] == []


def flags_of_vllm() -> str:
    """A text with every flag of vLLM's server in it; with all of ours where it is not installed."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        return " ".join(word for command in COMMANDS for word in command.words)
    folder = Path(found.submodule_search_locations[0])
    text = (folder / "engine" / "arg_utils.py").read_text(encoding="utf-8")
    flags = set(re.findall(r'"(--[\w-]+)"', text)) | {"--host", "--port"}
    return " ".join([*flags, *(flag.replace("--", "--no-", 1) for flag in flags)])


@of_program("make")
def test_make(command: Command) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    target, *settings = command.words[1:]
    assert re.search(rf"^{re.escape(target)}:", makefile, flags=re.MULTILINE)
    for setting in settings:
        name, _, value = setting.partition("=")
        assert re.search(rf"^{name} \?=", makefile, flags=re.MULTILINE), f"no variable {name}"
        if target == "bench" and value.startswith("-k "):
            word = value.removeprefix("-k ")
            names = [path.name for path in (ROOT / "benchmarks").glob("bench_*.py")]
            assert any(word in name for name in names)


@of_program("pip")
def test_pip(command: Command) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert command.words[1] == "install"
    for word in command.words[2:]:
        extras = re.fullmatch(r"(?:\.|satori[-_]fast)\[([\w,-]+)\]", word)
        if extras:
            assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


@of_program("vllm")
def test_vllm(command: Command) -> None:
    assert command.words[1] == "serve" and not command.words[2].startswith("-")
    known = flags_of_vllm().split()
    assert [w for w in command.words if w.startswith("--") and w not in known] == []


# --- commands that are run -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SmallRun:
    """A finished run of all of Satori's stages but the rounds, the config it was made with, and in
    its folder an evaluation of it by the name of the one in docs/evaluation.md."""

    config: Path
    folder: Path

    def said_of_this(self, words: tuple[str, ...], folder: Path) -> list[str]:
        """A documented command about some run. What it writes goes to `folder`."""
        verb, *rest = words
        named = list(dict.fromkeys(re.findall(r"\bruns/[\w.-]+", " ".join(rest))))
        for number, name in enumerate(named):
            here = self.folder if number == 0 else self._copy(folder / Path(name).name)
            rest = [re.sub(rf"^{re.escape(name)}(?=/|$)", str(here), word) for word in rest]
        if verb == "eval":  # of the last model, in place of any
            return [verb, str(self.config), "--model", str(self.folder / "models" / "reinforce")]
        if verb == "export":
            stage = ["--stage", "reinforce"] if "--stage" in rest else []
            return [verb, rest[0], str(folder / rest[1]), *stage]
        if verb == "report":
            folders = rest[: rest.index("--output")] if "--output" in rest else rest
            output = rest[-1] if "--output" in rest else "page.html"
            return [verb, *folders, "--output", str(folder / output)]
        return [verb, *rest]

    def _copy(self, folder: Path) -> Path:
        """Another run with the same records."""
        ignored = shutil.ignore_patterns("models", "checkpoints")
        return shutil.copytree(self.folder, folder, ignore=ignored, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """`satori-fast run configs/satori/quickstart.toml`, shrunk, without its second round (which
    `tests/stages/test_dry_run.py` goes through) and with an evaluation in each step."""
    folder = tmp_path_factory.mktemp("runs")
    stages = '["synthesize", "supervised", "preference", "reinforce"]'
    overrides = ["--stages", stages, "--reinforce.evaluate_every", "1"]
    config = shrunk(load_config(ROOT / "configs/satori/quickstart.toml", overrides), str(folder))
    path = folder / "small.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert cli.main(["run", str(path)]) == 0
    run = folder / config.name
    asked = ["--benchmarks", "heldout", "--protocol", "config", "--config", str(path)]
    output = ["--limit", "4", "--output", str(run / "evaluations" / "reinforce-s2r")]
    assert cli.main(["eval", str(run), *asked, *output]) == 0
    return SmallRun(path, run)


def test_a_finished_run_is_resumed(small_run: SmallRun) -> None:
    before = (small_run.folder / "metrics.jsonl").read_bytes()
    assert cli.main(["run", str(small_run.config), "--resume"]) == 0
    assert (small_run.folder / "metrics.jsonl").read_bytes() == before
    wanted = {"config.toml", "summary.json", "metrics.jsonl", "samples.jsonl", "report.html"}
    assert wanted <= {path.name for path in small_run.folder.iterdir()}


def test_a_stage_begins_again_with_the_samples_of_another_run(small_run: SmallRun) -> None:
    """docs/satori_7b.md, "When accuracy falls"."""
    first, again = small_run.folder, small_run.folder.parent / "again"
    samples = Path("solutions") / "supervised.jsonl"
    (again / "solutions").mkdir(parents=True)
    shutil.copy(first / samples, again / samples)
    words = ["--name", "again", "--stages", '["reinforce"]']
    words += ["--model.path", str(first / "models" / "supervised")]
    words += ["--reward.model", str(first / "models" / "preference")]
    assert cli.main(["run", str(small_run.config), *words, "--reinforce.num_steps", "1"]) == 0
    (stage,) = json.loads((again / "summary.json").read_text(encoding="utf-8"))["stages"]
    assert "rollout" in stage["seconds"] and "solutions" not in stage["seconds"]


def test_commands_about_a_run(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verbs = ("report", "export", "show", "eval")
    seen: set[tuple[str, ...]] = set()
    for command in COMMANDS:
        if command.program != "satori-fast" or command.words[1] not in verbs:
            continue
        words = tuple(QUICKSTART if word in OWN_CONFIGS else word for word in command.words[1:])
        about_this = tuple(small_run.said_of_this(words, tmp_path))
        if about_this not in seen:
            assert cli.main(about_this) == 0, f"{command}: {capsys.readouterr().err}"
        seen.add(about_this)
    assert {words[0] for words in seen} == set(verbs)


# --- blocks --------------------------------------------------------------------------------------


def marked(language: str) -> Any:
    # Blocks that use the whole package are run where they have a run: tests/test_api.py and
    # tests/architecture/test_tutorial.py.
    chosen = [
        block
        for block in BLOCKS
        if block.language == language
        and not block.text.startswith("import satori_fast")
        and block.document.name != "tutorial.md"
    ]
    return pytest.mark.parametrize("block", chosen, ids=lambda block: block.place)


def test_blocks_have_known_marks() -> None:
    marks = {"", "sh", "toml", "json", "jsonl", "text", "python"}
    assert [block.place for block in BLOCKS if block.language not in marks] == []


@marked("toml")
def test_settings_load(block: Block, tmp_path: Path) -> None:
    """Of a whole config or a part of one."""
    path = tmp_path / "config.toml"
    text = block.text.replace('base = "configs/', f'base = "{ROOT}/configs/')
    if "schema_version" not in text:
        text = f'schema_version = 1\nbase = "{ROOT / QUICKSTART}"\n{text}'
    path.write_text(text, encoding="utf-8")
    load_config(path)


@marked("python")
def test_code_runs_and_reward_functions_give_numbers(block: Block) -> None:
    names: dict[str, Any] = {}
    exec(compile(block.text, block.place, "exec"), names)
    for function in re.findall(r"^def (\w+)\(trajectories\)", block.text, flags=re.MULTILINE):
        with GradingPool(0) as pool:
            trajectories = score([make_trajectory(2, [300, 300])], [OutcomeReward(pool)])
            assert len(checked_values(names[function](trajectories), trajectories)) == 1


@marked("json")
def test_a_prompt_is_the_one_that_models_are_trained_with(block: Block) -> None:
    value = json.loads(block.text)
    if "prompt" in value:
        before, after = SATORI_TEMPLATE.format(question="\0").split("\0")
        assert value["prompt"].startswith(before) and value["prompt"].endswith(after)


# --- names ---------------------------------------------------------------------------------------

PARTS = (
    "rollout|update|critic|reward|reward_model|eval|evaluate|step|logprob|sync|sample|host|device"
    "|grading|preference|validate|solutions|synthesize|pack"
)


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_every_key_exists(document: Path) -> None:
    """`section.key`, with or without a value; a module's name is no key."""
    keys = {key for key, _, _ in describe(Config.example())}
    sections = {key.partition(".")[0] for key in keys if "." in key}
    unknown = []
    for line, code in inline_code(document):
        match = re.fullmatch(r"(?:--)?((\w+)(?:\.\w+)+)(?: ?= ?.+| .+)?", code)
        if match is None or match[2] not in sections or match[1] in keys:
            continue
        if match[1].endswith((".json", ".h", ".safetensors")):
            continue
        is_section = any(key.startswith(f"{match[1]}.") for key in keys)
        module = ROOT / "satori_fast" / Path(*match[1].split("."))
        is_module = any(path.with_suffix(".py").exists() for path in (module, module.parent))
        if not (is_section or is_module):
            unknown.append(f"line {line}: {code}")
    assert unknown == []


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_every_metric_exists(document: Path, small_run: SmallRun) -> None:
    """`part/what` is written by a small run, by one of several ranks, or stands in the sources."""
    text = (small_run.folder / "metrics.jsonl").read_text(encoding="utf-8")
    written = {name for line in text.splitlines() for name in json.loads(line)}
    paths = (ROOT / "satori_fast").rglob("*.py")
    sources = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    written |= {f"{span}/seconds" for span in re.findall(r'\.span\("(\w+)"\)', sources)}
    written |= {f"{name}{end}" for name in written for end in ("_max", "_mean", "_per_device")}
    unknown = [
        f"line {line}: {code}"
        for line, code in inline_code(document)
        if re.fullmatch(rf"(?:{PARTS})/[a-z_]+", code)
        and code not in written
        and not re.search(rf"\b{code}\b", sources)
    ]
    assert unknown == []


# --- figures that are arithmetic -----------------------------------------------------------------

PLANS = [command for command in COMMANDS if command.words[:2] == ("satori-fast", "plan")]
LAYOUTS = ROOT / "docs" / "layout_and_engine.md"


def rows_of(document: Path) -> list[list[str]]:
    """Cells of every row of the tables of a document."""
    lines = document.read_text(encoding="utf-8").splitlines()
    return [[c.strip() for c in x.strip("|").split("|")] for x in lines if x.startswith("| ")]


@pytest.mark.parametrize(("dtype", "num_bytes"), [(torch.bfloat16, 18), (torch.float32, 16)])
def test_bytes_of_a_trained_parameter(dtype: torch.dtype, num_bytes: int) -> None:
    """What the page on layouts counts with: weight, gradient, the optimizer's copy, two moments."""
    initialize_parallel()
    sizes = {"vocab_size": 256, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True}
    hf_config = AutoConfig.for_model("qwen2", **sizes, **heads)
    learner = build_learner(hf_config, optimizer=OptimizerSettings(1e-3), dtype=dtype)
    parameters = list(learner.module.parameters())
    for parameter in parameters:
        parameter.main_grad.fill_(0.1)  # type: ignore[attr-defined]
    assert learner.optimizer is not None
    learner.optimizer.step()
    (adam,) = learner.optimizer.megatron.chained_optimizers
    held = [*parameters, *(buffer.grad_data for buffer in learner.models[0].buffers)]  # type: ignore[union-attr]
    held += [p for group in adam.optimizer.param_groups for p in group["params"]]
    held += [moment for state in adam.optimizer.state.values() for moment in state.values()]
    storages = {
        tensor.untyped_storage().data_ptr(): tensor for tensor in held if tensor.numel() > 1
    }
    total = sum(tensor.untyped_storage().nbytes() for tensor in storages.values())
    assert total / sum(p.numel() for p in parameters) == pytest.approx(num_bytes, rel=2e-2)


@pytest.mark.parametrize("name", ["qwen2.5-1.5b", "qwen2.5-7b"])
def test_plans_count_the_parameters_of_transformers(name: str) -> None:
    sizes = KNOWN[name]
    hf_config = AutoConfig.for_model(
        "qwen2",
        vocab_size=sizes.shape.num_logits,
        hidden_size=sizes.shape.hidden_size,
        num_hidden_layers=sizes.shape.num_layers,
        num_attention_heads=sizes.shape.num_heads,
        num_key_value_heads=sizes.shape.num_kv_heads,
        intermediate_size=sizes.shape.intermediate_size,
        tie_word_embeddings=sizes.tied,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config)
    model.tie_weights()
    assert sizes.num_parameters() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["Qwen2.5-1.5B", "Qwen2.5-7B"])
def test_memory_of_models(name: str) -> None:
    """Bytes of a trained and of a frozen parameter, by `planning`."""
    sizes = KNOWN[name.lower()]
    policy, critic = sizes.num_parameters(), sizes.num_parameters("scalar")
    trained, frozen = parameter_bytes("bfloat16").total, parameter_bytes("bfloat16").weight
    rows = [row for row in rows_of(LAYOUTS) if row[0] == name and len(row) == 8]
    parts = [trained * policy, trained * critic, frozen * critic]
    assert rows[0][1] == f"{policy / 1e9:.3f} B"
    assert rows[0][2:6] == [f"{x / 1e9:.1f} GB" for x in (*parts, sum(parts))]
    layouts = {
        "1": Layout(),
        "tensor 2": Layout(tensor=2),
        "tensor 4": Layout(tensor=4),
        "tensor 4, data 2": Layout(tensor=4, data=2, shard_optimizer=True),
        "tensor 4, pipeline 2": Layout(tensor=4, pipeline=2),
    }
    for row in rows:
        layout = layouts[row[6]]
        each = parameter_bytes("bfloat16", layout).total
        total = each * (policy + critic) + frozen * critic
        assert row[7] == f"{total / layout.model_size / 1e9:.1f} GB"


@pytest.mark.parametrize(
    ("name", "where", "layout"),
    [
        ("Qwen2.5-1.5B", "one GPU", Layout()),
        ("Qwen2.5-7B", "tensor 4", Layout(tensor=4, sequence=True)),
    ],
)
def test_memory_of_activations(name: str, where: str, layout: Layout) -> None:
    (row,) = [row for row in rows_of(LAYOUTS) if row[0] == f"{name}, {where}"]
    sizes = KNOWN[name.lower()]
    layers, megabytes, gigabytes = sizes.shape.num_layers, [], []
    for recompute in ("none", "selective", "full"):
        numbers = layer_numbers(sizes, replace(layout, recompute=recompute))
        kept, again = 2 * layers * numbers.kept, 2 * numbers.again
        shown = f"{kept / 1e6:.3f} MB and {again / 1e6:.3f} MB of a layer"
        megabytes.append(shown if recompute == "full" else f"{kept / 1e6:.2f} MB")
        # What "selective" makes again is there when the rest is gone.
        whole = kept + again if recompute == "full" else kept
        gigabytes.append(f"{16.384 * whole / 1e6:.1f} GB")
    assert row[1:] == [*megabytes, *gigabytes]


def printed(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(list(words)) == 0
    return capsys.readouterr().out


def test_a_plan_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    command, shown = next(
        (block, after)
        for block, after in pairwise(blocks(LAYOUTS))
        if block.text.startswith("satori-fast plan ") and after.language == "text"
    )
    assert printed(tuple(command.text.split()[1:]), capsys) == shown.text


def test_layouts_of_three_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    commands = {tuple(c.words[1:]): None for c in PLANS if c.place.startswith("docs/layout")}
    plans = [
        json.loads(printed((*words, "--json"), capsys)) for words in commands if "--gpus" in words
    ]
    text = LAYOUTS.read_text(encoding="utf-8")
    assert [plan["num_gpus"] for plan in plans] == [8, 64, 256]
    assert all(plan["asked"]["fits"] and row_of_plan(plan) in text for plan in plans)


def row_of_plan(plan: dict[str, Any]) -> str:
    """A row of the table of layouts, from a plan's JSON."""

    def sizes(candidate: dict[str, Any]) -> str:
        layout = candidate["layout"]
        split = "-".join(str(layout[name]) for name in ("tensor", "pipeline", "data"))
        assert layout["shard_optimizer"] and layout["sequence"]
        return split if layout["recompute"] == "none" else f"{split}, {layout['recompute']}"

    asked, best = plan["asked"], plan["fitting"][0]
    layout = asked["layout"]
    trainers = layout["tensor"] * layout["pipeline"] * layout["data"]
    seconds = sum(part["seconds"] for part in asked["step"].values())
    cells = [
        f"{plan['num_parameters'] / 1e9:.1f} B",
        f"{trainers} + {plan['num_gpus'] - trainers}",
        sizes(asked),
        f"{asked['peak_bytes'] / 1e9:.1f} GB",
        f"{seconds:.0f} s",
        f"{asked['tokens_per_s']:,.0f}",
        sizes(best),
        f"{best['tokens_per_s']:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


# --- the reader of documents itself --------------------------------------------------------------

DOCUMENT = """\
Inline: `make
lint`, `OMP_NUM_THREADS=1 python -m pytest`, ``not `make this` ``, `make_this`.

```
$ satori-fast show      # a remark
satori-fast run a.toml \\
    --name b &
```

```
reads   like a table
it's    text
```

    make test ARGS="-k x"

```sh
unheard-of command
```
"""


def test_reader_of_commands(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(DOCUMENT, encoding="utf-8")
    found = [(command.place, command.words) for command in commands(path)]
    assert found == [
        ("page.md:5", ("satori-fast", "show")),
        ("page.md:5", ("satori-fast", "run", "a.toml", "--name", "b")),
        ("page.md:15", ("make", "test", "ARGS=-k x")),
        ("page.md:18", ("unheard-of", "command")),
        ("page.md:1", ("make", "lint")),
        ("page.md:2", ("python", "-m", "pytest")),
    ]
    assert [block.line for block in blocks(path)] == [5, 11, 15, 18]
