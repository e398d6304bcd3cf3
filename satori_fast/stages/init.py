# SPDX-License-Identifier: Apache-2.0
"""The verb init: a commented config for a model folder and a data file that it has looked at.

Seeing is `init_look`, guessing `init_guess`; here is the text, and what is said about it.
"""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from satori_fast.config import MAX_NAME_BYTES, ConfigError, load_config
from satori_fast.data.rows import file_stem
from satori_fast.stages.init_guess import Guess, Setting, expectation, guess
from satori_fast.stages.init_look import (
    DataLook,
    ModelLook,
    look_at_data,
    look_at_machine,
    look_at_model,
)
from satori_fast.storage import write_atomically

_WIDTH = 110


def write_config(model: str, data: str, *, output: Path) -> Guess:
    """Look at a model folder and a data file, write a config for them, and say what was guessed.

    ConfigError: `output` exists, a model that cannot be trained here, a file whose fields cannot be
    told.
    """
    if output.exists():
        raise ConfigError(f"{output} exists: choose another name with --output, or remove it")
    model_look, renderer = look_at_model(model)
    data_look = look_at_data(data, renderer)
    machine = look_at_machine()
    made = guess(model_look, data_look, machine)
    text = config_text(made.settings, name=run_name(data), command=(model, data))
    write_atomically(output, text)
    load_config(output)
    console = Console(soft_wrap=True, highlight=False)
    for line in (*_seen(model_look, data_look), *_said(made), *expectation(made, machine)):
        console.print(line, markup=False)
    for warning in made.warnings:
        console.print(f"look at this: {warning}", markup=False)
    console.print(
        f"wrote {output}; next: satori-fast run {output} --dry-run, then satori-fast run {output}",
        markup=False,
    )
    return made


def run_name(data: str) -> str:
    """A name for the runs of a data file: its own, without its ending."""
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in file_stem(data))
    return kept.strip(".-")[: MAX_NAME_BYTES // 4] or "run"


def config_text(settings: Sequence[Setting], *, name: str, command: Sequence[str]) -> str:
    """The config as TOML, with the reason of each value beside it."""
    lines = textwrap.wrap(
        f"Written by `satori-fast init {shlex.join(command)}`, which looked at both. What says "
        '"guess" is one: change it. `satori-fast show` with this file explains every key.',
        _WIDTH - 2,
        break_long_words=False,
        break_on_hyphens=False,
    )
    lines = [f"# {line}" for line in lines] + ["schema_version = 1", f"name = {json.dumps(name)}"]
    sections = dict.fromkeys(_section(setting) for setting in settings)
    for section in sorted(sections, key=list(sections).index):
        lines += ["", f"[{section}]"] if section else []
        for setting in settings:
            if _section(setting) == section:
                lines += _lines(setting)
    return "\n".join(lines) + "\n"


def _section(setting: Setting) -> str:
    return setting.key.rpartition(".")[0]


def _lines(setting: Setting) -> list[str]:
    """A setting with its reason: behind it where there is room, else above."""
    # Texts, numbers, truth values and lists are written in TOML as in JSON.
    value = json.dumps(setting.value, ensure_ascii=False).replace("\x7f", "\\u007f")
    assigned = f"{setting.key.rpartition('.')[2]} = {value}"
    why = f"# {'guess: ' * setting.is_guess}{setting.why}"
    line = f"{assigned:<34} {why}"
    if len(line) <= _WIDTH:
        return [line]
    wrapped = textwrap.wrap(why.removeprefix("# "), _WIDTH - 2)
    return [*(f"# {part}" for part in wrapped), assigned]


def _seen(model: ModelLook, data: DataLook) -> list[str]:
    """What was seen, for the terminal."""
    return [
        f"model: {model.path}: {model.family}, {model.num_parameters / 1e6:,.1f} M parameters, "
        f"template {model.template}, ends at {', '.join(model.stop_tokens) or 'nothing'}",
        f"data: {data.path}: {data.num_problems:,} problems; question in {data.fields.question}, "
        f"answer in {data.fields.answer}, solution in {data.fields.response or 'no field'}",
        f"first problem: {_short(data.first.question)} -> {_short(data.first.answer or '')}",
    ]


def _said(made: Guess) -> list[str]:
    """The guesses, for the terminal."""
    guesses = [setting for setting in made.settings if setting.is_guess]
    return [
        "guessed:",
        *(f"  {s.key} = {json.dumps(s.value, ensure_ascii=False)}: {s.why}" for s in guesses),
    ]


def _short(text: str) -> str:
    return textwrap.shorten(text, 100, placeholder=" ...")
