# SPDX-License-Identifier: Apache-2.0
"""Sinks of the metrics of a run at work, beside its files: TensorBoard, Weights & Biases,
Prometheus.

The libraries are imported when a sink is opened; what is missing is said at the start of a run, not
hours into it. Not for: metrics.jsonl (`metrics`), which is the record that everything else reads.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

_FLUSH_SECONDS = 10  # TensorBoard shows a step at most this much later
_INVALID = re.compile(r"[^a-zA-Z0-9_]")


class Sink(Protocol):
    """Takes the metrics of each step; those that are not finite were left out before."""

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoardSink:
    """Event files, in a folder for each stage, so that stages overlay as curves.

    last_steps: of each stage that an interrupted run leaves valid; what it wrote beyond is hidden.
    One event holds all scalars of a step: torch's SummaryWriter makes an event of each, which took
    longer than the rest of the recording.
    """

    def __init__(self, folder: Path, last_steps: Mapping[str, int] | None = None) -> None:
        # Here, so that a machine without the library fails before anything runs.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._open_file = EventFileWriter
        # Their classes are made at run time: no type checker knows them.
        self._events: Any = event_pb2
        self._summaries: Any = summary_pb2
        self._folder = folder
        self._last_steps = last_steps
        self._files: dict[str, Any] = {}

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        summary = self._summaries.Summary()
        for name, value in metrics.items():
            summary.value.add(tag=name, simple_value=value)
        event = self._events.Event(wall_time=time.time(), step=step, summary=summary)
        self._file(stage).add_event(event)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _file(self, stage: str) -> Any:
        if stage not in self._files:
            folder = self._folder / stage.replace(os.sep, "-")
            self._files[stage] = self._open_file(str(folder), flush_secs=_FLUSH_SECONDS)
            if self._last_steps is not None:
                self._hide_after(stage, self._last_steps.get(stage, -1))
        return self._files[stage]

    def _hide_after(self, stage: str, step: int) -> None:
        log = self._events.SessionLog
        event = self._events.Event(
            wall_time=time.time(), step=step + 1, session_log=log(status=log.START)
        )
        self._files[stage].add_event(event)


class WandbSink:
    """One Weights & Biases run, `STAGE/metric` over `STAGE/step`; its id is kept in the run folder,
    so that a resumed run goes on in the same place.

    What the library reads from the environment stays in force (WANDB_MODE=offline, its API key).
    Raises ValueError when the library is not installed or has no access.
    """

    def __init__(
        self, folder: Path, *, project: str, name: str, config: Mapping[str, Any] | None = None
    ) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError(
                "logging.wandb = true needs the wandb library: pip install wandb"
            ) from None
        id_file = folder / "wandb_id.txt"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12] + "\n", encoding="utf-8")
        self._stages: set[str] = set()
        try:
            self._run: Any = wandb.init(
                project=project,
                name=name,
                id=id_file.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=str(folder),
                config=dict(config or {}),
            )
        except wandb.Error as error:  # no key, no network
            raise ValueError(
                f"logging.wandb: {str(error).strip()} (WANDB_MODE=offline needs neither key nor "
                "network)"
            ) from None

    @property
    def run_id(self) -> str:
        return self._run.id

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        if stage not in self._stages:
            # Steps of stages begin at 0 again; the library's own counter must not.
            self._run.define_metric(f"{stage}/step")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._stages.add(stage)
        named = {f"{stage}/{name}": value for name, value in metrics.items()}
        self._run.log({**named, f"{stage}/step": step})

    def close(self) -> None:
        self._run.finish()


class PrometheusSink:
    """The newest value of each metric as a gauge, served at http://ADDRESS:PORT/metrics.

    "update/tokens_per_s" becomes ``satori_fast_update_tokens_per_s{run="...", stage="..."}``, and
    the step is ``satori_fast_step_number``. Raises ValueError when the library is not installed or
    the port cannot be had. Whoever reaches the address can read the metrics.
    """

    def __init__(self, run: str, *, port: int, address: str = "127.0.0.1") -> None:
        try:
            import prometheus_client
        except ImportError:
            raise ValueError(
                "logging.prometheus_port needs the prometheus_client library: "
                "pip install prometheus-client"
            ) from None
        self._gauge = prometheus_client.Gauge
        self._registry = prometheus_client.CollectorRegistry()
        self._run = run
        self._gauges: dict[str, Any] = {}
        self._sources: dict[str, str] = {}
        try:
            self._server, self._thread = prometheus_client.start_http_server(
                port, addr=address, registry=self._registry
            )
        except OSError as error:
            raise ValueError(
                f"logging.prometheus_port = {port} on {address} cannot be used "
                f"({error.strerror}): choose another port"
            ) from None

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in {**metrics, "step/number": step}.items():
            self._gauge_of(name).labels(run=self._run, stage=stage).set(value)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _gauge_of(self, name: str) -> Any:
        gauge = self._gauges.get(name)
        if gauge is None:
            valid = prometheus_name(name)
            other = self._sources.setdefault(valid, name)
            if other != name:
                raise ValueError(f"metrics {other!r} and {name!r} are both {valid!r}: rename one")
            gauge = self._gauge(valid, name, ["run", "stage"], registry=self._registry)
            self._gauges[name] = gauge
        return gauge


def prometheus_name(metric: str) -> str:
    """A valid name: ``update/mfu`` is ``satori_fast_update_mfu``."""
    return "satori_fast_" + _INVALID.sub("_", metric)
