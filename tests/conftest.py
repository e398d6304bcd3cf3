# SPDX-License-Identifier: Apache-2.0
"""Options of the whole test suite. `--data-dir` names the folder with the real data sets.

It holds `train/gsm8k_train.jsonl` and `benchmarks/*.jsonl`; without it the tests on real data skip,
as those marked `real_model` do without the model of `make real-model`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.real_model import has_real_model, real_model_folder

# Nothing depends on how busy the machine is, and every run draws the same examples.
settings.register_profile(
    "project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data-dir",
        type=Path,
        default=None,
        help="folder with the real data sets (train/, benchmarks/); without it those tests skip",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what a command that failed had to say: its error names only the exit code."""
    report = yield
    error = call.excinfo and call.excinfo.value
    if isinstance(error, subprocess.CalledProcessError) and error.stderr:
        said = error.stderr if isinstance(error.stderr, str) else error.stderr.decode()
        report.sections.append(("stderr of the command", said[-2000:]))
    return report


@pytest.fixture(scope="session")
def data_dir(request: pytest.FixtureRequest) -> Path:
    folder: Path | None = request.config.getoption("--data-dir")
    if folder is None:
        pytest.skip("real data not given: pass --data-dir FOLDER (with train/ and benchmarks/)")
    if not folder.is_dir():
        raise pytest.UsageError(f"--data-dir {folder} is not a folder")
    return folder


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of the real language model; tests that ask for it are marked `real_model`."""
    if not has_real_model():
        pytest.skip(f"no real model in {real_model_folder()}: make real-model")
    return real_model_folder()
