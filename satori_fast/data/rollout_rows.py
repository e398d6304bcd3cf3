# SPDX-License-Identifier: Apache-2.0
"""Responses of a file as trajectories: written by hand, or a run's own samples.jsonl.

The text is encoded anew: where a byte-level tokenizer has several spellings of it, the ids need not
be those that were sampled. Trajectories with their ids and log-probs are `experience.stored`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from satori_fast.data.prompts import PromptRenderer, build_trajectory
from satori_fast.data.rows import Row, file_rows
from satori_fast.data.tokenizer import check_known
from satori_fast.data.values import BadRow, answer_text
from satori_fast.types import Finish, Prefix, Problem, Trajectory

logger = logging.getLogger(__name__)

FIELDS = ("question", "answer", "response", "prefix", "prefix_correct", "target", "step", "finish")


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """A row of a file. number: from 1. step: (stage, step), the stage "" where the row has none.

    trajectory: without reward and log-probs; rows with the same question, prefix, target and step
    have the same group id.
    """

    number: int
    step: tuple[str, int]
    trajectory: Trajectory


def read_rollout_rows(path: Path, renderer: PromptRenderer) -> list[RolloutRow]:
    """The rows of a file, ``{"question", "answer"?, "response", "prefix"?, "prefix_correct"?,
    "target"?, "step"?, "finish"?}`` each, in order.

    A response ends with end-of-text unless it has a stop token or finish is "length". A prefix is a
    restart in a format that has them, unless there is a target (SRL's next step); else a step. In
    a line of samples.jsonl the response is the text of "segments".

    Raises ValueError, with file and row number, for a row that cannot be read.
    """
    groups: dict[Any, int] = {}
    found: list[RolloutRow] = []
    warned = False
    for number, row in file_rows(path, FIELDS):
        try:
            step, problem, pieces, finish = _fields(row, renderer, f"row {number}")
            prefix = problem.prefix
            given, target = ("", None) if prefix is None else (prefix.text, prefix.target)
            trajectory = build_trajectory(
                problem,
                _response_ids(pieces, finish, renderer),
                renderer=renderer,
                group_id=groups.setdefault((step, problem.question, given, target), len(groups)),
                finish=finish,
            )
        except BadRow as error:
            detail = f" ({error.detail})" if error.detail else ""
            raise ValueError(f"{path}, row {number}: {error.reason}{detail}") from None
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from None
        found.append(RolloutRow(number, step, trajectory))
        warned = warned or _warn_of_unknown_words(number, " ".join([given, *pieces]), renderer)
    if not found:
        raise ValueError(f"{path} has no row: write a JSON object with question and response")
    return found


def _fields(
    row: Row, renderer: PromptRenderer, name: str
) -> tuple[tuple[str, int], Problem, list[str], Finish]:
    """Step, problem, pieces of the response and finish of a row. BadRow for what is not there or
    not so."""
    if isinstance(row, BadRow):
        raise row
    answer = row.get("answer")
    if answer is not None and not isinstance(answer, str):
        answer = answer_text(answer, "answer")
    target, text = _text(row, "target", None), _text(row, "prefix", None)
    correct = row.get("prefix_correct")
    if correct not in (None, True, False):
        raise BadRow(f"prefix_correct is {correct!r}: write true, false or null")
    prefix = None
    if text or target is not None:
        restarts = renderer.format.has_restarts and target is None
        prefix = Prefix(text or "", "restart" if restarts else "step", correct, target)
    step = row.get("step", 0)
    if not isinstance(step, int) or isinstance(step, bool):
        raise BadRow(f"step is {step!r}: write a whole number")
    finish = row.get("finish", "stop")
    if finish not in ("stop", "length"):
        raise BadRow(f'finish is {finish!r}: write "stop" or "length"')
    problem = Problem(
        _text(row, "problem_id", name) or name,
        _text(row, "question") or "",
        answer,
        prefix,
    )
    stage = _text(row, "stage", "") or ""
    return (stage, step), problem, _pieces(row), finish


def _text(row: Mapping[str, Any], key: str, *default: str | None) -> str | None:
    """A text of a row; null, or its absence, is the default, where there is one."""
    value = row.get(key)
    if value is None and default:
        return default[0]
    if value is None:
        raise BadRow(f"it has no {key}: add one")
    if not isinstance(value, str):
        raise BadRow(f"{key} is {value!r}: write a text")
    return value


def _pieces(row: Mapping[str, Any]) -> list[str]:
    """The text of a response, in samples.jsonl that of its segments: they were cut between tokens,
    and a tokenizer of whole words has no space where they meet."""
    if "response" in row or "segments" not in row:
        return [_text(row, "response") or ""]
    segments = row["segments"]
    if not isinstance(segments, list):
        raise BadRow("segments is no list: give the text as response")
    pieces: list[str] = []
    for segment in cast("list[Any]", segments):
        if not isinstance(segment, Mapping):
            raise BadRow("segments holds what is no object: give the text as response")
        pieces.append(_text(cast("Mapping[str, Any]", segment), "text") or "")
    return pieces


def _response_ids(pieces: list[str], finish: str, renderer: PromptRenderer) -> np.ndarray:
    """Ids of a response, its stop token included where it has one."""
    ids = [number for piece in pieces for number in renderer.encode(piece)]
    if finish == "stop" and not (ids and ids[-1] in renderer.stop_ids):
        ids.append(renderer.eos_id)
    if not ids:
        raise BadRow('an empty response with finish "length" has no token: leave the row out')
    return np.asarray(ids)


def _warn_of_unknown_words(number: int, text: str, renderer: PromptRenderer) -> bool:
    try:
        # A model may have sampled the token itself.
        check_known(renderer.tokenizer, text.replace(str(renderer.tokenizer.unk_token), " "))
    except ValueError as error:
        logger.warning("row %d: %s: it is read as an unknown word", number, error)
        return True
    return False
