# SPDX-License-Identifier: Apache-2.0
"""GPUs by CUDA's names and by people's. Their peaks: test_peaks."""

from __future__ import annotations

import pytest

from satori_fast.profiling.data_sheets import DATA_SHEETS, data_sheet_named, data_sheet_of


@pytest.mark.parametrize(
    ("cuda_name", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H200", "h200"),
    ],
)
def test_names_of_cuda_and_of_people(cuda_name: str, name: str) -> None:
    found = data_sheet_of(cuda_name)
    assert found is data_sheet_named(name) and found is data_sheet_named(name.upper())


def test_unknown_names() -> None:
    assert data_sheet_of("NVIDIA GH200 480GB") is None
    with pytest.raises(ValueError) as caught:
        data_sheet_named("tpu")
    known = ", ".join(sheet.name for sheet in DATA_SHEETS)
    assert str(caught.value) == f"GPU 'tpu' is not known; known are {known}"


def test_rows_make_sense() -> None:
    assert len({sheet.name for sheet in DATA_SHEETS}) == len(DATA_SHEETS)
    for sheet in DATA_SHEETS:
        assert sheet.network_gbs < sheet.link_gbs < sheet.bandwidth_gbs
        assert sheet.name == sheet.name.lower() and 20 < sheet.memory_gb < 200
