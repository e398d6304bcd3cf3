# SPDX-License-Identifier: Apache-2.0
"""FLOPs against a count by hand, and against torch's own counter on a transformers model."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from satori_fast.profiling.flops import ModelShape, forward_flops, training_flops, utilisation
from satori_fast.profiling.peaks import DevicePeaks
from satori_fast.profiling.spans import StepTimes
from tests.tiny_models import tiny_model

# Two layers of width 8, four query heads and two key-value heads of 3 channels, MLP of width 10,
# vocabulary of 7. Matrices of a layer, rows x columns:
#   queries   8 x 12 =  96      keys    8 x 6 =  48      values  8 x 6 = 48      output 12 x 8 = 96
#   gate      8 x 10 =  80      up      8 x 10 = 80      down   10 x 8 = 80
# Together 288 + 240 = 528; the head has 8 x 7 = 56.
SHAPE = ModelShape(
    num_layers=2,
    hidden_size=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=3,
    intermediate_size=10,
    num_logits=7,
)


def shape_of(model: PreTrainedModel) -> ModelShape:
    config = model.config
    return ModelShape(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        num_logits=config.vocab_size,
    )


def test_weights_by_hand() -> None:
    assert SHAPE.layer_weights == 528
    assert SHAPE.head_weights == 56
    assert SHAPE.num_weights_read == 2 * 528 + 56


def test_a_forward_pass_by_hand() -> None:
    # Sequences of 3 and 2 tokens: 5 tokens. Layers: 2 x 528 x 5 = 5280 multiply-adds.
    # Head: 56 x 5 = 280. Attention: 3 x 4 / 2 + 2 x 3 / 2 = 6 + 3 = 9 pairs of a query and a key it
    # may see; each costs 4 heads x 3 channels in the scores and as much in the values: 24, in 2
    # layers 48; 9 x 48 = 432. All together 5992 multiply-adds, 11984 FLOPs.
    assert forward_flops(SHAPE, [3, 2]) == 11984
    # Logits of 2 of the 5 tokens only: 3 x 56 multiply-adds fewer.
    assert forward_flops(SHAPE, [3, 2], num_head_tokens=2) == 11984 - 2 * 3 * 56
    assert training_flops(SHAPE, [3, 2]) == 3 * 11984


def test_packing_does_not_change_the_count_but_joining_does() -> None:
    separate = forward_flops(SHAPE, [3]) + forward_flops(SHAPE, [2])
    assert forward_flops(SHAPE, [3, 2]) == separate
    assert forward_flops(SHAPE, [5]) > separate


@pytest.mark.parametrize("name", ["qwen2", "qwen2_tied", "qwen3", "llama31"])
def test_the_count_is_that_of_torch(name: str) -> None:
    model = tiny_model(name, attn_implementation="eager")  # the counter knows plain products
    shape, length = shape_of(model), 24
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.arange(length)[None])
    # The counter sees whole squares of scores; the mask hides L (L - 1) / 2 of the L^2 pairs.
    hidden_pairs = length * (length - 1) // 2
    hidden = 4 * shape.num_layers * shape.num_heads * shape.head_dim * hidden_pairs
    assert counter.get_total_flops() == forward_flops(shape, [length]) + hidden


def test_a_backward_pass_is_twice_a_forward_pass() -> None:
    model = tiny_model("qwen2", attn_implementation="eager")
    tokens = torch.arange(16)[None]
    totals = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            loss = model(tokens).logits.sum()
            if backward:
                loss.backward()
        totals.append(counter.get_total_flops())
    assert totals[1] == 3 * totals[0]


def test_utilisation_by_hand() -> None:
    times = StepTimes(
        spans_s={"update": 2.0, "rollout": 4.0},
        # No seconds of log-probs, and an update that had nothing to do.
        flops={"update": 3e12, "logprob": 1e12, "rollout": 0.0},
        bytes_read={"rollout": 2e9},
    )
    peaks = DevicePeaks(flops_per_s=10e12, bytes_per_s=1e9)
    # 3 TFLOP in 2 s on 2 devices of 10 TFLOP/s; 2 GB in 4 s at 1 GB/s, on this device alone.
    assert utilisation(times, peaks, num_devices=2) == {
        "update/mfu": 0.075,
        "rollout/bandwidth_share": 0.5,
    }
    assert utilisation(times, DevicePeaks()) == {}
