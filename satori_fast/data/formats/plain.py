# SPDX-License-Identifier: Apache-2.0
"""A response without structure: one segment, no special tokens, nothing but its text."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

from satori_fast.data.formats.format import ResponseFormat, TokenText, tiled
from satori_fast.types import Prefix, Segment, SegmentKind


class Plain(ResponseFormat):
    """One WHOLE segment that covers the response: for any model and any kind of text."""

    name = "plain"
    colours = MappingProxyType({SegmentKind.WHOLE: "#8a94a3"})

    def segments(
        self, ids: np.ndarray, tokens: TokenText, *, prefix: Prefix | None
    ) -> tuple[Segment, ...]:
        """Take the response as it is, stop token included."""
        return tiled(ids, tokens, [(0, SegmentKind.WHOLE)])

    def pieces(self, text: str) -> list[tuple[SegmentKind, str]]:
        """Take a prefix as it is."""
        return [(SegmentKind.WHOLE, text)] if text else []


PLAIN = Plain()
