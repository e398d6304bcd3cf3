# SPDX-License-Identifier: Apache-2.0
"""The race: what both sides are given, that unequal work is found, and a tiny race for real."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.race import OURS, THEIRS, check_equal_work, race, summarise
from benchmarks.peers.workload import WORKLOADS, Workload, reward_of

TINY_SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
}
TINY = Workload("tiny", shape=TINY_SHAPE, num_prompts=2, num_samples=4, mean_tokens=6, tail=4)
STEP = {"prompts": "a", "completion_tokens": 5, "tokens": 9, "optimizer_steps": 2}


@pytest.mark.parametrize("name", ["W1", "W2"])
def test_lengths_have_their_mean_and_their_longest(name: str) -> None:
    workload = WORKLOADS[name]
    steps = [workload.lengths(step) for step in range(50)]
    assert all(lengths.max() == workload.max_tokens and lengths.min() >= 1 for lengths in steps)
    assert np.mean(steps) == pytest.approx(workload.mean_tokens, rel=0.05)
    assert (steps[0] == workload.lengths(0)).all()
    assert name == "W1" or (steps[0] != steps[1]).any()


def test_a_workload_reads_back_as_it_was_written(tmp_path: Path) -> None:
    WORKLOADS["W2"].write(tmp_path / "workload.json")
    assert Workload.read(tmp_path / "workload.json") == WORKLOADS["W2"]


def test_prompts_are_words_of_the_vocabulary_and_half_of_the_texts_earn_a_reward() -> None:
    prompts = TINY.prompts(0)
    assert len(prompts) == TINY.num_prompts
    assert all(len(text.split()) == TINY.prompt_tokens for text in prompts)
    assert prompts != TINY.prompts(1)
    assert 0.4 < np.mean([reward_of(f"text {i}") for i in range(1000)]) < 0.6


@pytest.mark.parametrize("field", list(STEP))
def test_unequal_work_is_no_race(field: str) -> None:
    check_equal_work([[STEP, STEP], [STEP, STEP]])
    with pytest.raises(SystemExit, match=f"step 1: {field}"):
        check_equal_work([[STEP, STEP], [STEP, {**STEP, field: 0}]])


def test_medians_are_of_steps_and_memory_is_the_highest() -> None:
    stages = {"rollout": 1.0, "logprob": 0.5, "update": 2.0}
    records = [
        {"wall_s": s, "cpu_s": s, "stages": stages, "peak_bytes": 2**20 * (10 + s), **STEP}
        for s in (1.0, 3.0, 9.0)
    ]
    records = [{**record, "scored_tokens": n} for record, n in zip(records, (4, 4, 0), strict=True)]
    got = summarise({"now_bytes": 5 * 2**20}, records, TINY)
    assert got["tokens_per_s"] == {"step": 3.0, "rollout": 5.0, "logprob": 8.0, "update": 4.5}
    assert got["peak_mib"] == 19.0 and got["step_peak_mib"] == 14.0


@pytest.mark.slow
def test_a_tiny_race(tmp_path: Path) -> None:
    peers = [OURS, THEIRS] if importlib.util.find_spec("trl") else [OURS]
    result = race(TINY, peers, steps=2, warmup=0)
    for side in peers:
        figures = result["sides"][side]
        records = figures["records"]
        assert [r["completion_tokens"] for r in records] == [
            TINY.lengths(step).sum() for step in range(2)
        ]
        prompt_tokens = TINY.num_rows * TINY.prompt_tokens
        assert all(r["tokens"] == r["completion_tokens"] + prompt_tokens for r in records)
        assert all(0 < s <= r["cpu_s"] for r in records for s in r["stages"].values())
        assert figures["threads"] == 1
    if len(peers) == 2:
        assert result["ratios"]["tokens_per_s"]["step"] > 0
        untargeted = {"step": None, "peak_mib": None}
        assert result["ratios"]["targets"] == untargeted


def test_a_side_that_fails_shows_its_last_words() -> None:
    with pytest.raises(SystemExit, match=r"(?s)satori ended before its answer.*model\.dtype"):
        race(replace(TINY, dtype="float64"), [OURS], steps=1)
