# SPDX-License-Identifier: Apache-2.0
"""Chain of action thought (COAT): a response as actions, each opened by a meta-action token.

Satori (arXiv 2502.02508) adds three tokens to the vocabulary; each starts an action of a response:

    step 1 <|continue|> step 2 <|reflect|> is that right? <|explore|> another way <|continue|> ...

The first action of a response carries no token. A complete answer may be followed by a reflection
and a second attempt, so a response can hold several ``\\boxed{}``; the last one counts.

This module does not judge answers (`grading`) and does not cut restarts (`data.prefixes`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate
from types import MappingProxyType

import numpy as np

from satori_fast.data.formats.format import ResponseFormat, TokenText, tiled
from satori_fast.grading import extract_answer, standing_answers
from satori_fast.types import Prefix, Segment, SegmentKind, Trajectory

CONTINUE, REFLECT, EXPLORE = "<|continue|>", "<|reflect|>", "<|explore|>"
META_ACTION_TOKENS: tuple[str, ...] = (CONTINUE, REFLECT, EXPLORE)

_KIND_OF_TOKEN = {
    CONTINUE: SegmentKind.CONTINUE,
    REFLECT: SegmentKind.REFLECT,
    EXPLORE: SegmentKind.EXPLORE,
}
_ACTION_START = re.compile("(?=" + "|".join(re.escape(t) for t in META_ACTION_TOKENS) + ")")


def split_actions(response: str) -> list[str]:
    """Cut response text before every meta-action token; joined again it is the same text.

    >>> split_actions("a <|reflect|> b<|explore|>c")
    ['a ', '<|reflect|> b', '<|explore|>c']
    """
    return [part for part in _ACTION_START.split(response) if part]


class Coat(ResponseFormat):
    """Satori's format: one segment for each action, cut at the ids of the meta-action tokens."""

    name = "coat"
    special_tokens = META_ACTION_TOKENS
    restart_ending = REFLECT
    self_corrects = True
    colours = MappingProxyType(
        {
            SegmentKind.CONTINUE: "#3f6fb5",
            SegmentKind.REFLECT: "#c9892f",
            SegmentKind.EXPLORE: "#3d9480",
            SegmentKind.WHOLE: "#8a94a3",  # a prefix without a meta action
        }
    )

    def segments(
        self, ids: np.ndarray, tokens: TokenText, *, prefix: Prefix | None
    ) -> tuple[Segment, ...]:
        """Cut at the meta-action tokens: on ids, so that decoding cannot move a boundary.

        The tokens before the first one are a CONTINUE segment: in the paper's data the first step
        of a response carries no token. After a prefix that ended with ``<|reflect|>`` they are the
        rest of that reflection.
        """
        special = tokens.special_ids
        kinds = {special[token]: kind for token, kind in _KIND_OF_TOKEN.items()}
        opened = [(i, kinds[int(token)]) for i, token in enumerate(ids) if int(token) in kinds]
        if not opened or opened[0][0] != 0:
            is_restart = prefix is not None and prefix.text.endswith(REFLECT)
            opened.insert(0, (0, SegmentKind.REFLECT if is_restart else SegmentKind.CONTINUE))
        return tiled(ids, tokens, opened)

    def pieces(self, text: str) -> list[tuple[SegmentKind, str]]:
        """Cut before each meta action; a text without one is WHOLE.

        >>> [str(kind) for kind, _ in COAT.pieces("a<|reflect|>")]
        ['continue', 'reflect']
        """
        actions = split_actions(text)
        opening = SegmentKind.CONTINUE if len(actions) > 1 else SegmentKind.WHOLE
        return [
            (next((k for t, k in _KIND_OF_TOKEN.items() if action.startswith(t)), opening), action)
            for action in actions
        ]

    def attempts(self, text: str) -> list[str]:
        """List the boxed answer that each reflection judges, where it judges one.

        It judges the last answer before it, unless a reflection has judged that already and the
        response went on since: then it is about a step on the way to the next.

        >>> COAT.attempts(r"\\boxed{1}<|reflect|> no<|explore|> \\boxed{2}<|reflect|> yes")
        ['1', '2']
        >>> COAT.attempts(r"\\boxed{1}<|reflect|> no<|explore|> 2<|reflect|> yes<|continue|> 3")
        ['1']
        """
        actions = split_actions(text)
        standing = standing_answers(text, list(accumulate(map(len, actions))))
        answers: list[str] = []
        is_judged = is_left = False
        for action, answer, following in zip(actions, standing, actions[1:], strict=False):
            if extract_answer(action) is not None:
                is_judged = is_left = False
            elif is_judged and not action.startswith(REFLECT):
                is_left = True
            if following.startswith(REFLECT) and answer is not None and not is_left:
                answers.append(answer)
                is_judged = True
        return answers

    def metrics(self, trajectory: Trajectory) -> Mapping[str, float]:
        """Count the reflections that the response itself started, not the one of its prefix."""
        num_reflections = sum(
            segment.kind is SegmentKind.REFLECT and segment.text.startswith(REFLECT)
            for segment in trajectory.segments
        )
        return {"reflections_per_answer": float(num_reflections)}


COAT = Coat()
