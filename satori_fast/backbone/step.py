# SPDX-License-Identifier: Apache-2.0
"""Forward and backward over packed batches: score, annotate, update.

Every pass goes through Megatron's schedule, so pipelines are one case among others. Losses are
sums; each is divided once, by the number of loss tokens of its minibatch over all microbatches and
ranks, so accumulation and parallelism cannot change a gradient. Which loss: see `algorithms`.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any, Protocol

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from satori_fast.backbone.architecture import Recompute
from satori_fast.backbone.context import plan_context
from satori_fast.backbone.model import Kind, PolicyModel, ScalarModel, Source, build_model
from satori_fast.backbone.optimizer import (
    NonFiniteUpdate,
    Optimizer,
    OptimizerSettings,
    wrap_for_training,
)
from satori_fast.backbone.parallel import parallel_state
from satori_fast.backbone.parking import Parking
from satori_fast.backbone.scoring import LateScores, LateScoring, logprob_head
from satori_fast.backbone.step_sums import MinibatchSums, reduced, summary
from satori_fast.backbone.weights import VOCABULARY, iter_hf
from satori_fast.types import Advantages, LossOutput, PackedBatch


class Loss(Protocol):
    """The two losses of `update`, each a sum; `algorithms.losses.PolicyLoss` has both.

    policy: (hidden, weight, batch, advantages, **shard), where shard are the keywords of
            `model.PolicyHead`. value: (values [T], batch, advantages).
    """

    @property
    def policy(self) -> Callable[..., LossOutput]: ...

    @property
    def value(self) -> Callable[..., LossOutput]: ...


def _set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass(frozen=True)
class Learner:
    """A model, and its optimizer where it is trained; without one it is frozen.

    modules: the model itself, its parts on this rank, of which an interleaved pipeline has several;
    models: the same, wrapped for training when there is an optimizer.
    is_copied: cleared while another thread copies what a checkpoint holds: whoever changes or parks
    the learner waits for it first.
    """

    modules: tuple[PolicyModel | ScalarModel, ...]
    hf_config: Any
    models: tuple[nn.Module, ...]
    optimizer: Optimizer | None = None
    parking: Parking | None = None
    is_copied: threading.Event = field(default_factory=_set)

    def rest(self) -> None:
        """Let the host hold what sampling does not need (`parallel.offload`): the state of what
        trains it, or a frozen model whole. Whoever needs it fetches it."""
        if self.parking is not None and parallel_state().options.offload:
            self.is_copied.wait()
            self.parking.park()

    @property
    def module(self) -> PolicyModel | ScalarModel:
        """The last part on this rank, which has the head where it is here."""
        return self.modules[-1]

    def hf_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, full tensor); see `weights.iter_hf`: every rank must iterate."""
        return iter_hf(self.modules[0], self.hf_config, *self.modules[1:])

    def served_config(self) -> Any:
        """The configuration of the model that an engine serves: `num_tokens` rows of vocabulary."""
        config = copy.deepcopy(self.hf_config)
        config.vocab_size = self.module.num_tokens
        return config

    def served_weights(self) -> Iterator[tuple[str, Tensor]]:
        """`hf_weights` of that model: an engine without padding rows cannot sample one."""
        for name, tensor in self.hf_weights():
            yield name, tensor[: self.module.num_tokens] if name in VOCABULARY else tensor


# A microbatch and what its loss needs beside it.
_Work = tuple[PackedBatch, Advantages | None]


def build_learner(
    hf_config: Any,
    *,
    kind: Kind = "policy",
    weights: Source | None = None,
    optimizer: OptimizerSettings | None = None,
    dtype: torch.dtype = torch.float32,
    recompute: Recompute = "none",
    seed: int = 0,
) -> Learner:
    """A model and, with `optimizer`, what trains it; without, it is frozen. See `build_model`.

    A critic starts from a policy with `kind="scalar", weights=dict(policy.hf_weights())`: the trunk
    is copied and the head starts at zero.
    """
    modules = tuple(
        build_model(
            hf_config,
            kind=kind,
            weights=weights,
            dtype=dtype,
            recompute=recompute,
            seed=seed,
            chunk=chunk,
        ).train(optimizer is not None)
        for chunk in range(parallel_state().options.chunks)
    )
    hf_config = modules[0].hf_config
    if optimizer is None:
        frozen = tuple(module.requires_grad_(False) for module in modules)
        whole = Parking(lambda: (held for module in frozen for held in module.parameters()))
        return Learner(frozen, hf_config, frozen, parking=whole)
    models = wrap_for_training(modules)
    trained = Optimizer(models, optimizer)
    return Learner(modules, hf_config, models, trained, trained.parking)


def score(learner: Learner, batches: Sequence[PackedBatch], *, temperature: float) -> list[Tensor]:
    """Log-probability [T] of each target with a loss of each batch, 0 of the others, prompts above
    all; nats, fp32, no gradient."""

    return _forward(learner, batches, partial(logprob_head, temperature=temperature))


def value(learner: Learner, batches: Sequence[PackedBatch]) -> list[Tensor]:
    """Values fp32 [T] of each batch from a scalar learner, no gradient."""

    return _forward(learner, batches, lambda batch: lambda values: values)


def annotate(
    batches: Sequence[PackedBatch],
    policy: Learner | None,
    reference: Learner | None = None,
    critic: Learner | None = None,
    *,
    temperature: float,
) -> list[PackedBatch]:
    """The batches with what the models that are given say of them: `old_logprobs`, `ref_logprobs`
    and `values`."""
    annotated = list(batches)
    if policy is not None:
        scores = score(policy, batches, temperature=temperature)
        annotated = [
            batch.annotated(old_logprobs=logprobs)
            for batch, logprobs in zip(annotated, scores, strict=True)
        ]
    if reference is not None:
        scores = score(reference, batches, temperature=temperature)
        annotated = [
            batch.annotated(ref_logprobs=logprobs)
            for batch, logprobs in zip(annotated, scores, strict=True)
        ]
    if critic is not None:
        annotated = [
            batch.annotated(values=values)
            for batch, values in zip(annotated, value(critic, batches), strict=True)
        ]
    return annotated


def with_start_hidden(batches: Sequence[PackedBatch], start: Learner) -> list[PackedBatch]:
    """The batches with `start_hidden` of the frozen model `start`, on the last pipeline stage: the
    loss is made there. On the others as they are."""

    def head(batch: PackedBatch) -> Callable[..., Tensor]:
        return lambda hidden, _weight, **_shard: hidden[batch.loss_mask]

    outputs = _last_stage_outputs(start, batches, head)
    if not outputs:
        return list(batches)
    return [
        batch.annotated(start_hidden=hidden) for batch, hidden in zip(batches, outputs, strict=True)
    ]


def update(
    policy: Learner | None,
    critic: Learner | None,
    batches: Sequence[PackedBatch],
    advantages: Sequence[Advantages],
    loss: Loss,
    *,
    policy_enabled: bool = True,
    late: LateScoring | None = None,
) -> dict[str, float]:
    """One optimizer step per minibatch for each learner given; what happened, under full names.

    batches: this rank's microbatches; equal `minibatch` numbers make one step, lowest first, and
    every data-parallel rank must hold the same number of microbatches in each.
    policy_enabled: False warms the critic up and leaves the policy alone. No batches, no step: the
    result is empty. late: scores those of the first minibatch that have no `old_logprobs`; there
    must be one pipeline stage.

    Result: "update/loss", "update/<name>" of the loss's sums per loss token (mean over minibatches)
    and maxes (maximum), "update/grad_norm" before clipping (mean over finite ones),
    "update/learning_rate" of the last step, "update/num_skipped" steps that a non-finite loss or
    gradient stopped; the same under "critic/" for the critic.

    NonFiniteUpdate, on every rank, when more steps in a row were stopped than the optimizer's
    `max_skipped_updates`.
    """
    metrics: dict[str, float] = {}
    work = list(zip(batches, advantages, strict=True))
    if critic is not None:
        metrics |= _train(critic, work, loss.value, "critic")
    if policy is not None and policy_enabled:
        metrics |= _train(policy, work, loss.policy, "update", late)
    return metrics


def update_one(
    learner: Learner,
    batches: Sequence[PackedBatch],
    loss: Callable[..., LossOutput],
    *,
    name: str = "update",
) -> dict[str, float]:
    """`update` for one learner whose loss needs no advantages: a policy that imitates, a reward
    model.

    loss: for a policy ``loss(hidden, weight, batch, **shard)``, as `algorithms.losses` has one; for
    a scalar model ``loss(values [T], batch)``.

    Result: as of `update`, under "<name>/".
    """
    work = [(batch, None) for batch in batches]
    return _train(learner, work, lambda *inputs, **shard: loss(*inputs[:-1], **shard), name)


def _train(
    learner: Learner,
    work: Sequence[_Work],
    terms: Callable[..., LossOutput],
    name: str,
    late: LateScoring | None = None,
) -> dict[str, float]:
    """One step for each minibatch of `work`; what happened, under "<name>/"."""
    if not work:
        return {}
    ordered = sorted(work, key=lambda pair: pair[0].minibatch)
    minibatches = [list(group) for _, group in groupby(ordered, key=lambda pair: pair[0].minibatch)]
    first, *others = minibatches
    scores = None if late is None else LateScores(late, [batch for batch, _ in work])
    results = [_minibatch_step(learner, first, terms, name, scores)]
    results += [_minibatch_step(learner, minibatch, terms, name) for minibatch in others]
    assert learner.optimizer is not None
    learner.optimizer.gather_parameters()
    metrics = {f"{name}/{key}": number for key, number in summary(results).items()}
    return metrics | {f"{name}/learning_rate": learner.optimizer.learning_rate}


def _minibatch_step(
    learner: Learner,
    minibatch: list[_Work],
    terms: Callable[..., LossOutput],
    name: str,
    scores: LateScores | None = None,
) -> MinibatchSums:
    optimizer = learner.optimizer
    if optimizer is None:
        raise ValueError("update() got a frozen learner: build it with optimizer settings")
    # One denominator for the whole step, over all microbatches and ranks: the caller counted it.
    num_tokens = max(1, minibatch[0][0].num_minibatch_tokens)
    optimizer.zero_grad()

    def forward_step(work: Iterator[_Work], model: nn.Module) -> Any:
        batch, advantages = next(work)
        output = model(batch, _loss_head(learner.module, terms, batch, advantages, scores))
        return _schedule_output(output, partial(_divided_loss, num_tokens=num_tokens))

    outputs = _run_schedule(learner, _in_turns(minibatch), forward_step, forward_only=False)
    state = parallel_state()
    # Of a policy's loss each rank of a context has a part, of a scalar model's all of it.
    has_all = isinstance(learner.module, ScalarModel)
    sums, maxes = reduced(outputs, num_tokens, state if has_all else state.copies())
    if scores is not None:
        scores.hand_over()
    learner.is_copied.wait()
    norm, stepped = optimizer.step(is_finite=math.isfinite(sums["loss"]))
    num_skipped = optimizer.num_skipped_in_a_row
    if num_skipped > optimizer.settings.max_skipped_updates:
        raise NonFiniteUpdate(
            name, num_skipped, loss=sums["loss"], grad_norm=norm, microbatches=minibatch
        )
    return MinibatchSums(sums, maxes, norm, stepped)


def _loss_head(
    module: nn.Module,
    terms: Callable[..., LossOutput],
    batch: PackedBatch,
    advantages: Advantages | None,
    scores: LateScores | None,
) -> Callable[..., LossOutput]:
    if isinstance(module, ScalarModel):
        return lambda values: terms(values, batch, advantages)

    def loss(hidden: Tensor, weight: Tensor, **shard: Any) -> LossOutput:
        scored = batch if scores is None else scores.complete(batch, hidden, weight, **shard)
        return terms(hidden, weight, _with_own_loss(scored), advantages, **shard)

    return loss


def _with_own_loss(batch: PackedBatch) -> PackedBatch:
    """The batch with a loss on this rank's tokens alone, where ranks of a context share them.

    Ratios and sums over units still see all tokens; the output projection runs on these.
    """
    context = plan_context(batch.cu_seqlens)
    if context is None:
        return batch
    weights = torch.zeros_like(batch.loss_weights)
    weights[context.own] = batch.loss_weights[context.own]
    return replace(batch, loss_weights=weights)


def _divided_loss(output: LossOutput, *, num_tokens: int) -> tuple[Tensor, Tensor, LossOutput]:
    # Megatron scales a returned loss in place under other settings: hand out a copy to log.
    logged = LossOutput(
        output.loss.detach().clone(),
        {name: number.detach() for name, number in output.sums.items()},
        {name: number.detach() for name, number in output.maxes.items()},
    )
    return output.loss / num_tokens, torch.zeros((), dtype=torch.int), logged


def _schedule_output(output: Any, to_loss: Callable[[Any], Any]) -> tuple[Tensor, Any]:
    """Output of a forward for Megatron: a tensor, and a function to loss, count and data.

    The last stage's result need not be a tensor, so the function closes over it.
    """
    if isinstance(output, Tensor):
        return output, to_loss
    return output.loss, lambda _: to_loss(output)


def _in_turns(work: list[_Work]) -> list[_Work]:
    """The microbatches of a step, and where parts of a model take turns so many without a loss that
    the stages share them evenly."""
    num_missing = _num_missing(len(work))
    if not num_missing:
        return work
    batch, advantages = min(work, key=lambda pair: pair[0].num_tokens)
    nothing = torch.zeros_like(batch.loss_mask)
    idle = replace(
        batch,
        loss_mask=nothing,
        loss_weights=torch.zeros_like(batch.loss_weights),
        segment_ids=torch.full_like(batch.segment_ids, -1),
        source=torch.full_like(batch.source, -1),
        start_hidden=None if batch.start_hidden is None else batch.start_hidden[:0],
    )
    return [*work, *[(idle, advantages)] * num_missing]


def _num_missing(count: int) -> int:
    """Microbatches by which `count` falls short of what an interleaved pipeline runs."""
    state = parallel_state()
    return -count % state.pipeline_size if state.options.chunks > 1 else 0


def _run_schedule(
    learner: Learner,
    work: Sequence[_Work],
    forward_step: Callable[..., Any],
    *,
    forward_only: bool,
) -> list[Any]:
    """Megatron's schedule over `work`; the data of each microbatch, on the last stage only."""
    if learner.optimizer is None and learner.parking is not None:
        learner.parking.fetch()
    # The bare modules: hooks of the training wrapper have nothing to do without gradients.
    models = learner.modules if forward_only else learner.models
    iterators = [iter(work) for _ in models]
    batches = [batch for batch, _ in work]
    if len(models) > 1:
        for module in learner.modules:
            module.send_padded(batches)
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterators if len(models) > 1 else iterators[0],
        model=list(models),
        num_microbatches=len(work),
        # Where parts take turns; else stages exchange the true shapes.
        seq_length=max(batch.num_rows for batch in batches),
        micro_batch_size=1,
        forward_only=forward_only,
    )


@torch.no_grad()
def _last_stage_outputs(
    learner: Learner,
    batches: Sequence[PackedBatch],
    head: Callable[[PackedBatch], Callable[..., Tensor]],
) -> list[Tensor]:
    """What the head of each batch gives on the last pipeline stage; on others an empty list."""
    if not batches:
        return []

    def forward_step(work: Iterator[_Work], model: nn.Module) -> Any:
        batch, _ = next(work)
        return model(batch, head(batch)), lambda out: (out, torch.zeros((), dtype=torch.int), out)

    work = [(batch, None) for batch in [*batches, *[batches[-1]] * _num_missing(len(batches))]]
    outputs = _run_schedule(learner, work, forward_step, forward_only=True)
    return outputs[: len(batches)]


def _forward(
    learner: Learner,
    batches: Sequence[PackedBatch],
    head: Callable[[PackedBatch], Callable[..., Tensor]],
) -> list[Tensor]:
    """Numbers fp32 [T] that the head of each batch gives, on every pipeline stage."""
    outputs = _last_stage_outputs(learner, batches, head)
    if not batches or parallel_state().pipeline_size == 1:
        return outputs
    group: Any = mpu.get_pipeline_model_parallel_group()
    last = mpu.get_pipeline_model_parallel_last_rank()
    if not outputs:
        outputs = [
            batch.tokens.new_empty(batch.num_tokens, dtype=torch.float32) for batch in batches
        ]
    for output in outputs:
        dist.broadcast(output, src=last, group=group)
    return outputs
