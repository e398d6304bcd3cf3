# SPDX-License-Identifier: Apache-2.0
"""Kernels on CPU tensors: the fixture `interpreter` runs them in Triton's interpreter.

The environment variable TRITON_INTERPRET decides when a kernel is defined, so it would hold for
every test of the process, those on a GPU included. This decides when a kernel is launched. Mind
that the interpreter multiplies the bit patterns of bfloat16 in `tl.dot`, and says nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch

try:
    import triton
    from triton.runtime import interpreter as triton_interpreter
    from triton.runtime.jit import JITFunction
except ImportError:
    collect_ignore_glob = ["test_*.py"]


def run_kernel(kernel, *arguments, grid, warmup, **options):
    interpreted = triton_interpreter.InterpretedFunction(kernel.fn)
    return interpreted.run(*arguments, grid=grid, warmup=warmup, **options)


def call_function(function, *arguments, **keywords):
    # What InterpretedFunction.__call__ does, except that it never takes back its changes of
    # triton.language.
    scope = triton_interpreter._patch_lang(function.fn)
    try:
        rewritten = triton_interpreter.InterpretedFunction(function.fn).rewrite()
        return rewritten(*arguments, **keywords)
    finally:
        scope.restore()


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Kernels run in the interpreter, and memory that nobody has written holds NaN."""
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton.knobs.runtime, "interpret", True)
            patch.setattr(JITFunction, "run", run_kernel)
            patch.setattr(JITFunction, "__call__", call_function)
            yield
    finally:
        torch.use_deterministic_algorithms(was_deterministic)


@pytest.fixture
def interpreter() -> Iterator[None]:
    with interpreted():
        yield


@pytest.fixture
def resize(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Changes block sizes of configurations: small problems then cross many blocks."""

    def change(configurations: Iterable[Any], **sizes: int) -> None:
        for configuration in configurations:
            for name, size in sizes.items():
                assert name in configuration.constants
                monkeypatch.setitem(configuration.constants, name, size)

    return change
