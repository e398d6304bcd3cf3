# SPDX-License-Identifier: Apache-2.0
"""Repositories with a fault: what a patch is asked for, and the tests that judge it.

`small_repositories` are ten made for this package, of a few files each, which use Python's standard
library alone; the folder of that name holds them. Not for: judging (`patches`).
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository with a fault, as text by path.

    problem:      description of the fault, as a user would report it.
    files:        sources, with the fault; tests: test files, the judge's own.
    oracle_files: the only files that a patch may change, make or delete.
    fail_to_pass: tests, in unittest's dotted names, that should turn pass.
    pass_to_pass: tests that pass and should stay so.
    gold_patch:   unified diff that resolves it.
    links:        targets of symbolic links by path.

    ValueError when no test should turn pass: every patch would resolve it.
    """

    name: str
    problem: str
    files: Mapping[str, str]
    tests: Mapping[str, str]
    oracle_files: tuple[str, ...]
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    gold_patch: str
    links: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if not self.fail_to_pass:
            raise ValueError(f"{self.name}: name at least one test in fail_to_pass")


@functools.cache
def small_repositories() -> tuple[Repository, ...]:
    """Read the package's own repositories, by name."""
    folder = resources.files("satori_fast.evaluation") / "small_repositories"
    texts = [file.read_text(encoding="utf-8") for file in folder.iterdir()]
    return tuple(sorted(map(_read, texts), key=lambda repository: repository.name))


def _read(text: str) -> Repository:
    entries = tomllib.loads(text)
    for key in ("oracle_files", "fail_to_pass", "pass_to_pass"):
        entries[key] = tuple(entries[key])
    return Repository(**entries)
