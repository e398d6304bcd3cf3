# SPDX-License-Identifier: Apache-2.0
"""Chain of action thought (COAT): meta-action tokens, prompts, responses cut into actions.

Satori (arXiv 2502.02508) adds three tokens to the vocabulary; each starts an action of a response:

    step 1 <|continue|> step 2 <|reflect|> is that right? <|explore|> another way <|continue|> ...

The first action of a response carries no token. A complete answer may be followed by a reflection
and a second attempt, so a response can hold several ``\\boxed{}``; the last one counts.

This module does not judge answers (`grading`) and does not cut restarts (`data.prefixes`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from satori_fast.data.control_tokens import ControlTokens, opening_ids, unknown_markers
from satori_fast.types import Demonstration, Finish, Problem, Segment, SegmentKind, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTINUE, REFLECT, EXPLORE = "<|continue|>", "<|reflect|>", "<|explore|>"
META_ACTION_TOKENS: tuple[str, ...] = (CONTINUE, REFLECT, EXPLORE)

_KIND_OF_TOKEN = {
    CONTINUE: SegmentKind.CONTINUE,
    REFLECT: SegmentKind.REFLECT,
    EXPLORE: SegmentKind.EXPLORE,
}
_ACTION_START = re.compile("(?=" + "|".join(re.escape(t) for t in META_ACTION_TOKENS) + ")")

# Template 3 of the paper, used for format tuning, RL and evaluation alike, without a system turn.
SATORI_TEMPLATE = (
    "<|im_start|>user\n"
    "Solve the following math problem efficiently and clearly.\n"
    "Please reason step by step, and put your final answer within \\boxed{{}}.\n"
    "Problem: {question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
PLAIN_TEMPLATE = "{question}\n"
TEMPLATES = {"satori": SATORI_TEMPLATE, "plain": PLAIN_TEMPLATE}


def split_actions(response: str) -> list[str]:
    """Cut response text before every meta-action token; joined again it is the same text.

    >>> split_actions("a <|reflect|> b<|explore|>c")
    ['a ', '<|reflect|> b', '<|explore|>c']
    """
    return [part for part in _ACTION_START.split(response) if part]


@dataclass(frozen=True)
class PromptRenderer:
    """Problems to token ids, and responses back to text and actions: a tokenizer and a template.

    template:          text with one ``{question}``; see `TEMPLATES`.
    max_prompt_tokens: a longer prompt is refused: cutting it on the right would silently drop the
                       ``<|reflect|>`` that a restart ends with.
    more_stop_ids:     what ends a response beside the tokenizer's end of text (`stop_tokens`).
    """

    tokenizer: PreTrainedTokenizerBase
    template: str
    max_prompt_tokens: int
    more_stop_ids: tuple[int, ...] = ()

    @cached_property
    def kind_of_id(self) -> dict[int, SegmentKind]:
        """Token id of each meta-action to the kind of segment that it opens."""
        known = self.tokenizer.get_vocab()
        missing = [token for token in META_ACTION_TOKENS if token not in known]
        if missing:
            raise ValueError(f"tokenizer lacks {missing}: run add_meta_action_tokens() on it first")
        return {known[token]: kind for token, kind in _KIND_OF_TOKEN.items()}

    @cached_property
    def eos_id(self) -> int:
        """The end of text that demonstrations are taught to end with."""
        eos = self.tokenizer.eos_token_id
        if not isinstance(eos, int):
            raise ValueError("tokenizer has no eos_token: set one before training or sampling")
        return eos

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """What ends a response, `eos_id` first: a sampled one is its last token."""
        return tuple(dict.fromkeys((self.eos_id, *self.more_stop_ids)))

    @cached_property
    def opening_ids(self) -> tuple[int, ...]:
        """What every prompt begins with: begin-of-text, where the tokenizer puts it."""
        return opening_ids(self.tokenizer)

    @cached_property
    def unknown_markers(self) -> tuple[str, ...]:
        """Markers of the template that are not tokens of the tokenizer."""
        return unknown_markers(self.tokenizer, self.template)

    @cached_property
    def _control_tokens(self) -> ControlTokens:
        return ControlTokens(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        tokenizer: Any = self.tokenizer  # its annotations are incomplete
        return tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids`, meta-action tokens kept, stop tokens removed."""
        kept = [i for i in map(int, ids) if i not in self.stop_ids]
        tokenizer: Any = self.tokenizer
        return tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def prompt_ids(self, problem: Problem) -> list[int]:
        """Prompt of a problem, its prefix included. Raises ValueError when it is too long."""
        ids = self.unchecked_prompt_ids(problem)
        if len(ids) > self.max_prompt_tokens:
            raise ValueError(
                f"prompt of problem {problem.problem_id!r} has {len(ids)} tokens, more than "
                f"max_prompt_tokens = {self.max_prompt_tokens}: raise it or filter the problem out"
            )
        return ids

    def unchecked_prompt_ids(self, problem: Problem) -> list[int]:
        ids = self.opened(self.encode_quoting(self._ask, problem.question))
        # The prefix is encoded apart, so that its tokens do not merge with the end of the template.
        return ids + self.encode(problem.prefix.text) if problem.prefix else ids

    def _ask(self, question: str) -> str:
        return self.template.format(question=question)

    def encode_quoting(self, render: Callable[..., str], *texts: str) -> list[int]:
        """Ids of `render(*texts)`; control tokens that `texts` quote are plain text in it."""
        return self._control_tokens.encode_quoting(render, *texts)

    def opened(self, ids: list[int]) -> list[int]:
        """`ids` with `opening_ids` before them, exactly once."""
        start = list(self.opening_ids)
        return ids if ids[: len(start)] == start else start + ids

    def fits(self, problem: Problem) -> bool:
        return len(self.unchecked_prompt_ids(problem)) <= self.max_prompt_tokens


def split_segments(response_ids: np.ndarray, renderer: PromptRenderer) -> tuple[Segment, ...]:
    """Cut a response at its meta-action tokens; the segments tile ``[0, R)``.

    response_ids: int [R], R >= 1. Cut on ids, not on text, so that decoding cannot move a boundary.
    The tokens before the first meta-action are a CONTINUE segment: in the paper's data the first
    step of a response carries no token (`build_trajectory` relabels the first segment of a restart,
    whose prefix ended with the reflection's token).
    """
    kinds = renderer.kind_of_id
    starts = [i for i, token in enumerate(response_ids) if int(token) in kinds]
    if not starts or starts[0] != 0:
        starts.insert(0, 0)
    stops = [*starts[1:], len(response_ids)]
    return tuple(
        Segment(
            kind=kinds.get(int(response_ids[start]), SegmentKind.CONTINUE),
            start=start,
            stop=stop,
            text=renderer.decode(response_ids[start:stop]),
        )
        for start, stop in zip(starts, stops, strict=True)
    )


def build_trajectory(
    problem: Problem,
    response_ids: np.ndarray,
    *,
    renderer: PromptRenderer,
    group_id: int,
    finish: Finish,
    logprobs: np.ndarray | None = None,
    policy_version: int = -1,
) -> Trajectory:
    """A trajectory from a problem and the ids of a response to it (see `Trajectory` for shapes)."""
    prompt = renderer.prompt_ids(problem)
    segments = split_segments(response_ids, renderer)
    is_restart = problem.prefix is not None and problem.prefix.text.endswith(REFLECT)
    # Only a first segment without a token of its own goes on with the prefix's reflection.
    if is_restart and int(response_ids[0]) not in renderer.kind_of_id:
        segments = (replace(segments[0], kind=SegmentKind.REFLECT), *segments[1:])
    if logprobs is None:
        logprobs = np.zeros(len(response_ids), dtype=np.float32)
    return Trajectory(
        problem=problem,
        group_id=group_id,
        tokens=np.concatenate([np.asarray(prompt), response_ids]).astype(np.int32),
        prompt_len=len(prompt),
        logprobs=logprobs.astype(np.float32),
        policy_version=policy_version,
        finish=finish,
        segments=segments,
    )


def encode_demonstration(
    demonstration: Demonstration, renderer: PromptRenderer, *, group_id: int
) -> Trajectory:
    """A demonstration as a finished trajectory: response, end-of-text, zero log-probabilities."""
    ids = np.asarray([*renderer.encode(demonstration.response), renderer.eos_id])
    return build_trajectory(
        demonstration.problem, ids, renderer=renderer, group_id=group_id, finish="stop"
    )


def count_reflections(trajectory: Trajectory) -> int:
    """Reflections that the response itself started (one that its prefix started does not count)."""
    return sum(
        segment.kind is SegmentKind.REFLECT and segment.text.startswith(REFLECT)
        for segment in trajectory.segments
    )


def full_response(trajectory: Trajectory) -> str:
    """Text of the whole solution: the prefix it started from, then the sampled response.

    Every boundary lies at a meta-action token, so encoding the text gives the same ids again.
    """
    prefix = trajectory.problem.prefix
    text = "".join(segment.text for segment in trajectory.segments)
    return prefix.text + text if prefix else text
