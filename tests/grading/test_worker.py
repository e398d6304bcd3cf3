# SPDX-License-Identifier: Apache-2.0
"""One grading process: its replies, its time limit, its end. Several of them: `test_pool`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from satori_fast.grading.worker import ROOT, Worker


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(timeout_s=1.0)
    yield worker
    worker.retire()


def test_a_worker_compares_and_checks(worker: Worker) -> None:
    assert worker.grade("x+x", "2x") == "match"
    assert worker.grade("x", "2x") == "mismatch"
    assert worker.check("x^2") == ""
    assert worker.check("") == "is empty"
    deep = "(" * 5_000 + "1" + ")" * 5_000
    assert worker.check(deep) == "cannot be read as an expression"


def test_an_answer_beyond_the_limit_is_a_timeout_and_the_next_one_is_graded(
    worker: Worker,
) -> None:
    assert worker.grade("9^{9^{9^{9}}}", "5") == "timeout"
    assert worker.grade("x+x", "2x") == "match"


def test_a_retired_worker_starts_no_more() -> None:
    retired = Worker(timeout_s=1.0)
    retired.retire()
    with pytest.raises(CancelledError):
        retired.grade("x+x", "2x")


def test_the_package_is_found_where_it_is_not_installed() -> None:
    program = "import sys; sys.path.append(sys.argv[1]); import satori_fast.grading.worker"
    # -S: without the site packages, and what is installed there.
    command = [sys.executable, "-S", "-P", "-c", program, str(ROOT)]
    subprocess.run(command, check=True, timeout=60)
