# SPDX-License-Identifier: Apache-2.0
"""Timeline of a run, as bars: when each stage ran, and the share of each span in it.

Bars are numbers in per cent of a width; the templates draw them. Not for: measuring (`spans`) or
curves over steps (`report_plots`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from satori_fast.profiling.report_runs import StageTime
from satori_fast.profiling.summary import duration, percent

# One hue for each kind of work: sampling, scoring, training, moving weights. The order is that of
# the bars and of their legend.
SPAN_COLOURS = {
    "synthesize": "#a9c3e6",
    "solutions": "#7fa3d6",
    "rollout": "#3f6fb5",
    "evaluate": "#c5d6ee",
    "reward": "#e3b65c",
    "reward_model": "#c9892f",
    "logprob": "#3d9480",
    "validate": "#93c7ba",
    "advantage": "#6fb3a1",
    "pack": "#bcb6dc",
    "update": "#5b5499",
    "sync": "#b5527a",
}
REST = "rest"
_REST_COLOUR = "#e2e6ec"
_UNKNOWN_COLOURS = ("#8a94a3", "#a9b1bd", "#737d8c", "#bfc5ce")
# A smaller share is drawn and not written out.
_NAMED_SHARE = 0.005
_TICKS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400)
_MAX_TICKS = 7


def timeline(times: Sequence[StageTime], wall_s: float) -> dict[str, Any]:
    """The bars of one run over `wall_s`, its seconds from start to end.

    "stages": a row each, with "left" and "width" of its bar and the "parts" inside it; "legend":
    the spans that occur; "ticks" of the axis of time; "idle": time outside of all stages.
    """
    total_s = max(wall_s, sum(time.wall_s for time in times))
    rows = [_row(time, total_s, whole_s=total_s) for time in times]
    idle_s = total_s - sum(time.wall_s for time in times)
    return {
        "stages": rows,
        "legend": _legend(rows),
        "ticks": _ticks(total_s),
        "wall": duration(total_s),
        "idle": duration(idle_s) if idle_s > 0.01 * total_s else "",
    }


def stage_bars(runs: Sequence[tuple[str, Sequence[StageTime]]]) -> dict[str, Any]:
    """The same stage of several runs beside each other: for each stage a row for each run.

    Bars of one stage share a scale of seconds: the slowest run fills the width.
    """
    stages = dict.fromkeys(time.stage for _, times in runs for time in times)
    groups = []
    for stage in stages:
        own = [(run, time) for run, times in runs for time in times if time.stage == stage]
        longest_s = max(time.wall_s for _, time in own)
        run_s = {run: sum(time.wall_s for time in times) for run, times in runs}
        rows = [{"run": run, **_row(time, longest_s, whole_s=run_s[run])} for run, time in own]
        groups.append({"stage": stage, "rows": rows})
    return {"stages": groups, "legend": _legend([row for g in groups for row in g["rows"]])}


def _row(time: StageTime, scale_s: float, *, whole_s: float) -> dict[str, Any]:
    # Spans inside spans count twice: then the parts share the bar as they are.
    covered_s = max(time.wall_s, sum(time.seconds.values()))
    seconds = {**time.seconds, REST: time.rest_s}
    parts = [
        {
            "name": name,
            "colour": colour,
            "width": _per_cent(seconds[name], covered_s),
            "seconds": duration(seconds[name]),
            "share": percent(seconds[name] / time.wall_s if time.wall_s > 0 else None),
            "named": seconds[name] >= _NAMED_SHARE * covered_s,
        }
        for name, colour in _colours(seconds).items()
        if seconds[name] > 0
    ]
    return {
        "stage": time.stage,
        "wall": duration(time.wall_s),
        "share": percent(time.wall_s / whole_s if whole_s > 0 else None),
        "left": _per_cent(time.start_s, scale_s),
        "width": _per_cent(time.wall_s, scale_s),
        "parts": parts,
        "largest": sorted((p for p in parts if p["named"]), key=lambda p: -p["width"]),
    }


def _colours(names: Mapping[str, float]) -> dict[str, str]:
    """Colours of spans, in the order of `SPAN_COLOURS`, others after them and the rest last."""
    known = {name: colour for name, colour in SPAN_COLOURS.items() if name in names}
    unknown = [name for name in names if name not in SPAN_COLOURS and name != REST]
    others = {
        name: _UNKNOWN_COLOURS[i % len(_UNKNOWN_COLOURS)] for i, name in enumerate(sorted(unknown))
    }
    return {**known, **others, REST: _REST_COLOUR}


def _legend(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    present = {part["name"]: 0.0 for row in rows for part in row["parts"]}
    colours = _colours(present)
    return [{"name": n, "colour": colour} for n, colour in colours.items() if n in present]


def _ticks(total_s: float) -> list[dict[str, Any]]:
    """Round times along the axis, at most seven, the end left free for its own label."""
    if total_s <= 0:
        return []
    every = next((t for t in _TICKS_S if total_s / t <= _MAX_TICKS), _TICKS_S[-1])
    count = int(0.95 * total_s / every)
    return [
        {"left": _per_cent(i * every, total_s), "text": duration(i * every) if i else "0"}
        for i in range(count + 1)
    ]


def _per_cent(part: float, whole: float) -> float:
    return round(100 * min(1.0, part / whole), 3) if whole > 0 else 0.0
