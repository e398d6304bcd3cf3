# SPDX-License-Identifier: Apache-2.0
"""Kernels on CPU tensors: the fixture `interpreter` runs them in Triton's interpreter.

The environment variable TRITON_INTERPRET decides when a kernel is defined, so it would hold for
every test of the process, those on a GPU included. This decides when a kernel is launched. Mind
that the interpreter multiplies the bit patterns of bfloat16 in `tl.dot`, and says nothing.
"""

from __future__ import annotations

import pytest

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


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    monkeypatch.setattr(JITFunction, "run", run_kernel)
    monkeypatch.setattr(JITFunction, "__call__", call_function)
