# SPDX-License-Identifier: Apache-2.0
"""The curves of the report: the metrics of a run over its steps, and which chart shows which.

The page holds each metric once, as a column; its script cuts out the stage that is looked at and
draws the charts that are listed here. Not for the evaluation of each stage
(`report_evaluation`), nor for pages (`report`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from satori_fast.profiling.report_runs import StageTime
from satori_fast.profiling.report_timeline import SPAN_COLOURS

Line = Mapping[str, Any]

# Points of one curve in one stage: more cannot be told apart, and the page stays small.
MAX_POINTS = 1000
# Of curves and bars that stand for no kind of work: apart for the colour-blind, too.
SERIES_COLOURS = (
    "#3f6fb5",
    "#c8722c",
    "#3d9480",
    "#8a4f9e",
    "#b5527a",
    "#7d8b3a",
    "#2b9db8",
    "#8a6d3b",
)
MEAN_COLOUR = _TOTAL_COLOUR = "#1b2230"
_FIELDS = frozenset({"stage", "step", "spans_s", "num_nonfinite", "alarms"})
_BYTES_PER_GIB, _BYTES_PER_MIB = 2**30, 2**20


@dataclass(frozen=True, slots=True)
class CurveChart:
    """A chart over steps.

    metrics: name, or a pattern with one "*", -> what the legend calls it; "*" there stands for what
             the star of the pattern matched.
    axis:    "share", "count", "value" or "small" (exponents); `log` where all values are above 0.
    scale:   what values are multiplied by before they are drawn, to be in `unit`.
    without: patterns of metrics that "*" must not match.
    """

    group: str
    title: str
    metrics: Mapping[str, str]
    axis: str = "value"
    log: bool = False
    scale: float = 1.0
    unit: str = ""
    note: str = ""
    without: tuple[str, ...] = field(default=())


_SPEED, _LEARNING, _REASONING = "Speed", "Learning", "Reasoning"
_NUMERICS, _HARDWARE = "Engine against trainer", "Memory and power"

CURVE_CHARTS: tuple[CurveChart, ...] = (
    CurveChart(
        _SPEED,
        "Tokens per second",
        {
            "step/tokens_per_s": "whole step",
            "rollout/completion_tokens_per_s": "rollout",
            "logprob/tokens_per_s": "log-probs",
            "update/tokens_per_s": "update",
        },
        axis="count",
        log=True,
        note="Rollout: sampled tokens over rollout time. Others: prompt and completion tokens.",
    ),
    CurveChart(
        _SPEED,
        "Seconds",
        {
            "step/seconds": "whole step",
            "rollout/seconds": "rollout",
            "reward/seconds": "reward",
            "logprob/seconds": "log-probs",
            "update/seconds": "update",
            "sync/seconds": "weight sync",
        },
        note="Of each part of a step.",
    ),
    CurveChart(
        _SPEED,
        "Model FLOPs utilisation",
        {"*/mfu": "*"},
        axis="share",
        note="Of the device's peak; see profiling/flops.py.",
    ),
    CurveChart(
        _SPEED,
        "Share of the memory bandwidth",
        {"*/bandwidth_share": "*"},
        axis="share",
        note="Weights read, of the device's peak.",
    ),
    CurveChart(
        _LEARNING,
        "Accuracy",
        {
            "rollout/accuracy": "rollouts, all",
            "rollout/accuracy_original": "whole problems",
            "rollout/accuracy_restart_correct": "restarts of right solutions",
            "rollout/accuracy_restart_incorrect": "restarts of wrong solutions",
            "eval/accuracy": "held-out, greedy",
            "preference/accuracy": "preference pairs",
        },
        axis="share",
    ),
    CurveChart(
        _LEARNING,
        "Samples that are learnt from",
        {
            "rollout/kept": "kept",
            "rollout/kept_by_format": "groups kept for faults of format alone",
        },
        axis="share",
        note="Dropped: groups whose samples all earn the same. Near 0 a step teaches nothing.",
    ),
    CurveChart(
        _LEARNING,
        "Reward, term by term",
        {"reward/*": "*"},
        without=("reward/seconds", "reward/seconds_max", "reward/seconds_mean"),
    ),
    CurveChart(
        _LEARNING,
        "Advantage of right and wrong answers",
        {
            "advantage/right_original": "whole problems, right",
            "advantage/wrong_original": "whole problems, wrong",
            "advantage/right_restart_correct": "restarts of right solutions, right",
            "advantage/wrong_restart_correct": "restarts of right solutions, wrong",
            "advantage/right_restart_incorrect": "restarts of wrong solutions, right",
            "advantage/wrong_restart_incorrect": "restarts of wrong solutions, wrong",
        },
        note="Mean over their tokens. Right answers near 0 teach nothing.",
    ),
    CurveChart(
        _LEARNING,
        "Loss",
        {"update/loss": "policy", "critic/loss": "critic", "preference/loss": "reward model"},
    ),
    CurveChart(
        _LEARNING,
        "Gradient norm",
        {
            "update/grad_norm": "policy",
            "critic/grad_norm": "critic",
            "preference/grad_norm": "reward model",
        },
        note="Before clipping.",
    ),
    CurveChart(_LEARNING, "Entropy", {"update/entropy": "policy"}, note="Nats per token."),
    CurveChart(
        _LEARNING,
        "KL of the policy",
        {"update/approx_kl": "since the rollout", "update/kl": "to the reference"},
        axis="small",
        note="Nats per token.",
    ),
    CurveChart(
        _LEARNING,
        "Tokens with a clipped ratio",
        {
            "update/clip_fraction_low": "from below",
            "update/clip_fraction_high": "from above",
            "rollout/importance_clip_fraction": "engine against trainer",
        },
        axis="share",
    ),
    CurveChart(
        _REASONING,
        "Reflections per answer",
        {"rollout/reflections_per_answer": "rollouts", "eval/reflections_per_answer": "held-out"},
    ),
    CurveChart(
        _REASONING,
        "Answers changed by reflection",
        {
            "*/wrong_to_right": "*: wrong to right",
            "*/right_to_wrong": "*: right to wrong",
            "*/wrong_to_wrong": "*: wrong to another wrong",
        },
        axis="share",
        note="Where answers have verifications, of those that began wrong, or right; else of all.",
    ),
    CurveChart(
        _REASONING,
        "Solutions in an answer",
        {"rollout/trials": "rollouts", "eval/trials": "held-out"},
    ),
    CurveChart(
        _REASONING,
        "Verifications whose verdict is the truth",
        {
            "rollout/verification_accuracy": "rollouts, all",
            "rollout/accuracy_on_right": "rollouts, on right solutions",
            "rollout/error_recall": "rollouts, on wrong solutions",
            "rollout/correct_precision": 'rollouts, those that say "right"',
            "eval/verification_accuracy": "held-out, all",
        },
        axis="share",
        note="Verdicts by chance: on right and on wrong solutions together 100 %.",
    ),
    CurveChart(
        _REASONING,
        "Response length",
        {"rollout/mean_response_tokens": "rollouts", "eval/mean_response_tokens": "held-out"},
        axis="count",
        note="Mean, tokens.",
    ),
    CurveChart(
        _REASONING,
        "Answers cut off at the longest length",
        {"rollout/truncated": "rollouts", "eval/truncated": "held-out"},
        axis="share",
    ),
    CurveChart(
        _REASONING,
        "Accuracy on benchmarks",
        {"benchmark/*/accuracy": "*"},
        axis="share",
        note="Greedy, each by its protocol.",
    ),
    CurveChart(
        _REASONING,
        "Responses without a final answer",
        {"rollout/no_answer": "rollouts", "eval/no_answer": "held-out"},
        axis="share",
        note="Where the answer stands is reward.answer.",
    ),
    CurveChart(
        _REASONING,
        "Answers that end in a loop",
        {"rollout/repeating": "rollouts"},
        axis="share",
        note="The same tokens over and over, to the end.",
    ),
    CurveChart(
        _NUMERICS,
        "Log-prob difference",
        {"rollout/logprob_abs_diff": "mean", "rollout/logprob_abs_diff_max": "maximum"},
        axis="small",
        log=True,
        note="Of sampled tokens, engine against trainer, nats.",
    ),
    CurveChart(
        _NUMERICS,
        "KL of engine and trainer",
        {"rollout/logprob_kl": "KL"},
        axis="small",
        note="Nats per token.",
    ),
    CurveChart(
        _HARDWARE,
        "Memory of the host",
        {
            "host/rss_bytes": "in use",
            "host/peak_rss_bytes": "peak",
            "host/rss_bytes_max": "largest process",
        },
        unit="GiB",
        scale=1 / _BYTES_PER_GIB,
    ),
    CurveChart(
        _HARDWARE,
        "Growth of the host's memory",
        {"host/growth_bytes_per_step": "fitted"},
        unit="MiB per step",
        scale=1 / _BYTES_PER_MIB,
    ),
    CurveChart(
        _HARDWARE,
        "Memory of the device",
        {"device/memory_bytes": "in use"},
        unit="GiB",
        scale=1 / _BYTES_PER_GIB,
    ),
    CurveChart(
        _HARDWARE, "Device utilisation", {"device/utilisation": "kernel running"}, axis="share"
    ),
    CurveChart(_HARDWARE, "Power", {"device/power_w": "board"}, unit="watts"),
    CurveChart(_HARDWARE, "Energy", {"device/energy_j": "of a step"}, axis="count", unit="joules"),
    CurveChart(_HARDWARE, "Tokens per joule", {"step/tokens_per_joule": "whole step"}),
)
GROUPS = tuple(dict.fromkeys(chart.group for chart in CURVE_CHARTS))


def curves(lines: Sequence[Line], times: Sequence[StageTime]) -> dict[str, Any]:
    """The metrics of a run as columns.

    "stages": name, `start` of its points among all, when it began and ended; "steps" and "minutes"
    (since the start of the run) of every point; "metrics": for each, [stage number, points or null,
    values] of each stage that has it. Points are null where every point of the stage has a value; a
    value is null where it was not finite. A stage of more than `MAX_POINTS` steps has a point for
    several: their mean, at the last of them.
    """
    spans_s = {time.stage: (time.start_s, time.wall_s) for time in times}
    stages: list[dict[str, Any]] = []
    steps: list[int] = []
    minutes: list[float] = []
    metrics: dict[str, list[Any]] = {}
    for name in dict.fromkeys(line["stage"] for line in lines):
        own = [line for line in lines if line["stage"] == name]
        size = math.ceil(len(own) / MAX_POINTS)
        buckets = [own[i : i + size] for i in range(0, len(own), size)]
        start_s, stage_s = spans_s.get(name, (0.0, 0.0))
        steps_s = sum(line.get("step/seconds") or 0.0 for line in own)
        # What a stage does outside of its steps, it does before them.
        elapsed_s = start_s + max(0.0, stage_s - steps_s)
        stages.append({"name": name, "start": len(steps), "start_min": _short(start_s / 60)})
        for bucket in buckets:
            elapsed_s += sum(line.get("step/seconds") or 0.0 for line in bucket)
            steps.append(bucket[-1]["step"])
            minutes.append(_short(elapsed_s / 60))
        stages[-1]["stop_min"] = minutes[-1]
        for metric in dict.fromkeys(key for line in own for key in line if key not in _FIELDS):
            column = {i: _mean(b, metric) for i, b in enumerate(buckets) if _has(b, metric)}
            if column:
                points = None if len(column) == len(buckets) else list(column)
                entry = [len(stages) - 1, points, list(column.values())]
                metrics.setdefault(metric, []).append(entry)
    return {"stages": stages, "steps": steps, "minutes": minutes, "metrics": metrics}


def curve_charts(metrics: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The charts of `CURVE_CHARTS` that have something to draw, as the page's script reads them:
    title, note, axis and for each curve its metric, label and colour.

    metrics: as `curves` has them; one without a finite value has no curve.
    """
    available = sorted(name for name, entries in metrics.items() if _has_values(entries))
    charts: list[dict[str, Any]] = []
    for chart in CURVE_CHARTS:
        found: dict[str, str] = {}
        for pattern, label in chart.metrics.items():
            for name in available:
                excluded = any(fnmatchcase(name, other) for other in chart.without)
                if fnmatchcase(name, pattern) and not excluded:
                    found.setdefault(name, label.replace("*", _star(pattern, name)))
        if found:
            charts.append(
                {
                    "group": chart.group,
                    "title": f"{chart.title}, {chart.unit}" if chart.unit else chart.title,
                    "unit": chart.unit,
                    "note": chart.note,
                    "axis": chart.axis,
                    "log": chart.log,
                    "scale": chart.scale,
                    "curves": _coloured(found),
                }
            )
    return charts


def _coloured(labels: Mapping[str, str]) -> list[dict[str, str]]:
    """A kind of work has its colour of the timeline where all curves of the chart have one."""
    parts = [name.partition("/")[0] for name in labels]
    by_part = len(set(parts)) == len(parts) and all(r in SPAN_COLOURS or r == "step" for r in parts)
    curves = []
    others = iter(SERIES_COLOURS * (1 + len(labels) // len(SERIES_COLOURS)))
    for name, part in zip(labels, parts, strict=True):
        if part == "step" or name.endswith("/total"):
            colour = _TOTAL_COLOUR
        else:
            colour = SPAN_COLOURS[part] if by_part and len(parts) > 1 else next(others)
        curves.append({"metric": name, "label": labels[name], "colour": colour})
    return curves


def _star(pattern: str, name: str) -> str:
    before, _, after = pattern.partition("*")
    return name[len(before) : len(name) - len(after)].strip("/")


def _has_values(entries: Sequence[Any]) -> bool:
    return any(value is not None for _, _, values in entries for value in values)


def _has(bucket: Sequence[Line], metric: str) -> bool:
    values = [line[metric] for line in bucket if metric in line]
    return any(value is None or _is_number(value) for value in values)


def _mean(bucket: Sequence[Line], metric: str) -> float | None:
    """Mean of the finite values of a bucket; None where there is none."""
    values = [line[metric] for line in bucket if _is_number(line.get(metric))]
    return _short(sum(values) / len(values)) if values else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: float) -> float:
    """Six digits: nobody sees more, and the page holds thousands of numbers."""
    return float(f"{value:.6g}")
