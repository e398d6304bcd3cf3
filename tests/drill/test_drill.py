# SPDX-License-Identifier: Apache-2.0
"""The drills, small: each try ends in the same bits, or in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.drill.__main__ import DRILLS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DRILLS if name not in ("servers", "layouts")])
def test_small_drill(name: str) -> None:
    # A process of its own: it forks, which this one, full of threads, must not.
    command = [sys.executable, "-m", "tests.drill", "--small", "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
