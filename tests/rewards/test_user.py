# SPDX-License-Identifier: Apache-2.0
"""A user's function as a term of the reward, and what is said of one that does not exist."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from satori_fast.rewards.terms import score
from satori_fast.rewards.user import UserReward, check_function, is_file, source_file
from satori_fast.rewards.worker import CallLimits, FunctionWorker, RewardFunctionError
from tests.algorithms.test_advantages import make_trajectory

CODE = """
import os as system
from math import sqrt

def short_answers(trajectories):
    return [-t.num_response_tokens / 8 for t in trajectories]

class Lengths:
    def longest(self, trajectories): ...

try:
    import no_such_library
except ImportError:
    def fallback(trajectories): ...
    made_here = None

lengths = Lengths().longest

def huge(trajectories):
    return [1e300 for t in trajectories]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "my_rewards.py").write_text(CODE)
    return tmp_path / "my_rewards.py"


def test_values_become_a_weighted_term(file: Path) -> None:
    asked: list[list[float]] = []

    def share(action: Callable[[], list[float]]) -> list[float]:
        asked.append(action())
        return asked[-1]

    trajectories = [make_trajectory(2, [1]), make_trajectory(2, [3])]
    with FunctionWorker(CallLimits.of_cpu(5.0)) as worker:
        reward = UserReward("short", f"{file}:short_answers", worker, 0.5, share)
        scored = score(trajectories, [reward])
        huge = UserReward("huge", f"{file}:huge", worker, -1e10)
        with pytest.raises(RewardFunctionError) as caught:
            huge(trajectories)
    assert [t.reward.terms for t in scored if t.reward] == [{"short": -0.0625}, {"short": -0.1875}]
    assert [t.reward.correct for t in scored if t.reward] == [None, None]
    assert asked == [[-0.125, -0.375]]
    assert str(caught.value) == (
        f"reward function huge ({file}:huge): its value for problem 'p' times weight = -1e+10 is "
        "not finite: lower the weight, or return smaller numbers"
    )


def test_where_no_action_runs_the_values_of_another_process_are_taken(file: Path) -> None:
    # A rank that is not the main process starts no worker.
    with FunctionWorker(CallLimits.of_cpu(5.0)) as worker:
        reward = UserReward("f", "nowhere.py:f", worker, share=lambda action: [2.0])
        assert [part.total for part in reward([make_trajectory(2, [1])])] == [2.0]


def refusal(path: str) -> str:
    with pytest.raises(RewardFunctionError) as caught:
        check_function("mine", path)
    message = str(caught.value)
    assert message.startswith(f"reward function mine ({path}): ") and "\n" not in message
    return message.removeprefix(f"reward function mine ({path}): ")


@pytest.mark.parametrize(
    "name", ["short_answers", "fallback", "lengths", "Lengths", "sqrt", "system", "made_here"]
)
def test_names_that_a_file_defines(file: Path, name: str) -> None:
    check_function("mine", f"{file}:{name}")


def test_names_that_only_running_can_tell_are_left_to_it(file: Path) -> None:
    for code in ("from math import *", "def __getattr__(name): ..."):
        file.write_text(code)
        check_function("mine", f"{file}:anything")


def test_what_does_not_exist_is_said_with_the_nearest(file: Path) -> None:
    assert refusal(f"{file}:short_answer") == (
        f"{file} has no function 'short_answer'; the nearest name there is 'short_answers'"
    )
    # A method or a local name is none of the file's.
    assert "no function 'longest'" in refusal(f"{file}:longest")
    missing = file.with_name("others.py")
    assert refusal(f"{missing}:f") == (
        f"file {missing} does not exist: correct reward.functions: path"
    )
    file.write_text("def f(:\n")
    assert refusal(f"{file}:f").startswith(f"{file}, line 1 is not valid Python (invalid syntax)")
    file.write_bytes(b"x = '\0'\n")
    assert "is not valid Python" in refusal(f"{file}:f")
    file.write_text("")
    assert refusal(f"{file}:f") == f"{file} has no function 'f'; it defines nothing"


def test_modules_are_found_without_being_imported(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = file.parent / "mine_of_test" / "inner"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "rewards.py").write_text(CODE)
    monkeypatch.syspath_prepend(file.parent)
    check_function("mine", "mine_of_test.inner.rewards:short_answers")
    check_function("mine", "my_rewards:short_answers")
    assert source_file("mine_of_test.inner.rewards:f") == package / "rewards.py"
    assert source_file("mine_of_test.inner:f") == package / "__init__.py"
    assert not any(name.startswith("mine_of_test") for name in sys.modules)
    assert "the nearest name there is 'short_answers'" in refusal("my_rewards:short")
    for module in ("no_such_module", "my_rewards.inner", "mine_of_test.other"):
        assert refusal(f"{module}:f") == (
            f"module {module} is not on Python's path: install it, set PYTHONPATH, or name a file, "
            f'"{module.replace(".", "/")}.py:f"'
        )
        assert source_file(f"{module}:f") is None
    # Compiled: nothing to read, and nothing to compare when a run is resumed.
    assert source_file("math:sqrt") is None
    check_function("mine", "math:sqrt")


def test_files_and_modules_are_told_apart() -> None:
    assert [is_file(path) for path in ("a.py:f", "../b/a.py:f", "/x/a.py:f")] == [True] * 3
    assert [is_file(path) for path in ("a:f", "a.b:f")] == [False] * 2
