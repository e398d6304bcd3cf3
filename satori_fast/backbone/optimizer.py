# SPDX-License-Identifier: Apache-2.0
"""AdamW with warm-up, decay, clipping, and a refusal to step on non-finite numbers.

Megatron's optimizer and scheduler do the work. Three of its traps are closed here: matrices alone
are decayed only if its scheduler runs (it always does here, before each step); the gradient norm is
looked at before anything is changed; and Adam's state is complete before it is saved or loaded.

The plain (not distributed) optimizer: without Transformer Engine, Megatron 0.16.1's distributed one
restores its step counts wrongly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn


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


class Optimizer:
    """AdamW over one model wrapped in DistributedDataParallel.

    num_skipped_in_a_row: steps that were refused since the last one that was taken; the same on
    every rank.
    """

    def __init__(self, model: DistributedDataParallel, settings: OptimizerSettings) -> None:
        self.settings = settings
        self.num_skipped_in_a_row = 0
        self._model = model
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
            bf16=model.config.bf16,
        )
        self.megatron: Any = get_megatron_optimizer(config, [model])
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
    def num_steps(self) -> int:
        """Steps taken; skipped ones do not count."""
        return self.scheduler.num_steps

    def zero_grad(self) -> None:
        """Forget all gradients, before the first microbatch of a step."""
        self._model.zero_grad_buffer()
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

    def sharded_state(self, model_state: dict[str, Any], *, is_loading: bool) -> dict[str, Any]:
        """State for `dist_checkpointing`: moments, step counts and the schedule's position."""
        self._complete_adam_state()
        return {
            "adam": self.megatron.sharded_state_dict(model_state, is_loading=is_loading),
            "num_steps": self.num_steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a loaded `sharded_state`. Rates and coefficients stay those of `settings`."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.megatron.param_groups]
        adam = state["adam"]
        # Megatron leaves a count of 0 out of the checkpoint, and torch will not load without one.
        adam.get("optimizer", adam)["state"].setdefault("common_step", torch.tensor(0.0))
        self.megatron.load_state_dict(adam)
        for group, current in zip(self.megatron.param_groups, groups, strict=True):
            group.update(current)
        self.scheduler.num_steps = 0
        self.scheduler.step(state["num_steps"])

    def _complete_adam_state(self) -> None:
        # Torch creates Adam's state in the first step, and Megatron's helper forgets the count.
        for part in self.megatron.chained_optimizers:
            part.init_state_fn(part.optimizer, part.config)
            for parameter_state in part.optimizer.state.values():
                parameter_state.setdefault("step", torch.tensor(0.0))


def wrap_for_training(module: MegatronModule) -> DistributedDataParallel:
    """`module` with fp32 gradient buffers, summed over data-parallel ranks once per step."""
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=False,
        use_distributed_optimizer=False,
        check_for_nan_in_grad=False,  # Optimizer.step looks, and skips instead of dying
    )
    module.config.finalize_model_grads_func = _finalize
    return DistributedDataParallel(module.config, config, module)


def _finalize(model: list[nn.Module], num_tokens: Tensor | None = None, **options: Any) -> None:
    """Sum gradients over ranks and tied copies. The losses are divided already: `num_tokens` stays
    out of it."""
    finalize_model_grads(model, None, **options)
