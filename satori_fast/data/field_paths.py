# SPDX-License-Identifier: Apache-2.0
"""Paths into the nested fields of a row: "prompt[0].content", "reward_model.ground_truth".

A name is a path only where the row has no field of that very name. What counts as text or an answer
is `values`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

_NAME = r"[^.\[\]]+"
_PATH = re.compile(rf"{_NAME}(?:\.{_NAME}|\[-?\d+\])*")
_STEP = re.compile(rf"\[(-?\d+)\]|({_NAME})")
_DEEPEST = 4  # steps of a path that a message proposes


class NoSuchField(Exception):
    """A path that leads nowhere in a row; the message says what there is at its last good step."""


def steps_of(path: str) -> tuple[str | int, ...]:
    """Names and indices of a path, in order; ValueError for what is none.

    >>> steps_of("prompt[-1].content")
    ('prompt', -1, 'content')
    """
    if not _PATH.fullmatch(path):
        raise ValueError(
            f'{path!r} is no field and no path to one: write "name", "name.inner" or '
            '"name[0].inner"'
        )
    found = _STEP.finditer(path)
    return tuple(int(step[1]) if step[1] else step[2] for step in found)


def root_of(path: str, names: Mapping[str, Any] | tuple[str, ...] = ()) -> str:
    """The field of a row that a path begins in; names: the fields that there are."""
    if path in names or not _PATH.fullmatch(path):
        return path
    return str(steps_of(path)[0])


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """The value that a path leads to. `NoSuchField` where there is none."""
    if path in row or not _PATH.fullmatch(path):
        if path not in row:
            raise NoSuchField("")
        return row[path]
    value: Any = row
    for step in steps_of(path):
        value = _inner(value, step)
    return value


def _inner(value: Any, step: str | int) -> Any:
    if isinstance(step, int):
        if hasattr(value, "tolist"):  # what numpy holds
            value = value.tolist()
        if not isinstance(value, list | tuple):
            raise NoSuchField(f"[{step}] of {type(value).__name__}")
        items = cast("list[Any]", value)
        if not -len(items) <= step < len(items):
            raise NoSuchField(f"[{step}] of {len(items)} entries")
        return items[step]
    if not isinstance(value, Mapping):
        raise NoSuchField(f"{step!r} of {type(value).__name__}")
    fields = cast("Mapping[str, Any]", value)
    if step not in fields:
        raise NoSuchField(f"{step!r} of {', '.join(map(str, fields))[:80] or 'no field'}")
    return fields[step]


def paths_in(value: Any, path: str) -> list[str]:
    """Paths to the plain values inside a field's value; of a list those of its first entry."""
    depth = len(steps_of(path)) if _PATH.fullmatch(path) else _DEEPEST
    if depth < _DEEPEST and isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return [found for name, inner in items for found in paths_in(inner, f"{path}.{name}")]
    if depth < _DEEPEST and isinstance(value, list) and value:
        return paths_in(cast("list[Any]", value)[0], f"{path}[0]")
    return [path]
