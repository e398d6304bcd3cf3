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


@pytest.mark.parametrize("model", sorted({case.model for case in CASES.values()}))
def test_one_process_goes_on_from_the_last_layout(
    model: str, alone: dict[str, Any], together: dict[str, dict[str, Any]]
) -> None:
    assert together
    shutdown_parallel()
    again = session(Case(model), alone["folder"] / model)
    shutdown_parallel()
    for tensor_name, tensor in alone[model]["weights"].items():
        assert (tensor - again["weights"][tensor_name]).abs().max() < 1e-5, tensor_name


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "tensor"), [(2, 1), (4, 2)])
def test_a_rank_killed_while_it_saves_costs_nothing(
    world_size: int, tensor: int, tmp_path: Path
) -> None:
    """Fresh processes go on from what was whole, to the bits of a training left alone."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _survivors(whole, world_size, tensor) == [0] * world_size
    assert all(_survivors(killed, world_size, tensor, dies_in=3))
    assert _survivors(killed, world_size, tensor) == [0] * world_size
    expected, found = (torch.load(folder / "weights.pt") for folder in (whole, killed))
    assert expected.pop("begin") == 0 and 0 < found.pop("begin") <= 4
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def _survivors(folder: Path, world_size: int, tensor: int, *, dies_in: int = -1) -> list[int]:
    """Exit codes of all ranks; the last one dies in a step."""
    folder.mkdir(exist_ok=True)
    (folder / f"store-{dies_in}").unlink(missing_ok=True)
    worker = [sys.executable, "-W", "ignore", "-m", "tests.backbone.survivor_worker"]
    ranks = [
        subprocess.Popen(
            [*worker, str(rank), str(world_size), str(tensor), str(folder), str(dies_in)],
            cwd=Path(__file__).parents[2],
        )
        for rank in range(world_size)
    ]
    try:
        return [process.wait(timeout=600) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
