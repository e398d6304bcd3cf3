# SPDX-License-Identifier: Apache-2.0
"""A plan for people, in lines, and for programs, as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from satori_fast.planning.devices import Device
from satori_fast.planning.layouts import Layout
from satori_fast.planning.planner import Candidate, Plan
from satori_fast.planning.timing import PartTime

_GIGA = 1e9
_NUM_SHOWN = 5


def lines_of(plan: Plan) -> list[str]:
    """The plan, line by line."""
    return [
        *_title(plan),
        "",
        *_memory(plan.asked, plan.device),
        "",
        *_time(plan),
        "",
        *_fitting(plan),
        *_advice(plan),
    ]


def _title(plan: Plan) -> Iterator[str]:
    job, device = plan.job, plan.device
    number = _billions(job.sizes.num_parameters())
    yield (
        f"{job.name}: {job.model}, {number} parameters in {job.dtype}, on {plan.num_gpus} x "
        f"{device.name} ({device.memory_bytes / _GIGA:.0f} GB)"
    )
    engine = job.engine
    own = f" on {engine.num_gpus} GPUs of their own" if engine.num_gpus else ""
    share = f", {engine.share:g} of a GPU" if engine.kind == "vllm" else ""
    sleeps = ", asleep during updates" if engine.sleeps else ""
    yield f"engine: {engine.kind}{own}{share}{sleeps}"


def _memory(asked: Candidate, device: Device) -> Iterator[str]:
    fullest = asked.fullest
    yield f"GB on the fullest rank, in {fullest.stage}; {asked.layout}"
    phases = list(fullest.phases)
    held = [(name, each) for parts in fullest.phases.values() for name, each in parts.items()]
    names = list(dict.fromkeys(name for name, each in held if each))
    rows = [
        [name, *(_gigabytes(fullest.phases[phase].get(name, 0.0)) for phase in phases)]
        for name in names
    ]
    rows.append(
        ["together", *(_gigabytes(sum(fullest.phases[phase].values())) for phase in phases)]
    )
    yield from _table(["", *phases], rows)
    others = [f"{m.stage} {_gigabytes(m.peak)}" for m in asked.memory if m is not fullest]
    if others:
        yield f"at the peak of other stages: {', '.join(others)}"
    verdict = "it fits" if asked.lacking is None else f"it does not fit: {asked.lacking}"
    yield f"{verdict} ({device.memory_bytes / _GIGA:.0f} GB)" if asked.fits else verdict


def _time(plan: Plan) -> Iterator[str]:
    stage, time, device = plan.job.main, plan.asked.time, plan.device
    lengths = stage.lengths
    yield (
        f"a step of {stage.name}: {stage.num_sequences} sequences, prompts of "
        f"{lengths.expected_prompt:,.0f} tokens and responses of {lengths.expected_response:,.0f} "
        f"(assumed), the longest {lengths.longest:,}"
    )
    rows = [
        [name, _seconds(part.seconds), _seconds(part.sending), _gigabytes(part.num_bytes)]
        for name, part in time.parts.items()
    ]
    rows.append(["together", _seconds(time.seconds), *_sums(list(time.parts.values()))])
    yield from _table(["", "seconds", "of them sending", "GB sent by a rank"], rows)
    yield f"{time.tokens_per_s:,.0f} tokens per second on all ranks"
    for name, each in device.efficiencies.items():
        if name == "host" and not plan.asked.layout.offload:
            continue
        yield f"{name}: {each.share:g} of the peak, {each.origin} ({each.source})"


def _sums(parts: Sequence[PartTime]) -> list[str]:
    return [
        _seconds(sum(part.sending for part in parts)),
        _gigabytes(sum(part.num_bytes for part in parts)),
    ]


def _fitting(plan: Plan) -> Iterator[str]:
    if not plan.fitting:
        yield "no layout of these GPUs fits"
        return
    yield "layouts that fit, most tokens per second first"
    rows = [
        [
            str(each.layout),
            f"{each.time.tokens_per_s:,.0f}",
            _seconds(each.time.seconds),
            _gigabytes(each.fullest.peak),
        ]
        for each in plan.fitting[:_NUM_SHOWN]
    ]
    yield from _table(["", "tokens/s", "seconds", "GB"], rows)
    if (left := len(plan.fitting) - _NUM_SHOWN) > 0:
        yield f"and {left} more"


def _advice(plan: Plan) -> Iterator[str]:
    if plan.asked.fits:
        return
    if not plan.advice:
        yield "nothing that is known here makes it fit: take a smaller model or larger GPUs"
        return
    yield "it fits with"
    for each in plan.advice:
        yield f"  {', '.join(each.changes)}: {each.layout}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns: the first flush left, the others right."""
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield ("  " + "  ".join(cells)).rstrip()


def _gigabytes(number: float) -> str:
    gigabytes = number / _GIGA
    if not number:
        return "-"
    return f"{gigabytes:.1f}" if gigabytes >= 1 else f"{gigabytes:.3f}"


def _seconds(number: float) -> str:
    return "-" if not number else f"{number:.1f}" if number >= 1 else f"{number:.3f}"


def _billions(number: int) -> str:
    return f"{number / 1e9:.3f} B" if number >= 1e8 else f"{number / 1e6:.3f} M"


# -- JSON -----------------------------------------------------------------------------------------


def json_of(plan: Plan) -> dict[str, Any]:
    """The plan with its numbers in full: bytes and seconds. JSON-able."""
    job, device = plan.job, plan.device
    return {
        "name": job.name,
        "model": job.model,
        "num_parameters": job.sizes.num_parameters(),
        "dtype": job.dtype,
        "num_gpus": plan.num_gpus,
        "gpu": device.name,
        "memory_bytes": device.memory_bytes,
        "efficiencies": {
            name: {"share": each.share, "origin": each.origin, "source": each.source}
            for name, each in device.efficiencies.items()
        },
        "asked": _candidate(plan.asked),
        "fitting": [_candidate(each) for each in plan.fitting],
        "advice": [
            {"changes": list(each.changes), "layout": _layout(each.layout)} for each in plan.advice
        ],
    }


def _candidate(each: Candidate) -> dict[str, Any]:
    return {
        "layout": _layout(each.layout),
        "fits": each.fits,
        "lacking": each.lacking,
        "memory": {
            memory.stage: {phase: dict(parts) for phase, parts in memory.phases.items()}
            for memory in each.memory
        },
        "peak_bytes": each.fullest.peak,
        "step": {
            name: {
                "seconds": part.seconds,
                "sending_seconds": part.sending,
                "sent_bytes": part.num_bytes,
            }
            for name, part in each.time.parts.items()
        },
        "tokens_per_s": each.time.tokens_per_s,
    }


def _layout(layout: Layout) -> dict[str, Any]:
    return {name: getattr(layout, name) for name in layout.__slots__}
