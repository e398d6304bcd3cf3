# SPDX-License-Identifier: Apache-2.0
"""Every layout takes the steps that one process takes: losses, gradient norms and weights in fp32,
for a recipe of groups and one with a critic, for imitation and for preference pairs."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from satori_fast.backbone.parallel import shutdown_parallel
from tests.invariants.layout_worker import (
    ALONE,
    CASES,
    RECIPES,
    Case,
    bytes_per_parameter,
    session,
)

pytestmark = pytest.mark.ranks

_SLOW = [name for name, case in CASES.items() if case.world > 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@cache
def alone(recipe: str) -> dict[str, Any]:
    return in_this_process(ALONE, recipe)


def in_this_process(case: Case, recipe: str) -> dict[str, Any]:
    shutdown_parallel()
    result = session(case, recipe)
    shutdown_parallel()
    return result


@cache
def together(world_size: int, folder: Path) -> dict[Any, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.invariants.layout_worker"]
    root = Path(__file__).parents[2]
    ranks = [
        subprocess.Popen([*command, str(rank), str(world_size), str(folder)], cwd=root)
        for rank in range(world_size)
    ]
    try:
        codes = [process.wait(timeout=900) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert codes == [0] * world_size
    return torch.load(folder / f"results_{world_size}.pt")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in _SLOW else ()) for n in CASES]
)
def test_a_layout_takes_the_steps_of_one_process(name: str, recipe: str, folder: Path) -> None:
    one, case = alone(recipe), CASES[name]
    if case.world == 1:
        many = in_this_process(case, recipe)
    else:
        many = together(case.world, folder)[name, recipe]
    for step_one, step_many in zip(one["stats"], many["stats"], strict=True):
        assert step_many == pytest.approx(step_one, rel=1e-5, abs=1e-5)
    assert one["weights"].keys() == many["weights"].keys()
    for tensor, expected in one["weights"].items():
        difference = (many["weights"][tensor] - expected).abs().max()
        assert difference < 1e-5, (tensor, float(difference))


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_data_parallel_ranks_share_the_optimizer(world_size: int, folder: Path) -> None:
    """bfloat16 weights and fp32 gradients are whole, 6 bytes a parameter; fp32 weights and both
    moments, 12 bytes, are shared."""
    if world_size == 1:
        shutdown_parallel()
        held = bytes_per_parameter()
    else:
        held = together(world_size, folder)["held"]
    assert held == pytest.approx(6 + 12 / world_size, rel=0.1)
