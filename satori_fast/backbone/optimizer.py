# SPDX-License-Identifier: Apache-2.0
"""AdamW with warm-up, decay, clipping, and a refusal to step on non-finite numbers.

Megatron's optimizer and scheduler do the work. Three of its traps are closed here: matrices alone
are decayed only if its scheduler runs (it always does here, before each step); the gradient norm is
looked at before anything is changed; and Adam's state is complete before it is saved or loaded.

Data-parallel ranks share the moments and fp32 copies (Megatron's distributed optimizer). Its own
way to save and load them is not used: without Transformer Engine it leaves all parameters one
count of steps, which then counts each of them. `sharded_state.py` reads and writes them in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from satori_fast.backbone.parallel import parallel_state
from satori_fast.backbone.parking import Parking
from satori_fast.types import Advantages, PackedBatch


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its schedule. One step is one minibatch.

    The learning rate rises linearly over `warmup_steps` (the first step already moves), then stays
    ("constant") or falls until step `decay_steps` to `learning_rate * min_learning_rate_ratio`.
    weight_decay: decoupled; norms and biases (1-D parameters) are not decayed.
    clip_grad: largest global gradient norm; 0 turns clipping off.
    max_skipped_updates: steps in a row that non-finite numbers may cost (see `step.update`).
    """

    learning_rate: float
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    decay_steps: int = 0
    min_learning_rate_ratio: float = 0.0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip_grad: float = 1.0
    max_skipped_updates: int = 10

    def __post_init__(self) -> None:
        checks = {
            "learning_rate": self.learning_rate > 0,
            "schedule": self.schedule in ("constant", "linear", "cosine"),
            "warmup_steps": self.warmup_steps >= 0,
            "min_learning_rate_ratio": 0 <= self.min_learning_rate_ratio <= 1,
            "weight_decay": self.weight_decay >= 0,
            "beta1": 0 <= self.beta1 < 1,
            "beta2": 0 <= self.beta2 < 1,
            "epsilon": self.epsilon > 0,
            "clip_grad": self.clip_grad >= 0,
            "max_skipped_updates": self.max_skipped_updates >= 0,
        }
        for field, is_valid in checks.items():
            if not is_valid:
                raise ValueError(f"optimizer.{field} = {getattr(self, field)!r} is out of range")
        if self.schedule != "constant" and self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"optimizer.decay_steps = {self.decay_steps} must exceed warmup_steps = "
                f"{self.warmup_steps} for the {self.schedule} schedule"
            )


class NonFiniteUpdate(RuntimeError):
    """More updates in a row than `max_skipped_updates` had a loss or gradient that is not finite.

    learner:    "update" (the policy), or the name of another one as in the metrics.
    num_skipped: updates in a row. loss, grad_norm: of the last one.
    microbatches: what this rank computed it from, with the advantages where it has any.
    """

    def __init__(
        self,
        learner: str,
        num_skipped: int,
        *,
        loss: float,
        grad_norm: float,
        microbatches: Sequence[tuple[PackedBatch, Advantages | None]],
    ) -> None:
        super().__init__(
            f"{num_skipped} updates in a row of {learner!r} were not finite: loss {loss:g}, "
            f"gradient norm {grad_norm:g}"
        )
        self.learner, self.num_skipped = learner, num_skipped
        self.loss, self.grad_norm = loss, grad_norm
        self.microbatches = microbatches


class Optimizer:
    """AdamW over the parts of one model, wrapped in DistributedDataParallel.

    num_skipped_in_a_row: steps that were refused since the last one that was taken; the same on
    every rank.
    parking: of its state and the gradients, which are fetched by whoever asks for them.
    """

    def __init__(
        self, models: Sequence[DistributedDataParallel], settings: OptimizerSettings
    ) -> None:
        self.settings = settings
        self.num_skipped_in_a_row = 0
        self._models = models
        self._sharing: DistributedDataParallelConfig = models[0].ddp_config
        min_learning_rate = settings.learning_rate * settings.min_learning_rate_ratio
        config = OptimizerConfig(
            optimizer="adam",
            lr=settings.learning_rate,
            min_lr=min_learning_rate,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.epsilon,
            clip_grad=settings.clip_grad,
            bf16=models[0].config.bf16,
            use_distributed_optimizer=self.is_sharded,
            overlap_param_gather=self._sharing.overlap_param_gather,
        )
        self.megatron: Any = get_megatron_optimizer(config, list(models))
        # Of its parts, not of itself: memory must go with the last reference, not with a cycle.
        self.parking = Parking(
            partial(_state, self.megatron),
            dropped=partial(_gradients, models),
            staying=partial(_parameters, models),
        )
        self.scheduler = OptimizerParamScheduler(
            self.megatron,
            init_lr=0.0,
            max_lr=settings.learning_rate,
            min_lr=min_learning_rate,
            lr_warmup_steps=settings.warmup_steps,
            # The constant schedule never reads it, but Megatron checks it.
            lr_decay_steps=max(settings.decay_steps, settings.warmup_steps + 1),
            lr_decay_style=settings.schedule,
            start_wd=settings.weight_decay,
            end_wd=settings.weight_decay,
            wd_incr_steps=1,
            wd_incr_style="constant",
        )

    @property
    def learning_rate(self) -> float:
        """Learning rate of the latest step."""
        return self.megatron.param_groups[0]["lr"]

    @property
    def is_sharded(self) -> bool:
        """Whether data-parallel ranks each hold a part of the state."""
        return self._sharing.use_distributed_optimizer

    @property
    def num_steps(self) -> int:
        """Steps taken; skipped ones do not count."""
        return self.scheduler.num_steps

    def zero_grad(self) -> None:
        """Forget all gradients, before the first microbatch of a step."""
        self.parking.fetch()
        for model in self._models:
            model.zero_grad_buffer()
        self.megatron.zero_grad()

    @torch.no_grad()
    def step(self, *, is_finite: bool = True) -> tuple[float, bool]:
        """One update from the accumulated gradients -> (gradient norm before clipping, stepped?).

        Nothing moves, the schedule included, when `is_finite` is False or the norm is not finite.
        All ranks agree: the norm is global, and `is_finite` must be the same everywhere.
        """
        overflow = self.megatron.prepare_grads()
        norm = float(self.megatron.get_grad_norm())
        if overflow or not is_finite or not math.isfinite(norm):
            self.num_skipped_in_a_row += 1
            return norm, False
        self.num_skipped_in_a_row = 0
        if self.settings.clip_grad > 0:
            for part in self.megatron.chained_optimizers:
                clip_grad_by_total_norm_fp32(
                    part.get_parameters(),
                    max_norm=self.settings.clip_grad,
                    total_norm=norm,
                )
        # Before the update, so that the first step uses 1 / warmup_steps of the rate and not 0.
        self.scheduler.step(1)
        self.megatron.step_with_ready_grads()
        return norm, True

    def gather_parameters(self) -> None:
        """Have whole parameters on every rank, after the last step before anyone reads them: where
        gathering overlaps with the next forward pass, it has not begun."""
        if self._sharing.overlap_param_gather:
            for model in self._models:
                model.start_param_sync(force_sync=True)

    def adam_state(self) -> Iterator[tuple[nn.Parameter, range, dict[str, Tensor]]]:
        """(parameter, range, tensors): what this rank holds of a parameter's state.

        range: of the numbers of the parameter, counted row by row. tensors: flat or of the
        parameter's shape, "exp_avg" and "exp_avg_sq", and "param", the fp32 copy of a parameter in
        half precision. They may be written to.
        """
        self.parking.fetch()
        for part in self.megatron.chained_optimizers:
            _complete(part)
            for parameter, held, main in _held(part, self._models):
                tensors = {k: v for k, v in part.optimizer.state[main].items() if k != "step"}
                if main.dtype != parameter.dtype:
                    tensors["param"] = main.detach()
                yield parameter, held, tensors

    def take_steps(self, num_steps: int) -> None:
        """Have taken `num_steps` steps: Adam's corrections and the schedule go on from there. Rates
        and coefficients stay those of `settings`."""
        self.parking.fetch()
        for part in self.megatron.chained_optimizers:
            _complete(part)
            for state in part.optimizer.state.values():
                state["step"] = torch.tensor(float(num_steps))  # one each: Adam counts in place
        self.scheduler.num_steps = 0
        self.scheduler.step(num_steps)


def _state(megatron: Any) -> Iterator[Tensor]:
    """Moments and fp32 copies, as far as there are any."""
    for part in megatron.chained_optimizers:
        for group in part.optimizer.param_groups:
            yield from group["params"]
        for tensors in part.optimizer.state.values():
            yield from (tensor for name, tensor in tensors.items() if name != "step")


def _gradients(models: Iterable[nn.Module]) -> Iterator[Tensor]:
    for model in models:
        buffers: Any = model.buffers  # Megatron's list, not torch's method
        yield from (buffer.grad_data for buffer in buffers)


def _parameters(models: Iterable[nn.Module]) -> Iterator[Tensor]:
    for model in models:
        yield from model.parameters()


def _complete(part: Any) -> None:
    # Torch creates Adam's state in the first step, and Megatron's helper forgets the count.
    part.init_state_fn(part.optimizer, part.config)
    for state in part.optimizer.state.values():
        state.setdefault("step", torch.tensor(0.0))


def _held(
    part: Any, models: Sequence[DistributedDataParallel]
) -> Iterator[tuple[nn.Parameter, range, Tensor]]:
    """(parameter, range of it, what Adam steps) of one of Megatron's optimizers."""
    if not isinstance(part, DistributedOptimizer):
        for parameter in (each for model in models for each in model.params_with_grad):
            main = getattr(parameter, "main_param", parameter)
            yield parameter, range(parameter.numel()), main
        return
    for parameter, (group, order) in part.model_param_group_index_map.items():
        buffer, dtype, bucket = part.model_param_gbuf_map[parameter]
        held = part.gbuf_ranges[buffer][dtype][bucket]["param_map"][parameter]["param"]
        main = part.optimizer.param_groups[group]["params"][order]
        yield parameter, range(held.start, held.end), main


def wrap_for_training(modules: Sequence[MegatronModule]) -> tuple[DistributedDataParallel, ...]:
    """`modules`, the parts of a model on this rank, with fp32 gradient buffers that are summed over
    data-parallel ranks once per step."""
    state = parallel_state()
    options = state.options
    # One rank has nothing to share and nobody to talk to.
    has_peers = state.data_size * state.context_size > 1
    overlaps = options.overlap and has_peers
    shards = options.shard_optimizer and has_peers
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=overlaps,
        overlap_param_gather=overlaps and shards,
        use_distributed_optimizer=shards,
        bucket_size=options.bucket_size,
        check_for_nan_in_grad=False,  # Optimizer.step looks, and skips instead of dying
    )
    models = tuple(
        # Buckets are for what is waited for: of the parts on a rank, the first alone.
        DistributedDataParallel(module.config, config, module, disable_bucketing=number > 0)
        for number, module in enumerate(modules)
    )
    # The schedules read the configuration of the first part.
    schedule: Any = modules[0].config
    schedule.finalize_model_grads_func = _finalize
    if overlaps:  # all but the last microbatch of a step
        without = [model.no_sync for model in models]
        schedule.no_sync_func = without if len(without) > 1 else without[0]
    return models


def _finalize(model: list[nn.Module], num_tokens: Tensor | None = None, **options: Any) -> None:
    """Sum gradients over ranks and tied copies. The losses are divided already: `num_tokens` stays
    out of it."""
    finalize_model_grads(model, None, **options)
