# SPDX-License-Identifier: Apache-2.0
"""Seconds from a kill to the first new step: the quickstart's reinforcement under torchrun.

    python -m benchmarks.resuming

Two data-parallel processes on one thread each. They are killed behind a checkpoint, all at once,
and started again with --resume; the clock stops when a step is in metrics.jsonl that was not there
before. Whatever was done since the checkpoint is done again, and that is part of it. Format tuning
is short here: what is trained does not matter.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import measure
from satori_fast.profiling.metrics import read_metrics

CONFIG = "configs/quickstart.toml"
EVERY = 4  # steps to a checkpoint
OVERRIDES = (
    *("--stages", '["synthesize", "supervised", "reinforce"]', "--synthesize.num_problems", "200"),
    *(
        "--data.num_train",
        "400",
        "--evaluation.num_problems",
        "20",
        "--solutions.num_problems",
        "32",
    ),
    *("--reinforce.num_steps", "1000", "--reinforce.checkpoint_every", str(EVERY)),
    *("--parallel.num_threads", "1", "--parallel.timeout_s", "60.0"),
)
KILLS = 3
PATIENCE_S = 600.0


def launch(folder: Path, num_ranks: int, *more: str) -> subprocess.Popen[bytes]:
    """The run under torchrun, in a group of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command = [sys.executable, *launcher, "-m", "satori_fast", "run", CONFIG, "--name", "run"]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--output_dir", str(folder), *OVERRIDES, *more],
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """End all processes of a launch at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_step(run: Path) -> int:
    """The last step of reinforcement in the metrics; -1 where there is none."""
    path = run / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else []
    return max((line["step"] for line in lines if line["stage"] == "reinforce"), default=-1)


def wait(process: subprocess.Popen[bytes], until: Callable[[], bool], log: Path) -> None:
    """Until something is so; RuntimeError where the launch ends before, or it takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    while not until():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the run ended or hung: {log.read_text()[-2000:]}")
        time.sleep(0.05)


def resumed(run: Path, num_ranks: int) -> tuple[subprocess.Popen[bytes], float]:
    """A launch that goes on with a killed run, and the seconds until it has a step more."""
    reached, begin = last_step(run), time.monotonic()
    process = launch(run.parent, num_ranks, "--resume")
    wait(process, lambda: last_step(run) > reached, run.parent / "log")
    return process, time.monotonic() - begin


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill, resume, measure, record."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--record", default="resuming", help="benchmarks/results/NAME.json")
    options = parser.parse_args(arguments)
    seconds, repeated = [], []
    with tempfile.TemporaryDirectory() as root:
        run = Path(root) / "run"
        process = launch(run.parent, options.ranks)
        try:
            for number in range(1, options.kills + 1):
                saved = EVERY * number
                manifest = run / "checkpoints" / "reinforce" / f"step-{saved}" / "manifest.json"
                wait(process, manifest.exists, run.parent / "log")
                kill(process)
                repeated.append(last_step(run) + 1 - saved)
                process, taken = resumed(run, options.ranks)
                seconds.append(taken)
        finally:
            kill(process)
    table = {
        "command": "python -m benchmarks.resuming",
        "ranks": options.ranks,
        "seconds": [measure.significant(each, 3) for each in seconds],
        "median_s": measure.significant(statistics.median(seconds), 3),
        "steps_done_again": repeated,
    }
    print(table)
    measure.record(options.record, {f"ranks-{options.ranks}": table})


if __name__ == "__main__":
    main()
