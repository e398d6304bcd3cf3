# SPDX-License-Identifier: Apache-2.0
"""The parts of a run: problems, read and checked once and kept in its folder; and a model folder of
somebody else, its stop tokens, its tokenizer and its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.config import Config, ConfigError, load_config
from satori_fast.data.arithmetic import domain_words
from satori_fast.data.domains import DOMAINS
from satori_fast.data.formats import FORMATS
from satori_fast.data.formats.coat import META_ACTION_TOKENS
from satori_fast.data.prompts import PLAIN_TEMPLATE, SATORI_TEMPLATE, PromptRenderer
from satori_fast.data.tokenizer import (
    add_special_tokens,
    build_word_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from satori_fast.rollout.engine import SamplingParams, collect
from satori_fast.stages.context import Context
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.models import tokens_unknown_to
from satori_fast.stages.run import Run, build_run
from satori_fast.stages.setup import (
    build_problems,
    build_renderer,
    check_sources,
    keep_tokenizer,
    write_tokenizer,
)
from satori_fast.types import Problem, Trajectory
from tests.rollout.test_distributed import on_ranks
from tests.stages.test_run import TINY
from tests.tiny_models import tiny_model

CONFIG = """
schema_version = 1
name = "tiny"
stages = ["reinforce"]
[tokenizer]
kind = "words"
[data]
template = "plain"
mapping = "math500"
max_prompt_tokens = 8
[reward]
num_workers = 0
timeout_s = 0.5
"""

Halves = tuple[Sequence[Problem], Sequence[Problem]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "sums.jsonl", [f"\\frac{{{i}}}{{7}}" for i in range(50)])


def write(path: Path, answers: list[Any]) -> Path:
    rows = [
        {"problem": f"what is {i}", "answer": answer, "level": i % 5}
        for i, answer in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(source: Path, *overrides: str) -> Config:
    path = source.parent / "tiny.toml"
    path.write_text(CONFIG)
    return load_config(path, ["--data.source", f"'{source}'", *overrides])


def problems_of(config: Config, folder: Path, *, parallel: Any = None) -> Halves:
    tokenizer = folder / "tokenizer"
    if not tokenizer.exists():
        made = build_word_tokenizer(["what", "is", *map(str, range(50))])
        add_special_tokens(made, META_ACTION_TOKENS)
        made.save_pretrained(tokenizer)
    longest = config.data.max_prompt_tokens
    renderer = PromptRenderer(load_tokenizer(tokenizer), PLAIN_TEMPLATE, longest)
    return build_problems(
        config,
        renderer,
        folder=folder,
        tokenizer=tokenizer,
        parallel=parallel or initialize_parallel(),
    )


def test_problems_are_kept_and_read_back(source: Path, tmp_path: Path) -> None:
    training, heldout = problems_of(config_of(source), tmp_path)
    assert len(training) + len(heldout) == 50 and min(len(training), len(heldout)) > 0
    assert {p.level for p in training} == set("01234")
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert names == {"train.jsonl", "heldout.jsonl", "key.json"}
    kept = (tmp_path / "data" / "key.json").stat().st_mtime_ns
    assert problems_of(config_of(source), tmp_path) == (training, heldout)
    assert (tmp_path / "data" / "key.json").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("contents", "contents of"),
        ("--data.num_train=5", "data.num_train"),
        ("--evaluation.num_problems=3", "evaluation.num_problems"),
        ("--data.max_prompt_tokens=7", "data.max_prompt_tokens"),
        ("tokenizer", "tokenizer"),
    ],
)
def test_another_source_or_setting_reads_again(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str, named: str
) -> None:
    problems_of(config_of(source), tmp_path)
    overrides = list[str]()
    if change == "contents":
        write(source, [f"{i}" for i in range(50)])
    elif change == "tokenizer":
        (tmp_path / "tokenizer" / "chat_template.jinja").write_text("x")
    else:
        overrides = change.split("=")
    training, heldout = problems_of(config_of(source, *overrides), tmp_path)
    assert f"{tmp_path / 'data'}: the problems are read again, because of: {named}" in caplog.text
    if change == "contents":
        assert all(p.answer == p.question.split()[-1] for p in [*training, *heldout])


def test_one_process_reads_and_all_have_the_problems(source: Path, tmp_path: Path) -> None:
    problems_of(config_of(source), tmp_path / "alone")
    folder = tmp_path / "both"
    (folder / "tokenizer").mkdir(parents=True)
    for path in (tmp_path / "alone" / "tokenizer").iterdir():
        (folder / "tokenizer" / path.name).write_bytes(path.read_bytes())
    config = config_of(source)
    first, second = on_ranks(lambda rank: problems_of(config, folder, parallel=rank))
    assert first == second == problems_of(config, tmp_path / "alone")


def test_a_gold_that_cannot_be_worked_out_costs_its_time_limit(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    endless = [r"\binom{2000000}{1000000}", "(" * 5000 + "x" + ")" * 5000]
    write(source, [*(f"\\frac{{{i}}}{{7}}" for i in range(40)), *endless])
    training, heldout = problems_of(config_of(source, "--reward.num_workers", "1"), tmp_path)
    answers = {p.answer for p in [*training, *heldout]}
    assert answers == {f"\\frac{{{i}}}{{7}}" for i in range(40)}
    assert "2 of 42 rows skipped: 2 x answer cannot be graded (row 41: " in caplog.text


# --- a model folder of somebody else ---

TOKENIZER = build_word_tokenizer(domain_words())
GREEDY = SamplingParams(temperature=0, max_new_tokens=20)


def run_config(folder: Path, model: Path, *overrides: str) -> Config:
    path = folder / "tiny.toml"
    path.write_text(TINY)
    options = ("--output_dir", f"'{folder}'", "--tokenizer.kind", "model")
    return load_config(path, [*options, "--model.path", f"'{model}'", *overrides])


def model_in(folder: Path, **generation: Any) -> Path:
    model = tiny_model("qwen2", vocab_size=len(TOKENIZER), eos_token_id=0, pad_token_id=0)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_a_model_keeps_the_ids_that_it_knows(tmp_path: Path) -> None:
    """Of a word list with all words of the domain both kinds are the same; of text none is."""
    model = model_in(tmp_path / "model")
    kept = (tmp_path / "model" / "tokenizer.json").read_text()
    for kind in ("model", "words"):
        config = run_config(tmp_path, model, "--tokenizer.kind", kind)
        write_tokenizer(config, tmp_path / kind)
        assert json.loads((tmp_path / kind / "tokenizer.json").read_text()) == json.loads(kept)
    chains = ("--data.source", "chains", "--data.levels", "[4]", "--tokenizer.kind", "words")
    for more in (chains, ("--data.source", "a.jsonl", "--tokenizer.kind", "bpe")):
        config = run_config(tmp_path, model, *more)
        with pytest.raises(
            ConfigError, match=r"has a tokenizer of its own, .*: take tokenizer\.kind"
        ):
            write_tokenizer(config, tmp_path / "other")


def test_a_model_without_a_tokenizer_gets_one_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    config = run_config(tmp_path, tmp_path / "bare")
    with pytest.raises(
        ConfigError, match=r"bare' has no tokenizer: copy its tokenizer\.json there"
    ):
        write_tokenizer(config, tmp_path / "out")
    config = run_config(tmp_path, tmp_path / "bare", "--tokenizer.kind", "words")
    write_tokenizer(config, tmp_path / "out")
    assert len(load_tokenizer(tmp_path / "out")) == len(TOKENIZER)


def context_of(run: Run) -> Context:
    return run.context(plan_stages(run.config)[-1])


def greedy(run: Run) -> tuple[Trajectory, ...]:
    context = context_of(run)
    engine = context.engine(context.model_folders.policy(context.policy_folder))
    return collect(engine, run.problems[:6], GREEDY).trajectories


def by_transformers(folder: Path, trajectory: Trajectory) -> list[int]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    prompt = torch.tensor(trajectory.tokens[None, : trajectory.prompt_len], dtype=torch.long)
    out = model.generate(prompt, do_sample=False, max_new_tokens=GREEDY.max_new_tokens)
    return out[0, trajectory.prompt_len :].tolist()


@pytest.mark.slow
def test_a_run_stops_where_the_model_stops_and_so_do_its_exports(tmp_path: Path) -> None:
    free = model_in(tmp_path / "free", eos_token_id=0)
    with build_run(run_config(tmp_path, free, "--name", "first")) as run:
        responses = [t.response_tokens.tolist() for t in greedy(run)]
    halt = next(i for i in responses[0][4:] if i > len(META_ACTION_TOKENS) + 1)
    source = model_in(tmp_path / "source", eos_token_id=[0, halt], top_k=7, do_sample=True)
    config = run_config(tmp_path, source, "--name", "run")
    exported = tmp_path / "exported"
    with build_run(config) as run:
        assert run.renderer.stop_ids == (0, halt)
        sampled = greedy(run)
        assert "stop" in {t.finish for t in sampled}
        for trajectory in sampled:
            tokens = trajectory.response_tokens.tolist()
            assert tokens == by_transformers(source, trajectory)
            stopped = tokens[-1] in (0, halt)
            assert trajectory.finish == ("stop" if stopped else "length")
            assert not {0, halt} & set(tokens[:-1])
        models = context_of(run).model_folders
        models.export(models.policy(run.models["policy"]), exported)
    for trajectory in sampled:
        assert by_transformers(exported, trajectory) == trajectory.response_tokens.tolist()
    kept = GenerationConfig.from_pretrained(exported)
    assert (kept.eos_token_id, kept.top_k, kept.do_sample) == ([0, halt], 7, True)
    assert json.loads((exported / "config.json").read_text())["eos_token_id"] == [0, halt]
    # A resumed run, and one that starts from the export, stop there too.
    with build_run(config, resume=True) as run:
        assert run.renderer.stop_ids == (0, halt)
    with build_run(run_config(tmp_path, exported, "--name", "next")) as run:
        assert run.renderer.stop_ids == (0, halt)
        again = [t.response_tokens.tolist() for t in greedy(run)]
        assert again == [t.response_tokens.tolist() for t in sampled]


@pytest.mark.parametrize("kind", ["policy", "scalar"])
def test_damaged_weights_are_refused_with_folder_and_tensor(tmp_path: Path, kind: Any) -> None:
    folder = model_in(tmp_path / "damaged", eos_token_id=0)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with (
        build_run(run_config(tmp_path, folder)) as run,
        pytest.raises(ValueError, match=r"damaged: tensor model\.layers\.0\.mlp\.up_proj\.weight"),
    ):
        models = context_of(run).model_folders
        load = models.policy if kind == "policy" else models.scalar
        load(run.models["policy"])


def test_markers_of_the_template_that_are_no_tokens_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(tmp_path, tmp_path, "--data.template", "satori")
    train_tokenizer([SATORI_TEMPLATE], 300, special_tokens=META_ACTION_TOKENS).save_pretrained(
        tmp_path
    )
    build_renderer(config, tmp_path)
    assert "no single token for <|im_start|>, <|im_end|>" in caplog.text
    assert load_tokenizer(tmp_path).eos_token_id == 0
    caplog.clear()
    build_renderer(run_config(tmp_path, tmp_path, "--data.template", "plain"), tmp_path)
    assert not caplog.text


# --- prompts and stop tokens of a model ---


def test_a_chat_template_that_the_tokenizer_lacks_is_refused_before_a_model_loads(
    tmp_path: Path,
) -> None:
    TOKENIZER.save_pretrained(tmp_path / "model")  # and no model beside it
    config = run_config(tmp_path, tmp_path / "model", "--data.template", "chat")
    with pytest.raises(ConfigError, match="tokenizer has no chat template: take a model"):
        build_run(config)


def test_a_run_asks_in_the_chat_template_with_its_system_turn(tmp_path: Path) -> None:
    tokenizer: Any = train_tokenizer([SATORI_TEMPLATE] * 4, 400)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    options = ("--data.template", "chat", "--data.system", "Box it.", "--data.format", "plain")
    config = run_config(tmp_path, tmp_path, "--stages", '["reinforce"]', *options)
    renderer = build_renderer(config, tmp_path)
    text = renderer.decode(renderer.prompt_ids(Problem("1", "1 + 1", "2")))
    assert text == (
        "<|im_start|>system\nBox it.<|im_end|>\n<|im_start|>user\n1 + 1<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert renderer.format is FORMATS["plain"]


def test_stop_tokens_of_the_config_end_responses_and_go_into_exports(tmp_path: Path) -> None:
    word = domain_words()[0]
    stop = TOKENIZER.get_vocab()[word]
    source = model_in(tmp_path / "source", eos_token_id=0)
    options = ("--rollout.stop_tokens", f'["{word}"]')
    exported = tmp_path / "exported"
    with build_run(run_config(tmp_path, source, *options)) as run:
        assert run.renderer.stop_ids == (0, stop)
        for trajectory in greedy(run):
            tokens = trajectory.response_tokens.tolist()
            assert stop not in tokens[:-1]
            # The sampled one is a token of the last segment, and no text.
            assert trajectory.segments[-1].stop == len(tokens)
            ended = (tokens[-1] in (0, stop)) == (trajectory.finish == "stop")
            assert ended and not trajectory.segments[-1].text.endswith(word)
        models = context_of(run).model_folders
        models.export(models.policy(run.models["policy"]), exported)
    assert GenerationConfig.from_pretrained(exported).eos_token_id == [0, stop]
    with pytest.raises(ConfigError, match=r"rollout\.stop_tokens: 'no such' is 2 tokens"):
        build_renderer(run_config(tmp_path, source, "--rollout.stop_tokens", "['no such']"), source)


def test_meta_actions_are_tokens_of_coat_alone(tmp_path: Path) -> None:
    tokenizer = build_word_tokenizer(["a", "reflect"], ())
    tokenizer.save_pretrained(tmp_path / "model")
    for name in ("coat", "plain"):
        special = FORMATS[name].special_tokens
        keep_tokenizer(tmp_path / "model", tmp_path / name, special)
        kept = load_tokenizer(tmp_path / name)
        assert len(kept) == len(tokenizer) + len(special)
        renderer = PromptRenderer(kept, PLAIN_TEMPLATE, 8, format=FORMATS[name])
        unknown = tokens_unknown_to(tmp_path / "model", renderer)
        assert sorted(unknown) == sorted(renderer.special_ids.values())
        for token, number in renderer.special_ids.items():
            word = tokenizer.get_vocab().get(token.strip("<|>"))
            assert unknown[number] == (() if word is None else (word,))
        assert tokens_unknown_to(tmp_path / name, renderer) == {}


@pytest.mark.parametrize("name", ["arithmetic", "chains"])
def test_a_word_tokenizer_has_the_words_of_domain_and_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    config = load_config(path, ["--data.source", name])
    write_tokenizer(config, tmp_path / "plain")
    before = load_tokenizer(tmp_path / "plain").get_vocab()
    words = DOMAINS[name].words
    assert words is not None and set(words()) < set(before) and "wait" not in before
    # One of the format's words is the domain's too: it is not listed twice.
    monkeypatch.setattr(type(FORMATS["coat"]), "words", ("wait", "right"))
    write_tokenizer(config, tmp_path / "more")
    after = load_tokenizer(tmp_path / "more").get_vocab()
    assert after == before | {"wait": len(before)}


def test_a_bpe_tokenizer_learns_from_the_experts_of_a_domain_in_english(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.replace('kind = "words"', 'kind = "bpe"'))
    config = load_config(path, ["--data.source", "word_problems", "--data.num_train", "50"])
    write_tokenizer(config, tmp_path / "english")
    tokenizer = load_tokenizer(tmp_path / "english")
    text = "She finds 10 more, so she has 14 + 10 = 24 shells. The answer is \\boxed{24}."
    ids = tokenizer(text).input_ids
    # Words of the solutions are tokens; letter by letter there would be 76.
    assert tokenizer.decode(ids) == text and len(ids) < 40


def test_a_source_that_cannot_be_one_is_refused_by_its_key(tmp_path: Path) -> None:
    config = config_of(tmp_path / "sums.jsonl")
    with pytest.raises(ConfigError, match=r"data\.source: data file .*sums\.jsonl does not exist"):
        check_sources(config)
    config = load_config(
        tmp_path / "tiny.toml", ["--data.source", "arithmetic", "--data.num_train", "5"]
    )
    check_sources(config)
    check_sources(config.with_set(data=config.data.with_set(source="chains")))
    listed = "[{ source = 'gsm8k' }, { source = 'gsm9k' }]"
    pool = ("--data.sources", listed, "--tokenizer.kind", "bpe")
    with pytest.raises(ConfigError, match=r"data\.sources: 'gsm9k' is neither .* is 'gsm8k'"):
        check_sources(load_config(tmp_path / "tiny.toml", pool))
    evaluated = config.with_set(data=config.data.with_set(eval_source="arithmetic"))
    with pytest.raises(ConfigError, match=r"data\.eval_source: 'arithmetic' is neither"):
        check_sources(evaluated)
