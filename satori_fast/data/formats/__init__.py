# SPDX-License-Identifier: Apache-2.0
"""Response formats, a file each: `data.format` names a row of `FORMATS`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from satori_fast.data.formats.coat import COAT
from satori_fast.data.formats.format import ResponseFormat, TokenText, split_at_bytes, tiled
from satori_fast.data.formats.plain import PLAIN
from satori_fast.data.formats.steps import STEPS
from satori_fast.data.formats.trials import TRIALS

__all__ = ["FORMATS", "ResponseFormat", "TokenText", "split_at_bytes", "tiled"]

FORMATS: Mapping[str, ResponseFormat] = MappingProxyType(
    {format.name: format for format in (COAT, PLAIN, TRIALS, STEPS)}
)
