# SPDX-License-Identifier: Apache-2.0
"""What `make wheel-check` looks for, on wheels that lack it. The wheel itself is built there."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.wheel_check import ROOT, check_files, files_of_package


def wheel_of(folder: Path, names: Sequence[str]) -> Path:
    path = folder / "satori_fast-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return path


def test_files_that_are_no_modules_belong_to_the_package() -> None:
    names = files_of_package()
    assert {"satori_fast/cli.py", "satori_fast/data/stories.toml"} <= set(names)
    assert any("/templates/" in name and not name.endswith(".py") for name in names)


def test_a_whole_wheel(tmp_path: Path) -> None:
    names = [*files_of_package(), "satori_fast/_C.abi3.so", "satori_fast-0.dist-info/METADATA"]
    assert check_files(wheel_of(tmp_path, names)) == len(names) - 1


def test_a_wheel_that_lacks_something(tmp_path: Path) -> None:
    names = files_of_package()
    with pytest.raises(ValueError, match="has no compiled kernels"):
        check_files(wheel_of(tmp_path, names))
    rest = [name for name in names if name != "satori_fast/data/stories.toml"]
    with pytest.raises(ValueError, match=r"lacks satori_fast/data/stories\.toml, and 0 files more"):
        check_files(wheel_of(tmp_path, [*rest, "satori_fast/_C.so"]))


def test_make_has_the_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^wheel-check: setup\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    assert "-m tests.wheel_check" in recipe
    assert "make wheel-check " in makefile
