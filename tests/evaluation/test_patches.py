# SPDX-License-Identifier: Apache-2.0
"""Patches judged: gold ones resolve, each reason has a patch that earns it, limits are named."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from satori_fast.evaluation import sandbox
from satori_fast.evaluation.patches import (
    Patch,
    PatchRefused,
    PatchVerdict,
    Reason,
    apply_patch,
    judge,
    judge_all,
)
from satori_fast.evaluation.repositories import Repository, small_repositories

isolated = pytest.mark.skipif(
    sandbox.isolation_fault() is not None, reason=f"no isolation: {sandbox.isolation_fault()}"
)
# Wide in wall time: a busy machine ends nothing before its own limit does.
PATIENT = sandbox.Limits(seconds=120.0, cpu_seconds=60)

SOURCE = '"""A sum."""\n\n\ndef add(a, b):\n    return a - b\n'
TEST = """\
import unittest
from adding import add


class AddTest(unittest.TestCase):
    def test_zero(self):
        self.assertEqual(add(2, 0), 2)

    def test_sum(self):
        self.assertEqual(add(2, 3), 5)
"""
FIX = """\
--- a/adding.py
+++ b/adding.py
@@ -2,4 +2,4 @@
 
 
 def add(a, b):
-    return a - b
+    return a + b
"""
ADDING = Repository(
    name="adding",
    problem="`add(2, 3)` is -1.\n",
    files={"adding.py": SOURCE, "README.md": "Adding.\n"},
    tests={"test_adding.py": TEST},
    oracle_files=("adding.py", "more/new.py"),
    fail_to_pass=("test_adding.AddTest.test_sum",),
    pass_to_pass=("test_adding.AddTest.test_zero",),
    gold_patch=FIX,
    links={"away": "/", "near.py": "adding.py"},
)
RIGHT = SOURCE.replace("a - b", "a + b")


def judged(patch: Patch, *, limits: sandbox.Limits = PATIENT) -> PatchVerdict:
    return judge(ADDING, patch, limits=limits)


def refusal(patch: Patch) -> tuple[Reason, str]:
    with pytest.raises(PatchRefused) as caught:
        apply_patch(ADDING, patch)
    return caught.value.reason, str(caught.value)


def header(path: str, *lines: str) -> str:
    return "\n".join([f"diff --git a/{path} b/{path}", *lines, ""])


# --- all repositories ----------------------------------------------------------------------------


@isolated
def test_gold_patches_resolve_all() -> None:
    repositories = small_repositories()
    gold = [repository.gold_patch for repository in repositories]
    verdicts = judge_all(repositories, gold, limits=PATIENT)
    assert [verdict.reason for verdict in verdicts] == ["resolved"] * len(repositories)
    for repository, verdict in zip(repositories, verdicts, strict=True):
        assert verdict.passed == (*repository.fail_to_pass, *repository.pass_to_pass)
        assert verdict.failed == ()


@isolated
def test_a_comment_leaves_the_tests_as_they_are() -> None:
    repositories = small_repositories()
    comments: list[Patch] = [
        {repository.oracle_files[0]: repository.files[repository.oracle_files[0]] + "\n# seen\n"}
        for repository in repositories
    ]
    verdicts = judge_all(repositories, comments, limits=PATIENT)
    for repository, verdict in zip(repositories, verdicts, strict=True):
        assert verdict.reason == "tests_failed"
        assert verdict.failed == repository.fail_to_pass
        assert verdict.passed == repository.pass_to_pass


@pytest.mark.parametrize("empty", ["", " \n\n", {}], ids=["text", "blank", "files"])
def test_empty_patches_resolve_none(empty: Patch) -> None:
    repositories = small_repositories()
    verdicts = judge_all(repositories, [empty] * len(repositories))
    assert {(v.reason, v.detail) for v in verdicts} == {("no_patch", "the patch is empty")}


# --- reasons -------------------------------------------------------------------------------------


@isolated
@pytest.mark.parametrize(
    "patch", [FIX, FIX.rstrip("\n"), {"adding.py": RIGHT}], ids=["diff", "stripped", "files"]
)
def test_resolved(patch: Patch) -> None:
    verdict = judged(patch)
    assert (verdict.reason, verdict.detail) == ("resolved", "2 tests passed")
    assert verdict.passed == ("test_adding.AddTest.test_sum", "test_adding.AddTest.test_zero")
    assert verdict.seconds > 0


@isolated
def test_tests_that_should_stay_and_do_not() -> None:
    verdict = judged({"adding.py": "def add(a, b):\n    return 5\n"})
    assert verdict.reason == "tests_failed"
    assert verdict.passed == ("test_adding.AddTest.test_sum",)
    assert verdict.failed == ("test_adding.AddTest.test_zero",)
    assert verdict.detail == (
        "1 of 2 tests failed: test_adding.AddTest.test_zero: AssertionError: 5 != 2"
    )


@isolated
@pytest.mark.parametrize(
    ("source", "detail"),
    [
        ("def add(a, b:\n", r"SyntaxError: .*\(adding.py, line 1\)"),
        ("raise SystemExit(0)\n", "SystemExit: 0"),
        ("def plus(a, b):\n    return a + b\n", "ImportError: cannot import name 'add'"),
        (RIGHT + "import os\nos._exit(0)\n", "their process ended with status 0"),
        (RIGHT + "import atexit, os\natexit.register(os.abort)\n", "the tests passed, but .* -6"),
        (
            RIGHT + "import unittest\n\ndef add(a, b):\n    raise unittest.SkipTest('later')\n",
            "skipped",
        ),
        ("def add(a, b):\n    return bytes(10**13)\n", "MemoryError"),
    ],
    ids=["syntax", "exit", "name", "end", "abort", "skip", "memory"],
)
def test_code_that_breaks_the_tests(source: str, detail: str) -> None:
    verdict = judged({"adding.py": source})
    assert (verdict.reason, verdict.limit) == ("tests_failed", None)
    assert re.search(detail, verdict.detail), verdict.detail


@isolated
def test_what_hangs_is_a_timeout() -> None:
    quick = sandbox.Limits(seconds=0.5)
    verdict = judged({"adding.py": "import time\ntime.sleep(600)\n"}, limits=quick)
    assert (verdict.reason, verdict.limit) == ("timeout", "timeout")
    assert verdict.detail == "ended by its limit of wall time"
    # The signal that CPU time is over: test_sandbox uses it up.
    over = "import os, signal\nos.kill(os.getpid(), signal.SIGXCPU)\n"
    verdict = judged({"adding.py": RIGHT + over})
    assert (verdict.reason, verdict.limit) == ("timeout", "cpu")


@isolated
@pytest.mark.parametrize(
    ("line", "limits", "limit"),
    [
        ("import os\nwhile True: os.fork()", PATIENT, "processes"),
        ("open('large', 'wb').write(bytes(2**27))", PATIENT, "disk"),
        (
            "held = []\nwhile True: held.append(b'1' * 2**20)",
            dataclasses.replace(PATIENT, memory_bytes=64 * 2**20),
            "memory",
        ),
    ],
    ids=["forks", "fills-the-disk", "fills-the-memory"],
)
def test_what_takes_too_much_is_named(
    line: str, limits: sandbox.Limits, limit: sandbox.Ending
) -> None:
    verdict = judged({"adding.py": f"{RIGHT}\n{line}\n"}, limits=limits)
    assert (verdict.reason, verdict.limit) == ("tests_failed", limit)
    assert verdict.detail == f"ended by its limit of {limit}"


@isolated
def test_what_reaches_for_the_network_is_named() -> None:
    line = "import socket\nsocket.create_connection(('192.0.2.1', 80))\n"
    verdict = judged({"adding.py": RIGHT + line})
    assert verdict.reason == "tests_failed"
    assert verdict.detail.endswith("OSError: [Errno 101] Network is unreachable")


# --- refused before anything runs ----------------------------------------------------------------


def test_apply_failed() -> None:
    moved = FIX.replace("return a - b", "return b - a")
    assert refusal(moved) == ("apply_failed", "patch failed: adding.py:2")
    # No fuzz: a line of context that differs is one too many.
    assert refusal(FIX.replace(" def add(a, b):", " def add(b, a):"))[0] == "apply_failed"
    assert refusal("I changed the sign.") == (
        "apply_failed",
        "line 1: not a part of a unified diff",
    )
    assert refusal(FIX + "\nThat is all.\n")[1] == "line 10: not a part of a unified diff"
    assert refusal(FIX.replace("-2,4", "-2,5"))[1].startswith("line 3: the hunk has other lines")
    assert refusal(FIX.replace("+2,4", "+2,2"))[1].startswith("line 3: the hunk has other lines")
    assert refusal("--- a/adding.py\n@@ -1 +1 @@\n-a\n+b\n")[1].startswith("line 1: no line '+++")
    assert refusal("\\ nothing")[1] == "the patch names no file: '--- a/...' is missing"
    assert refusal(FIX.replace("+++ b/adding.py", "+++ b/more/new.py"))[0] == "apply_failed"


def test_lines_that_have_moved_apply() -> None:
    assert apply_patch(ADDING, FIX.replace("@@ -2,4 +2,4", "@@ -40,4 +40,4"))["adding.py"] == RIGHT
    # Editors strip blanks at the ends of lines.
    assert apply_patch(ADDING, FIX.replace("\n \n \n", "\n\n\n"))["adding.py"] == RIGHT


@pytest.mark.parametrize(
    ("patch", "detail"),
    [
        (header("adding.py", "index 1..2 100644", "GIT binary patch", "literal 1"), "is binary"),
        (header("adding.py", "Binary files a/adding.py and b/adding.py differ"), "is binary"),
        (header("adding.py", "old mode 100644", "new mode 100755") + FIX, "changes a mode"),
        (header("more/new.py", "new file mode 120000", "index 0..1"), "a link or a program"),
        (header("more/new.py", "new file mode 100755", "index 0..1"), "a link or a program"),
        (header("adding.py", "deleted file mode 120000"), "a link or a program"),
        (header("adding.py", "index 1..2 160000"), "a link or a program"),
        (header("adding.py", "similarity index 100%", "rename from adding.py"), "renames"),
        (header("adding.py", "copy from adding.py", "copy to more/new.py"), "copies"),
        ("diff --git a/adding.py b/more/new.py\nrename to more/new.py\n", "not 'diff --git a/PATH"),
        (FIX.replace("a + b", "a + b\0"), "zero byte"),
        (FIX.replace("a + b", "a + b  # \ud800"), "not Unicode"),
        ({"adding.py": "\0"}, "zero byte"),
        ({"adding.py": "\udfff"}, "not Unicode"),
    ],
)
def test_binary_patches_modes_links_and_renames(patch: Patch, detail: str) -> None:
    reason, text = refusal(patch)
    assert reason == "apply_failed"
    assert detail in text


@pytest.mark.parametrize(
    ("path", "reason", "detail"),
    [
        ("/etc/passwd", "outside", "an absolute path"),
        ("../adding.py", "outside", "'..'"),
        ("more/../adding.py", "outside", "'..'"),
        ("./adding.py", "outside", "'.'"),
        ("more//new.py", "outside", "empty part"),
        ("away/etc/passwd", "outside", "leads through the link away"),
        ("near.py", "outside", "leads through the link near.py"),
        ("README.md", "outside", "only these files may change: adding.py, more/new.py"),
        ("sitecustomize.py", "outside", "only these files"),
        ("test_adding.py", "touches_tests", "a test file"),
        ("tests/anything.py", "touches_tests", "a test file"),
        ("conftest.py", "touches_tests", "a test file"),
        ("more/new_test.py", "touches_tests", "a test file"),
    ],
)
def test_paths_that_a_patch_may_not_name(path: str, reason: Reason, detail: str) -> None:
    hunk = "@@ -0,0 +1 @@\n+x = 1\n"
    prefix = "" if path.startswith("/") else "b/"
    patches: list[Patch] = [
        {path: "x = 1\n"},
        {"adding.py": RIGHT, path: "x = 1\n"},
        f"--- /dev/null\n+++ {prefix}{path}\n{hunk}",
        f"{FIX}--- /dev/null\n+++ {prefix}{path}\n{hunk}",
        # Git makes and deletes empty files by their header alone.
        header(path, "new file mode 100644", "index 0000000..e69de29"),
        header(path, "deleted file mode 100644", "index e69de29..0000000"),
    ]
    for patch in patches:
        found, text = refusal(patch)
        assert found == reason
        assert text.startswith(f"{path}: ")
        assert detail in text


def test_a_line_of_a_hunk_is_no_header() -> None:
    # Form feeds end no line, and a removed line may look like the name of a file.
    source = "-- a/README.md\n\x0c--- a/README.md\nx = 1\n"
    repository = dataclasses.replace(ADDING, files={"adding.py": source})
    patch = (
        "--- a/adding.py\n+++ b/adding.py\n@@ -1,3 +1,2 @@\n"
        "--- a/README.md\n-\x0c--- a/README.md\n+++ b/README.md\n x = 1\n"
    )
    assert apply_patch(repository, patch) == {"adding.py": "++ b/README.md\nx = 1\n"}


# --- application ---------------------------------------------------------------------------------


def test_files_are_made_and_deleted_and_others_stay() -> None:
    made = apply_patch(ADDING, "--- /dev/null\n+++ b/more/new.py\n@@ -0,0 +1 @@\n+x = 1\n")
    assert made == {**ADDING.files, "more/new.py": "x = 1\n"}
    assert apply_patch(ADDING, {"more/new.py": "x = 1\n"}) == made
    lines = SOURCE.splitlines()
    hunk = f"@@ -1,{len(lines)} +0,0 @@\n" + "".join(f"-{line}\n" for line in lines)
    deleted = apply_patch(ADDING, f"--- a/adding.py\n+++ /dev/null\n{hunk}")
    assert deleted == {"README.md": "Adding.\n"}


def test_a_patch_that_changes_nothing_is_none() -> None:
    same = FIX.replace("+    return a + b", "+    return a - b")
    for patch in ({"adding.py": SOURCE}, same):
        assert refusal(patch) == ("no_patch", "the patch changes nothing")


def test_ends_of_lines_are_kept() -> None:
    repository = dataclasses.replace(ADDING, files={"adding.py": "a = 1\r\nb = 2"})
    patch = (
        "--- a/adding.py\t2026-01-01 00:00:00\n+++ b/adding.py\t2026-01-02 00:00:00\n"
        "@@ -1,2 +1,2 @@\n a = 1\r\n-b = 2\n\\ No newline at end of file\n+b = 3\n"
        "\\ No newline at end of file\n"
    )
    assert apply_patch(repository, patch) == {"adding.py": "a = 1\r\nb = 3"}


def test_settings_of_git_and_a_repository_around_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "settings").write_text("[apply]\n\twhitespace = error\n[core]\n\tautocrlf = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "settings"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    patch = FIX.replace("+    return a + b", "+    return a + b  ")
    assert apply_patch(ADDING, patch)["adding.py"] == RIGHT.replace("a + b", "a + b  ")


# --- the scratch copy ----------------------------------------------------------------------------


@isolated
def test_test_files_are_the_judges_own() -> None:
    # One in the sources, left by somebody, gives way.
    emptied = dataclasses.replace(ADDING, files={**ADDING.files, "test_adding.py": "passes = 1\n"})
    assert judge(emptied, FIX, limits=PATIENT).reason == "resolved"
    wrong: Patch = {"adding.py": SOURCE + "\n\nseen = 1\n"}
    assert judge(emptied, wrong, limits=PATIENT).reason == "tests_failed"


def test_refused_where_nothing_isolates_unless_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "isolation_fault", lambda: "unshare: Operation not permitted")
    with pytest.raises(sandbox.IsolationError, match="trusted"):
        judge(ADDING, FIX)
    assert judge(ADDING, FIX, limits=PATIENT, trusted=True).reason == "resolved"
    # What is refused for itself runs nowhere.
    assert judge(ADDING, "").reason == "no_patch"
