# SPDX-License-Identifier: Apache-2.0
"""Seconds that training waits for a checkpoint that is written in the background, against the
seconds until it is whole: a model of 13 M parameters and its optimizer.

What is written is copied in the background too. A step waits for that when it comes to change what
is not copied yet: `waited_s` is of an update that begins at once, with nothing sampled before it;
`step_s` is all of that step; `copied_s` is what anything would wait that changes the weights at
once.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from benchmarks import measure
from benchmarks.bench_sharing import RECIPE, VOCAB_SIZE, one_update, trajectories
from satori_fast.backbone.checkpoint import Saver, latest_checkpoint
from satori_fast.backbone.optimizer import OptimizerSettings
from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.backbone.step import build_learner
from satori_fast.data.packing import PackingSpec, pack

REPEATS = 5
TARGET = 0.05  # share of the writing that is waited for


class Waits(threading.Event):
    """An event that counts the seconds for which it was waited."""

    seconds = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        begin = time.perf_counter()
        happened = super().wait(timeout)
        self.seconds += time.perf_counter() - begin
        return happened


def test_waiting_for_a_checkpoint(benchmark: Any, request: Any, tmp_path: Path) -> None:
    initialize_parallel(seed=0)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=VOCAB_SIZE,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
    )
    waits = Waits()
    learner = replace(build_learner(config, optimizer=OptimizerSettings(1e-6)), is_copied=waits)
    made = trajectories(prompt_len=64)
    step = one_update(
        learner, pack(made, RECIPE.credit().assign(made), PackingSpec(2048, 1), "token")
    )
    waits.set()
    step()  # Adam has no moments before it
    names = ("waited_s", "step_s", "copied_s", "whole_s")
    seconds: dict[str, list[float]] = {name: [] for name in names}

    def save() -> None:
        for name, change in (("waited_s", step), ("copied_s", waits.wait)):
            saver, begin = Saver(), time.perf_counter()
            saver.begin(tmp_path / "step-1", {"policy": learner}, {}, in_background=True)
            begun_s, waits.seconds = time.perf_counter() - begin, 0.0
            change()
            if change is step:
                seconds["step_s"].append(time.perf_counter() - begin)
            seconds[name].append(begun_s + waits.seconds)
            saver.finish()
        seconds["whole_s"].append(time.perf_counter() - begin)

    benchmark.pedantic(save, rounds=REPEATS, warmup_rounds=1)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-1"
    medians = {name: statistics.median(found[1:]) for name, found in seconds.items()}
    share = medians["waited_s"] / medians["whole_s"]
    num_bytes = sum(path.stat().st_size for path in tmp_path.rglob("*.distcp"))
    table = {
        "command": f'python -m pytest "{request.node.nodeid}" --benchmark-only',
        "cores": len(os.sched_getaffinity(0)),
        "load_average": measure.significant(os.getloadavg()[0], 2),
        "parameters": sum(parameter.numel() for parameter in learner.module.parameters()),
        "megabytes": round(num_bytes / 1e6),
        "repeats": REPEATS,
        **{name: measure.significant(median) for name, median in medians.items()},
        "share": measure.significant(share, 2),
        "target": TARGET,
        "met": share < TARGET,
    }
    measure.record("saving", {"background": table})
    benchmark.extra_info.update(table)
