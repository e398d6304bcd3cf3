# SPDX-License-Identifier: Apache-2.0
"""Reads the Markdown documents of the repository: their blocks, commands and inline code.

Not for what a command does: `test_docs` says which kinds there are and checks each.
"""

from __future__ import annotations

import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

# What a line of commands may begin with.
OURS = frozenset({"satori-fast", "make", "python", "torchrun", "pip", "vllm"})
# Programs whose words nothing here can check.
OTHERS = frozenset({".", "cp", "curl", "mkdir", "ssh", "tensorboard"})
# Inline code that begins like this is a command as well.
INLINE = ("satori-fast ", "make ", "python -m ", "torchrun ")

_ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=\S*")


def documents() -> list[Path]:
    """The manuals of this repository, in a fixed order."""
    named = ["README.md", "CONTRIBUTING.md"]
    named += ["satori_fast/README.md", "benchmarks/README.md", "csrc/README.md"]
    return [ROOT / name for name in named] + sorted((ROOT / "docs").glob("*.md"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def text_of(path: Path) -> str:
    assert path.is_file(), f"{name_of(path)} is missing"
    return path.read_text(encoding="utf-8")


def fenced_blocks(text: str) -> list[str]:
    return re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced or indented block. line: of its first line of text. language: "" where none is
    given."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{name_of(self.document)}:{self.line}"


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a document, without assignments of the environment before it."""

    place: str
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        return self.words[0]

    def __str__(self) -> str:
        return f"{self.place} {shlex.join(self.words)}"


def blocks(document: Path) -> list[Block]:
    """Blocks between fences, and those that four spaces indent below an empty line."""
    found: list[Block] = []
    lines = text_of(document).splitlines()
    number, is_after_empty = 0, True
    while number < len(lines):
        line = lines[number]
        fence = re.fullmatch(r"```(\w*)", line)
        start = number + 1 if fence else number
        stop = start
        if fence:
            while lines[stop] != "```":
                stop += 1
            number = stop
        elif is_after_empty and line.startswith("    "):
            while stop < len(lines) and lines[stop].startswith("    "):
                stop += 1
            number = stop - 1
        if stop > start:
            text = "\n".join(lines[start:stop]) + "\n"
            language = fence[1] if fence else ""
            found.append(Block(document, start + 1, language, text))
        is_after_empty = not lines[number].strip()
        number += 1
    return found


def prose(document: Path) -> str:
    """The text without its fenced blocks; their lines are left empty, so that lines keep their
    numbers."""

    def emptied(match: re.Match[str]) -> str:
        return "\n" * match[0].count("\n")

    return re.sub(r"^```.*?^```", emptied, text_of(document), flags=re.DOTALL | re.MULTILINE)


def inline_code(document: Path) -> Iterator[tuple[int, str]]:
    """(line, code) of what stands between single backticks; a line break in it is a space."""
    text = prose(document)
    for match in re.finditer(r"``.+?``|`([^`]+)`", text, flags=re.DOTALL):
        if match[1] is not None and "\n\n" not in match[1]:
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[1].split())


def commands(document: Path) -> list[Command]:
    """Every command of a document: lines of blocks of commands, and inline code like `INLINE`. Of a
    config: lines of its opening comment that three spaces indent."""
    if document.suffix == ".toml":
        lines = enumerate(text_of(document).splitlines(), start=1)
        found = [(number, line[4:]) for number, line in lines if line.startswith("#   ")]
    else:
        found = [
            (block.line, line)
            for block in blocks(document)
            if is_of_commands(block)
            for line in re.sub(r"\\\n\s*", " ", block.text).splitlines()
        ]
        found += [
            (number, code)
            for number, code in inline_code(document)
            if " ".join(_words(code)).startswith(INLINE)
        ]
    place = name_of(document)
    return [Command(f"{place}:{n}", words) for n, line in found if (words := _words(line))]


def is_of_commands(block: Block) -> bool:
    """A block marked ``sh``, or one without a mark in which a line begins with a program: one of
    ours, or any that this machine could run, with further words."""
    if block.language:
        return block.language == "sh"
    lines = [_words(line) for line in textwrap.dedent(block.text).splitlines() if line[:1].strip()]
    programs = [words[0] for words in lines if len(words) > 1 and words[0].islower()]
    return any(word in OURS | OTHERS or shutil.which(word) for word in programs)


def _words(line: str) -> tuple[str, ...]:
    try:
        words = shlex.split(line.removeprefix("$ "), comments=True)
    except ValueError:  # an apostrophe in a text
        words = line.split()
    while words and _ASSIGNMENT.fullmatch(words[0]):
        words = words[1:]
    return tuple(word for word in words if word != "&")
