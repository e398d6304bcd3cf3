# SPDX-License-Identifier: Apache-2.0
"""A run folder, read for the pages: what ran, what it came to, and where its time went.

A run that has not finished is read from progress.json and metrics.jsonl as far as it came. Not for:
charts (`report_plots`), samples (`report_samples`) or several runs beside each other
(`report_compare`).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from satori_fast.profiling.metrics import read_metrics
from satori_fast.profiling.summary import build_summary
from satori_fast.redaction import redacted

# Spans inside other spans, which count their time already: a rank's own part of the sampling.
INNER_SPANS = frozenset({"sample"})
_FILES = ("summary.json", "metrics.jsonl", "samples.jsonl")


@dataclass(frozen=True, slots=True)
class StageTime:
    """Time of a stage: when it ran, and its spans.

    start_s:   since the start of the run; stages run one after another.
    wall_s:    of the whole stage, what no span covers included.
    seconds:   by span, in the order of their size; without `INNER_SPANS`.
    """

    stage: str
    start_s: float
    wall_s: float
    seconds: dict[str, float]

    @property
    def rest_s(self) -> float:
        """Seconds that no span covers; 0 where spans overlap."""
        return max(0.0, self.wall_s - sum(self.seconds.values()))


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The files of one run folder. A file that does not exist leaves its field empty.

    summary:    summary.json; of an unfinished run the same made of progress.json.
    finished:   is there a summary.json?
    analysis:   the entries of analysis.json, one for each evaluated stage.
    similarity: the contents of similarity_STAGE.json, one for each stage with step problems.
    config:     config.toml, and `config_text` as it is written.
    """

    folder: Path
    name: str
    summary: dict[str, Any]
    finished: bool
    analysis: list[dict[str, Any]]
    similarity: list[dict[str, Any]]
    lines: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    config: dict[str, Any]
    config_text: str

    @property
    def times(self) -> list[StageTime]:
        return stage_times(self.summary["stages"], self.lines)

    @property
    def wall_s(self) -> float:
        """Seconds of the whole run: at least what its stages add up to."""
        return max(self.summary["wall_s"] or 0.0, sum(time.wall_s for time in self.times))


def read_run(folder: str | Path) -> RunRecord:
    """Read a run folder. Raises ValueError when it holds no run or a file that is broken."""
    folder = Path(folder)
    if not any((folder / name).exists() for name in _FILES):
        raise ValueError(f"{folder} holds no run: give a folder with summary.json or metrics.jsonl")
    config_text = _read_config(folder / "config.toml")
    config = tomllib.loads(config_text)
    name = str(config.get("name") or folder.resolve().name)
    summary = _read_json(folder / "summary.json")
    finished = summary is not None
    if summary is None:
        with formed(folder / "progress.json") as path:
            progress = _read_json(path)
            progress = {"finished": [], "wall_s": 0.0} if progress is None else progress
            summary = build_summary(
                name, "", device={}, wall_s=progress["wall_s"], stages=progress["finished"]
            )
    with formed(folder / "summary.json"):
        stages, wall_s = summary["stages"], summary["wall_s"]
        summary = build_summary(
            str(summary["name"]),
            summary["version"],
            device=summary["device"],
            wall_s=wall_s,
            stages=stages,
        )
    with formed(folder / "analysis.json") as path:
        analysis = _read_json(path)
        entries = [] if analysis is None else [{**entry} for entry in analysis["stages"]]
    lines = _read_lines(folder / "metrics.jsonl")
    with formed(folder / "metrics.jsonl"):
        stage_times(summary["stages"], lines)
    return RunRecord(
        folder=folder,
        name=str(summary["name"]),
        summary=summary,
        finished=finished,
        analysis=entries,
        similarity=_read_similarity(folder),
        lines=lines,
        samples=_read_lines(folder / "samples.jsonl"),
        config=config,
        config_text=config_text,
    )


@contextmanager
def formed(path: Path) -> Iterator[Path]:
    """ValueError, naming `path`, where the block finds something else there than runs write."""
    try:
        yield path
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path} does not hold what a run writes there ({reason}): remove or fix it"
        ) from error


def _read_config(path: Path) -> str:
    """The text of config.toml without secrets; "" where there is none."""
    if not path.exists():
        return ""
    try:
        text = redacted(path.read_text(encoding="utf-8"))
        tomllib.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not TOML ({error}): remove or fix it") from error
    return text


def stage_times(
    stages: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]]
) -> list[StageTime]:
    """Times of all stages, in the order they ran.

    stages: entries of summary.json; their "seconds" also hold what was done between steps.
    lines:  of metrics.jsonl, for stages without such an entry.
    """
    entries = {str(stage["stage"]): stage for stage in stages}
    own_lines: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        own_lines.setdefault(line["stage"], []).append(line)
    times: list[StageTime] = []
    start_s = 0.0
    for name in dict.fromkeys([*entries, *own_lines]):
        entry, own = entries.get(name, {}), own_lines.get(name, [])
        recorded = entry.get("seconds") or _span_sums(own)
        seconds = {k: float(v) for k, v in recorded.items() if v and k not in INNER_SPANS}
        wall_s = entry.get("wall_s") or sum(line.get("step/seconds") or 0.0 for line in own)
        ordered = dict(sorted(seconds.items(), key=lambda item: -item[1]))
        times.append(StageTime(name, start_s, wall_s or sum(seconds.values()), ordered))
        start_s += times[-1].wall_s
    return times


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys in dots, as on the command line: {"model.hidden_size": 128}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flat_config(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def run_facts(run: RunRecord) -> list[tuple[str, str]]:
    """Facts of a run and its machine: pairs of a name and its value, for people."""
    flat, device = flat_config(run.config), run.summary["device"]
    facts = [
        ("stages", ", ".join(time.stage for time in run.times)),
        ("model", _model_text(flat)),
        ("data", _data_text(flat)),
        ("recipe", str(flat.get("reinforce.recipe") or "")),
        ("rollout engine", str(flat.get("rollout.engine") or "")),
        ("device", _device_text(device)),
        ("parallel", _parallel_text(flat)),
        ("seed", str(flat.get("seed", ""))),
        ("alarms", ", ".join(kind for kind, _ in run_alarms(run.lines))),
        ("versions", ", ".join(_versions(run.summary["version"], device))),
    ]
    return [(name, value) for name, value in facts if value]


def run_alarms(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The alarms of a run as they came: pairs of a kind and the line that says stage and step."""
    return [(k, str(v)) for line in lines for k, v in line.get("alarms", {}).items()]


def _model_text(flat: Mapping[str, Any]) -> str:
    if flat.get("model.path"):
        return str(flat["model.path"])
    if not flat.get("model.architecture"):
        return ""
    layers, hidden = flat.get("model.num_layers"), flat.get("model.hidden_size")
    return f"{flat['model.architecture']}, {layers} layers, hidden size {hidden}, from scratch"


def _data_text(flat: Mapping[str, Any]) -> str:
    sources = [str(each["source"]) for each in flat.get("data.sources") or ()]
    return " + ".join(sources) or str(flat.get("data.source") or "")


def _device_text(device: Mapping[str, Any]) -> str:
    name = str(device.get("name", ""))
    if not name or device.get("kind") == "cpu":
        return f"{name}, {device['cores']} cores" if "cores" in device else name
    return f"{device.get('count', 1)} x {name}"


def _parallel_text(flat: Mapping[str, Any]) -> str:
    """Empty where nothing is split."""
    sizes = {axis: flat.get(f"parallel.{axis}", 1) for axis in ("tensor", "pipeline", "context")}
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items() if size != 1)


def _versions(version: str, device: Mapping[str, Any]) -> Iterator[str]:
    for name, value in (("satori_fast", version), *((k, device.get(k)) for k in ("torch", "cuda"))):
        if value:
            yield f"{name} {value}"


def _read_similarity(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("similarity_*.json")):
        with formed(path):
            entry = _read_json(path) or {}
            found.append({"stage": entry["stage"], "rows": entry["rows"]})
    return found


def _span_sums(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for line in lines:
        for name, value in line.get("spans_s", {}).items():
            seconds[name] = seconds.get(name, 0.0) + (value or 0.0)
    return seconds


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): remove or fix it") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return read_metrics(path) if path.exists() else []
