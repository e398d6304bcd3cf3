# SPDX-License-Identifier: Apache-2.0
"""The fixture `race`: ours against its rivals in turn, as a line on the terminal and a record.

Built on pytest-benchmark's `benchmark`, so `--benchmark-only` keeps its tests and
`--benchmark-json` holds the ratios too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import measure

LINES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    with suppress(ValueError):  # the tests have it too, where both are run
        parser.addoption(
            "--data-dir",
            type=Path,
            default=None,
            help="folder with the real data sets (train/); without it documents are read",
        )


@pytest.fixture
def data_dir(request: pytest.FixtureRequest) -> Path | None:
    """Folder with the real data sets, None where none is given."""
    return request.config.getoption("--data-dir")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch, and with it our kernels, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def race(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., dict[str, Any]]:
    """race(key, alternatives, targets=..., ...) -> the figures that it also reports and records.

    key:          what the record benchmarks/results/<op>.json calls this race.
    alternatives: ours first, then its rivals; None for a rival that is not to be had.
    targets:      for rivals, how many times faster ours should be. Reported, never asserted.
    warmup:       calls of each before the first that counts (one more finds how long a call is).
    memory:       whether to measure the peak memory of a call as well.
    extra:        more figures to keep, such as shapes or the share of a hardware floor.
    judged_by:    "wall" or "cpu", the time that the targets and the line on the terminal go by.
    amount:       what a call makes, such as {"tokens": 8192}: also recorded per second of either.
    most_ms:      milliseconds that a call of ours should take at most. Reported, never asserted.
    """

    def run(
        key: str,
        alternatives: Mapping[str, measure.Function | None],
        *,
        targets: Mapping[str, float],
        repeats: int = 7,
        warmup: int = 1,
        memory: bool = False,
        extra: Mapping[str, Any] | None = None,
        judged_by: str = "wall",
        amount: Mapping[str, int] | None = None,
        most_ms: float | None = None,
    ) -> dict[str, Any]:
        present = {name: f for name, f in alternatives.items() if f is not None}
        timings = measure.interleave(present, repeats=repeats, warmup=warmup)
        ours = next(iter(present))
        figures = {name: timing.figures() for name, timing in timings.items()}
        if memory:
            for name, function in present.items():
                figures[name]["peak_mib"] = measure.significant(
                    measure.peak_bytes(function) / 2**20
                )
        for unit, number in (amount or {}).items():
            for name, timing in timings.items():
                figures[name][f"{unit}_per_s"] = round(number / timing.median)
                figures[name][f"{unit}_per_cpu_s"] = round(number / timing.cpu_median)
        comparison = _ratios(ours, timings, targets, judged_by)
        data = " --data-dir FOLDER" if request.config.getoption("--data-dir", None) else ""
        table = {
            "command": f'python -m pytest "{request.node.nodeid}" --benchmark-only{data}',
            "threads": torch.get_num_threads(),
            "judged_by": judged_by,
            **(extra or {}),
            "left_out": [name for name in alternatives if name not in present],
            "timings": figures,
            "ratios": comparison,
        }
        if most_ms is not None:
            own_ms = figures[ours][f"{judged_by}_ms"]
            table["target"] = {"most_ms": most_ms, "met": own_ms <= most_ms}
        name = request.path.stem.removeprefix("bench_")
        measure.record(name, {key: table})
        request.config.stash.setdefault(LINES, []).append(_line(name, key, table))
        benchmark.extra_info.update(ratios=comparison)
        benchmark.pedantic(present[ours], rounds=repeats, iterations=timings[ours].calls)
        return table

    return run


def _ratios(
    ours: str, timings: Mapping[str, measure.Timing], targets: Mapping[str, float], judged_by: str
) -> dict[str, dict[str, Any]]:
    """How many times faster ours is than each rival, by the medians of wall and CPU time."""
    ratios: dict[str, dict[str, Any]] = {}
    for name, timing in timings.items():
        if name == ours:
            continue
        by = {
            "wall": timing.median / timings[ours].median,
            "cpu": timing.cpu_median / timings[ours].cpu_median,
        }
        ratios[name] = {kind: measure.significant(ratio) for kind, ratio in by.items()}
        if name in targets:
            ratios[name] |= {"target": targets[name], "met": by[judged_by] >= targets[name]}
    return ratios


def _line(name: str, key: str, table: Mapping[str, Any]) -> str:
    ours, timing = next(iter(table["timings"].items()))
    judged_by = table["judged_by"]
    parts = [f"{name} {key}: {ours} {timing[judged_by + '_ms']:g} ms"]
    if "target" in table:
        verdict = "met" if table["target"]["met"] else "NOT met"
        parts[0] += f" (target {table['target']['most_ms']:g} ms: {verdict})"
    for rival, ratio in table["ratios"].items():
        verdict = ""
        if "target" in ratio:
            verdict = f" (target {ratio['target']:g}: {'met' if ratio['met'] else 'NOT met'})"
        parts.append(f"{ratio[judged_by]:.3g}x {rival}{verdict}")
    parts += [f"without {rival}" for rival in table["left_out"]]
    return ", ".join(parts)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    lines = config.stash.get(LINES, [])
    if lines:
        terminalreporter.section("races, medians of wall time (rollout: CPU time), ours first")
        for line in lines:
            terminalreporter.write_line(line)
