# SPDX-License-Identifier: Apache-2.0
"""Two processes compute what one computes: tensor, sequence, data and pipeline parallelism.

The vocabulary is odd, so tensor parallelism pads it: a phantom column in the softmax would show in
every number here. Each layout goes on from the checkpoint of the one before it, and so would show
state that another one lost: the first from that of one process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from satori_fast.backbone.parallel import shutdown_parallel
from tests.backbone.rank_worker import CASES, Case, session

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    results = {}
    for name in {case.model for case in CASES.values()}:
        shutdown_parallel()
        results[name] = session(Case(name), folder / name)
    shutdown_parallel()
    return results | {"folder": folder}


@pytest.fixture(scope="module")
def together(alone: dict[str, Any]) -> dict[str, dict[str, Any]]:
    folder = alone["folder"]
    worker = [sys.executable, "-W", "ignore", "-m", "tests.backbone.rank_worker"]
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen([*worker, str(rank), "2", str(folder)], cwd=root) for rank in range(2)
    ]
    try:
        codes = [process.wait(timeout=1200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0]
    return torch.load(folder / "results.pt")


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(
    name: str, alone: dict[str, Any], together: dict[str, dict[str, Any]]
) -> None:
    one, two = alone[CASES[name].model], together[name]
    for step_one, step_two in zip(one["stats"], two["stats"], strict=True):
        assert step_one == pytest.approx(step_two, rel=1e-4, abs=1e-6)
    assert one["weights"].keys() == two["weights"].keys()
    for tensor_name, tensor in one["weights"].items():
        difference = (tensor - two["weights"][tensor_name]).abs().max()
        assert difference < 1e-5, (tensor_name, float(difference))
    torch.testing.assert_close(one["logprobs"], two["logprobs"], atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(one["scores"], two["scores"], atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(one["values"], two["values"], atol=5e-5, rtol=1e-4)
