# SPDX-License-Identifier: Apache-2.0
"""Runs of one config with several seeds, one after another: `satori-fast run CONFIG --seeds 0 1 2`.

Each is the command of a single run in a process of its own, so that it is the run that a user would
start by hand: its memory, threads and time are its own, and what goes wrong in one leaves nothing
behind for the next. Nothing of training is imported here. What they come to is
`profiling.seed_table`.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from satori_fast import termination
from satori_fast.config import Config, ConfigError, load_config
from satori_fast.profiling.seed_table import (
    print_seed_table,
    read_seeds,
    run_name,
    table_path,
    write_seed_table,
)

logger = logging.getLogger(__name__)

# How long an interrupted run may take to see what its terminal told it as well.
_INTERRUPT_S = 10.0


def run_seeds(path: Path, seeds: Sequence[int], overrides: Sequence[str], *, resume: bool) -> None:
    """Run the config of file `path` once with each seed, and leave a table of all.

    The run of seed K is named NAME-seed-K; NAME-seeds.json beside the folders is rewritten after
    each. With `resume` finished runs are read and not run again, and one that was cut off goes on.
    ConfigError, before anything runs: for seeds that do not fit, a config that is wrong with one of
    them, folders that are there without `resume`, and several ranks. SystemExit with the code of a
    run that failed, which has said why.
    """
    config = load_config(path, overrides)
    _check_request(seeds, overrides)
    # Of a run that was told to end, the last second as well.
    termination.set_grace(config.parallel.grace_s + _INTERRUPT_S)
    changed = [_of_seed(config.name, seed) for seed in seeds]
    for change in changed:
        load_config(path, [*overrides, *change])
    folder = Path(config.output_dir)
    _check_places(folder, config, seeds, resume=resume)
    command = [sys.executable, "-m", "satori_fast", "run", str(path), *overrides]
    for number, (seed, change) in enumerate(zip(seeds, changed, strict=True), start=1):
        name = run_name(config.name, seed)
        logger.info("seed %d, run %d of %d: %s", seed, number, len(seeds), folder / name)
        _run([*command, *change, *(["--resume"] if resume else [])])
        table = write_seed_table(folder, config.name, seeds)
    console = Console()
    print_seed_table(table, console)
    place = table_path(folder, config.name)
    console.print(f"wrote {place}", markup=False, soft_wrap=True)


def _check_request(seeds: Sequence[int], overrides: Sequence[str]) -> None:
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise ConfigError(
            "command line: --seeds starts one process after another, not under torchrun: give "
            "each seed a torchrun of its own, with --name and --seed, then `satori-fast report` "
            "their folders"
        )
    if any(word.partition("=")[0] == "--seed" for word in overrides):
        raise ConfigError("command line: --seeds and --seed exclude each other: leave --seed out")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"command line: --seeds {_listed(seeds)} names a seed twice")


def _check_places(folder: Path, config: Config, seeds: Sequence[int], *, resume: bool) -> None:
    """No run that is there is written over, and no seed falls out of a table that has it."""
    table = table_path(folder, config.name)
    if resume:
        known = read_seeds(table) if table.exists() else []
        if missing := [seed for seed in known if seed not in seeds]:
            raise ConfigError(
                f"{table} is of seeds {_listed(known)}: name {_listed(missing)} in --seeds as "
                "well, or choose another --name"
            )
        return
    for place in (*(folder / run_name(config.name, seed) for seed in seeds), table):
        if place.exists():
            raise ConfigError(
                f"{place} is there already: pass --resume to go on, or choose another --name"
            )


def _of_seed(name: str, seed: int) -> tuple[str, str]:
    return (f"--name={run_name(name, seed)}", f"--seed={seed}")


def _listed(seeds: Sequence[int]) -> str:
    return " ".join(map(str, seeds))


def _run(command: Sequence[str]) -> None:
    """One run to its end; what stops this process is passed on to it, and waited for."""
    child: subprocess.Popen[bytes] | None = None
    try:
        # A signal that comes before the child has its name here would end this process alone.
        with _interrupt_deferred(), termination.deferred():
            child = subprocess.Popen(command)
            termination.at_sudden_end(child.kill)
        code = child.wait()
    except KeyboardInterrupt:
        _wait_or_send(child, signal.SIGINT, after_s=_INTERRUPT_S)
        raise
    except termination.Terminated:
        _wait_or_send(child, signal.SIGTERM, after_s=0.0)
        raise
    finally:
        if child is not None:
            termination.forget(child.kill)
    if code:
        raise SystemExit(code if code > 0 else 128 - code)


@contextmanager
def _interrupt_deferred() -> Iterator[None]:
    """Within, an interrupt of the main thread waits; at the end it does what it would have done."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        handler(signal.SIGINT, came[0])


def _wait_or_send(
    child: subprocess.Popen[bytes] | None, number: signal.Signals, *, after_s: float
) -> None:
    if child is None:
        return
    try:
        child.wait(timeout=after_s)
    except subprocess.TimeoutExpired:
        child.send_signal(number)
        child.wait()
