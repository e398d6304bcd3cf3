# SPDX-License-Identifier: Apache-2.0
"""Output heads at the ends of float32, and what is right for them: logits that share an offset, as
an outlier channel of the hidden states gives it, words of logit -inf, tokens that are NaN.

Not tests: each implementation has its own (test_cpu_head, test_reference, triton/).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from satori_fast.kernels.head import stash_dtype, stash_width
from satori_fast.kernels.reference import PolicyInputs, PolicyTerms

# (offset of all logits, temperature)
OFFSETS = [
    (0.0, 1.0), (30.0, 1.0), (100.0, 1.0), (300.0, 1.0), (1000.0, 1.0), (10_000.0, 1.0),
    (10.0, 0.01),
]  # fmt: skip
KINDS = ["logprob", "policy"]
NUM_TOKENS, HIDDEN, VOCAB = 40, 32, 1500
TERMS = PolicyTerms(0.2, 0.2, math.inf, 0.0, 0.0, 0.0, math.inf, "k3", "none")

# An operation's plain function of a name, as in `kernels.reference`.
Load = Callable[[str], Callable[..., tuple[Tensor, ...]]]


class Problem(NamedTuple):
    """grad_logprob and grad_entropy arrive from above; old_logprobs lie near the policy's."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    temperature: float
    grad_logprob: Tensor
    grad_entropy: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    loss_weights: Tensor


def make_problem(offset: float, temperature: float) -> Problem:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    hidden, weight = noise(NUM_TOKENS, HIDDEN), noise(VOCAB, HIDDEN) / HIDDEN**0.5
    hidden[:, 0], weight[:, 0] = 1.0, offset
    targets = torch.randint(VOCAB, (NUM_TOKENS,), generator=generator)
    exact, _ = stored(hidden.double(), weight.double(), targets, temperature)
    old = exact.float() + 0.1 * noise(NUM_TOKENS)
    upstream = noise(NUM_TOKENS), 0.1 * noise(NUM_TOKENS)
    weights = torch.rand(NUM_TOKENS, generator=generator)
    return Problem(hidden, weight, targets, temperature, *upstream, old, noise(NUM_TOKENS), weights)


def stored(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """logprob and entropy, with the logits stored."""
    logprobs = (hidden @ weight.T / temperature).log_softmax(dim=1)
    picked = logprobs.gather(1, targets[:, None])[:, 0]
    return picked, -(logprobs.exp() * logprobs).sum(dim=1)


def _stored_policy_loss(hidden: Tensor, weight: Tensor, problem: Problem) -> Tensor:
    """The loss of TERMS."""
    old, advantages, weights = (t.to(hidden.dtype) for t in problem[6:])
    logprobs, _ = stored(hidden, weight, problem.targets, problem.temperature)
    ratio = (logprobs - old).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    return -(weights * surrogate).sum()


def assert_error_of_stored_logits(
    load: Load, offset: float, temperature: float, kind: str, *, keeps: bool = False
) -> None:
    """Nothing that `load` computes in float32 is further from the truth than twice what stored
    logits are. keeps: with a stash, where `kind` is "logprob"."""
    problem = make_problem(offset, temperature)
    results = _fused_results(load, problem, kind, keeps)
    eager = _stored_results(problem, problem.hidden, problem.weight, kind)
    truth = _stored_results(problem, problem.hidden.double(), problem.weight.double(), kind)
    for result, other, exact in zip(results, eager, truth, strict=True):
        error, allowed = ((x.double() - exact).norm() for x in (result, other))
        # The second term: where stored logits happen to be right to the last bit.
        assert error <= 2 * allowed + 2e-7 * exact.norm()


def assert_impossible_words_are_harmless(load: Load, kind: str, *, keeps: bool = False) -> None:
    """Words of logit -inf add nothing, not even a NaN. In float64 the same logits are finite."""
    problem = make_problem(0.0, 1.0)
    problem.hidden[:, 0] = 4.0
    # One word, and more in a row than a tile of any kernel holds.
    words = torch.tensor([3, *range(200, 500)])
    problem.weight[words, 0] = -3e38
    problem.targets[torch.isin(problem.targets, words)] = 7
    results = _fused_results(load, problem, kind, keeps)
    truth = _stored_results(problem, problem.hidden.double(), problem.weight.double(), kind)
    for result, exact in zip(results, truth, strict=True):
        assert result.isfinite().all()
        assert (result.double() - exact).norm() <= 1e-5 * exact.norm()

    # As a target such a word has log-probability -inf, and the clamp keeps the loss finite.
    problem.targets[5] = 3
    results = _fused_results(load, problem, kind, keeps)
    if kind == "policy":
        assert all(result.isfinite().all() for result in results)
    else:
        assert results[0][5] == -torch.inf and results[1].isfinite().all()


def assert_broken_tokens_stay_alone(load: Load, *, keeps: bool = False) -> None:
    """A token whose logits are NaN or infinite is NaN itself, and the others keep their bits."""
    problem = make_problem(0.0, 1.0)
    clean = _fused_results(load, problem, "logprob", keeps)
    problem.hidden[10], problem.hidden[20], problem.hidden[21, 2] = torch.nan, torch.inf, torch.nan
    broken = _fused_results(load, problem, "logprob", keeps)
    others = torch.ones(NUM_TOKENS, dtype=torch.bool)
    others[[10, 20, 21]] = False
    for result, expected in zip(broken[:3], clean[:3], strict=True):
        assert result[others].equal(expected[others])
        assert result[~others].isnan().reshape(3, -1).any(dim=1).all()


def _fused_results(load: Load, problem: Problem, kind: str, keeps: bool) -> tuple[Tensor, ...]:
    """(logprob, entropy) or (loss,), and both gradients."""
    hidden, weight, targets = problem[:3]
    how = {"temperature": problem.temperature, "vocab_size": None, "group": None}
    needs = {"need_hidden": True, "need_weight": True}
    if kind == "policy":
        inputs = PolicyInputs(*problem[6:], None, None)
        loss, _, *gradients = load("linear_policy_loss")(
            hidden, weight, targets, inputs, TERMS, **how, **needs
        )
        return loss, *gradients
    how["vocab_start"] = 0
    stash = {}
    if keeps:
        shape = (NUM_TOKENS, stash_width(VOCAB))
        stash["stash"] = torch.empty(shape, dtype=stash_dtype(hidden.dtype))
    logprob, entropy, partition = load("linear_logprob")(hidden, weight, targets, **how, **stash)
    if keeps:
        stash["logprob"] = logprob
    gradients = load("linear_logprob_backward")(
        problem.grad_logprob, problem.grad_entropy, hidden, weight, targets, entropy, partition,
        **how, **stash, **needs,
    )  # fmt: skip
    return logprob, entropy, *gradients


def _stored_results(
    problem: Problem, hidden: Tensor, weight: Tensor, kind: str
) -> tuple[Tensor, ...]:
    hidden, weight = (t.detach().requires_grad_() for t in (hidden, weight))
    if kind == "policy":
        outputs = (_stored_policy_loss(hidden, weight, problem),)
        total = outputs[0]
    else:
        outputs = stored(hidden, weight, problem.targets, problem.temperature)
        g, h = problem.grad_logprob.to(hidden.dtype), problem.grad_entropy.to(hidden.dtype)
        total = outputs[0] @ g + outputs[1] @ h
    gradients = torch.autograd.grad(total, (hidden, weight))
    return *(output.detach() for output in outputs), *gradients
