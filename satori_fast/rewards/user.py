# SPDX-License-Identifier: Apache-2.0
"""A user's own reward: a function that a config names, found without being run, and its term.

``"my_rewards.py:short_answers"`` is a function of a file, ``"module:function"`` one of a module on
Python's path. The process that runs it, and its limits, are `rewards.worker`.
"""

from __future__ import annotations

import ast
import difflib
import importlib.machinery
import importlib.util
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from satori_fast.rewards.worker import FunctionWorker, RewardFunctionError
from satori_fast.types import RewardBreakdown, Trajectory

Share = Callable[[Callable[[], list[float]]], list[float]]


def _at_once(action: Callable[[], list[float]]) -> list[float]:
    return action()


@dataclass(frozen=True, slots=True)
class UserReward:
    """A term `name`: `weight` times what the function at `path` gives, a number per trajectory.

    share: runs an action in one process and gives its result to all (`ParallelState.from_main`):
           the numbers must not differ between ranks that then step together.

    Raises RewardFunctionError, one line with the function, what is wrong and the fix, when it
    cannot be loaded, raises, hangs, or gives anything but a finite number per trajectory.
    """

    name: str
    path: str
    worker: FunctionWorker
    weight: float = 1.0
    share: Share = _at_once

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[RewardBreakdown]:
        values = self.share(lambda: self.worker.call(self.name, self.path, trajectories))
        weighted = [self.weight * value for value in values]
        for trajectory, value in zip(trajectories, weighted, strict=True):
            if not math.isfinite(value):
                raise RewardFunctionError(
                    f"reward function {self.name} ({self.path}): its value for problem "
                    f"{trajectory.problem.problem_id!r} times weight = {self.weight:g} is not "
                    "finite: lower the weight, or return smaller numbers"
                )
        return [RewardBreakdown({self.name: value}) for value in weighted]


def check_function(name: str, path: str) -> None:
    """Refuse a function whose file, module or name does not exist; nothing of it is run.

    Raises RewardFunctionError, with the nearest name that the file defines. What only running can
    tell (a name that a star import brings, an import that fails) is left to `FunctionWorker.load`.
    """
    place, _, function = path.rpartition(":")
    file = source_file(path)
    if file is None:
        if _spec(place) is None:
            raise _error(
                name,
                path,
                f"module {place} is not on Python's path: install it, set PYTHONPATH, or name a "
                f'file, "{place.replace(".", "/")}.py:{function}"',
            )
        return
    if not file.is_file():
        raise _error(name, path, f"file {file} does not exist: correct reward.functions: path")
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        what = error.msg if isinstance(error, SyntaxError) else error
        raise _error(name, path, f"{file}{line} is not valid Python ({what}): fix it") from None
    defined = dict(_defined(tree.body))
    if defined.keys() & {function, "*", "__getattr__"}:
        return
    likely = [other for other, is_own in defined.items() if is_own] or list(defined)
    near = difflib.get_close_matches(function, likely, n=1, cutoff=0.0)
    hint = f"the nearest name there is {near[0]!r}" if near else "it defines nothing"
    raise _error(name, path, f"{file} has no function {function!r}; {hint}")


def source_file(path: str) -> Path | None:
    """The Python file that a function comes from, whether it exists or not; None for a module
    without one, or that is not found. Nothing is imported."""
    place = path.rpartition(":")[0]
    if is_file(path):
        return Path(place).expanduser()
    spec = _spec(place)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


def is_file(path: str) -> bool:
    """True where a path of reward.functions names a file, False where it names a module."""
    place = path.rpartition(":")[0]
    return place.endswith(".py") or re.search(r"[/\\]", place) is not None


def _spec(module: str) -> importlib.machinery.ModuleSpec | None:
    """Find a module by its name in dots. `importlib.util.find_spec` would import the packages
    above it."""
    parts = module.split(".")
    try:
        spec = importlib.util.find_spec(parts[0])
    except ValueError:  # ``__main__`` has none
        return None
    for number in range(2, len(parts) + 1):
        if spec is None or spec.submodule_search_locations is None:
            return None
        name, where = ".".join(parts[:number]), list(spec.submodule_search_locations)
        spec = importlib.machinery.PathFinder.find_spec(name, where)
    return spec


def _defined(body: Sequence[ast.stmt]) -> Iterator[tuple[str, bool]]:
    """Names that a module's code gives a value, inside if, try and with blocks too, and whether
    they are functions or classes of its own; "*" for a star import."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name, True
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                yield alias.asname or alias.name.partition(".")[0], False
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id, False
        for blocks in ("body", "orelse", "finalbody", "handlers", "cases"):
            for inner in getattr(statement, blocks, ()):
                yield from _defined([inner] if isinstance(inner, ast.stmt) else inner.body)


def _error(name: str, path: str, what: str) -> RewardFunctionError:
    return RewardFunctionError(f"reward function {name} ({path}): {what}")
