# SPDX-License-Identifier: Apache-2.0
"""Metrics as the real libraries hand them on: over loopback HTTP, and in files."""

from __future__ import annotations

import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from satori_fast.profiling.metrics import MetricsWriter
from satori_fast.profiling.sinks import (
    PrometheusSink,
    TensorBoardSink,
    WandbSink,
    prometheus_name,
)
from satori_fast.types import StepReport


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def scraped(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sorted(line for line in lines if not line.startswith("#"))


def test_prometheus_serves_the_newest_values_by_stage() -> None:
    port = free_port()
    sink = PrometheusSink("quick", port=port)
    sink.write("supervised", 3, {"update/loss": 1.5})
    sink.write("reinforce", 0, {"update/loss": 0.5, "update/tokens_per_s": 1e6})
    sink.write("reinforce", 1, {"update/loss": 0.25})
    assert scraped(port) == [
        'satori_fast_step_number{run="quick",stage="reinforce"} 1.0',
        'satori_fast_step_number{run="quick",stage="supervised"} 3.0',
        'satori_fast_update_loss{run="quick",stage="reinforce"} 0.25',
        'satori_fast_update_loss{run="quick",stage="supervised"} 1.5',
        'satori_fast_update_tokens_per_s{run="quick",stage="reinforce"} 1e+06',
    ]
    sink.close()
    with pytest.raises(OSError):
        scraped(port)
    PrometheusSink("quick", port=port).close()  # the port is free again


def test_a_port_in_use_is_one_clear_error() -> None:
    port = free_port()
    sink = PrometheusSink("first", port=port)
    try:
        with pytest.raises(ValueError, match=f"prometheus_port = {port} on 127.0.0.1 cannot be"):
            PrometheusSink("second", port=port)
    finally:
        sink.close()


def test_prometheus_names_are_valid_and_distinct() -> None:
    assert prometheus_name("update/tokens_per_s") == "satori_fast_update_tokens_per_s"
    assert prometheus_name("reward/p-90.x") == "satori_fast_reward_p_90_x"
    sink = PrometheusSink("run", port=free_port())
    try:
        with pytest.raises(ValueError, match="'a/b' and 'a_b' are both 'satori_fast_a_b'"):
            sink.write("rl", 0, {"a/b": 1.0, "a_b": 2.0})
    finally:
        sink.close()


def test_a_missing_library_is_said_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("wandb", "prometheus_client"):
        monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    with pytest.raises(ValueError, match="pip install wandb"):
        WandbSink(Path(), project="p", name="n")
    with pytest.raises(ValueError, match="pip install prometheus-client"):
        PrometheusSink("run", port=free_port())


class ListSink:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.written: list[tuple[str, int, dict[str, float]]] = []
        self.is_closed = False

    def write(self, stage: str, step: int, metrics: Any) -> None:
        self.written.append((stage, step, dict(metrics)))

    def close(self) -> None:
        self.is_closed = True


def test_the_writer_hands_finite_metrics_to_its_sinks_and_closes_them(tmp_path: Path) -> None:
    sink = ListSink()
    with MetricsWriter(tmp_path, tensorboard=False, sinks=[sink]) as writer:
        writer.write(StepReport("rl", 4, {"kl": float("nan"), "loss": 2.0}, {"update": 1.0}))
        assert not sink.is_closed
    assert sink.written == [("rl", 4, {"loss": 2.0})] and sink.is_closed


def test_tensorboard_writes_a_step_as_one_event(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    sink = TensorBoardSink(tmp_path)
    sink.write("rl", 0, {"a": 1.0, "b": 2.0})
    sink.write("rl", 1, {"a": 3.0})
    sink.close()
    (path,) = (tmp_path / "rl").iterdir()
    events = [e for e in EventFileLoader(str(path)).Load() if e.summary.value]
    assert [e.step for e in events] == [0, 1]
    assert [v.tag for v in events[0].summary.value] == ["a", "b"]


def test_wandb_offline_goes_on_under_the_same_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for step in range(2):
        sink = WandbSink(tmp_path, project="test", name="run", config={"seed": 1})
        ids.append(sink.run_id)
        sink.write("supervised", step, {"update/loss": 1.0 - step / 2})
        sink.close()
    assert ids[0] == ids[1] == (tmp_path / "wandb_id.txt").read_text().strip()
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2
