# SPDX-License-Identifier: Apache-2.0
"""A whole step of reinforcement learning by stage: two model sizes, equal and long-tail lengths;
and how it grows with the tokens of a step and with the vocabulary.

Each case is a run of its own (`peers.satori_side`, on one thread), so its peak memory is its own.
Growth is what the head promises: memory in proportion to tokens, and never to tokens times
vocabulary, as logits would need. Figures per CPU-second.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks import measure
from benchmarks.peers.race import OURS, race
from benchmarks.peers.workload import WORKLOADS, Workload

SIZES = ["W1", "W2", "W1-medium", "W2-medium"]
TOKENS = [1, 2, 4, 8]
VOCABULARIES = [1, 4, 16]
BASE = replace(WORKLOADS["W1"], num_prompts=2)
SMALL_VOCABULARY = 9_496  # a sixteenth of Qwen's 151,936


def measured(benchmark: Any, key: str, workload: Workload, **facts: Any) -> None:
    """Record a run of `workload` under `key`; pytest-benchmark gets the seconds of its steps."""
    result = race(workload, [OURS], steps=4, warmup=1)
    figures = result["sides"][OURS]
    seconds = iter([record["cpu_s"] for record in figures.pop("records")])
    command = f'python -m pytest "benchmarks/bench_step.py" -k "{key}" --benchmark-only'
    measure.record("step", {key: {"command": command, **facts, **result}})
    benchmark.extra_info.update(figures)
    benchmark.pedantic(lambda: next(seconds), rounds=1)


@pytest.mark.parametrize("name", SIZES)
def test_stages(benchmark, name) -> None:
    measured(benchmark, f"stages-{name}", WORKLOADS[name])


@pytest.mark.parametrize("factor", TOKENS)
def test_growth_with_tokens(benchmark, factor) -> None:
    workload = replace(BASE, num_prompts=factor * BASE.num_prompts)
    measured(benchmark, f"tokens-x{factor}", workload, factor=factor)


@pytest.mark.parametrize("factor", VOCABULARIES)
def test_growth_with_the_vocabulary(benchmark, factor) -> None:
    workload = replace(BASE, vocab_size=factor * SMALL_VOCABULARY)
    measured(benchmark, f"vocabulary-x{factor}", workload, factor=factor)
