# SPDX-License-Identifier: Apache-2.0
"""The training that both sides do: what they are given, and a tiny one for real."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import measure
from benchmarks.peers.samples import FOLDER, Replay, keep
from benchmarks.peers.task import Task, task_config, task_of
from benchmarks.real_model import CONFIG, compare, earlier, joined, page, train
from satori_fast.config import load_config
from satori_fast.data.word_problems import WordProblems
from satori_fast.rewards.length import LengthPenalty
from satori_fast.rollout.engine import Engine, Request, SamplingParams
from tests.tiny_models import save_chat_model

SMALL = """
schema_version = 1
base = "{base}"
name = "small"
[rollout]
max_seqlen = 460
max_new_tokens = 60
[data]
num_train = 20
max_prompt_tokens = 400
[model]
dtype = "float32"
[reinforce]
num_steps = 2
problems_per_step = 4
samples_per_problem = 4
[evaluation]
num_problems = 6
"""

HAS_TRL = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
LEVELS = load_config(Path(CONFIG)).data.levels


@pytest.fixture
def small(tmp_path: Path) -> tuple[str, str]:
    """A config file and a model folder."""
    config = tmp_path / "small.toml"
    config.write_text(SMALL.format(base=Path(CONFIG).resolve()))
    problems = WordProblems(40, levels=LEVELS, split="train", seed=0)
    texts = [f"{problem.question} \\boxed{{{problem.answer}}}" for problem in problems]
    return str(config), str(save_chat_model(tmp_path / "model", texts, max_position_embeddings=512))


def test_questions_are_the_configs_training_problems(small: tuple[str, str]) -> None:
    config, model = small
    task = task_of(config, model, steps=3, seed=1, title="t")
    assert (len(task.questions), task.num_rows, task.max_tokens) == (12, 16, 60)
    drawn = list(WordProblems(12, levels=LEVELS, split="train", seed=1))
    assert [question for question, _ in task.problems(2)] == [p.question for p in drawn[8:]]
    assert task.system is not None and "\\boxed{}" in task.system
    assert task.kl == load_config(Path(CONFIG)).reinforce.kl_coefficient == 0.01
    without = task_of(config, model, "--reinforce.kl_coefficient", "0", steps=3, seed=1, title="t")
    assert without == replace(task, kl=0.0)
    plain = task_config(config, model)
    assert not plain.restarts_enabled and plain.reinforce.weighting == "token"


def test_a_task_reads_back_as_it_was_written(small: tuple[str, str], tmp_path: Path) -> None:
    task = task_of(*small, steps=2, seed=0, title="t")
    task.write(tmp_path / "task.json")
    assert Task.read(tmp_path / "task.json") == task


def test_more_steps_lengthen_a_race(small: tuple[str, str]) -> None:
    tasks = [task_of(*small, steps=steps, seed=0, title="t") for steps in (2, 3)]
    assert tasks[1].lengthens(replace(tasks[0], first=1)) and tasks[1].lengthens(tasks[1])
    assert not tasks[0].lengthens(tasks[1])
    assert not replace(tasks[1], learning_rate=1.0).lengthens(tasks[0])


def test_long_answers_are_punished_where_the_config_says_so(small: tuple[str, str]) -> None:
    config, model = small
    assert task_of(config, model, steps=1, seed=0, title="t").penalty
    base = Path(config).read_text()
    Path(config).write_text(base.replace("[reinforce]", "[reinforce]\ntruncated = 'wrong'"))
    assert not task_of(config, model, steps=1, seed=0, title="t").penalty
    Path(config).write_text(base.replace("[reinforce]", "[reinforce]\ntruncated = 'mask'"))
    with pytest.raises(SystemExit, match=r"reinforce\.truncated"):
        task_of(config, model, steps=1, seed=0, title="t")


@HAS_TRL
def test_the_penalty_is_that_of_trl() -> None:
    from trl.rewards import get_soft_overlong_punishment

    theirs = get_soft_overlong_punishment(224, 224 / 5)
    expected = theirs([[1] * length for length in range(1, 225)])
    found = [LengthPenalty(224).of_length(length) for length in range(1, 225)]
    assert found == pytest.approx(expected)


def test_a_race_ends_where_both_have_saved(small: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--steps is 7"):
        train(task_of(*small, steps=7, seed=0, title="t"), tmp_path, core="any")


@pytest.mark.slow
@HAS_TRL
def test_both_train_on_the_same_prompts(small: tuple[str, str], tmp_path: Path) -> None:
    place, whole = tmp_path / "race", tmp_path / "whole"
    place.mkdir()
    whole.mkdir()
    task = replace(task_of(*small, steps=2, seed=0, title="t"), leg=1)
    result = compare(task, place, core="any")
    for side in ("satori", "trl"):
        figures = result["sides"][side]
        records = figures["records"]
        assert len({record["prompts"] for record in records}) == 2
        assert all(16 <= record["completion_tokens"] <= 16 * 60 for record in records)
        assert all(record["tokens"] > record["completion_tokens"] for record in records)
        assert figures["tokens_per_s"]["update"] > 0
        assert (place / f"trained-{side}" / "model.safetensors").exists()
        asked = result["accuracy"][side]
        assert asked["greedy"]["num_problems"] == asked["sampled"]["num_problems"] == 6
    assert result["ratios"]["tokens_per_s"]["step"] > 0
    # Lengthened by a step it is the same training as in one leg.
    longer = replace(task_of(*small, steps=3, seed=0, title="t"), leg=1)
    facts, records = train(longer, place, core="any")
    assert set(facts) == {"satori", "trl"}
    assert all(len(each) == 3 for each in records.values())
    assert records["trl"][:2] == result["sides"]["trl"]["records"]
    train(replace(longer, leg=3), whole, core="any")
    ours = Path("trained-satori") / "model.safetensors"
    assert (whole / ours).read_bytes() == (place / ours).read_bytes()
    theirs = [load_file(each / "trained-trl/model.safetensors") for each in (whole, place)]
    for name, weight in theirs[0].items():
        assert torch.allclose(weight, theirs[1][name], atol=1e-6), name
    with pytest.raises(SystemExit, match="another --folder"):
        train(replace(longer, seed=1), place, core="any")
    # On the samples of the other side the updates are its own.
    replayed = compare(longer, place, sides=("replayed",), core="any")
    theirs, again = records["trl"], replayed["sides"]["replayed"]["records"]
    for field in ("prompts", "completion_tokens", "tokens", "optimizer_steps"):
        assert [each[field] for each in again] == [each[field] for each in theirs], field
    files = [Path(task.model), place / "trained-trl", place / "replayed/trained-replayed"]
    before, *after = (load_file(each / "model.safetensors") for each in files)
    moved = [
        torch.cat([(each[name][: len(x)] - x).flatten() for name, x in before.items()])
        for each in after
    ]
    assert moved[0].abs().max() > 1e-5  # some answers end, the others are too long
    # Ours has three more words for actions, which take some of the probability.
    assert torch.cosine_similarity(*moved, dim=0) > 0.95
    assert set(replayed["accuracy"]) == {"before", "replayed"} and "ratios" not in replayed
    assert set(replayed["sides"]["replayed"]["tokens_per_s"]) == {"update"}


def test_a_replay_follows_a_training_of_as_many_steps(
    small: tuple[str, str], tmp_path: Path
) -> None:
    task = task_of(*small, steps=5, seed=0, title="t")
    keep(tmp_path / FOLDER, 3, [[1]], [[2]])
    with pytest.raises(SystemExit, match="no samples of 5 steps: train there with --sides trl"):
        compare(task, tmp_path, sides=("replayed",), core="any")
    with pytest.raises(SystemExit, match="stands alone"):
        compare(task, tmp_path, sides=("trl", "replayed"), core="any")


def test_a_replay_gives_the_samples_of_its_step(tmp_path: Path) -> None:
    keep(tmp_path / FOLDER, 1, [[1, 2]], [[5, 6, 7]])
    keep(tmp_path / FOLDER, 2, [[1, 2], [3]], [[5, 0], [6]])
    requests = [Request(prompt, 2, stop_ids=(0,), seed=0) for prompt in ((1, 2), (3,))]
    sampling = SamplingParams(max_new_tokens=2)
    engine = Replay(cast(Engine, None), tmp_path / FOLDER, 1)
    with pytest.raises(SystemExit, match=r"1\.json: other prompts"):
        list(engine.generate(requests, sampling))
    found = [completion for _, completion in engine.generate(requests, sampling)]
    assert [each.tokens.tolist() for each in found] == [[5, 0], [6]]
    assert [each.finish for each in found] == ["stop", "length"]


@pytest.mark.slow
def test_one_side_trains_alone(small: tuple[str, str], tmp_path: Path) -> None:
    task = replace(task_of(*small, steps=2, seed=0, title="t"), leg=1)
    result = compare(task, tmp_path, sides=("satori",), core="any")
    assert set(result["accuracy"]) == {"before", "satori"} and "ratios" not in result
    # A leg that was cut off is done again, to the same bits.
    trained, steps = tmp_path / "trained-satori" / "model.safetensors", tmp_path / "steps.json"
    expected, (facts, records) = trained.read_bytes(), json.loads(steps.read_text())
    steps.write_text(json.dumps([facts, {"satori": records["satori"][:1]}]))
    trained.unlink()
    train(task, tmp_path, sides=("satori",), core="any")
    assert trained.read_bytes() == expected
    steps.write_text(json.dumps([facts, records]))
    # What is there is neither trained nor asked again.
    trained.unlink()
    assert compare(task, tmp_path, sides=("satori",), core="any") == result
    with pytest.raises(SystemExit, match="a training by satori"):
        train(task, tmp_path, core="any")


def seed_of(number: int, **right: float) -> dict[str, Any]:
    accuracy = {
        name: {
            manner: {"accuracy": share, "standard_error": 0.02, "mean_tokens": 40.0}
            for manner in ("greedy", "sampled")
        }
        for name, share in {"before": 0.5, **right}.items()
    }
    task = {"seed": number, "first": 5, "steps": 20, "targets": (1.4, 0.7)}
    return {"task": task, "accuracy": accuracy}


def test_the_page_says_how_much_trainings_differ() -> None:
    seeds = {"seed 0": seed_of(0, satori=0.8, trl=0.9), "seed 1": seed_of(1, satori=0.9)}
    lines = page(seeds).splitlines()
    assert lines[0] == "| | seed 0 | seed 1 | mean | deviation |"
    assert "| satori, greedy | 80.0 +- 2.0 | 90.0 +- 2.0 | 85.0 | 7.1 |" in lines
    assert "| trl, sampled | 90.0 +- 2.0 |  | 90.0 |  |" in lines
    assert not any("less" in line or "replayed" in line for line in lines)
    # Deviations of 7.07 points over two trainings: errors of 5 each, and of the difference 7.07.
    seeds["seed 1"] = seed_of(1, satori=0.9, trl=1.0)
    # Two degrees of freedom.
    difference = "trl less satori, greedy: 10.0 +- 7.1 (standard error), 95 % -20.4 to 40.4"
    assert difference in page(seeds).splitlines()


def test_sides_of_a_seed_may_be_trained_one_after_the_other() -> None:
    def of(side: str, commit: str) -> dict[str, Any]:
        said = {"command": f"c --sides {side}", "commit": commit}
        return seed_of(0, **{side: 0.8}) | said | {"sides": {side: {"commit": commit}}}

    ours, theirs = of("satori", "1"), of("trl", "2")
    assert joined(None, ours) == ours and joined(theirs, of("trl", "3")) == of("trl", "3")
    both = joined(ours, theirs)
    assert set(both["sides"]) == {"satori", "trl"} and "ratios" not in both
    assert set(both["accuracy"]) == {"before", "satori", "trl"}
    again = joined(both, of("satori", "4"))
    assert (again["sides"]["satori"], again["sides"]["trl"]) == ({"commit": "4"}, {"commit": "2"})
    assert (both["command"], both["commit"]) == ("c --sides satori; c --sides trl", "1; 2")


def test_seeds_of_one_record_begin_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    first = {"seed 0": seed_of(0, satori=0.8)}
    assert earlier("r", seed_of(1)) == {}
    (tmp_path / "r.json").write_text(json.dumps({"figures": first}))
    assert list(earlier("r", seed_of(1, satori=0.7))) == ["seed 0"]
    # Records from before the KL was said had none.
    alike, longer, held = seed_of(1), seed_of(1), seed_of(1)
    alike["task"]["kl"], longer["task"]["steps"], held["task"]["kl"] = 0.0, 25, 0.01
    assert list(earlier("r", alike)) == ["seed 0"]
    for other in (longer, held):
        with pytest.raises(SystemExit, match="seed 0 is of other settings"):
            earlier("r", other)
