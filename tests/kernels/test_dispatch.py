# SPDX-License-Identifier: Apache-2.0
"""Which implementation runs where, and that each is as good as its place demands: bfloat16 at sizes
that fill several tiles and chunks, on the host and, where there is one, on a GPU."""

import importlib.util
import math

import pytest
import torch

from satori_fast.kernels import (
    dispatch,
    implementation,
    linear_logprob,
    linear_policy_loss,
    policy_loss,
    reference,
    schemas,
    segment_scan,
)
from satori_fast.kernels.reference import PolicyInputs, PolicyTerms

NUM_TOKENS, HIDDEN, VOCAB, REAL = 300, 128, 4100, 4099
TERMS = PolicyTerms(0.2, 0.28, 3.0, 0.1, 0.02, 0.5, 2.0, "k3", "truncate")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]
on_every_device = pytest.mark.parametrize("device", DEVICES)


def test_implementation_of_a_device(monkeypatch):
    for operation in ("linear_logprob", "segment_scan"):
        assert implementation(operation, "cpu") in ("cpp", "reference")
    # Asking needs no such device.
    on_device = "triton" if importlib.util.find_spec("triton") else "reference"
    for operation in ("linear_logprob", "linear_policy_loss", "policy_loss", "segment_scan"):
        assert implementation(operation, torch.device("cuda", 1)) == on_device
    assert implementation("pack_bins", "cuda") == "reference"
    monkeypatch.setattr(dispatch.triton, "OPERATIONS", frozenset())
    assert implementation("segment_scan", "cuda") == "reference"


def make_problem(device):
    """hidden, weight in bfloat16, targets, and the inputs of the policy loss. Phantom columns and
    the hidden states of tokens without a weight are NaN."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    hidden = noise(NUM_TOKENS, HIDDEN).bfloat16()
    weight = (0.3 * noise(VOCAB, HIDDEN)).bfloat16()
    targets = torch.randint(REAL, (NUM_TOKENS,), generator=generator)
    logprobs, _ = dense(hidden.double(), weight.double(), targets)
    old = logprobs.float() + 0.3 * noise(NUM_TOKENS)
    weights = torch.rand(NUM_TOKENS, generator=generator)
    weights[::3] = 0
    rollout, ref = old + 0.3 * noise(NUM_TOKENS), old + 0.3 * noise(NUM_TOKENS)
    weight[REAL:] = math.nan
    inputs = PolicyInputs(old, noise(NUM_TOKENS), weights, rollout, ref)
    inputs = PolicyInputs(*(tensor.to(device) for tensor in inputs))
    return hidden.to(device), weight.to(device), targets.to(device), inputs


def dense(hidden, weight, targets):
    """log-probability and entropy by torch's own softmax, as a peer writes it."""
    log_probabilities = (hidden @ weight[:REAL].T).log_softmax(dim=1)
    logprob = log_probabilities.gather(1, targets[:, None]).squeeze(1)
    return logprob, -(log_probabilities.exp() * log_probabilities).sum(dim=1)


def with_gradients(function, hidden, weight, targets, dtype=None):
    """logprob, entropy and the gradients of a sum in which both have a part."""
    x = hidden.detach().to(dtype).requires_grad_()
    w = weight.detach().to(dtype).requires_grad_()
    logprob, entropy = function(x, w, targets)
    g = torch.linspace(-1, 1, len(x), device=x.device)
    gradients = torch.autograd.grad((g * logprob).sum() + (g * g * entropy).sum(), (x, w))
    return [t.detach().double() for t in (logprob, entropy, gradients[0], gradients[1][:REAL])]


@on_every_device
@pytest.mark.parametrize("mode", ["recompute", "stash"])
def test_head_is_no_worse_than_twice_the_eager_path(device, mode):
    problem = make_problem(device)[:3]

    def ours(x, w, y):
        return linear_logprob(x, w, y, vocab_size=REAL, mode=mode)

    truth = with_gradients(dense, *problem, torch.float64)
    got = with_gradients(ours, *problem, torch.bfloat16)
    eager = with_gradients(dense, *problem, torch.bfloat16)
    for value, peer, exact in zip(got, eager, truth, strict=True):
        assert (value - exact).norm() <= 2 * (peer - exact).norm()
    # Far better, in fact, where eager rounds the logits.
    for value, exact in zip(got[:2], truth[:2], strict=True):
        assert (value - exact).abs().max() < 1e-4
    for value, exact in zip(got[2:], truth[2:], strict=True):
        assert (value - exact).norm() < 6e-3 * exact.norm()
    again = with_gradients(ours, *problem, torch.bfloat16)
    assert all(a.equal(b) for a, b in zip(got, again, strict=True))


def fused(hidden, weight, targets, inputs):
    return linear_policy_loss(
        hidden, weight, targets, *inputs[:3], TERMS, rollout_logprobs=inputs.rollout_logprobs,
        ref_logprobs=inputs.ref_logprobs, vocab_size=REAL, temperature=0.9,
    )  # fmt: skip


@on_every_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_policy_loss_of_the_head_against_float64(device, dtype):
    hidden, weight, targets, inputs = make_problem(device)
    exact = reference.linear_policy_loss(
        hidden.double(), weight.double(), targets, PolicyInputs(*(t.double() for t in inputs)),
        TERMS, temperature=0.9, vocab_size=REAL, group=None, need_hidden=True, need_weight=True,
    )  # fmt: skip
    hidden[::3], targets[::3] = math.nan, -1
    outcomes = []
    for _ in range(2):
        x, w = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
        loss, stats = fused(x, w, targets, inputs)
        outcomes.append((loss.detach(), stats, *torch.autograd.grad(loss, (x, w))))
    got = outcomes[0]
    assert all(a.equal(b) for a, b in zip(*outcomes, strict=True))
    torch.testing.assert_close(got[0].double(), exact[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[1], exact[1], rtol=1e-4, atol=1e-4)
    for value, truth in zip(got[2:], exact[2:], strict=True):
        error = (value.double() - truth).norm() / truth.norm()
        assert error < (6e-3 if dtype == torch.bfloat16 else 1e-5)


@on_every_device
def test_losses_and_scans_against_float64(device):
    *_, inputs = make_problem(device)
    logprobs, entropies = inputs.old_logprobs + 0.1, inputs.loss_weights + 1
    optional = {"rollout_logprobs": inputs.rollout_logprobs, "ref_logprobs": inputs.ref_logprobs}
    loss, stats = policy_loss(logprobs, entropies, *inputs[:3], TERMS, **optional)
    double = PolicyInputs(*(t.double() for t in inputs))
    exact = reference.policy_loss(logprobs.double(), entropies.double(), double, TERMS)
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats, exact[1], rtol=1e-5, atol=1e-5)

    boundaries = torch.tensor([0, 0, 1, 130, NUM_TOKENS], dtype=torch.int32, device=device)
    scanned = segment_scan(logprobs, 0.97, boundaries)
    expected = reference.segment_scan(logprobs.double(), 0.97, boundaries, reverse=True)
    torch.testing.assert_close(scanned.double(), expected, rtol=1e-5, atol=1e-5)


@on_every_device
def test_float64_stays_float64(device):
    """No kernel of a GPU computes in it, so the reference does."""
    hidden, weight, targets, _ = make_problem(device)
    logprob, _ = linear_logprob(hidden.double(), weight.double(), targets, vocab_size=REAL)
    torch.testing.assert_close(logprob, dense(hidden.double(), weight.double(), targets)[0])
    x, boundaries = logprob.detach(), torch.tensor([0, NUM_TOKENS], device=device)
    expected = reference.segment_scan(x, 0.9, boundaries, reverse=True)
    torch.testing.assert_close(segment_scan(x, 0.9, boundaries), expected)


@on_every_device
@pytest.mark.parametrize("mode", ["recompute", "stash"])
def test_opcheck_and_torch_compile(device, mode):
    hidden, weight, targets, inputs = make_problem(device)
    x = hidden[:20].clone().requires_grad_()
    w = weight[:REAL].clone().requires_grad_()
    targets, inputs = targets[:20], inputs.take(slice(20))
    outcome = torch.library.opcheck(
        schemas.linear_logprob.operator, (x, w, targets, 1.0, None, None, 0, None, mode)
    )
    assert set(outcome.values()) == {"SUCCESS"}
    boundaries = torch.tensor([0, 7, 20], device=device)

    def everything(x, w):
        logprob, entropy = linear_logprob(x, w, targets, mode=mode)
        fused_loss, _ = fused(x, w, targets, inputs)
        two_steps, _ = policy_loss(logprob, entropy, *inputs[:3])
        return fused_loss + two_steps + segment_scan(logprob, 0.9, boundaries).sum()

    results = []
    for function in (everything, torch.compile(everything, fullgraph=True, backend="aot_eager")):
        loss = function(x, w)
        results.append((loss, *torch.autograd.grad(loss, (x, w))))
    torch.testing.assert_close(results[1], results[0], rtol=2e-2, atol=1e-3)
