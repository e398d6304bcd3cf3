# SPDX-License-Identifier: Apache-2.0
"""The small repositories: complete, and their gold patches what difflib makes of the files."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import sys

import pytest

from satori_fast.evaluation.patches import apply_patch
from satori_fast.evaluation.repositories import Repository, small_repositories

REPOSITORIES = pytest.mark.parametrize(
    "repository", small_repositories(), ids=lambda repository: repository.name
)


def test_there_are_ten_by_name() -> None:
    names = [repository.name for repository in small_repositories()]
    assert len(names) >= 10
    assert names == sorted(set(names))


@REPOSITORIES
def test_tests_that_are_named_are_all_there_are(repository: Repository) -> None:
    defined = [
        f"{path.removesuffix('.py').replace('/', '.')}.{case.name}.{function.name}"
        for path, text in repository.tests.items()
        for case in ast.walk(ast.parse(text))
        if isinstance(case, ast.ClassDef)
        for function in case.body
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test")
    ]
    named = [*repository.fail_to_pass, *repository.pass_to_pass]
    assert sorted(named) == sorted(defined)
    assert repository.pass_to_pass


@REPOSITORIES
def test_files_need_the_standard_library_alone(repository: Repository) -> None:
    sources = {**repository.files, **repository.tests}
    own = {path.split("/")[0].removesuffix(".py") for path in repository.files}
    for text in sources.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in own | sys.stdlib_module_names
            elif isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= own | sys.stdlib_module_names


@REPOSITORIES
def test_the_gold_patch_is_the_difference_that_it_makes(repository: Repository) -> None:
    patched = apply_patch(repository, repository.gold_patch)
    lines: list[str] = []
    for path in repository.oracle_files:
        lines.append(f"diff --git a/{path} b/{path}\n")
        before = repository.files[path].splitlines(keepends=True)
        after = patched[path].splitlines(keepends=True)
        lines.extend(difflib.unified_diff(before, after, f"a/{path}", f"b/{path}"))
    assert "".join(lines) == repository.gold_patch
    changed = {path for path in patched if patched[path] != repository.files.get(path)}
    assert changed == set(repository.oracle_files)


def test_a_repository_that_every_patch_would_resolve_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"bill: name at least one test in fail_to_pass"):
        dataclasses.replace(small_repositories()[0], fail_to_pass=())
