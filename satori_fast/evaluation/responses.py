# SPDX-License-Identifier: Apache-2.0
"""Responses to benchmarks on disk: each is there before it is graded, and none is asked for twice.

The file holds what grading, curves and pages need, so that grading again needs neither the model
nor its tokenizer. What responses are worth is `judging`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from satori_fast.data.prompts import PromptRenderer, build_trajectory
from satori_fast.grading.boxes import closed_boxes
from satori_fast.record_file import RecordFile
from satori_fast.rollout.engine import Completion, Engine, Request, SamplingParams
from satori_fast.types import Problem, SegmentKind

Key = tuple[str, str, int]  # benchmark, problem id, sample

_MOST_BOXES = 64  # of one response: a degenerate one has thousands


@dataclass(frozen=True, slots=True)
class Response:
    """One response to a question of a benchmark.

    prompt:   text of the prompt as it was sent, control tokens included.
    segments: (kind, text) of its actions; joined they are the response.
    finish:   "stop" or "length".
    boxes:    (answer, token that closes it, from 1) of its boxes outside of verifications, in
              order; of very many the first and the last ones.
    """

    benchmark: str
    problem_id: str
    sample: int
    prompt: str
    segments: tuple[tuple[str, str], ...]
    num_tokens: int
    finish: str
    boxes: tuple[tuple[str, int], ...]

    @property
    def key(self) -> Key:
        """Name of the question and the number of the sample."""
        return self.benchmark, self.problem_id, self.sample

    @property
    def text(self) -> str:
        """The whole response."""
        return "".join(text for _, text in self.segments)

    @property
    def answered_text(self) -> str:
        """Text that the final answer is read from; see `data.prompts.answered_text`."""
        solutions = [text for kind, text in self.segments if kind == SegmentKind.SOLVE]
        return solutions[-1] if solutions else self.text


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for one response. problem: its question is the user's turn, suffix included.

    group: number of the problem for its seed.
    """

    benchmark: str
    problem: Problem
    sample: int
    group: int

    @property
    def key(self) -> Key:
        """Name of the question and the number of the sample, as its response has them."""
        return self.benchmark, self.problem.problem_id, self.sample


class ResponseFile:
    """Responses of one evaluation, in a file that survives a kill.

    identity: what all of them must share: model, protocol, sampling. ValueError for a file of
    another one, naming the first thing that differs, and for a damaged line.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.responses: dict[Key, Response] = {}
        self._path = path
        self._found: dict[str, Any] | None = None
        self._file = RecordFile(path, self._read)
        if self._found is None:
            self._file.append({"identity": dict(identity)})
        elif self._found != dict(identity):
            self._file.close()
            raise ValueError(
                f"{path} is of another evaluation: {_difference(self._found, identity)}"
            )

    def add(self, response: Response) -> None:
        """Write a response, before anything is made of it."""
        self._file.append(asdict(response))
        self.responses[response.key] = response

    def close(self) -> None:
        """Let another process have the file."""
        self._file.close()

    def _read(self, record: dict[str, Any], place: int) -> None:
        if "identity" in record:
            self._found = record["identity"]
            return
        segments = tuple((kind, text) for kind, text in record.pop("segments"))
        boxes = tuple((answer, token) for answer, token in record.pop("boxes"))
        response = Response(**record, segments=segments, boxes=boxes)
        self.responses[response.key] = response


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    name = next(n for n in {**found, **wanted} if found.get(n) != wanted.get(n))
    return (
        f"its {name} is {found.get(name)!r}, not {wanted.get(name)!r}: choose another --output, or "
        "ask as it was asked"
    )


def sample(
    engine: Engine,
    asked: Sequence[Asked],
    sampling: SamplingParams,
    *,
    renderer: PromptRenderer,
    seed_of: Callable[[Asked], int],
) -> Iterator[Response]:
    """Ask for responses, those with the longest prompts first; yield each as soon as it is whole.

    renderer: makes the prompts; its tokenizer is the engine's. ValueError for a prompt that leaves
    no room for a response (`too_long` tells which).
    """
    ordered = sorted(asked, key=lambda a: -len(renderer.unchecked_prompt_ids(a.problem)))
    requests = [_request(engine, each, sampling, renderer, seed_of(each)) for each in ordered]
    for index, completion in engine.generate(requests, sampling):
        yield _response(ordered[index], requests[index], completion, renderer)


def too_long(engine: Engine, asked: Iterable[Asked], renderer: PromptRenderer) -> list[Asked]:
    """List those whose prompt leaves no room for a response."""
    limit = min(renderer.max_prompt_tokens, engine.max_seqlen - 1)
    return [each for each in asked if len(renderer.unchecked_prompt_ids(each.problem)) > limit]


def _request(
    engine: Engine, asked: Asked, sampling: SamplingParams, renderer: PromptRenderer, seed: int
) -> Request:
    prompt = tuple(renderer.prompt_ids(asked.problem))
    return Request(
        prompt_ids=prompt,
        max_new_tokens=min(sampling.max_new_tokens, engine.max_seqlen - len(prompt)),
        stop_ids=renderer.stop_ids,
        seed=seed,
    )


def _response(
    asked: Asked, request: Request, completion: Completion, renderer: PromptRenderer
) -> Response:
    trajectory = build_trajectory(
        asked.problem,
        completion.tokens,
        renderer=renderer,
        group_id=asked.group,
        finish=completion.finish,
        prompt_ids=request.prompt_ids,
    )
    judged = [(s.start, s.stop) for s in trajectory.segments if s.kind is SegmentKind.VERIFY]
    boxes = [
        (answer, token)
        for answer, token in boxes_of(completion.tokens, renderer)
        if not any(start < token <= stop for start, stop in judged)
    ]
    if len(boxes) > _MOST_BOXES:
        boxes = [*boxes[: _MOST_BOXES - 1], boxes[-1]]
    tokenizer: Any = renderer.tokenizer
    return Response(
        benchmark=asked.benchmark,
        problem_id=asked.problem.problem_id,
        sample=asked.sample,
        prompt=tokenizer.decode(list(request.prompt_ids), clean_up_tokenization_spaces=False),
        segments=tuple((str(s.kind), s.text) for s in trajectory.segments),
        num_tokens=trajectory.num_response_tokens,
        finish=completion.finish,
        boxes=tuple(boxes),
    )


def boxes_of(ids: np.ndarray, renderer: PromptRenderer) -> list[tuple[str, int]]:
    """(answer, token that closes its box, from 1) of the boxes of a response, in order."""
    pieces = renderer.token_bytes(ids)
    ends = np.cumsum([len(piece) for piece in pieces])
    # A character for each byte: a token may hold a part of a character, and boxes are ASCII.
    text = b"".join(pieces).decode("latin-1")
    return [
        (answer.encode("latin-1").decode(errors="replace"), int(np.searchsorted(ends, end)) + 1)
        for answer, end in closed_boxes(text)
    ]
