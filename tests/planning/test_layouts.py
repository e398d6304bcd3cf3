# SPDX-License-Identifier: Apache-2.0
"""Layouts: what divides what, in one line each."""

from __future__ import annotations

import pytest

from satori_fast.planning.layouts import Layout, check_layout, possible_layouts, with_data
from satori_fast.planning.sizes import KNOWN

SEVEN = KNOWN["qwen2.5-7b"].shape  # 28 layers, 4 key-value heads


def test_data_is_what_is_left() -> None:
    layout = with_data(Layout(tensor=4, pipeline=2), 32, num_servers=8)
    assert layout.data == 3 and layout.num_ranks == 24


@pytest.mark.parametrize(
    ("layout", "gpus", "servers", "message"),
    [
        (
            Layout(tensor=4, pipeline=2),
            4,
            0,
            "--gpus 4 is below what one copy of the models takes, parallel.tensor * pipeline * "
            "context = 4 * 2 * 1 = 8: raise it, or lower a size",
        ),
        (
            Layout(tensor=4),
            14,
            8,
            "--gpus 14 is no multiple of parallel.tensor * pipeline * context = 4 * 1 * 1 = 4, "
            "beside 8 GPUs of servers: change it, or one of the sizes",
        ),
        (Layout(), 8, 8, "--gpus 8 is below what one copy"),
    ],
)
def test_gpus_that_a_layout_does_not_fit(
    layout: Layout, gpus: int, servers: int, message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        with_data(layout, gpus, num_servers=servers)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(tensor=8), "parallel.tensor = 8 does not divide num_key_value_heads = 4"),
        (Layout(tensor=3), "parallel.tensor = 3 does not divide num_key_value_heads = 4"),
        (Layout(pipeline=3), "parallel.pipeline = 3 does not divide num_hidden_layers = 28"),
    ],
)
def test_a_model_that_a_layout_does_not_divide(layout: Layout, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_layout(layout, SEVEN)


def test_engines_limit_the_layouts() -> None:
    """vLLM in the trainer's processes serves no pipelines, the embedded engine no parts at all."""
    found = {
        engine: {
            (x.tensor, x.pipeline, x.data)
            for x in possible_layouts(SEVEN, 8, engine, like=Layout())
        }
        for engine in ("embedded", "vllm", "server")
    }
    assert found["embedded"] == {(1, 1, 8)}
    assert found["vllm"] == {(1, 1, 8), (2, 1, 4), (4, 1, 2)}
    assert found["server"] - found["vllm"] == {
        *((1, 2, 4), (1, 4, 2), (2, 2, 2), (2, 4, 1), (4, 2, 1)),
    }
    layouts = list(possible_layouts(SEVEN, 8, "vllm", like=Layout(shard_optimizer=True)))
    assert len(layouts) == 9 and all(layout.shard_optimizer for layout in layouts)


def test_how_a_layout_is_written() -> None:
    assert str(Layout(tensor=2, data=4)) == "tensor 2, pipeline 1, data 4"
    everything = Layout(2, 2, 2, 4, shard_optimizer=True, sequence=True, recompute="full")
    assert str(everything) == (
        "tensor 2, pipeline 2, context 2, data 4, sharded optimizer, sequence, full recomputation"
    )
    # One rank has nothing to share.
    assert str(Layout(shard_optimizer=True, sequence=True)) == "tensor 1, pipeline 1, data 1"
