# SPDX-License-Identifier: Apache-2.0
"""Three steps of reinforcement, one of imitation and one on preference pairs under a layout;
`test_layouts.py` runs them on one, two and four processes.

Run as a script it is one rank: rank, world size and a folder, whose `results_SIZE.pt` rank 0
writes. Not a test itself.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from satori_fast.algorithms.losses import imitation_loss, pairwise_loss
from satori_fast.algorithms.recipe import effective_recipe
from satori_fast.backbone.optimizer import OptimizerSettings
from satori_fast.backbone.parallel import (
    ParallelOptions,
    ParallelState,
    initialize_parallel,
    shutdown_parallel,
)
from satori_fast.backbone.step import Learner, build_learner, update_one
from satori_fast.data.packing import PackingSpec, pack, pack_pairs
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.stages.trainer import Packing, Trainer
from satori_fast.types import (
    Experience,
    PackedBatch,
    PreferencePair,
    Problem,
    RewardBreakdown,
    Segment,
    SegmentKind,
    Trajectory,
)
from tests.tiny_models import VOCAB_SIZE, tiny_model

RECIPES = ("grpo", "ppo")
# Adam divides by sqrt(v) + epsilon: a larger one keeps rounding in tiny gradients from showing.
_SETTINGS = OptimizerSettings(learning_rate=1e-3, weight_decay=0.1, epsilon=1e-5)


@dataclass(frozen=True)
class Case:
    """A layout: what is left of the world is data parallel. Rows of what sequences begin with alike
    are shared, and log-probs are those of the update's own pass, but for one process whose steps
    all others are to take."""

    world: int = 2
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    # So small that a model has several, and their sums overlap with the backward pass.
    options: ParallelOptions = ParallelOptions(bucket_size=10_000)  # noqa: RUF009
    shares: bool = True


ALONE = Case(world=1, shares=False)
CASES = {
    "one": Case(world=1),
    "tensor": Case(tensor=2, options=ParallelOptions(sequence=False)),
    "sequence": Case(tensor=2),
    "pipeline": Case(pipeline=2),
    "interleaved": Case(pipeline=2, options=ParallelOptions(chunks=2)),
    "data": Case(),
    "context": Case(context=2, shares=False),
    "tensor x data": Case(4, tensor=2),
    "tensor x context": Case(4, tensor=2, context=2, shares=False),
    "pipeline x data": Case(4, pipeline=2),
}


def session(case: Case, recipe: str) -> dict[str, Any]:
    """Metrics of each step, and the weights after the last one."""
    state = initialize_parallel(
        case.tensor, case.pipeline, context=case.context, options=case.options
    )
    packing = partial(_packing, state, shares=case.shares)
    trainer = _trainer(recipe, state, packing)
    stats: list[dict[str, float]] = []
    for step in range(3):
        late = case is not ALONE and trainer.scores_late(step)
        batches = trainer.annotate(trainer.pack(_experience(recipe, step), step), late=late)
        advantages, metrics = trainer.advantages(batches)
        scored: list[PackedBatch] = []
        done = scored.extend if late else None
        stats.append({**metrics, **trainer.update(batches, advantages, step, scored=done)})
        assert all(batch.old_logprobs is not None for batch in scored)
        assert len(scored) == len(batches) * late
    spec = packing(9)
    solutions = _trajectories(3)
    imitated = pack(solutions, None, spec, "token")
    stats.append(update_one(trainer.policy, imitated, imitation_loss))
    pairs = [PreferencePair(a, b) for a, b in zip(solutions[::2], solutions[1::2], strict=True)]
    model = trainer.critic or _learner(scalar=True)
    terms = partial(pairwise_loss, margin=2.0)
    stats.append(update_one(model, pack_pairs(pairs, spec), terms, name="preference"))
    learners = {"policy": trainer.policy, "scalar": model}
    weights = {
        f"{name}.{key}": tensor.clone()
        for name, learner in learners.items()
        for key, tensor in learner.hf_weights()
    }
    return {"stats": stats, "weights": weights}


def _trainer(name: str, state: ParallelState, packing: Packing) -> Trainer:
    recipe = effective_recipe(name, temperature=0.9)
    return Trainer(
        recipe,
        _learner(),
        _learner(scalar=True) if "critic" in recipe.needs else None,
        _learner(trained=False) if "reference" in recipe.needs else None,
        state,
        packing,
        SpanRecorder().span,
        build_word_tokenizer(["a"]),
    )


def _learner(*, scalar: bool = False, trained: bool = True) -> Learner:
    model = tiny_model("qwen2_tied")
    weights = dict(model.state_dict())
    if scalar:  # a head of zeros has no gradient to give to the trunk
        head = torch.linspace(-1.0, 1.0, model.config.hidden_size)
        weights["score.weight"] = head[None]
    return build_learner(
        model.config,
        kind="scalar" if scalar else "policy",
        weights=weights,
        optimizer=_SETTINGS if trained else None,
    )


def _packing(state: ParallelState, seed: int, *, shares: bool = False) -> PackingSpec:
    return PackingSpec(
        max_tokens_per_microbatch=56,
        num_minibatches=2,
        data_parallel_size=state.data_size,
        data_parallel_rank=state.data_rank,
        pad_to_multiple=state.token_multiple,
        seed=seed,
        share_prefixes=shares,
    )


def _experience(recipe: str, step: int) -> Experience:
    made = _trajectories(step)
    credits = effective_recipe(recipe, temperature=0.9).credit().assign(made)
    return Experience(tuple(made), tuple(credits))


def _trajectories(seed: int) -> list[Trajectory]:
    """Four problems, three responses to each of two segments; prompts of 3 tokens, of which all
    have the first and those of a problem all. Two responses to it begin alike."""
    rng = np.random.default_rng(seed)
    made: list[Trajectory] = []
    tokens = np.zeros(0, dtype=np.int32)
    for number in range(12):
        first, second = (int(length) for length in rng.integers(2, 12, 2))
        length = first + second
        alike = tokens[: (1, 3, 5)[number % 3]]
        rest = rng.integers(0, VOCAB_SIZE, 3 + length - len(alike), dtype=np.int32)
        tokens = np.concatenate([alike, rest])
        made.append(
            Trajectory(
                problem=Problem(f"p{number // 3}", "q", "a"),
                group_id=number // 3,
                tokens=tokens,
                prompt_len=3,
                logprobs=np.full(length, -4.0, dtype=np.float32),
                policy_version=0,
                finish="stop",
                segments=(
                    Segment(SegmentKind.SOLVE, 0, first, ""),
                    Segment(SegmentKind.SOLVE, first, length, ""),
                ),
                reward=RewardBreakdown({"rule": float(rng.normal())}),
            )
        )
    return made


def bytes_per_parameter() -> float:
    """Bytes that a rank holds for each parameter of a bfloat16 model in training, all ranks being
    data parallel: of every tensor that is alive, whoever made it."""
    initialize_parallel()
    model = tiny_model("qwen2_tied").config
    before = _bytes_alive()
    learner = build_learner(model, optimizer=_SETTINGS, dtype=torch.bfloat16)
    batches = pack(_trajectories(0), None, _packing(initialize_parallel(), 0), "token")
    update_one(learner, batches, imitation_loss)
    count = sum(parameter.numel() for parameter in learner.module.parameters())
    return (_bytes_alive() - before) / count


def _bytes_alive() -> int:
    gc.collect()
    # By their exact type: what torch.compile leaves behind in other tests has no memory.
    plain = (torch.Tensor, torch.nn.Parameter)
    tensors: list[torch.Tensor] = [found for found in gc.get_objects() if type(found) in plain]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store_{world_size}"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    results: dict[tuple[str, str], Any] = {}
    for name, case in CASES.items():
        for recipe in RECIPES if case.world == world_size else ():
            results[name, recipe] = session(case, recipe)
            shutdown_parallel()
    held = bytes_per_parameter()
    shutdown_parallel()
    if rank == 0:
        torch.save({"held": held, **results}, folder / f"results_{world_size}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
