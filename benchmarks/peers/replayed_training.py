# SPDX-License-Identifier: Apache-2.0
"""Our training on the samples of TRL's, which stand in the folder above."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.samples import FOLDER, Replay
from benchmarks.peers.satori_training import train
from benchmarks.peers.task import Task
from satori_fast.rollout.engine import Engine


def replay(engine: Engine, folder: Path, task: Task) -> Engine:
    return Replay(engine, folder.parent / FOLDER, task.first)


def main() -> None:
    # Log-probs of the samples are not known: they neither weigh nor alarm.
    without = ("--reinforce.importance", "none", "--rollout.max_logprob_diff", "1e9")
    train("replayed", replay, *without)


if __name__ == "__main__":
    main()
