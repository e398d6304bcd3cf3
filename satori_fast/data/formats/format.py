# SPDX-License-Identifier: Apache-2.0
"""The protocol of response formats, and what formats cut responses with.

A format reads a response: which tokens are control tokens, where segments begin, which answers
stood on the way, what is counted. It knows neither templates (`data.prompts`) nor grading.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import numpy as np

from satori_fast.types import Prefix, Problem, Segment, SegmentKind, Trajectory


class TokenText(Protocol):
    """Token ids and their text: what a format reads a response with (`data.prompts`)."""

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Ids of the format's special tokens."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids`; stop tokens at their end are no text."""
        ...

    def token_bytes(self, ids: Sequence[int] | np.ndarray) -> list[bytes]:
        """UTF-8 bytes of each token; joined they are the text of `ids`."""
        ...


class ResponseFormat(ABC):
    """The shape of a response, as `data.format` names it.

    name:           its row in `FORMATS`.
    special_tokens: added to the tokenizer as control tokens, in this order.
    restart_ending: what a restart's prefix ends with, so that the policy goes on with a reflection;
                    None for a format without restarts.
    self_corrects:  a response may give several answers: changes between them are counted.
    has_verifications: its segments are solutions and verifications, whose verdicts can be judged.
    has_dialects:   its separators are words, of which there is a choice (`in_dialect`).
    colours:        CSS colour of each kind of segment in the report.
    """

    name: ClassVar[str]
    special_tokens: ClassVar[tuple[str, ...]] = ()
    restart_ending: ClassVar[str | None] = None
    self_corrects: ClassVar[bool] = False
    has_verifications: ClassVar[bool] = False
    has_dialects: ClassVar[bool] = False
    colours: Mapping[SegmentKind, str]

    @property
    def words(self) -> tuple[str, ...]:
        """Words that a tokenizer of whole words needs beside those of its domain."""
        return ()

    @property
    def full_name(self) -> str:
        """Name of the format, with that of its dialect where it has several."""
        return self.name

    def in_dialect(self, name: str) -> ResponseFormat:
        """Give the format in other words, where it has several dialects."""
        return self

    @property
    def has_restarts(self) -> bool:
        """Whether solutions can be cut into restarts (Satori's restart and explore)."""
        return self.restart_ending is not None

    def asked(self, problem: Problem) -> str:
        """Write the user's turn of a problem; a restart is no part of it."""
        return problem.question

    @abstractmethod
    def segments(
        self, ids: np.ndarray, tokens: TokenText, *, prefix: Prefix | None
    ) -> tuple[Segment, ...]:
        """Cut a response into segments that tile ``[0, R)``; the last one holds the stop token.

        ids: int [R], R >= 1. prefix: what the response goes on from.
        """

    @abstractmethod
    def pieces(self, text: str) -> list[tuple[SegmentKind, str]]:
        """Cut the text of a prefix into segments, for readers; joined they are the text."""

    def attempts(self, text: str) -> list[str]:
        """List the answers that a whole solution gave up or confirmed before its final one."""
        return []

    def metrics(self, trajectory: Trajectory) -> Mapping[str, float]:
        """Count what the metrics show a mean of, by the name after "rollout/" and "eval/"."""
        return {}


def tiled(
    ids: np.ndarray, tokens: TokenText, opened: Sequence[tuple[int, SegmentKind]]
) -> tuple[Segment, ...]:
    """Build the segments that begin at the token positions of `opened`, in order, the first at 0.

    Where several begin at one token, only the last of them has tokens: the others are left out.
    """
    stops = [*(start for start, _ in opened[1:]), len(ids)]
    return tuple(
        Segment(kind=kind, start=start, stop=stop, text=tokens.decode(ids[start:stop]))
        for (start, kind), stop in zip(opened, stops, strict=True)
        if start < stop
    )


def split_at_bytes(
    ids: Sequence[int] | np.ndarray, tokens: TokenText, starts: Sequence[int]
) -> list[int]:
    """Find the token position at which each segment begins; equal ones leave the earlier empty.

    starts: where segments begin in ``b"".join(tokens.token_bytes(ids))``, in bytes, ascending. BPE
    merges across separators of text: a token that straddles a start belongs to the segment that it
    starts in, so the new one begins with the token after it. Offsets are of bytes and not of
    characters, because a token may hold a part of a character.
    """
    lengths = [len(token) for token in tokens.token_bytes(ids)]
    begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return [int(position) for position in np.searchsorted(begins, starts, side="left")]
