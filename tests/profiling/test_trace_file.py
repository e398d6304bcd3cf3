# SPDX-License-Identifier: Apache-2.0
"""Parts of ranks become one trace: on one clock, in order, with nothing lost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from satori_fast.profiling.spans import SpanRecorder
from satori_fast.profiling.trace_file import kernel_part, merge_trace, write_span_part
from tests.profiling.test_spans import HandClock, record_two_rooms


def loaded(path: Path) -> dict[str, Any]:
    with path.open() as file:
        return json.load(file)


def tracks(document: dict[str, Any]) -> dict[tuple[int, int], str]:
    """(rank, number) -> name of each track."""
    events = [e for e in document["traceEvents"] if e["name"] == "thread_name"]
    return {(e["pid"], e["tid"]): e["args"]["name"] for e in events}


def of_track(document: dict[str, Any], rank: int, name: str) -> list[dict[str, Any]]:
    named = tracks(document)
    return [e for e in document["traceEvents"] if named.get((e["pid"], e["tid"])) == name
            and e["ph"] != "M" and e["pid"] == rank]  # fmt: skip


def assert_in_order(document: dict[str, Any]) -> None:
    """On each track events come as they began, and each ends before its enclosing event does."""
    open_until: dict[Any, list[float]] = {}
    last: dict[Any, float] = {}
    for event in document["traceEvents"]:
        if event["ph"] == "M":
            continue
        track = event["pid"], event["tid"]
        assert event["ts"] >= max(last.get(track, 0.0), 0.0)
        last[track] = event["ts"]
        if event["ph"] == "X":
            stack = open_until.setdefault(track, [])
            while stack and stack[-1] <= event["ts"] + 2e-3:
                stack.pop()
            stop = event["ts"] + event["dur"]
            assert not stack or stop <= stack[-1] + 2e-3  # the profiler rounds to nanoseconds
            stack.append(stop)


def span_part(folder: Path, rank: int, *, max_events: int = 100) -> None:
    clock = HandClock()
    recorder = SpanRecorder(rank=rank, max_events=max_events, clock=clock)
    clock.pass_seconds(rank / 4)
    for step in range(2):
        record_two_rooms(recorder, clock)
        recorder.end_step()
        recorder.sample("host/rss_bytes", 100.0 + step)
    write_span_part(recorder, folder)


def profiler_part(folder: Path, rank: int, start_s: float, names: list[str]) -> None:
    """As torch writes it: microseconds after a base, numbers of the system for threads."""
    base_ns = 90 * 10**9
    ts = start_s * 1e6 - base_ns / 1e3
    thread = {"pid": 77, "tid": 78}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_labels", **thread, "args": {"labels": "CPU"}},
        {"ph": "M", "name": "thread_name", **thread, "args": {"name": "thread 78 (python)"}},
        {"ph": "X", "name": "PyTorch Profiler (0)", "pid": "Spans", "tid": "x", "ts": 0, "dur": 9},
    ]
    for number, name in enumerate(names):
        at = {**thread, "ts": ts + number}
        events.append({"ph": "X", "cat": "cpu_op", "name": name, **at, "dur": 0.5, "args": {}})
        events.append({"ph": "s", "id": 1, "cat": "fwdbwd", "name": "fwdbwd", **at})
    memory = {"Total Allocated": 640, "Device Type": 1, "Device Id": 0}
    events.append({"ph": "i", "s": "t", "name": "[memory]", **thread, "ts": ts, "args": memory})
    folder.mkdir(exist_ok=True)
    with gzip.open(kernel_part(folder, rank, int(start_s * 1e9)), "wt") as file:
        json.dump({"baseTimeNanoseconds": base_ns, "traceEvents": events}, file)


def test_ranks_are_processes_and_spans_nest(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    for rank in (0, 1):
        span_part(parts, rank)
    document = loaded(merge_trace(parts, tmp_path / "trace.json") or tmp_path)
    assert not parts.exists()
    assert_in_order(document)
    names = {e["pid"]: e["args"]["name"] for e in document["traceEvents"]
             if e["name"] == "process_name"}  # fmt: skip
    assert names == {0: "rank 0", 1: "rank 1"}
    spans = [e for e in of_track(document, 0, "spans") if e["ph"] == "X"]
    assert [e["name"] for e in spans] == [
        *("step 0", "rollout", "reward", "reward"),
        *("step 1", "rollout", "reward", "reward"),
    ]
    # Rank 0 began at 100 s of the hand-wound clock; rollout half a second later, for 3 s.
    assert document["baseTimeNanoseconds"] == 100 * 10**9
    assert (spans[1]["ts"], spans[1]["dur"]) == (0.5e6, 3e6)
    assert spans[0]["args"] == {"rollout/tokens": 900, "step/tokens": 1500}
    later = [e for e in of_track(document, 1, "spans") if e["name"] == "rollout"]
    assert later[0]["ts"] == 0.75e6
    curve = [e for e in document["traceEvents"] if e["ph"] == "C" and e["pid"] == 0]
    assert [(e["name"], e["ts"], e["args"]) for e in curve] == [
        ("host/rss_bytes", 3.75e6, {"value": 100.0}),
        ("host/rss_bytes", 7.5e6, {"value": 101.0}),
    ]


def test_what_the_profiler_recorded_lies_inside_its_span(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    span_part(parts, 0)
    profiler_part(parts, 0, 101.0, ["aten::mm", "aten::add"])
    profiler_part(parts, 0, 105.0, ["aten::sum"])
    profiler_part(parts, 1, 101.0, ["aten::mul"])
    document = loaded(merge_trace(parts, tmp_path / "trace.json") or tmp_path)
    assert_in_order(document)
    track = "CPU: thread 78 (python)"
    operators = [e for e in of_track(document, 0, track) if e["ph"] == "X"]
    assert [e["name"] for e in operators] == ["aten::mm", "aten::add", "aten::sum"]
    assert [e["ts"] for e in operators] == [1e6, 1e6 + 1, 5e6]
    assert [e["name"] for e in of_track(document, 1, track) if e["ph"] == "X"] == ["aten::mul"]
    assert "PyTorch Profiler (0)" not in {e["name"] for e in document["traceEvents"]}
    curve = [e for e in document["traceEvents"] if e["name"] == "torch allocations, GPU 0"]
    assert len(curve) == 3 and curve[0]["ph"] == "C" and curve[0]["args"] == {"bytes": 640}
    # Arrows of different parts must not meet.
    assert len({e["id"] for e in document["traceEvents"] if e["ph"] == "s"}) == 3


def test_events_that_overlap_get_a_track_of_their_own(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    profiler_part(parts, 0, 101.0, ["aten::mm"])
    (path,) = parts.iterdir()
    with gzip.open(path, "rt") as file:
        document = json.load(file)
    first = next(e for e in document["traceEvents"] if e["name"] == "aten::mm")
    late = {"name": "gloo:all_gather", "ts": first["ts"] + 0.25, "dur": 10.0}
    later = {"name": "gloo:all_reduce", "ts": first["ts"] + 9.0, "dur": 10.0}
    document["traceEvents"] += [{**first, **late}, {**first, **later}]
    with gzip.open(path, "wt") as file:
        json.dump(document, file)
    merged = loaded(merge_trace(parts, tmp_path / "trace.json") or tmp_path)
    assert_in_order(merged)
    own = [n for n in tracks(merged).values() if n.startswith("CPU")]
    track = "CPU: thread 78 (python)"
    assert sorted(own) == [track, f"{track}, asynchronous"]


def test_dropped_events_are_counted_over_all_ranks(tmp_path: Path) -> None:
    for rank in (0, 1):
        span_part(tmp_path / "parts", rank, max_events=5)
    document = loaded(merge_trace(tmp_path / "parts", tmp_path / "trace.json") or tmp_path)
    assert document["otherData"]["num_dropped_events"] == 2 * (2 * 4 - 5)


def test_without_parts_there_is_no_trace(tmp_path: Path) -> None:
    write_span_part(SpanRecorder(), tmp_path / "parts")
    assert merge_trace(tmp_path / "parts", tmp_path / "trace.json") is None
    assert not any(tmp_path.iterdir())
