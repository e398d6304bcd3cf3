# SPDX-License-Identifier: Apache-2.0
"""Problems as JSON, and the folder that keeps a run's problems once they are read and checked.

Reading a data set, counting its prompts' tokens and checking its answers can take an hour; a run
does it once, in one process. The others, and a run that is resumed, read `train.jsonl` and
`heldout.jsonl`; `key.json` says what they were made from. What is in them is `problem_split`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from satori_fast.storage import digest, replaced_folder, wait_for_file
from satori_fast.types import Prefix, Problem

logger = logging.getLogger(__name__)

_KEY = "key.json"
_PARTS = ("train.jsonl", "heldout.jsonl")


def problem_to_row(problem: Problem) -> dict[str, Any]:
    """A problem as a JSON object; what it does not have (prefix, level) is left out."""
    row: dict[str, Any] = {
        "problem_id": problem.problem_id,
        "question": problem.question,
        "answer": problem.answer,
    }
    if problem.level:
        row["level"] = problem.level
    if problem.prefix is not None:
        prefix = problem.prefix
        row["prefix"] = {"text": prefix.text, "kind": prefix.kind, "correct": prefix.correct}
        for name in ("target", "title"):
            if (value := getattr(prefix, name)) is not None:
                row["prefix"][name] = value
    return row


def problem_from_row(row: Mapping[str, Any]) -> Problem:
    """The problem of `problem_to_row`; further keys of the row are passed over."""
    prefix: Any = row.get("prefix")
    if isinstance(prefix, str):  # restarts of earlier versions
        prefix = {"text": prefix, "kind": "restart", "correct": row["correct"]}
    return Problem(
        row["problem_id"],
        row["question"],
        row["answer"],
        prefix=None if prefix is None else Prefix(**prefix),
        level=row.get("level", ""),
    )


def keep_problems(
    folder: Path,
    key: Mapping[str, Any],
    make: Callable[[], tuple[Sequence[Problem], Sequence[Problem]]],
    *,
    skipped: Callable[[], Mapping[str, Any]] = dict,
) -> dict[str, str]:
    """Have `folder` hold the (training, held-out) problems of `make`; the digests of its files.

    key: JSON-able, all that the problems depend on. `make` is not called when the folder is whole
    and was made from the same key. For one process; `read_problems` is for all.
    skipped: JSON-able, what was left out on the way, asked for after `make`; see `read_skipped`.
    """
    kept = _kept(folder)
    if kept is not None:
        old = kept["key"]
        changed = [name for name in {**key, **old} if old.get(name) != key.get(name)]
        if not changed and all(_is_whole(folder / n, d) for n, d in kept["files"].items()):
            return kept["files"]
        what = ", ".join(changed) or "a file is damaged"
        logger.warning("%s: the problems are read again, because of: %s", folder, what)
    parts = make()
    logger.info("%s: %d training and %d held-out problems", folder, *map(len, parts))
    with replaced_folder(folder) as partial:
        for name, problems in zip(_PARTS, parts, strict=True):
            with (partial / name).open("w", encoding="utf-8") as file:
                for problem in problems:
                    row = problem_to_row(problem)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        files = {name: digest(partial / name) for name in _PARTS}
        made = {"key": key, "files": files, "skipped": skipped()}
        text = json.dumps(made, indent=2, ensure_ascii=False)
        (partial / _KEY).write_text(text + "\n", encoding="utf-8")
    return files


def read_skipped(folder: Path) -> dict[str, Any]:
    """Read what was left out when the problems of a folder were made; {} where none are kept."""
    kept = _kept(folder)
    return {} if kept is None else kept.get("skipped", {})


def read_problems(
    folder: Path, files: Mapping[str, str]
) -> tuple[Sequence[Problem], Sequence[Problem]]:
    """(training, held-out) problems of a folder, once its files are those with digests `files`."""
    for name in _PARTS:
        wait_for_file(folder / name, recorded=files[name])
    training, heldout = (list(_problems(folder / name)) for name in _PARTS)
    return training, heldout


def _problems(path: Path) -> Iterator[Problem]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield problem_from_row(json.loads(line))


def _kept(folder: Path) -> dict[str, Any] | None:
    try:
        kept: Any = json.loads((folder / _KEY).read_text(encoding="utf-8"))
        return cast("dict[str, Any]", kept) if {"key", "files"} <= kept.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _is_whole(path: Path, recorded: str) -> bool:
    return path.is_file() and digest(path) == recorded
