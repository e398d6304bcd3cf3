# SPDX-License-Identifier: Apache-2.0
"""Patches that let megatron-core (0.16 and 0.19) run where no CUDA is; never installed elsewhere.

Megatron names the device in literals (`device="cuda"`), asks `torch.cuda.current_device()` and
keeps its random state on the GPU. Three kinds of patches answer that: one device query, one
random-state tracker, and the literals of a short list of functions. Each patch asserts that it
changed something, so a new Megatron version fails loudly at start-up and not silently in training.

Nothing here changes what is computed: the parity tests of this package run through it. `install`
also asks the C library to keep freed memory, which a step asks for again at once.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import torch
from megatron.core import utils as megatron_utils
from megatron.core.optimizer import clip_grads, distrib_optimizer, optimizer
from megatron.core.pipeline_parallel import schedules
from megatron.core.tensor_parallel import random as megatron_random

_LITERALS = {
    "cuda": "cpu",
    "torch.cuda.FloatTensor": "torch.FloatTensor",
    "torch.cuda.HalfTensor": "torch.HalfTensor",
    "torch.cuda.BFloat16Tensor": "torch.BFloat16Tensor",
}

# (owner, function) pairs whose code constants name the GPU.
_FUNCTIONS_WITH_LITERALS: tuple[tuple[Any, str], ...] = (
    (optimizer.MixedPrecisionOptimizer, "__init__"),
    (optimizer.Float16OptimizerWithFloat16Params, "__init__"),
    (optimizer.FP32Optimizer, "__init__"),
    (distrib_optimizer.DistributedOptimizer, "__init__"),
    (distrib_optimizer.DistributedOptimizer, "_build_model_and_main_param_groups"),
    (clip_grads, "get_grad_norm_fp32"),
    (clip_grads, "clip_grad_by_total_norm_fp32"),
    (clip_grads, "count_zeros_fp32"),
    (megatron_utils, "local_multi_tensor_l2_norm"),
    (schedules, "forward_backward_no_pipelining"),
    (schedules, "forward_backward_pipelining_without_interleaving"),
    (schedules, "forward_backward_pipelining_with_interleaving"),
)

# Of glibc's mallopt. By default a step returns its activations to the system and gets them back
# page by page, cleared: 5 % of the step of a small model.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 512 * 2**20
_LARGEST_KEPT_BYTES = 32 * 2**20  # glibc takes no more

_installed = False


class CpuRngTracker(megatron_random.CudaRNGStatesTracker):
    """Megatron's named random states, kept in the CPU generator."""

    def add(self, name: str, seed: int) -> None:
        self._is_initialized = True
        assert seed not in self.seeds_ and name not in self.states_, (name, seed)
        self.seeds_.add(seed)
        outside = torch.get_rng_state()
        torch.manual_seed(seed)
        self.states_[name] = torch.get_rng_state()
        torch.set_rng_state(outside)

    @contextlib.contextmanager
    def fork(self, name: str = megatron_random._MODEL_PARALLEL_RNG_TRACKER_NAME) -> Iterator[None]:
        outside = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(outside)


def install() -> None:
    """Patch this process once. Asserts that CUDA is absent and that every patch took hold."""
    global _installed
    if _installed:
        return
    assert not torch.cuda.is_available(), "the CPU shim must not run where CUDA exists"
    _patch_device_queries()
    _patch_random_state()
    _keep_freed_memory()
    for owner, name in _FUNCTIONS_WITH_LITERALS:
        _rewrite_literals(owner, name)
    _installed = True


def _patch_device_queries() -> None:
    cpu = torch.device("cpu")
    torch.cuda.current_device = lambda: cpu  # type: ignore[assignment]
    torch.cuda.synchronize = lambda device=None: None
    # 0.19 has gradients wait for CUDA graphs, of which there are none.
    torch.cuda.current_stream = lambda device=None: None  # type: ignore[assignment]
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    assert torch.empty(0, device=torch.cuda.current_device()).cuda().device == cpu


def _keep_freed_memory() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)


def _patch_random_state() -> None:
    tracker = CpuRngTracker()
    megatron_random._CUDA_RNG_STATE_TRACKER = tracker
    megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True
    assert megatron_random.get_cuda_rng_tracker() is tracker
    # Activation recomputation saves the GPU state beside the CPU one: there is only one generator
    # here, and Megatron restores the CPU one itself.
    for name in ("_get_cuda_rng_state", "_set_cuda_rng_state"):
        assert hasattr(megatron_random, name), f"megatron {name} is gone: the CPU shim is stale"
    megatron_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda *args, **kwargs: None


def _rewrite_literals(owner: Any, name: str) -> None:
    function = owner.__dict__[name]
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    assert isinstance(function, FunctionType), (owner, name)
    code: CodeType = function.__code__
    constants = tuple(_on_cpu(constant) for constant in code.co_consts)
    assert constants != code.co_consts, f"{owner}.{name} names no GPU: the CPU shim is stale"
    function.__code__ = code.replace(co_consts=constants)


def _on_cpu(constant: Any) -> Any:
    if isinstance(constant, str):
        return _LITERALS.get(constant, constant)
    if isinstance(constant, tuple):
        return tuple(_on_cpu(item) for item in constant)
    return constant
