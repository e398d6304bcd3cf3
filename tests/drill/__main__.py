# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.drill [--small] [--only NAME ...]`: run the drills and print their table."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.drill import drills, numbers, processes
from tests.drill.scene import Outcome, Scene, prepare, shortened, table

Drill = Callable[..., Iterator[Outcome]]
DRILLS: dict[str, Drill] = {
    "kills": drills.kills,
    "damages": drills.damages,
    "full_disk": drills.full_disk,
    "two_starts": drills.two_starts,
    "signals": drills.signals,
    "numbers": numbers.numbers,
    "ranks": processes.ranks,
    "layouts": processes.layouts,
    "servers": processes.servers,
}


def drill_all(scene: Scene, names: list[str], *, small: bool) -> list[Outcome]:
    """Every try of the drills named, told as they end."""
    outcomes: list[Outcome] = []
    for name in names:
        for outcome in DRILLS[name](scene, small=small):
            mark = "ok " if outcome.is_right else "BAD"
            detail = shortened(outcome.detail, scene.root)
            print(f"{mark} {outcome.drill}: {outcome.case}: {outcome.judgement} {detail}")
            outcomes.append(outcome)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=__doc__)
    parser.add_argument("--small", action="store_true", help="a few tries of each kind")
    parser.add_argument("--only", nargs="+", choices=DRILLS, default=list(DRILLS))
    options = parser.parse_args()
    # Shells have what they start in the background ignore interrupts, and runs would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        outcomes = drill_all(prepare(Path(root)), options.only, small=options.small)
    print(f"\n{table(outcomes)}\n\n{time.perf_counter() - begin:.0f} s")
    return 0 if all(outcome.is_right for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
