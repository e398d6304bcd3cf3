# SPDX-License-Identifier: Apache-2.0
"""The charts of the README, drawn from records as the benchmarks write them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
from benchmarks import plots
from benchmarks.peers.race import OURS, THEIRS, ratios
from benchmarks.peers.workload import WORKLOADS


def side(step: float, peak_mib: float) -> dict[str, Any]:
    rates = {"step": step, "rollout": 3 * step, "logprob": 5 * step, "update": 2 * step}
    return {"tokens_per_s": rates, "peak_mib": peak_mib, "step_peak_mib": peak_mib / 2}


def peers_record() -> dict[str, Any]:
    sides = {OURS: side(6000.0, 512.0), THEIRS: side(1500.0, 2048.0)}
    return {
        name: {"sides": sides, "ratios": ratios(sides, WORKLOADS[name])} for name in ("W1", "W2")
    }


def step_record() -> dict[str, Any]:
    workload = asdict(WORKLOADS["W1"])
    cases = {"stages-W1": {"workload": workload, "sides": {OURS: side(6000.0, 512.0)}}}
    for kind, factors in (("tokens", (1, 2, 8)), ("vocabulary", (1, 16))):
        for factor in factors:
            sides = {OURS: side(6000.0 / factor, 512.0 + factor)}
            case = {"factor": factor, "workload": workload, "sides": sides}
            cases[f"{kind}-x{factor}"] = case
    return cases


def test_charts_are_drawn_from_the_records(tmp_path: Path) -> None:
    for name, figures in (("peers", peers_record()), ("step", step_record())):
        (tmp_path / f"{name}.json").write_text(json.dumps({"figures": figures}))
    plots.main(tmp_path)
    peers = (tmp_path / "peers.svg").read_text()
    assert all(
        text in peers for text in (">W1<", ">W2<", ">4.0<", ">satori_fast<", ">TRL<", ">2.0<")
    )
    growth = (tmp_path / "growth.svg").read_text()
    assert all(text in growth for text in (">x8<", ">x16<", ">in proportion<"))
    plots.main(tmp_path)
    assert (tmp_path / "growth.svg").read_text() == growth


def test_a_missing_record_leaves_its_chart_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plots.main(tmp_path)
    assert "peers.svg left out: there is no peers.json" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
