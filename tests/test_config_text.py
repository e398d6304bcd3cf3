# SPDX-License-Identifier: Apache-2.0
"""Values as TOML: the text reads back to the value."""

from __future__ import annotations

import tomllib
from datetime import date

import pytest

from satori_fast.config import FieldsConfig, SourceConfig
from satori_fast.config_text import describe, toml_value


@pytest.mark.parametrize(
    "value", [True, 3, 1e-6, 'a "b" \x7f \\ é', ["x", 1.5], {"a": {"b": [1]}}, date(2026, 11, 28)]
)
def test_a_value_reads_back(value: object) -> None:
    assert tomllib.loads(f"v = {toml_value(value)}")["v"] == value


def test_a_section_is_a_table_in_one_line_without_what_is_not_set() -> None:
    source = SourceConfig(source="a.jsonl", fields=FieldsConfig(question="q[0].x", answer="a"))
    assert tomllib.loads(f"v = {toml_value(source)}")["v"] == {
        "source": "a.jsonl",
        "fields": {"question": "q[0].x", "answer": "a"},
        "weight": 1.0,
    }
    rows = {key: value for key, value, _ in describe(source)}
    assert rows["fields.question"] == '"q[0].x"' and rows["mapping"] == "none"
