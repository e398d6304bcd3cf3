# SPDX-License-Identifier: Apache-2.0
"""The GPU suite without a GPU: every case on the host at a tiny size, and what happens to the
record when cases fail, workers die or hang, and time runs out."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_suite
from benchmarks.gpu.case import Case, Place
from benchmarks.gpu.cases import DEADLINES, all_cases
from benchmarks.gpu.timing import Absent, race
from benchmarks.gpu.worker import run_case

HOST = Place(torch.device("cpu"), allowance_s=0.01)

# A worker that does what the name of a case says.
WORKER = """
import json, os, sys, time
for line in sys.stdin:
    name = json.loads(line)["case"]
    if name == "dies":
        print("last words", file=sys.stderr)
        os._exit(7)
    if name == "hangs":
        time.sleep(60)
    print(json.dumps({"case": name, "status": "ok", "figures": {"pid": os.getpid()}}), flush=True)
"""


def case_of(run, name="a case", **options) -> Case:
    return Case("small", name, run, **options)


def failing(error: Exception):
    def run(_: Place):
        raise error

    return run


def run_script(tmp_path: Path, cases: list[Case], budget_s: float = 100.0):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    output = tmp_path / "gpu.json"
    command = [sys.executable, str(script)]
    record = gpu_suite.run(cases, command, budget_s=budget_s, output=output)
    assert json.loads(output.read_text()) == record
    return record["cases"]


@pytest.mark.slow
def test_every_case_runs_on_the_host(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--scale", "tiny", "--output", str(output)]
    gpu_suite.main([*arguments, "--budget-s", "300"])
    record = json.loads(output.read_text())
    assert record["finished"]
    assert [entry["case"] for entry in record["cases"]] == [c.name for c in all_cases("tiny")]
    states = {entry["case"]: entry["status"] for entry in record["cases"]}
    assert set(states.values()) <= {"ok", "absent"}, states
    (loss,) = [e for e in record["cases"] if e["case"] == "linear_policy_loss_tiny"]
    assert {"ms", "tflops", "floor_share"} <= loss["figures"]["rivals"]["ours"].keys()


def test_dry_run_lists_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_suite.main(["--dry-run"]) == 0
    listed = capsys.readouterr().out
    for case in all_cases("full"):
        assert case.name in listed
    assert "T 32768 H 3584 V 152064" in listed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_suite.main([]) != 0
    assert "No CUDA device" in capsys.readouterr().out


def test_names_are_unique_and_sections_have_deadlines() -> None:
    for scale in ("full", "tiny"):
        cases = all_cases(scale)
        assert len({case.name for case in cases}) == len(cases)
        assert {case.section for case in cases} <= DEADLINES.keys()


@pytest.mark.parametrize(
    ("run", "status"),
    [
        (lambda _: {}, "ok"),
        (lambda _: {"passed": True}, "ok"),
        (lambda _: {"passed": False}, "wrong"),
        (failing(torch.OutOfMemoryError("too much")), "out_of_memory"),
        (failing(RuntimeError("launch failed")), "failed"),
        (failing(Absent("no such operation")), "absent"),
    ],
)
def test_status_of_a_case(run, status: str) -> None:
    answer = run_case(case_of(run), HOST)
    assert answer["status"] == status
    assert not answer["broken"]


def test_a_failing_rival_loses_only_its_own_figures() -> None:
    figures = race({"ours": lambda: 1, "theirs": failing_call, "third": lambda: 3}, HOST)
    assert figures["theirs"] == {"status": "failed", "reason": "KeyError: 'no kernel'"}
    assert figures["ours"]["rounds"] >= 3
    assert figures["third"]["ms"] >= 0


def failing_call() -> None:
    raise KeyError("no kernel")


def test_a_worker_that_dies_or_hangs_is_replaced(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gpu_suite.supervisor, "START_SECONDS", 5.0)
    names = ("first", "dies", "second", "hangs", "third")
    limits = {"hangs": 0.5}
    cases = [case_of(dict, name, limit_s=limits.get(name, 20.0)) for name in names]
    entries = run_script(tmp_path, cases)
    assert [e["status"] for e in entries] == ["ok", "crashed", "ok", "timeout", "ok"]
    assert "last words" in entries[1]["reason"]
    assert len({e["figures"]["pid"] for e in entries if "figures" in e}) == 3


def test_a_worker_that_always_dies_is_given_up(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gpu_suite.supervisor, "MAX_STARTS", 2)
    entries = run_script(tmp_path, [case_of(dict, "dies")] * 3)
    assert [entry["status"] for entry in entries] == ["crashed", "crashed", "skipped"]


def test_cases_beyond_the_budget_are_skipped_and_say_so(tmp_path: Path) -> None:
    entries = run_script(tmp_path, [case_of(dict, "late")], budget_s=0.0)
    assert entries[0]["status"] == "skipped"
    assert "time of section small" in entries[0]["reason"]


def test_targets_are_reported_as_met_or_not() -> None:
    rivals = {
        "ours": {"ms": 100.0, "floor_share": 0.9, "peak_bytes": 3 * 2**30},
        "Liger GRPO": {"ms": 400.0, "over_ours": 4.0},
        "Liger cross entropy": {"ms": 120.0, "over_ours": 1.2},
    }
    entry = {
        "case": "linear_policy_loss_qwen_7b_32k",
        "shape": {"T": 32_768},
        "figures": {"rivals": rivals},
    }
    assert [target["met"] for target in gpu_suite.targets([entry])] == [True, False, False]
    unmeasured = {**entry, "figures": {"rivals": {}}}
    assert [target["met"] for target in gpu_suite.targets([unmeasured])] == [None] * 3
