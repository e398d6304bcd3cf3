# SPDX-License-Identifier: Apache-2.0
"""A user's functions in a process of their own: their numbers, and every way to give none."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from satori_fast.rewards.worker import (
    CallLimits,
    FunctionWorker,
    RewardFunctionError,
    checked_values,
    load_function,
)
from satori_fast.types import Problem, RewardBreakdown, Trajectory
from tests.algorithms.test_advantages import make_trajectory

TRAJECTORIES = [
    replace(make_trajectory(2, [length]), problem=Problem(f"p{length}", "q", None))
    for length in (1, 2, 5)
]
FUNCTIONS = """
import os, signal, subprocess, sys, time
import numpy as np
import neighbour

calls = 0

def lengths(trajectories):
    return [t.num_response_tokens for t in trajectories]

def state(trajectories):
    global calls
    calls += 1
    return np.full(len(trajectories), calls, np.float32)

def rewarded(trajectories):
    return [t.reward.total + neighbour.TEN for t in trajectories]

def chatty(trajectories):
    print('{"values": [7, 7, 7]}', flush=True)
    os.write(1, b"more\\n")
    try:
        input()
    except EOFError:
        return [1.5] * len(trajectories)

def raises(trajectories):
    return [1 / (t.num_response_tokens - 2) for t in trajectories]

def exits(trajectories):
    sys.exit("enough")

def below(trajectories):
    return np.stack([np.zeros(2), np.zeros(3)])

def spins(trajectories):
    while True:
        pass

def sleeps(trajectories):
    subprocess.Popen(["sleep", "1000"])
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    time.sleep(1000)

def dies(trajectories):
    os._exit(3)

def is_killed(trajectories):
    os.kill(os.getpid(), signal.SIGKILL)

number = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("functions")
    (folder / "neighbour.py").write_text("TEN = 10\n")
    (folder / "mine.py").write_text(FUNCTIONS)
    return folder / "mine.py"


@pytest.fixture(scope="module")
def worker() -> Iterator[FunctionWorker]:
    """One for all tests: a process that was killed is started again."""
    with FunctionWorker(CallLimits(cpu_s=1.0, wall_s=3.0, load_s=60.0)) as started:
        yield started


def test_numbers_of_a_function(file: Path, worker: FunctionWorker) -> None:
    assert worker.call("n", f"{file}:lengths", TRAJECTORIES) == [1.0, 2.0, 5.0]
    # The file is run once; an array is as good as a list.
    assert worker.call("n", f"{file}:state", TRAJECTORIES) == [1.0] * 3
    assert worker.call("n", f"{file}:state", TRAJECTORIES[:1]) == [2.0]


def test_a_function_sees_other_terms_and_the_files_beside_it(
    file: Path, worker: FunctionWorker
) -> None:
    scored = [t.with_reward(RewardBreakdown({"rule": -1.0})) for t in TRAJECTORIES]
    assert worker.call("n", f"{file}:rewarded", scored) == [9.0] * 3


def test_what_a_function_prints_is_no_answer(
    file: Path, worker: FunctionWorker, capfd: pytest.CaptureFixture[str]
) -> None:
    with FunctionWorker(CallLimits.of_cpu(5.0)) as own:  # its standard error is the test's
        assert own.call("n", f"{file}:chatty", TRAJECTORIES) == [1.5] * 3
    said = capfd.readouterr()
    assert said.out == "" and "[7, 7, 7]" in said.err and "more" in said.err


def test_a_function_of_a_module(worker: FunctionWorker) -> None:
    # Of the standard library: what is on this process's path is on the worker's.
    with pytest.raises(RewardFunctionError) as caught:
        worker.call("n", "textwrap:dedent", TRAJECTORIES)
    assert str(caught.value).startswith("reward function n (textwrap:dedent) raised an error: Type")
    path = f"{__name__}:lengths"
    assert worker.call("n", path, TRAJECTORIES) == [1.0, 2.0, 5.0]


def lengths(trajectories: list[Trajectory]) -> list[int]:
    return [t.num_response_tokens for t in trajectories]


FAULTS = [
    (
        "raises",
        r"raised an error: ZeroDivisionError: division by zero \(.*mine\.py:28\), at problem 'p2': "
        "fix it",
    ),
    ("exits", r"raised an error: SystemExit: enough \(.*mine\.py:31\): fix it"),
    ("below", r"raised an error: ValueError: all input arrays .* \(.*mine\.py:34\): fix it"),
    (
        "spins",
        # On a busy machine three seconds pass before one of this process's own.
        "(took more than 1 CPU seconds for one step|did not return within 3 s) and was killed: "
        r"make it faster, or raise reward\.function_timeout_s",
    ),
    ("sleeps", "did not return within 3 s and was killed: make it faster, or raise reward"),
    ("dies", "ended its process with exit status 3: a crash in a library, or no memory left"),
    ("is_killed", "was ended by signal SIGKILL: a crash in a library"),
    ("absent", r"cannot be loaded: .*mine\.py has no function 'absent': correct reward\.functions"),
    ("number", r"cannot be loaded: .*mine\.py has int, no function, 'number': correct reward"),
]


@pytest.mark.parametrize(("function", "message"), FAULTS, ids=[name for name, _ in FAULTS])
def test_a_function_that_gives_no_numbers(
    file: Path, worker: FunctionWorker, function: str, message: str
) -> None:
    path = f"{file}:{function}"
    with pytest.raises(RewardFunctionError, match=message) as caught:
        worker.call("mine", path, TRAJECTORIES)
    said = str(caught.value)
    assert said.startswith(f"reward function mine ({path}) ") and "\n" not in said
    if "raised" in said:
        (note,) = caught.value.__notes__
        assert "Traceback (most recent call last)" in note and "mine.py" in note
    # The next call finds a process again.
    assert worker.call("n", f"{file}:lengths", TRAJECTORIES[:1]) == [1.0]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_library", r"loaded: ModuleNotFoundError: No module .* \(.*f\.py:1\): fix"),
        ("def f(:", r"cannot be loaded: SyntaxError: .*f\.py, line 1\): fix it"),
        ("raise SystemExit(2)", r"cannot be loaded: SystemExit: 2 \(.*f\.py:1\): fix it"),
        ("import time\ntime.sleep(99)", r"was not loaded within 2 s: do less when the file is im"),
    ],
)
def test_a_file_that_cannot_be_imported(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "f.py").write_text(code)
    with (
        FunctionWorker(CallLimits(1.0, 1.0, load_s=2.0)) as worker,
        pytest.raises(RewardFunctionError, match=message) as caught,
    ):
        worker.load("f", f"{tmp_path / 'f.py'}:f")
    assert "\n" not in str(caught.value)


def test_closing_ends_the_process_and_what_it_started(file: Path) -> None:
    pids = file.parent / "pids.py"
    pids.write_text(
        textwrap.dedent(
            """
            import os, subprocess
            def f(trajectories):
                return [os.getpid(), subprocess.Popen(["sleep", "1000"]).pid, 0]
            """
        )
    )
    with FunctionWorker(CallLimits.of_cpu(5.0)) as worker:
        *found, _ = map(int, worker.call("f", f"{pids}:f", TRAJECTORIES))
        assert all(Path(f"/proc/{pid}").exists() for pid in found)
    deadline = time.monotonic() + 10
    while any(map(is_running, found)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_running, found))
    FunctionWorker(CallLimits.of_cpu(1.0)).close()  # one that never started


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    "result",
    [
        [1, 2.5, True],
        (1, 2.5, True),
        np.array([1, 2.5, 1], np.float16),
        torch.tensor([1, 2.5, 1], dtype=torch.bfloat16),
        [np.float32(1), torch.tensor(2.5), np.bool_(True)],
        [np.array([1]), np.array(2.5), 1],
    ],
)
def test_what_counts_as_numbers(result: Any) -> None:
    values = checked_values(result, TRAJECTORIES)
    assert values == [1.0, 2.5, 1.0] and {type(value) for value in values} == {float}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "returned None: return a list with a number for each of the 3 trajectories"),
        ([1, 2], "returned 2 numbers for 3 trajectories: return one for each, in their order"),
        ([], "returned 0 numbers for 3"),
        (0.5, r"returned 0\.5 \(float\): return a list"),
        (np.float64(0.5), r"returned .*0\.5.* \(float64\): return a list"),
        ("abc", r"returned 'abc' \(str\): return a list"),
        ({"a": 1}, r"returned \{'a': 1\} \(dict\): return a list"),
        ((x for x in range(3)), r"returned <generator .*\(generator\): return a list"),
        ([1, "2", 3], r"gave '2' \(str\) for problem 'p2' \(number 2 of 3\): return numbers"),
        ([1, 2, None], r"gave None \(NoneType\) for problem 'p5' \(number 3 of 3\): return nu"),
        (np.zeros((3, 2)), r"gave \[0\.0, 0\.0\] \(list\) for problem 'p1'"),
        ([float("nan"), 1, 1], r"gave nan for problem 'p1' \(number 1 of 3\): return finite nu"),
        (np.array([0, -np.inf, 0]), "gave -inf for problem 'p2'"),
        ([0, 0, 10**400], "gave inf for problem 'p5'"),
        (["x" * 999, 0, 0], r"gave 'x{79} \.\.\. \(str\) for problem"),
    ],
)
def test_what_does_not_count_as_numbers(result: Any, message: str) -> None:
    with pytest.raises(RewardFunctionError, match=message):
        checked_values(result, TRAJECTORIES)


def test_a_file_is_run_under_a_name_of_its_own(tmp_path: Path) -> None:
    for name, number in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "numpy.py").write_text(f"def f(_):\n    return {number}\n")
    functions = [load_function(f"{tmp_path / name / 'numpy.py'}:f") for name in "ab"]
    assert [function([]) for function in functions] == [1, 2]
    assert load_function("numpy:zeros") is np.zeros


def test_limits_leave_a_busy_machine_time() -> None:
    assert CallLimits.of_cpu(1.0) == CallLimits(1.0, 30.0, 300.0)
    assert CallLimits.of_cpu(60.0).wall_s == 600.0
