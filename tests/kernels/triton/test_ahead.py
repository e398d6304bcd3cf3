# SPDX-License-Identifier: Apache-2.0
"""The ahead-of-time gate: what is shipped passes it, and what is too large does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from satori_fast.kernels import triton as kernels
from satori_fast.kernels.triton import FILES, FUNCTIONS
from tests.kernels.triton import ahead
from tests.kernels.triton.ahead import Figures

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "cache"))


@pytest.mark.slow
def test_every_shipped_configuration_is_within_its_limits(tmp_path):
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.kernels.triton.ahead"]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    shipped = [c.name for c in ahead.shipped() for _ in ahead.TARGETS]
    assert [row[0] for row in rows] == shipped
    assert all(row[3] == "0" for row in rows), "registers spill"


def test_a_figure_above_its_limit_or_without_one_fails(tmp_path, capsys):
    limits = tmp_path / "limits.toml"

    def gate(*more):
        chosen = ("--targets", "90", "--only", "head.merge", "--limits", str(limits))
        status = ahead.main([*chosen, *more])
        return status, capsys.readouterr().err.splitlines()

    status, complaints = gate()
    assert status == 1 and complaints == ["head.merge sm_90: has no limits, run --update"]
    assert gate("--update") == (0, []) and gate() == (0, [])
    ((key, found),) = ahead.read_limits(limits).items()
    assert key == ("head.merge", 90)
    ahead.write_limits(limits, {key: found._replace(registers=8, tensor_core=1)})
    status, complaints = gate()
    assert status == 1 and len(complaints) == 2
    assert complaints[0].startswith("head.merge sm_90: registers is ")
    assert complaints[0].endswith("at most 8 allowed")
    assert complaints[1] == "head.merge sm_90: tensor_core is 0, at least 1 allowed"
    assert gate("--update") == (0, []) and ahead.read_limits(limits)[key] == found


def test_limits_that_two_compilers_need():
    a, b = Figures(40, 0, 512, 96), Figures(32, 8, 1024, 128)
    assert a.widened(b) == b.widened(a) == Figures(40, 8, 1024, 96)
    assert list(ahead.excesses(b, a)) == [
        "stack is 8, at most 0 allowed",
        "shared is 1024, at most 512 allowed",
    ]


def test_tables_name_each_other():
    """Every configuration has limits for every target, and no limit is left over."""
    names = {configuration.name for configuration in ahead.shipped()}
    expected = {(name, target) for name in names for target in ahead.TARGETS}
    assert set(ahead.read_limits(ahead.LIMITS)) == expected
    folder = Path(kernels.__file__).parent
    assert all((folder / f"{file}.py").exists() for file in {*FILES, *FUNCTIONS.values()})


@pytest.mark.parametrize("code", ["MMA.16816.F32.BF16", "HGMMA.64x256x16.F32", "UTCHMMA gdesc"])
def test_tensor_core_instructions_are_counted(code):
    prefix = "H" if code.startswith("MMA") else ""
    assert len(ahead.TENSOR_CORE.findall(f"  /*0a10*/  {prefix}{code} R4, R8 ;")) == 1
    assert not ahead.TENSOR_CORE.findall("  /*0a10*/  FFMA R4, R8, R2, R3 ;")
