# SPDX-License-Identifier: Apache-2.0
"""One training session under given parallel sizes; `test_ranks.py` runs it on one and two ranks.

Run as a script it is one rank: RANK and WORLD_SIZE from the arguments, results of every case of
`CASES` to a file from rank 0. Not a test itself.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from satori_fast.algorithms.losses import pairwise_loss
from satori_fast.backbone.architecture import Recompute
from satori_fast.backbone.checkpoint import load_checkpoint, save_checkpoint
from satori_fast.backbone.optimizer import OptimizerSettings
from satori_fast.backbone.parallel import (
    ParallelOptions,
    ParallelState,
    initialize_parallel,
    shutdown_parallel,
)
from satori_fast.backbone.step import Learner, annotate, build_learner, update, update_one
from satori_fast.data.packing import PackingSpec, pack_pairs
from satori_fast.stages.scoring import score_trajectories
from satori_fast.types import (
    PackedBatch,
    PreferencePair,
    Problem,
    Segment,
    SegmentKind,
    Trajectory,
)
from tests.tiny_models import VOCAB_SIZE, ImitationLoss, ones, random_batch, tiny_model

# Lengths of the microbatches of one optimizer step: all different, and all in total a multiple of
# what two ranks share.
_LENGTHS = ([12, 7, 5], [32, 4], [3, 3, 20, 6], [16])
_SETTINGS = OptimizerSettings(learning_rate=1e-3, weight_decay=0.1, epsilon=1e-6)
# So small that a model has several, and their sums overlap with the backward pass.
_SMALL_BUCKETS = ParallelOptions(bucket_size=10_000)


@dataclass(frozen=True)
class Case:
    """Sizes of model parallelism (the rest of the world is data parallel) and what to train."""

    model: str
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    recompute: Recompute = "none"
    options: ParallelOptions = _SMALL_BUCKETS


# In the order of the checkpoints: each goes on from that of the case before it.
CASES = {
    "tensor": Case("qwen2_tied", tensor=2, options=ParallelOptions(sequence=False)),
    "data": Case("qwen2_tied"),
    "sequence": Case("qwen2_tied", tensor=2, recompute="selective"),
    "data_whole": Case("qwen2_tied", options=ParallelOptions(shard_optimizer=False)),
    "pipeline": Case("qwen2_tied", pipeline=2),
    "context": Case("qwen2_tied", context=2),
    "interleaved": Case("qwen2_tied", pipeline=2, options=ParallelOptions(chunks=2)),
    "interleaved_untied": Case(
        "qwen3", pipeline=2, recompute="full", options=ParallelOptions(chunks=2)
    ),
    "tensor_untied": Case("qwen3", tensor=2, recompute="full"),
    "data_untied": Case("qwen3", options=ParallelOptions(overlap=False)),
    "context_untied": Case("qwen3", context=2, recompute="full"),
    "pipeline_untied": Case("qwen3", pipeline=2, recompute="selective"),
}


def session(case: Case, folder: Path) -> dict[str, Any]:
    """Two steps of a policy and a critic, with a checkpoint between them, then one of the critic on
    preference pairs, and its scores; what came of it.

    The checkpoint at `folder` is loaded when present, and then written again: each session goes on
    from what the one before it wrote with other sizes.
    """
    state = initialize_parallel(
        case.tensor, case.pipeline, context=case.context, options=case.options
    )
    reference = tiny_model(case.model)
    options = {
        "optimizer": _SETTINGS,
        "recompute": case.recompute,
    }
    policy = build_learner(reference.config, weights=reference.state_dict(), **options)
    trunk = dict(policy.hf_weights())
    critic = build_learner(reference.config, kind="scalar", weights=trunk, **options)
    learners = {"policy": policy, "critic": critic}
    stats = [_train(learners, state, seed=0)]
    if (folder / "extra.json").exists():
        _train(learners, state, seed=2)  # what loading must undo
        load_checkpoint(folder, learners)
    save_checkpoint(folder, learners, {})
    stats.append(_train(learners, state, seed=1))
    (batch,) = annotate([_minibatch(9)[0]], policy, policy, critic, temperature=0.9)
    stats.append(_train_on_pairs(critic, state))
    solutions = _solutions()
    scores = score_trajectories(critic, solutions, packing=_spec(state), parallel=state)
    return {
        "stats": stats,
        "weights": {
            f"{name}.{key}": tensor.clone()
            for name, learner in learners.items()
            for key, tensor in learner.hf_weights()
        },
        "logprobs": batch.require("old_logprobs"),
        "values": batch.require("values"),
        "scores": torch.as_tensor(scores),
    }


def _train(learners: dict[str, Learner], state: ParallelState, seed: int) -> dict[str, float]:
    mine = _minibatch(seed)[state.data_rank :: state.data_size]
    return update(learners["policy"], learners["critic"], mine, ones(mine), ImitationLoss())


def _train_on_pairs(model: Learner, state: ParallelState) -> dict[str, float]:
    """A step on preference pairs, which ranks share by `pack_pairs`."""
    solutions = _solutions()
    pairs = [PreferencePair(a, b) for a, b in zip(solutions[::2], solutions[1::2], strict=True)]
    terms = partial(pairwise_loss, margin=2.0)
    return update_one(model, pack_pairs(pairs, _spec(state)), terms, name="preference")


def _spec(state: ParallelState) -> PackingSpec:
    return PackingSpec(
        max_tokens_per_microbatch=28,
        num_minibatches=1,
        data_parallel_size=state.data_size,
        data_parallel_rank=state.data_rank,
        pad_to_multiple=state.token_multiple,
    )


def _solutions() -> list[Trajectory]:
    rng = np.random.default_rng(0)
    return [
        Trajectory(
            problem=Problem("p", "q", "a"),
            group_id=0,
            tokens=rng.integers(0, VOCAB_SIZE, length, dtype=np.int32),
            prompt_len=1,
            logprobs=np.zeros(length - 1, dtype=np.float32),
            policy_version=0,
            finish="stop",
            segments=(Segment(SegmentKind.WHOLE, 0, length - 1, ""),),
        )
        for length in (9, 4, 12, 12, 3, 5, 7, 20, 6, 6)
    ]


def _minibatch(seed: int) -> list[PackedBatch]:
    batches = [random_batch(lengths, seed * 10 + k) for k, lengths in enumerate(_LENGTHS)]
    num_tokens = sum(int(batch.loss_mask.sum()) for batch in batches)
    return [replace(batch, num_minibatch_tokens=num_tokens) for batch in batches]


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    results = {}
    for name, case in CASES.items():
        results[name] = session(case, folder / case.model)
        shutdown_parallel()
    if rank == 0:
        torch.save(results, folder / "results.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
