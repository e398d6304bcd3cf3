# SPDX-License-Identifier: Apache-2.0
"""Secrets do not appear; what only looks a little like one does."""

from __future__ import annotations

import logging

import pytest

from satori_fast import redaction
from satori_fast.redaction import (
    VARIABLES,
    RedactingFormatter,
    has_credentials,
    keep_secret,
    redacted,
)


@pytest.mark.parametrize("name", VARIABLES)
def test_values_of_known_variables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "sk-hush-hush")
    assert redacted("401: bad key 'sk-hush-hush'.") == "401: bad key '***'."


def test_values_of_variables_that_a_config_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_kept", set())
    keep_secret("mine-is-long")
    keep_secret(None)
    assert redacted("mine-is-long, mine") == "***, mine"


def test_placeholders_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    assert redacted("EMPTY answer") == "EMPTY answer"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("http://me:word@host:1/v1", "http://***@host:1/v1"),
        ("see https://token@host", "see https://***@host"),
        ("http://host/a@b", "http://host/a@b"),
        ("mail me@host", "mail me@host"),
        ("--api-key word --port 1", "--api-key *** --port 1"),
        ("--api-key=word", "--api-key=***"),
        ('server_args = ["--api-key", "word", "--x"]', 'server_args = ["--api-key", "***", "--x"]'),
        ("api_key_variable = 3", "api_key_variable = 3"),
    ],
)
def test_what_looks_like_one(text: str, seen: str) -> None:
    assert redacted(text) == seen


def test_credentials_of_urls() -> None:
    assert has_credentials("http://a:b@h") and has_credentials("https://a@h/v1")
    assert not has_credentials("http://h:80/a@b") and not has_credentials("http://h")


def test_log_lines() -> None:
    record = logging.makeLogRecord({"msg": "at %s", "args": ("http://a:b@h",), "name": "n"})
    assert RedactingFormatter("%(name)s %(message)s").format(record) == "n at http://***@h"
