# SPDX-License-Identifier: Apache-2.0
"""One process is a world without a launcher; wrong sizes are refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from satori_fast.backbone.parallel import (
    ParallelOptions,
    ParallelState,
    initialize_parallel,
    parallel_state,
    shutdown_parallel,
)


def test_one_process_is_rank_zero_of_one(one_process: ParallelState) -> None:
    assert one_process.world_size == 1 and one_process.is_main
    sizes = (one_process.tensor_size, one_process.pipeline_size, one_process.data_size)
    assert sizes == (1, 1, 1)
    assert parallel_state() is one_process


def test_a_second_call_returns_the_same_state_and_seeds(one_process: ParallelState) -> None:
    assert initialize_parallel(seed=5) is one_process
    first = torch.rand(3)
    initialize_parallel(seed=5)
    assert torch.equal(torch.rand(3), first)


def test_other_sizes_need_a_shutdown_first() -> None:
    with pytest.raises(ValueError, match=r"shutdown_parallel\(\)"):
        initialize_parallel(tensor=2)


def test_world_that_the_sizes_do_not_divide_is_refused_by_name() -> None:
    shutdown_parallel()
    with pytest.raises(ValueError, match=r"world size 1 .*parallel\.tensor.*2 \* 1 \* 1 = 2"):
        initialize_parallel(tensor=2)
    with pytest.raises(ValueError, match=r"parallel\.pipeline = 0"):
        initialize_parallel(pipeline=0)
    with pytest.raises(ValueError, match="initialize_parallel"):
        parallel_state()


def test_options_that_differ_or_do_not_fit_are_refused(one_process: ParallelState) -> None:
    with pytest.raises(ValueError, match=r"parallel\.chunks = 2 needs a pipeline"):
        initialize_parallel(options=ParallelOptions(chunks=2))
    with pytest.raises(ValueError, match=r"overlap=False.*"):
        initialize_parallel(options=ParallelOptions(overlap=False))
    assert initialize_parallel(options=ParallelOptions()) is one_process


def test_ranks_share_tokens_evenly(one_process: ParallelState) -> None:
    assert one_process.copies() is one_process
    sizes = [(1, 1), (2, 1), (1, 2), (4, 2)]
    found = [replace(one_process, tensor_size=t, context_size=c).token_multiple for t, c in sizes]
    # A rank of a context has two chunks, which its tensor-parallel ranks share.
    assert found == [1, 2, 4, 16]


def test_shutdown_may_be_repeated_and_undone() -> None:
    shutdown_parallel()
    shutdown_parallel()
    assert initialize_parallel().world_size == 1


def test_reductions_over_one_rank_return_the_value(one_process: ParallelState) -> None:
    tensor = torch.tensor([1.0, 2.0])
    reduced = one_process.all_reduce_sum(tensor)
    assert torch.equal(reduced, tensor) and reduced is not tensor
    assert one_process.all_reduce_max(2.5) == 2.5


def test_broken_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    shutdown_parallel()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="WORLD_SIZE"):
        initialize_parallel()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="torchrun"):
        initialize_parallel()
