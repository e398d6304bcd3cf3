# SPDX-License-Identifier: Apache-2.0
"""Patches judged: applied strictly, refused with a reason, resolved if the tests say so.

A patch is a unified diff, or whole files by path. It may change a repository's oracle files and
nothing else; what it may not is found before anything runs. Tests run in the sandbox. Code of a
patch shares a process with the tests: one written to deceive them (it could replace `unittest`)
is not caught. Not for: making patches, or rates of real models.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from satori_fast.evaluation import sandbox
from satori_fast.evaluation.repositories import Repository

Reason = Literal[
    "resolved",
    "tests_failed",
    "apply_failed",
    "touches_tests",
    "outside",
    "timeout",
    "no_patch",
]
Patch = str | Mapping[str, str]

_RUNNER = Path(__file__).with_name("unittest_worker.py")
_REPORT = "report.jsonl"
_NOWHERE = "/dev/null"
_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_PLAIN_HEADER = re.compile(
    r"(new file mode 100644|deleted file mode 100644|index [0-9a-f]+\.\.[0-9a-f]+( 100644)?)$"
)
_TEST_NAME = re.compile(r"(test_.*|.*_test|conftest)\.py$")
# Headers of git's extended diff that are refused, by how they begin.
_REFUSED_HEADERS = {
    "GIT binary patch": "is binary",
    "Binary files ": "is binary",
    "old mode ": "changes a mode",
    "new mode ": "changes a mode",
    "new file mode ": "makes a file that is a link or a program",
    "deleted file mode ": "deletes a link or a program",
    "index ": "changes a link or a program",
    "rename ": "renames a file",
    "copy ": "copies a file",
    "similarity index ": "renames or copies a file",
    "dissimilarity index ": "rewrites a file: give its hunks",
}


class PatchRefused(ValueError):
    """A patch that is not run: reason, and one line about it."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True)
class PatchVerdict:
    """Verdict on a patch.

    reason:  "resolved": all tests of fail_to_pass and pass_to_pass pass. "tests_failed": one does
             not, or a limit other than time ended the run. "timeout": wall or CPU time did.
    detail:  one line for people.
    limit:   the limit that ended the run, if one did.
    passed, failed: the repository's tests by what they did; none of both when nothing ran.
    seconds: wall time of judging.
    """

    reason: Reason
    detail: str
    limit: sandbox.Ending | None = None
    passed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    seconds: float = 0.0


def judge_all(
    repositories: Sequence[Repository],
    patches: Sequence[Patch],
    *,
    limits: sandbox.Limits | None = None,
    trusted: bool = False,
    num_at_once: int = 4,
) -> list[PatchVerdict]:
    """Judge a patch of each repository, several at once; verdicts in their order."""

    def judged(pair: tuple[Repository, Patch]) -> PatchVerdict:
        return judge(*pair, limits=limits, trusted=trusted)

    with ThreadPoolExecutor(num_at_once) as pool:
        return list(pool.map(judged, zip(repositories, patches, strict=True)))


def judge(
    repository: Repository,
    patch: Patch,
    *,
    limits: sandbox.Limits | None = None,
    trusted: bool = False,
) -> PatchVerdict:
    """Apply a patch to a scratch copy of a repository, run its tests, tell what became of it.

    trusted: run where nothing isolates (`sandbox.run`). IsolationError without it.

    >>> judge(repository, repository.gold_patch).reason
    'resolved'
    """
    start = time.monotonic()
    try:
        patched = apply_patch(repository, patch)
    except PatchRefused as refusal:
        return PatchVerdict(refusal.reason, str(refusal), seconds=time.monotonic() - start)
    names = [*repository.fail_to_pass, *repository.pass_to_pass]
    outcome = sandbox.run(
        [*sandbox.PYTHON, str(_RUNNER), _REPORT, *names],
        # Last, so that nothing stands in the place of a test file.
        {**patched, **repository.tests},
        links=repository.links,
        visible=[_RUNNER],
        collect=[f"tmp/{_REPORT}"],
        limits=limits,
        trusted=trusted,
    )
    return _verdict(names, outcome, seconds=time.monotonic() - start)


def _verdict(names: Sequence[str], outcome: sandbox.Outcome, *, seconds: float) -> PatchVerdict:
    errors = _errors(outcome.collected.get(f"tmp/{_REPORT}", ""))
    passed = tuple(name for name in names if name in errors and errors[name] is None)
    failed = tuple(name for name in names if name not in passed)
    limit = None if outcome.ended == "exit" else outcome.ended
    reason: Reason = "tests_failed"
    if limit is not None:
        reason = "timeout" if limit in ("timeout", "cpu") else "tests_failed"
        detail = f"ended by its limit of {'wall time' if limit == 'timeout' else limit}"
    elif failed:
        error = errors.get(failed[0]) or _last_line(outcome)
        detail = f"{len(failed)} of {len(names)} tests failed: {failed[0]}: {error}"
    elif outcome.returncode != 0:
        detail = f"the tests passed, but {_last_line(outcome)}"
    else:
        reason, detail = "resolved", f"{len(names)} tests passed"
    return PatchVerdict(reason, detail, limit, passed, failed, seconds)


def _last_line(outcome: sandbox.Outcome) -> str:
    lines = outcome.output.strip().splitlines()
    return f"their process ended with status {outcome.returncode}" + "".join(
        f": {line[:200]}" for line in lines[-1:]
    )


def _errors(report: str) -> dict[str, str | None]:
    """Error of each test in the report, None for those that passed; broken lines count for none."""
    errors: dict[str, str | None] = {}
    for line in report.splitlines():
        try:
            entry = json.loads(line)
            errors[str(entry["test"])] = None if entry["passed"] is True else str(entry["error"])
        except (ValueError, KeyError, TypeError):
            continue
    return errors


# --- application ---------------------------------------------------------------------------------


def apply_patch(repository: Repository, patch: Patch) -> dict[str, str]:
    """Sources of a repository after a patch. PatchRefused with the reason.

    A diff is applied as `git apply` does: lines may have moved, but every line of context must be
    as it stands. Refused are binary patches, changed modes, links and renames ("apply_failed"),
    paths that are absolute, lead through "..", or through a link, or to other than the oracle files
    ("outside"), and test files ("touches_tests").
    """
    if not patch or (isinstance(patch, str) and not patch.strip()):
        raise PatchRefused("no_patch", "the patch is empty")
    for text in [patch] if isinstance(patch, str) else patch.values():
        _check_text(text)
    for path in _changed_paths(patch) if isinstance(patch, str) else patch:
        _check_path(repository, path)
    if isinstance(patch, str):
        kept = dict(repository.files)
        oracle = {path: kept.pop(path) for path in repository.oracle_files if path in kept}
        patched = {**kept, **_git_apply(oracle, patch)}
    else:
        patched = {**repository.files, **patch}
    if patched == dict(repository.files):
        raise PatchRefused("no_patch", "the patch changes nothing")
    return patched


def _check_text(text: str) -> None:
    if "\0" in text:
        raise PatchRefused("apply_failed", "the patch is binary: it holds a zero byte")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PatchRefused("apply_failed", f"the patch is not Unicode text: {error}") from error


def _check_path(repository: Repository, path: str) -> None:
    parts = path.split("/")
    if path.startswith("/"):
        raise PatchRefused("outside", f"{path}: an absolute path")
    if {"", ".", ".."} & set(parts):
        raise PatchRefused("outside", f"{path}: a path with an empty part, '.' or '..'")
    prefixes = {"/".join(parts[:length]) for length in range(1, len(parts) + 1)}
    if through := prefixes & set(repository.links):
        raise PatchRefused("outside", f"{path}: leads through the link {min(through)}")
    name = PurePosixPath(path)
    is_test = _TEST_NAME.match(name.name) or {"test", "tests"} & set(name.parts[:-1])
    if path in repository.tests or is_test:
        raise PatchRefused("touches_tests", f"{path}: a test file")
    if path not in repository.oracle_files:
        allowed = ", ".join(repository.oracle_files)
        raise PatchRefused("outside", f"{path}: only these files may change: {allowed}")


def _changed_paths(patch: str) -> Iterator[str]:
    """Paths that a diff names, read line by line: what is no part of a unified diff is refused."""
    # As git splits them: form feeds and the like stand inside lines.
    lines = iter(enumerate(patch.split("\n"), start=1))
    has_files = in_file = False
    for number, line in lines:
        for start, what in _REFUSED_HEADERS.items():
            if line.startswith(start) and not _PLAIN_HEADER.match(line):
                raise PatchRefused("apply_failed", f"line {number}: the patch {what}")
        if line.startswith("diff --git "):
            has_files, in_file = True, False
            yield _path_of_both(number, line)
        elif line.startswith("--- "):
            has_files = in_file = True
            yield _path_of_pair(number, line, next(lines, (0, ""))[1])
        elif in_file and (hunk := _HUNK.match(line)):
            _skip_hunk(lines, number, [int(count or 1) for count in hunk.groups()])
        elif line and not line.startswith("\\ ") and not _PLAIN_HEADER.match(line):
            raise PatchRefused("apply_failed", f"line {number}: not a part of a unified diff")
    if not has_files:
        raise PatchRefused("apply_failed", "the patch names no file: '--- a/...' is missing")


def _path_of_both(number: int, line: str) -> str:
    """Path of a line "diff --git a/PATH b/PATH", which alone can make or delete an empty file."""
    names = line.removeprefix("diff --git ")
    path = names[2 : 2 + (len(names) - len("a/ b/")) // 2]
    if names != f"a/{path} b/{path}":
        raise PatchRefused("apply_failed", f"line {number}: not 'diff --git a/PATH b/PATH'")
    return path


def _path_of_pair(number: int, old_line: str, new_line: str) -> str:
    """Path of the lines "--- a/PATH" and "+++ b/PATH"; one of them may be /dev/null."""
    if not new_line.startswith("+++ "):
        raise PatchRefused("apply_failed", f"line {number}: no line '+++ b/...' follows")
    # Some programs write a date behind the name.
    old, new = (line[4:].partition("\t")[0] for line in (old_line, new_line))
    old = old if old == _NOWHERE else old.removeprefix("a/")
    new = new if new == _NOWHERE else new.removeprefix("b/")
    if old != new and _NOWHERE not in (old, new):
        raise PatchRefused("apply_failed", f"line {number}: renames {old} to {new}")
    return new if old == _NOWHERE else old


def _skip_hunk(lines: Iterator[tuple[int, str]], number: int, left: list[int]) -> None:
    """Read on to the end of a hunk; left: lines of the old and the new file it still has."""
    while left != [0, 0]:
        _, line = next(lines, (0, "@"))
        # Editors strip the blank of an empty line.
        sign = line[:1] or " "
        left[0] -= sign in " -"
        left[1] -= sign in " +"
        if sign not in " +-\\" or min(left) < 0:
            detail = f"line {number}: the hunk has other lines than it counts"
            raise PatchRefused("apply_failed", detail)


def _git_apply(files: Mapping[str, str], patch: str) -> dict[str, str]:
    """Files after a diff whose paths have been checked."""
    git = shutil.which("git")
    if git is None:
        raise OSError("git is not installed: it applies unified diffs")
    with tempfile.TemporaryDirectory(prefix="patch-") as folder:
        root = Path(folder).resolve()
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(text.encode())
        done = subprocess.run(
            [git, "apply", "--whitespace=nowarn", "-"],
            cwd=root,
            input=(patch if patch.endswith("\n") else patch + "\n").encode(),
            capture_output=True,
            # No repository around the folder, and nobody's settings.
            env={
                "GIT_CEILING_DIRECTORIES": str(root.parent),
                "GIT_CONFIG_GLOBAL": _NOWHERE,
                "GIT_CONFIG_NOSYSTEM": "1",
                "LC_ALL": "C",
            },
        )
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            detail = next(iter(lines), f"git ended with status {done.returncode}")
            raise PatchRefused("apply_failed", detail.removeprefix("error: "))
        found = {path.relative_to(root).as_posix(): path for path in root.rglob("*")}
        return {name: path.read_bytes().decode() for name, path in found.items() if path.is_file()}
