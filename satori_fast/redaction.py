# SPDX-License-Identifier: Apache-2.0
"""Secrets taken out of text before anybody sees it: errors, logs, pages, records.

A secret is the value of one of `VARIABLES`, or of a variable that a config names (`keep_secret`),
and whatever looks like credentials in a URL or after `--api-key`. Importable without anything.
"""

from __future__ import annotations

import logging
import os
import re

# Where people keep keys. SATORI_FAST_SERVER_SECRET: see `rollout.server_client`.
VARIABLES = (
    "OPENAI_API_KEY",
    "VLLM_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "SATORI_FAST_SERVER_SECRET",
)
STARS = "***"
# A shorter value ("none", "EMPTY", "1234") is a placeholder, and also part of other words.
_SHORTEST_SECRET = 8
_URL_CREDENTIALS = re.compile(r"(?<=://)[^\s/@'\"<>?#]+(?=@)")
# As words of a command line, or as texts of a list in TOML, JSON or Python.
_KEY_FLAG = re.compile(r"(--api[-_]key)(=|\s+|['\"],?\s*['\"]?)([^\s'\",\]]+)")

_kept: set[str] = set()


def keep_secret(value: str | None) -> None:
    """Have `value`, a key from somewhere else than `VARIABLES`, never appear from now on."""
    if value:
        _kept.add(value)


def redacted(text: str) -> str:
    """`text` with stars for each known secret and for what looks like one."""
    known = {os.environ.get(name, "").strip() for name in VARIABLES} | _kept
    for secret in sorted(known, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, STARS)
    text = _URL_CREDENTIALS.sub(STARS, text)
    return _KEY_FLAG.sub(rf"\1\2{STARS}", text)


def has_credentials(url: str) -> bool:
    """Whether `url` carries a user or a password, as http://user:password@host."""
    return _URL_CREDENTIALS.search(url) is not None


class RedactingFormatter(logging.Formatter):
    """Log lines without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))
