# SPDX-License-Identifier: Apache-2.0
"""What libraries keep of the host's memory is bounded, and freed pages go back to the system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from satori_fast.backbone.host_memory import NUM_COMPILED, keep_few_compiled
from satori_fast.backbone.parallel import initialize_parallel, shutdown_parallel

# Products of 150 different numbers of rows, forward and backward: MiB that the last 75 add.
_GROWTH = """
import psutil, torch
from satori_fast.backbone.parallel import initialize_parallel
initialize_parallel()
torch.set_num_threads(1)
rows = torch.randn(700, 256).bfloat16()
weight = torch.randn(512, 256).bfloat16().requires_grad_()
seen = []
for number in range(400, 550):
    product = torch.nn.functional.linear(rows[:number].requires_grad_(), weight)
    torch.autograd.grad(product.sum(), weight)
    seen.append(psutil.Process().memory_info().rss)
print((seen[-1] - seen[len(seen) // 2]) / 2**20)
"""
# MiB that 200 MiB in pieces leave in a process, of whose ends one in fifty stays.
_FREED = """
import psutil
from satori_fast.backbone.host_memory import give_back
before = psutil.Process().memory_info().rss
held = [b"1" * 100_000 for _ in range(2000)]
held = held[::50]
if {gives_back}:
    give_back()
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


def measured_mib(script: str, **environment: str) -> float:
    own = {name: value for name, value in os.environ.items() if name not in NUM_COMPILED}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=own | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


@pytest.mark.slow
def test_compiled_products_of_shapes_that_do_not_come_back_are_not_kept() -> None:
    kept = measured_mib(_GROWTH, **dict.fromkeys(NUM_COMPILED, "1024"))
    # Some processors compile nothing for a shape.
    assert measured_mib(_GROWTH) < max(10.0, kept / 4)


def test_ranks_set_the_bound_and_the_environment_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, *others = NUM_COMPILED
    monkeypatch.setenv(first, "7")
    for name in others:
        monkeypatch.delenv(name, raising=False)
    shutdown_parallel()
    initialize_parallel()
    assert [os.environ[name] for name in NUM_COMPILED] == ["7", *["64"] * len(others)]
    monkeypatch.delenv(first)
    keep_few_compiled()
    assert os.environ[first] == "64"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_pages_between_what_is_held_are_given_back() -> None:
    kept, given_back = (
        measured_mib(_FREED.format(gives_back=gives_back)) for gives_back in (False, True)
    )
    assert kept > 150 and given_back < 30
