# SPDX-License-Identifier: Apache-2.0
"""A configuration as text: the TOML that reads back to it, and the rows of `satori-fast show`.

Reading is `config`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date, time
from typing import Any, cast

from satori_fast.config_sections import Section

Values = Mapping[str, Any]


def to_toml(config: Section) -> str:
    """The resolved config as TOML that `load_config` reads back to an equal one."""
    lines: list[str] = []
    _write_section(lines, config.model_dump(mode="json"), [])
    return "\n".join(lines).strip() + "\n"


def describe(config: Section) -> list[tuple[str, str, str]]:
    """Rows (key, value, meaning) of the resolved tree, for `satori-fast show`."""
    return _describe(config, "")


def _describe(section: Section, prefix: str) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            rows += _describe(value, f"{prefix}{name}.")
        else:
            meaning = " ".join((info.description or "").split())
            rows.append((prefix + name, toml_value(value), meaning))
    return rows


def _write_section(lines: list[str], values: Mapping[str, Any], path: list[str]) -> None:
    inner: dict[str, Values] = {k: v for k, v in values.items() if isinstance(v, Mapping)}
    if path:
        lines += ["", f"[{'.'.join(path)}]"]
    for key, value in values.items():
        # TOML has no null: a key that is absent takes its default, which is None for all of ours.
        if key not in inner and value is not None:
            lines.append(f"{key} = {toml_value(value)}")
    for key, value in inner.items():
        _write_section(lines, value, [*path, key])


def toml_value(value: Any) -> str:
    """A value of a key as TOML; "none" for None, which TOML lacks."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A TOML string escapes what a JSON string does, and DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Section):
        value = value.model_dump(mode="json")
    if isinstance(value, Mapping):
        fields = cast(Values, value).items()
        return "{ " + ", ".join(f"{k} = {toml_value(v)}" for k, v in fields if v is not None) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, cast(Sequence[Any], value))) + "]"
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    return "none" if value is None else repr(value)
