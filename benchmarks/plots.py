# SPDX-License-Identifier: Apache-2.0
"""Charts of the records, for the README: `python -m benchmarks.plots` writes results/*.svg.

Nothing is measured here; a chart whose record is missing is left out, and said so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.measure import RESULTS

OURS, THEIRS = "#2f5d9b", "#b9bfca"
STAGES = ("step", "rollout", "logprob", "update")
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "satori_fast",  # the same bytes from the same record
    "svg.fonttype": "none",
}
Figures = dict[str, Any]


def peers_chart(figures: Figures) -> Figure:
    """Tokens per CPU-second over TRL's by stage, and peak memory of both, for each event."""
    chart, (speed, memory) = plt.subplots(1, 2, figsize=(9.2, 3.0), width_ratios=(2, 1))
    names = sorted(figures)
    for number, stage in enumerate(STAGES):
        ratios = [figures[name]["ratios"]["tokens_per_s"][stage] for name in names]
        places = [i + 0.2 * (number - 1.5) for i in range(len(names))]
        bars = speed.bar(places, ratios, 0.18, label=stage, color=OURS, alpha=1 - 0.22 * number)
        speed.bar_label(bars, [f"{ratio:.1f}" for ratio in ratios], fontsize=7)
    speed.axhline(1, color="black", linewidth=0.8)
    speed.set_yscale("log")
    _in_doublings(speed.yaxis)
    speed.set_title("tokens per CPU-second, times TRL's", loc="left", fontsize=9)
    _name_events(speed, names)
    speed.legend(frameon=False, fontsize=8, ncols=4, loc="upper left", bbox_to_anchor=(0, -0.12))
    for place, side, colour in ((-0.2, "satori", OURS), (0.2, "trl", THEIRS)):
        peaks = [figures[name]["sides"][side]["peak_mib"] / 1024 for name in names]
        where = [i + place for i in range(len(names))]
        bars = memory.bar(where, peaks, 0.36, label=LABELS[side], color=colour)
        memory.bar_label(bars, [f"{peak:.1f}" for peak in peaks], fontsize=7)
    memory.set_title("peak memory of the process, GiB", loc="left", fontsize=9)
    _name_events(memory, names)
    memory.legend(frameon=False, fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.12))
    return chart


LABELS = {"satori": "satori_fast", "trl": "TRL"}


def growth_chart(figures: Figures) -> Figure:
    """Seconds and memory of a step over tokens and over the vocabulary, against proportion."""
    chart, axes = plt.subplots(1, 2, figsize=(9.2, 3.0))
    for axis, kind, label in (
        (axes[0], "tokens", "tokens of a step, times"),
        (axes[1], "vocabulary", "vocabulary, times"),
    ):
        cases = [figures[key] for key in figures if key.startswith(f"{kind}-x")]
        cases.sort(key=lambda case: case["factor"])
        factors = [case["factor"] for case in cases]
        ours = [case["sides"]["satori"] for case in cases]
        seconds = [
            tokens_of(case) / o["tokens_per_s"]["step"] for case, o in zip(cases, ours, strict=True)
        ]
        memory = [o["step_peak_mib"] for o in ours]
        axis.plot(
            factors, factors, color="black", linewidth=0.8, linestyle=":", label="in proportion"
        )
        for values, name, colour in (
            (seconds, "CPU seconds of a step", OURS),
            (memory, "memory of a step", "#c06a2b"),
        ):
            axis.plot(factors, [v / values[0] for v in values], "o-", color=colour, label=name)
        axis.set(xscale="log", yscale="log")
        _in_doublings(axis.xaxis)
        _in_doublings(axis.yaxis)
        axis.set_xlabel(label)
    axes[0].set_ylabel("times that of x1")
    axes[0].legend(frameon=False, fontsize=8)
    return chart


def tokens_of(case: Figures) -> float:
    """Prompt and completion tokens of a step."""
    workload = case["workload"]
    rows = workload["num_prompts"] * workload["num_samples"]
    return rows * (workload["prompt_tokens"] + workload["mean_tokens"])


def _in_doublings(axis: Axis) -> None:
    """Ticks of a logarithmic axis of multiples: x1, x2, x4, ..."""
    axis.set_major_locator(LogLocator(base=2))
    axis.set_major_formatter("x{x:g}")
    axis.set_minor_locator(NullLocator())


def _name_events(axis: Axes, names: list[str]) -> None:
    axis.set_xticks(range(len(names)), names)
    axis.tick_params(axis="x", length=0)


CHARTS: dict[str, tuple[str, Callable[[Figures], Figure]]] = {
    "peers.svg": ("peers.json", peers_chart),
    "growth.svg": ("step.json", growth_chart),
}


def main(folder: Path = RESULTS) -> None:
    for name, (record, draw) in CHARTS.items():
        path = folder / record
        if not path.exists():
            print(f"{name} left out: there is no {record}")
            continue
        figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
        with plt.rc_context(STYLE):
            chart = draw(figures)
            chart.savefig(folder / name, bbox_inches="tight", metadata={"Date": None})
        plt.close(chart)


if __name__ == "__main__":
    main()
