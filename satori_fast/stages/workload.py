# SPDX-License-Identifier: Apache-2.0
"""What the stages ask of the devices: FLOPs and bytes of a step, counted for its spans.

The formulas are `profiling.flops`; which passes a stage makes, over which tokens, is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from satori_fast.backbone.architecture import head_dim
from satori_fast.backbone.step import Learner
from satori_fast.profiling.flops import ModelShape, forward_flops, training_flops
from satori_fast.stages.run import Run
from satori_fast.types import Trajectory


def shape_of(learner: Learner) -> ModelShape:
    """Of the whole model, however it is split."""
    hf_config = learner.hf_config
    return ModelShape(
        num_layers=hf_config.num_hidden_layers,
        hidden_size=hf_config.hidden_size,
        num_heads=hf_config.num_attention_heads,
        num_kv_heads=hf_config.num_key_value_heads,
        head_dim=head_dim(hf_config),
        intermediate_size=hf_config.intermediate_size,
        num_logits=hf_config.vocab_size if learner.module.kind == "policy" else 1,
    )


def count_scoring(
    run: Run, span: str, learners: Iterable[Learner], trajectories: Sequence[Trajectory]
) -> None:
    """A forward pass of each learner over whole trajectories, with all outputs."""
    lengths = [len(t.tokens) for t in trajectories]
    for learner in learners:
        run.spans.count_flops(span, forward_flops(shape_of(learner), lengths))


def count_training(
    run: Run, learners: Iterable[Learner], trajectories: Sequence[Trajectory]
) -> None:
    """Forward and backward of each learner, span "update"; a policy needs logits of responses
    only."""
    lengths = [len(t.tokens) for t in trajectories]
    num_response_tokens = sum(t.num_response_tokens for t in trajectories)
    for learner in learners:
        head = num_response_tokens if learner.module.kind == "policy" else None
        flops = training_flops(shape_of(learner), lengths, num_head_tokens=head)
        run.spans.count_flops("update", flops)


def count_decoding(run: Run, policy: Learner, num_passes: int) -> None:
    """Passes of an engine on this device, span "rollout": each reads the weights of its shard."""
    if num_passes:
        num_bytes = next(policy.module.parameters()).element_size()
        num_bytes *= shape_of(policy).num_weights_read / run.parallel.tensor_size
        run.spans.count_bytes("rollout", num_passes * num_bytes)
