# SPDX-License-Identifier: Apache-2.0
"""Results of every operation on the device against float64 truth, before anything is timed.

An error passes when it is no more than twice that of the eager path in the same type, plus the
rounding of one operation; the truth is made of the same numbers in float64, by autograd.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import baselines
from benchmarks.baselines import HeadBatch
from benchmarks.gpu import layers
from benchmarks.gpu.case import Case, Place, Sizes
from benchmarks.gpu.timing import Absent
from benchmarks.measure import ROOT, significant
from satori_fast import kernels
from satori_fast.kernels import reference

# An error this small, relative to the largest value, passes whatever eager's is.
SLACK = {torch.float32: 1e-5, torch.bfloat16: 4e-3}
# Values that are kept in float32 are held to it: logits are never rounded below that.
VALUE_LIMIT = 1e-4
TEST_SECONDS = 100.0

HEAD_RESULTS = ("logprob", "entropy", "grad_hidden", "grad_weight")
LOSS_RESULTS = ("loss", "stats", "grad_hidden", "grad_weight")


def cases(sizes: Sizes) -> list[Case]:
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        kind = str(dtype).removeprefix("torch.")
        for shift in (0.0, 100.0, -100.0):
            run = functools.partial(_check_head, sizes, dtype, shift)
            found.append(_case(f"linear_logprob_{kind}_shift_{shift:g}", run, sizes))
        run = functools.partial(_check_head_loss, sizes, dtype)
        found.append(_case(f"linear_policy_loss_{kind}", run, sizes))
    found.append(_case("linear_ragged", functools.partial(_check_ragged, sizes), sizes))
    for name, check in (("policy_loss", _check_policy_loss), ("segment_scan", _check_scan)):
        found.append(Case("correctness", name, functools.partial(check, sizes)))
    for name in layers.LAYERS:
        run = functools.partial(_check_layer, sizes, name)
        found.append(Case("correctness", name, run))
    if sizes.gpu_tests:
        found.append(Case("tests", "gpu_tests", _gpu_tests, limit_s=TEST_SECONDS + 10))
    return found


def _case(name: str, run: Callable[[Place], dict[str, Any]], sizes: Sizes) -> Case:
    shape = {"T": sizes.check_tokens, "H": sizes.check_hidden, "V": sizes.vocab[0]}
    # Truth and its autograd graph: about eight float64 tensors of the size of the logits.
    memory = 64.0 * sizes.check_tokens * sizes.vocab[0]
    return Case("correctness", name, run, shape, memory=memory)


def _check_head(sizes: Sizes, dtype: torch.dtype, shift: float, place: Place) -> dict[str, Any]:
    """linear_logprob with a temperature per token and phantom columns, all logits shifted."""
    batch, real = _phantom_batch(sizes, dtype, place)
    with torch.no_grad():
        # One channel adds the same number to every logit; the temperature then divides it.
        batch.hidden[:, 0] = 1.0
        batch.weight[:, 0] = shift
    temperature = torch.tensor([0.5, 1.0, 2.0], device=place.device)[batch.targets % 3]
    incoming = batch.advantages, batch.ref_logprobs * 0.1

    def eager(wide: HeadBatch) -> tuple[Tensor, Tensor]:
        hidden = wide.hidden / temperature[:, None].to(wide.hidden.dtype)
        return baselines.eager_logprob(wide._replace(hidden=hidden, weight=wide.weight[:real]))

    truth = _gradients(eager, baselines.upcast(batch), incoming)
    theirs = _gradients(eager, batch, incoming)
    verdicts: dict[str, Any] = {"passed": True}
    for mode in ("recompute", "stash"):

        def ours(x: HeadBatch, mode: str = mode) -> tuple[Tensor, Tensor]:
            options = {"temperature": temperature, "vocab_size": real, "mode": mode}
            return kernels.linear_logprob(x.hidden, x.weight, x.targets, **options)

        try:
            results = _gradients(ours, batch, incoming)
        except ValueError as error:
            verdicts[mode] = {"status": "absent", "reason": str(error)}
            continue
        # The log-partition is as large as the shift, and so is its rounding.
        slack = (1 + abs(shift)) * SLACK[torch.float32] + SLACK[dtype]
        verdict = _compare(HEAD_RESULTS, results, theirs, truth, slack)
        verdict["repeatable"] = _same_bits(results, _gradients(ours, batch, incoming))
        verdicts[mode] = verdict
        verdicts["passed"] &= verdict["passed"] and verdict["repeatable"]
    return verdicts


def _check_head_loss(sizes: Sizes, dtype: torch.dtype, place: Place) -> dict[str, Any]:
    """linear_policy_loss where every third token has weight 0 and a hidden state of NaN."""
    batch, real = _phantom_batch(sizes, dtype, place)
    weights = batch.loss_weights * torch.rand_like(batch.loss_weights)
    weights[::3] = 0.0
    batch = batch._replace(loss_weights=weights)
    poisoned = batch.hidden.detach().clone()
    poisoned[::3] = torch.nan
    poisoned.requires_grad_()

    def eager(wide: HeadBatch) -> tuple[Tensor, Tensor]:
        return baselines.eager_head_loss(wide._replace(weight=wide.weight[:real]))

    def ours(x: HeadBatch) -> tuple[Tensor, Tensor]:
        *head, rollout, ref = x[:-1]
        return kernels.linear_policy_loss(
            *head, baselines.TERMS, rollout_logprobs=rollout, ref_logprobs=ref, vocab_size=real
        )

    ours_on = batch._replace(hidden=poisoned)
    results = _loss_gradients(ours, ours_on)
    truth = _loss_gradients(eager, baselines.upcast(batch))
    theirs = _loss_gradients(eager, batch)
    verdict = _compare(LOSS_RESULTS, results, theirs, truth, SLACK[dtype])
    verdict["repeatable"] = _same_bits(results, _loss_gradients(ours, ours_on))
    masked = _loss_gradients(ours, ours_on._replace(loss_weights=torch.zeros_like(weights)))
    verdict["nothing_when_all_masked"] = all(
        not masked[index].count_nonzero().item() for index in (0, 2, 3)
    )
    for name in ("repeatable", "nothing_when_all_masked"):
        verdict["passed"] &= verdict[name]
    return verdict


def _check_ragged(sizes: Sizes, place: Place) -> dict[str, Any]:
    """Sizes of 1 and odd ones, and one column far above or below the others, in bfloat16."""
    verdicts: dict[str, Any] = {"passed": True}
    for num_tokens, hidden_size, vocab_size in ((1, 64, 1), (1, 64, 333), (127, 65, 127)):
        batch = baselines.random_head_batch(
            num_tokens, hidden_size, vocab_size, dtype=torch.bfloat16, device=place.device
        )
        with torch.no_grad():
            batch.weight[0] *= 50
        incoming = batch.advantages, batch.loss_weights
        truth = _gradients(baselines.eager_logprob, baselines.upcast(batch), incoming)
        theirs = _gradients(baselines.eager_logprob, batch, incoming)
        results = _gradients(baselines.our_logprob, batch, incoming)
        verdict = _compare(HEAD_RESULTS, results, theirs, truth, SLACK[torch.bfloat16])
        verdicts[f"{num_tokens}x{hidden_size}x{vocab_size}"] = verdict
        verdicts["passed"] &= verdict["passed"]
    return verdicts


def _check_policy_loss(sizes: Sizes, place: Place) -> dict[str, Any]:
    tensors = random_policy(sizes.policy_tokens[0], place)
    terms = baselines.TERMS._replace(clip_dual=3.0)

    def step(function: Callable[..., tuple[Tensor, Tensor]], x: list[Tensor]) -> list[Tensor]:
        loss, stats = function(*x[:5], terms, rollout_logprobs=x[5], ref_logprobs=x[6])
        return [loss.detach(), stats, *torch.autograd.grad(loss, x[:2])]

    wide = [x.detach().double().requires_grad_(x.requires_grad) for x in tensors]
    names = ("loss", "stats", "grad_logprobs", "grad_entropies")
    ours, eager = kernels.policy_loss, baselines.eager_policy_loss
    return _compare(
        names, step(ours, tensors), step(eager, tensors), step(eager, wide), SLACK[torch.float32]
    )


def _check_scan(sizes: Sizes, place: Place) -> dict[str, Any]:
    """Sequences of uneven lengths, empty ones among them, against the recursion in float64."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(0, 2 * sizes.scans[0][1], (2 * sizes.scans[0][0],), generator=generator)
    lengths[1] = 0
    bounds = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    x = torch.randn(int(bounds[-1]), generator=generator)
    truth = reference.segment_scan(x.double(), 0.95, bounds, reverse=True)
    theirs = reference.segment_scan(x, 0.95, bounds, reverse=True)
    results = kernels.segment_scan(x.to(place.device), 0.95, bounds.to(place.device)).cpu()
    return _compare(("y",), [results], [theirs], [truth], SLACK[torch.float32])


def _check_layer(sizes: Sizes, name: str, place: Place) -> dict[str, Any]:
    if not hasattr(kernels, name):
        raise Absent(f"satori_fast.kernels has no {name}")
    layer = layers.LAYERS[name]
    inputs = layer.inputs(sizes.layer, torch.bfloat16, place.device)
    wide = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]

    def step(function: Callable[..., Tensor], x: list[Tensor]) -> list[Tensor]:
        y = function(*x)
        leaves = [tensor for tensor in x if tensor.requires_grad]
        return [y.detach(), *torch.autograd.grad(y, leaves, layers.incoming(y))]

    results = step(layer.ours, inputs)
    names = ("y", *(f"grad_{index}" for index in range(len(results) - 1)))
    return _compare(
        names, results, step(layer.eager, inputs), step(layer.eager, wide), SLACK[torch.bfloat16]
    )


def _gpu_tests(place: Place) -> dict[str, Any]:
    """The tests marked `gpu`, where pytest is installed: counts by outcome."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "tests/kernels", "-m", "gpu", "-q"]
        command += ["-p", "no:cacheprovider", f"--junitxml={report}"]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=TEST_SECONDS, check=False
        )
        if not report.exists():
            raise Absent(f"pytest gave no report: {(done.stderr or done.stdout)[-400:]}")
        suite = next(ElementTree.parse(report).iter("testsuite"))
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    tail = done.stdout.splitlines()[-40:] if failed else []
    return {"passed": not failed, **counts, "output": tail}


def random_policy(num_tokens: int, place: Place) -> list[Tensor]:
    """logprobs, entropies (parameters), old, advantages, weights, rollout, ref; one in four has
    weight 0."""
    generator = torch.Generator(place.device).manual_seed(1)

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(num_tokens, generator=generator, device=place.device)

    old = -normal(1.5).abs()
    weights = torch.rand(num_tokens, generator=generator, device=place.device) / num_tokens
    weights[::4] = 0.0
    logprobs = (old + normal(0.15)).requires_grad_()
    entropies = normal(1.0).abs().requires_grad_()
    return [
        logprobs,
        entropies,
        old,
        normal(1.0),
        weights,
        old + normal(0.05),
        old + normal(0.3),
    ]


def _phantom_batch(sizes: Sizes, dtype: torch.dtype, place: Place) -> tuple[HeadBatch, int]:
    """Phantom columns whose logits would win the softmax if they entered it, and their start."""
    columns, real = sizes.vocab
    batch = baselines.random_head_batch(
        sizes.check_tokens, sizes.check_hidden, real, dtype=dtype, device=place.device
    )
    phantoms = 30 * batch.weight.detach()[: columns - real]
    weight = torch.cat([batch.weight.detach(), phantoms]).requires_grad_()
    return batch._replace(weight=weight), real


def _gradients(
    head: Callable[[HeadBatch], tuple[Tensor, Tensor]],
    batch: HeadBatch,
    incoming: tuple[Tensor, Tensor],
) -> list[Tensor]:
    outputs = head(batch)
    grads = [grad.to(output.dtype) for grad, output in zip(incoming, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, batch.parameters, grads)
    return [output.detach() for output in outputs] + list(gradients)


def _loss_gradients(
    head: Callable[[HeadBatch], tuple[Tensor, Tensor]], batch: HeadBatch
) -> list[Tensor]:
    loss, stats = head(batch)
    return [loss.detach(), stats, *torch.autograd.grad(loss, batch.parameters)]


def _compare(
    names: tuple[str, ...],
    ours: list[Tensor],
    eager: list[Tensor],
    truth: list[Tensor],
    slack: float,
) -> dict[str, Any]:
    """Relative errors of ours and of eager, and whether every one of ours passes."""
    errors = {}
    for name, a, b, t in zip(names, ours, eager, truth, strict=True):
        measure = _stats_error if name == "stats" else _error
        errors[name] = {"ours": measure(a, t), "eager": measure(b, t)}
    passed = True
    for (name, error), result in zip(errors.items(), ours, strict=True):
        limit = 2 * error["eager"] + slack
        if result.dtype == torch.float32 and not name.startswith("grad"):
            limit = min(limit, VALUE_LIMIT)
        # A NaN compares as false, so it never passes.
        passed &= error["ours"] <= limit
    return {"passed": passed, "errors": errors}


def _error(x: Tensor, truth: Tensor) -> float:
    """In the Frobenius norm."""
    scale = truth.double().norm().clamp(min=1e-30)
    return significant(float((x.double() - truth.double()).norm() / scale), 3)


def _stats_error(x: Tensor, truth: Tensor) -> float:
    """The worst entry's: the norm would see the number of tokens and nothing else. Entries near 0
    are held to an absolute error."""
    difference = (x.double() - truth.double()).abs()
    return significant(float((difference / (truth.double().abs() + 1e-2)).max()), 3)


def _same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
