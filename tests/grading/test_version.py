# SPDX-License-Identifier: Apache-2.0
"""The grader's version follows its sources and nothing else."""

import runpy
import shutil
from pathlib import Path

import satori_fast
from satori_fast.grading import grader_version

ROOM = Path(satori_fast.__file__).parent / "grading"


def version_of(room: Path) -> str:
    return runpy.run_path(str(room / "version.py"))["grader_version"]()


def test_a_change_of_a_source_is_another_version(tmp_path: Path) -> None:
    room = tmp_path / "grading"
    shutil.copytree(ROOM, room)
    assert version_of(room) == grader_version()
    (tmp_path / "types.py").write_text("# another room\n")
    assert version_of(room) == grader_version()
    with (room / "units.py").open("a") as file:
        file.write("# another unit\n")
    assert version_of(room) != grader_version()
