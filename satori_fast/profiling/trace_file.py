# SPDX-License-Identifier: Apache-2.0
"""One Chrome/Perfetto trace of a run: every rank's spans and, of recorded steps, its kernels.

Each rank leaves parts in a folder, `merge_trace` makes `trace.json` of them (open it in
ui.perfetto.dev). A rank is a process of the trace; its first tracks are our spans, the others its
threads and GPU streams. All parts are in nanoseconds since 1970: torch's profiler writes
microseconds after its ``baseTimeNanoseconds``, and spans are brought there as they are recorded.

Not for: recording (`spans`, `step_tracer`).
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from satori_fast.profiling.spans import DEVICE_TRACK, HOST_TRACK, SpanRecorder

Event = dict[str, Any]

_PART = re.compile(r"(spans|kernels)-(\d+)\.rank-(\d+)\.json\.gz")
_FLOWS = frozenset({"s", "t", "f"})
_ROUNDING_NS = 2  # what an event of torch's profiler may end after the one that contains it
_FAST = 3  # of gzip's levels: a fifth larger than the best, several times faster


def kernel_part(folder: Path, rank: int, unix_ns: int) -> Path:
    """File in which torch's profiler leaves what it recorded from `unix_ns` on."""
    return folder / f"kernels-{unix_ns}.rank-{rank}.json.gz"


def write_span_part(recorder: SpanRecorder, folder: Path) -> None:
    """Leave a rank's spans, steps and curves, if there are any, for `merge_trace`."""
    events: list[Event] = [
        {
            "name": interval.name,
            "ph": "X",
            "tid": interval.track,
            "ts": interval.start_ns,
            "dur": interval.stop_ns - interval.start_ns,
            "args": {f"{name}/tokens": n for name, n in sorted(interval.values.items())},
        }
        for interval in recorder.intervals
    ]
    events += [
        {
            "name": sample.name,
            "ph": "C",
            "tid": HOST_TRACK,
            "ts": sample.at_ns,
            "args": {"value": sample.value},
        }
        for sample in recorder.samples
    ]
    if not events:
        return
    first_ns = min(event["ts"] for event in events)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"spans-{first_ns}.rank-{recorder.rank}.json.gz"
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=_FAST) as file:
        json.dump({"traceEvents": events, "num_dropped_events": recorder.num_dropped}, file)


def merge_trace(folder: Path, destination: Path) -> Path | None:
    """One trace of all parts in `folder`, which is deleted; None where there are no parts.

    Events of a track are in order, a parent before its children. ``baseTimeNanoseconds`` is what
    time 0 of the trace is, ``otherData.num_dropped_events`` what the recorders had no room for.
    """
    parts = sorted(_parts(folder))
    if not parts:
        return None
    base_ns = min(start_ns for _, _, start_ns, _ in parts)
    tracks = _Tracks()
    num_dropped = 0
    partial = destination.with_name(destination.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(f'{{"displayTimeUnit": "ms", "baseTimeNanoseconds": {base_ns},\n')
        file.write('"traceEvents": [\n')
        for number, (rank, kind, _, path) in enumerate(parts):
            with gzip.open(path, "rt", encoding="utf-8") as part:
                document = json.load(part)
            num_dropped += document.get("num_dropped_events", 0)
            events = document["traceEvents"]
            if kind == "kernels":
                events = _of_profiler(document, tracks, rank=rank, number=number)
            _write_events(file, _placed(events, tracks, rank=rank, base_ns=base_ns))
        _write_events(file, tracks.metadata(), last=True)
        file.write(f'], "otherData": {{"num_dropped_events": {num_dropped}}}}}\n')
    partial.replace(destination)
    shutil.rmtree(folder)
    return destination


class _Tracks:
    """Numbers for the tracks of every rank, by their names; 0 stays free, viewers give it to the
    idle thread."""

    def __init__(self) -> None:
        self._numbers: dict[int, dict[str, int]] = {}

    def number(self, rank: int, name: str) -> int:
        known = self._numbers.setdefault(rank, {HOST_TRACK: 1, DEVICE_TRACK: 2})
        return known.setdefault(name, len(known) + 1)

    def metadata(self) -> Iterator[Event]:
        for rank, tracks in sorted(self._numbers.items()):
            yield _metadata("process_name", rank, 0, {"name": f"rank {rank}"})
            yield _metadata("process_sort_index", rank, 0, {"sort_index": rank})
            for name, number in tracks.items():
                yield _metadata("thread_name", rank, number, {"name": name})
                yield _metadata("thread_sort_index", rank, number, {"sort_index": number})


def _parts(folder: Path) -> Iterator[tuple[int, str, int, Path]]:
    """(rank, kind, start in nanoseconds since 1970, path) of each part."""
    for path in folder.glob("*.json.gz"):
        match = _PART.fullmatch(path.name)
        if match is not None:
            yield int(match[3]), match[1], int(match[2]), path


def _of_profiler(
    document: Mapping[str, Any], tracks: _Tracks, *, rank: int, number: int
) -> list[Event]:
    """Events that torch's profiler recorded, on tracks with names, in nanoseconds since 1970."""
    recorded: list[Event] = document["traceEvents"]
    base_ns = int(document.get("baseTimeNanoseconds", 0))
    processes = _names(recorded, "process_labels", "labels")
    threads = _names(recorded, "thread_name", "name")
    events: list[Event] = []
    for event in recorded:
        pid, tid = event.get("pid"), event.get("tid")
        if event["ph"] == "M" or not isinstance(pid, int):  # marks of the profiler itself
            continue
        process, thread = processes.get((pid, None), str(pid)), threads.get((pid, tid), str(tid))
        event["tid"] = f"{process}: {thread.strip()}"
        event["ts"] = base_ns + round(event["ts"] * 1e3)
        if "dur" in event:
            event["dur"] = round(event["dur"] * 1e3)
        if event["ph"] in _FLOWS:
            # Arrows are numbered from 1 in each part: they must not lead to another rank.
            event["id"] = int(event["id"]) + (number << 40)
        events.append(_as_curve(event) if event["name"] == "[memory]" else event)
    return _untangled(events)


def _untangled(events: list[Event]) -> list[Event]:
    """The events with those that neither contain nor follow their neighbours (work that goes on
    after the call that began it, such as gloo's collectives) on tracks of their own."""
    open_until: dict[str, list[int]] = {}
    # Of a parent and a child that start together the parent, which is longer, comes first.
    for event in sorted(events, key=lambda event: (event["ts"], -event.get("dur", 0))):
        if event["ph"] != "X":
            continue
        stop_ns = event["ts"] + event["dur"]
        while True:
            stack = open_until.setdefault(event["tid"], [])
            while stack and stack[-1] <= event["ts"] + _ROUNDING_NS:
                stack.pop()
            if not stack or stop_ns <= stack[-1] + _ROUNDING_NS:
                break
            event["tid"] += ", asynchronous"
        stack.append(stop_ns)
    return events


def _as_curve(event: Event) -> Event:
    """torch's notes of allocations as the curve that they describe, one for each device."""
    args = event["args"]
    device = "CPU" if args.get("Device Type") == 0 else f"GPU {args.get('Device Id')}"
    value = args.get("Total Allocated", 0)
    name = f"torch allocations, {device}"
    return {**event, "name": name, "ph": "C", "args": {"bytes": value}}


def _names(events: Iterable[Event], kind: str, field: str) -> dict[tuple[Any, Any], str]:
    """Names that the metadata events of a kind give, by process and, for threads, thread."""
    found: dict[tuple[Any, Any], str] = {}
    for event in events:
        if event["ph"] == "M" and event["name"] == kind:
            thread = event.get("tid") if kind.startswith("thread") else None
            found[event.get("pid"), thread] = str(event["args"].get(field, ""))
    return found


def _placed(events: list[Event], tracks: _Tracks, *, rank: int, base_ns: int) -> Iterator[Event]:
    """Events of a part in order, in microseconds from `base_ns`, as those of a rank."""
    for event in events:
        event["pid"], event["tid"] = rank, tracks.number(rank, event["tid"])
    events.sort(key=lambda event: (event["tid"], event["ts"], -event.get("dur", 0)))
    for event in events:
        event["ts"] = (event["ts"] - base_ns) / 1e3
        if "dur" in event:
            event["dur"] /= 1e3
        yield event


def _write_events(file: TextIO, events: Iterable[Event], *, last: bool = False) -> None:
    lines = [json.dumps(event) for event in events]
    if lines:
        file.write(",\n".join(lines))
        file.write("\n" if last else ",\n")


def _metadata(kind: str, pid: int, tid: int, args: Mapping[str, Any]) -> Event:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": dict(args)}
