# SPDX-License-Identifier: Apache-2.0
"""The restart buffer: cut once or again every few steps, and the same after a kill."""

from __future__ import annotations

from pathlib import Path

from satori_fast.stages import run_stages
from satori_fast.stages.restarts import read_restarts, write_restarts
from satori_fast.types import Prefix, Problem
from tests.stages.test_run import take_back, timeless, tiny_config


def test_a_buffer_reads_back_as_it_was_written(tmp_path: Path) -> None:
    restarts = [
        Problem("1", "p 7 q 1", "p", Prefix("q<|reflect|>", "restart", correct=False), level="3"),
        Problem("2", "p 7 q 1", "q", Prefix("q<|continue|> p<|reflect|>", "restart", correct=True)),
    ]
    write_restarts(tmp_path / "buffers" / "x.jsonl", restarts)
    assert read_restarts(tmp_path / "buffers" / "x.jsonl") == restarts


def test_refreshed_buffers_come_from_the_policy_of_the_day(tmp_path: Path) -> None:
    options = ("--reinforce.restarts.refresh_every", "2", "--reinforce.num_steps", "5")
    options += ("--reinforce.checkpoint_every", "3", "--supervised.num_epochs", "3.0")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
        run_stages(tiny_config(folder, *options))
    names = sorted(path.name for path in (whole / "tiny" / "restarts").iterdir())
    assert names == [f"reinforce-{step}.jsonl" for step in (0, 2, 4)]
    assert {path.stem for path in (whole / "tiny" / "solutions").iterdir()} == {
        "supervised",
        "reinforce-2",
        "reinforce-4",
    }
    # Back to the checkpoint after step 3, which drew from the buffer of step 2.
    take_back(cut / "tiny", num_finished=2, policy="models/supervised")
    last = cut / "tiny" / "checkpoints" / "reinforce" / "step-5"
    assert last.exists()
    run_stages(tiny_config(cut, *options), resume=True)
    assert timeless(cut / "tiny/metrics.jsonl") == timeless(whole / "tiny/metrics.jsonl")
    weights = Path("tiny/models/reinforce/model.safetensors")
    assert (cut / weights).read_bytes() == (whole / weights).read_bytes()
