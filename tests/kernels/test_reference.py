# SPDX-License-Identifier: Apache-2.0
"""The definitions against independent truth: dense autograd in float64, loops written out."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from satori_fast.kernels import reference
from satori_fast.kernels.reference import POLICY_STATS, PolicyInputs, PolicyTerms
from tests.kernels.extremes import (
    OFFSETS,
    assert_broken_tokens_stay_alone,
    assert_error_of_stored_logits,
    assert_impossible_words_are_harmless,
)

# Operation, and whether it keeps a softmax.
HEADS = [("logprob", False), ("logprob", True), ("policy", False)]
LOAD = functools.partial(getattr, reference)
TERMS = PolicyTerms(0.2, 0.3, math.inf, 0.1, 0.02, 0.0, math.inf, "k3", "none")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_head(num_tokens, vocab, dtype=torch.double, hidden_size=8, real=None):
    generator = torch.Generator().manual_seed(num_tokens + vocab)
    hidden = torch.randn(num_tokens, hidden_size, generator=generator, dtype=torch.double)
    weight = torch.randn(vocab, hidden_size, generator=generator, dtype=torch.double)
    targets = torch.randint(real or vocab, (num_tokens,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), targets


def make_inputs(num_tokens, center=-2.0):
    generator = torch.Generator().manual_seed(num_tokens)
    old, ref, rollout = (
        center + 0.5 * torch.randn(num_tokens, generator=generator, dtype=torch.double)
        for _ in range(3)
    )
    advantages = torch.randn(num_tokens, generator=generator, dtype=torch.double)
    weights = torch.rand(num_tokens, generator=generator, dtype=torch.double)
    weights[::3] = 0
    return PolicyInputs(old, advantages, weights, rollout, ref)


def dense_logprob(hidden, weight, targets, temperature=1.0, real=None):
    """log-probability and entropy by torch's own softmax, with autograd."""
    logits = (hidden @ weight[:real].T) / temperature
    log_probabilities = logits.log_softmax(dim=1)
    logprob = log_probabilities.gather(1, targets[:, None]).squeeze(1)
    return logprob, -(log_probabilities.exp() * log_probabilities).sum(dim=1)


def dense_policy_loss(logprobs, entropies, inputs, terms):
    """The formula of `policy_loss`, written with torch functions that autograd follows."""
    old, advantages, weights, _, ref = inputs
    ratio = (logprobs - old).clamp(-20, 20).exp()
    clipped = ratio.clamp(1 - terms.clip_low, 1 + terms.clip_high)
    loss = -torch.min(ratio * advantages, clipped * advantages)
    difference = ref - logprobs
    bounded = difference.clamp(-20, 20)
    kl = {
        "k1": -difference,
        "k2": difference**2 / 2,
        "k3": bounded.exp() - 1 - bounded,
    }[terms.kl_estimator]
    loss = loss + terms.kl_coefficient * kl - terms.entropy_coefficient * entropies
    return (weights * loss).sum(), kl


def logprob_and_gradients(hidden, weight, targets, g, h, chunk_bytes=None, **how):
    how = {"temperature": 1.0, "vocab_size": None, "vocab_start": 0, "group": None} | how
    how |= {"chunk_bytes": chunk_bytes}
    logprob, entropy, partition = reference.linear_logprob(hidden, weight, targets, **how)
    gradients = reference.linear_logprob_backward(
        g, h, hidden, weight, targets, entropy, partition, need_hidden=True, need_weight=True,
        **how,
    )  # fmt: skip
    return logprob, entropy, *gradients


# 1: a single row or column; 127 and 333: no multiple of any block; phantom columns: a padded
# vocabulary, from one to most of the columns.
@pytest.mark.parametrize(
    ("num_tokens", "vocab", "real"),
    [(1, 1, None), (1, 333, 332), (127, 1, None), (127, 333, None), (127, 333, 100), (333, 127, 1)],
)
def test_linear_logprob_equals_the_dense_softmax(num_tokens, vocab, real):
    hidden, weight, targets = make_head(num_tokens, vocab, real=real)
    g, h = torch.randn(2, num_tokens, dtype=torch.double).unbind()
    temperature = 0.3 + torch.rand(num_tokens, dtype=torch.double)
    got = logprob_and_gradients(
        hidden, weight, targets, g, h, temperature=temperature, vocab_size=real, chunk_bytes=40_000
    )
    x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logprob, entropy = dense_logprob(x, w, targets, temperature[:, None], real)
    (logprob @ g + entropy @ h).backward()
    torch.testing.assert_close(got, (logprob, entropy, x.grad, w.grad))


@pytest.mark.parametrize("shift", [-100.0, 0.0, 100.0])
def test_a_shift_of_all_logits_changes_nothing(shift):
    """A phantom column would read as logit 0, an entropy from absolute logits would lose digits:
    both show only when the logits lie far from 0."""
    hidden, weight, targets = make_head(16, 50, torch.float32, real=40)
    # One more feature, equal to 1 everywhere, moves every logit by `shift`.
    shifted_hidden = torch.cat([hidden, torch.ones(16, 1)], dim=1)
    shifted_weight = torch.cat([weight, torch.full((50, 1), shift)], dim=1)
    g, h = torch.randn(2, 16).unbind()
    got = logprob_and_gradients(shifted_hidden, shifted_weight, targets, g, h, vocab_size=40)
    x, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logprob, entropy = dense_logprob(x, w, targets, real=40)
    (logprob @ g.double() + entropy @ h.double()).backward()
    # One rounding of a logit of 100 in float32 is 4e-6.
    for value, expected in zip(got[:2], (logprob, entropy), strict=True):
        torch.testing.assert_close(value.double(), expected, atol=4e-5, rtol=0)
    torch.testing.assert_close(got[2][:, :-1].double(), x.grad, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(got[3][:, :-1].double(), w.grad, atol=2e-4, rtol=1e-4)


def test_bfloat16_is_summed_in_float32():
    hidden, weight, targets = make_head(64, 200, torch.bfloat16, hidden_size=32)
    g, h = torch.randn(2, 64).unbind()
    logprob, entropy, grad_hidden, grad_weight = logprob_and_gradients(
        hidden, weight, targets, g, h, chunk_bytes=10_000
    )
    assert logprob.dtype == entropy.dtype == torch.float32
    assert grad_hidden.dtype == grad_weight.dtype == torch.bfloat16
    x, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    expected, expected_entropy = dense_logprob(x, w, targets)
    (expected @ g.double() + expected_entropy @ h.double()).backward()
    torch.testing.assert_close(logprob.double(), expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(entropy.double(), expected_entropy, atol=2e-5, rtol=0)
    for gradient, truth in ((grad_hidden, x.grad), (grad_weight, w.grad)):
        # Half a unit in the last place of bfloat16 is 2^-9 = 0.002.
        assert (gradient.double() - truth).norm() < 3e-3 * truth.norm()


def test_a_single_huge_logit_and_a_tiny_probability_stay_finite():
    hidden = torch.tensor([[1.0], [1.0]])
    weight = torch.tensor([[0.0], [20000.0], [-20000.0]])
    targets = torch.tensor([1, 0])
    logprob, entropy, *gradients = logprob_and_gradients(
        hidden, weight, targets, torch.ones(2), torch.ones(2)
    )
    assert logprob.tolist() == [0.0, -20000.0]
    assert entropy.tolist() == [0.0, 0.0]
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("missing", ["logprob", "entropy"])
def test_an_absent_gradient_is_a_zero_gradient(missing):
    hidden, weight, targets = make_head(9, 13)
    g = h = torch.randn(9, dtype=torch.double)
    zero = torch.zeros(9, dtype=torch.double)
    absent = (None, h) if missing == "logprob" else (g, None)
    zeros = (zero, h) if missing == "logprob" else (g, zero)
    got = logprob_and_gradients(hidden, weight, targets, *absent)
    torch.testing.assert_close(got, logprob_and_gradients(hidden, weight, targets, *zeros))


def linear_policy_loss(hidden, weight, targets, inputs, terms=TERMS, **how):
    how = {"temperature": 0.8, "vocab_size": None, "group": None} | how
    return reference.linear_policy_loss(
        hidden, weight, targets, inputs, terms, need_hidden=True, need_weight=True, **how
    )


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_linear_policy_loss_equals_dense_autograd(estimator):
    terms = TERMS._replace(kl_estimator=estimator)
    hidden, weight, targets = make_head(127, 33, real=30)
    inputs = make_inputs(127, center=-3.0)
    x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    expected, _ = dense_policy_loss(*dense_logprob(x, w, targets, 0.8, 30), inputs, terms)
    expected.backward()
    # Two chunk sizes: the whole, and three rows at a time.
    for chunk_bytes in (2**20, 3 * 33 * 8):
        loss, stats, *gradients = linear_policy_loss(
            hidden, weight, targets, inputs, terms, vocab_size=30, chunk_bytes=chunk_bytes
        )
        torch.testing.assert_close([loss, *gradients], [expected, x.grad, w.grad])
        named = dict(zip(POLICY_STATS, stats.tolist(), strict=True))
        assert named["num_tokens"] == int((inputs.loss_weights != 0).sum())
        assert named["clip_fraction_high"] > 0 and named["clip_fraction_low"] > 0


@pytest.mark.parametrize(("offset", "temperature"), OFFSETS)
@pytest.mark.parametrize(
    ("kind", "keeps"), [("logprob", False), ("logprob", True), ("policy", False)]
)
def test_an_offset_of_all_logits_costs_no_digits(offset, temperature, kind, keeps):
    assert_error_of_stored_logits(LOAD, offset, temperature, kind, keeps=keeps)


@pytest.mark.parametrize(
    ("kind", "keeps"), [("logprob", False), ("logprob", True), ("policy", False)]
)
def test_a_word_of_logit_minus_infinity(kind, keeps):
    assert_impossible_words_are_harmless(LOAD, kind, keeps=keeps)


@pytest.mark.parametrize("keeps", [False, True])
def test_tokens_that_are_not_numbers(keeps):
    assert_broken_tokens_stay_alone(LOAD, keeps=keeps)


def test_masked_tokens_may_hold_anything():
    hidden, weight, targets = make_head(12, 20)
    inputs = make_inputs(12)
    expected = linear_policy_loss(hidden, weight, targets, inputs)
    masked = inputs.loss_weights == 0
    hidden[masked], targets[masked] = math.nan, -100
    for tensor in (inputs.old_logprobs, inputs.advantages, inputs.ref_logprobs):
        tensor[masked] = math.inf
    got = linear_policy_loss(hidden, weight, targets, inputs)
    assert all(a.equal(b) for a, b in zip(got, expected, strict=True))
    assert got[2][masked].abs().max() == 0


@pytest.mark.parametrize("num_tokens", [0, 5])
def test_no_loss_token_gives_zeros(num_tokens):
    hidden, weight, targets = make_head(num_tokens, 20)
    inputs = make_inputs(num_tokens)
    inputs.loss_weights.zero_()
    outputs = linear_policy_loss(hidden, weight, targets, inputs)
    assert [tuple(o.shape) for o in outputs] == [
        (),
        (len(POLICY_STATS),),
        tuple(hidden.shape),
        (20, 8),
    ]
    assert all((output == 0).all() for output in outputs)


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operation makes."""

    num_elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, torch.Tensor):
            self.num_elements = max(self.num_elements, result.numel())
        return result


def test_no_tensor_of_tokens_times_vocabulary_exists():
    hidden, weight, targets = make_head(300, 500, torch.float32)
    g = torch.ones(300)
    with LargestTensor() as largest:
        logprob_and_gradients(hidden, weight, targets, g, g, chunk_bytes=10 * 500 * 4)
        linear_policy_loss(hidden, weight, targets, make_inputs(300), chunk_bytes=10 * 500 * 4)
    assert largest.num_elements == 10 * 500


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_policy_loss_equals_dense_autograd(estimator):
    terms = TERMS._replace(kl_estimator=estimator)
    inputs = make_inputs(200)
    logprobs = (-2 + 0.5 * torch.randn(200, dtype=torch.double)).requires_grad_()
    entropies = torch.rand(200, dtype=torch.double, requires_grad=True)
    expected, kl = dense_policy_loss(logprobs, entropies, inputs, terms)
    expected.backward()
    loss, stats, *gradients = reference.policy_loss(
        logprobs.detach(), entropies.detach(), inputs, terms
    )
    torch.testing.assert_close([loss, *gradients], [expected, logprobs.grad, entropies.grad])
    named = dict(zip(POLICY_STATS, stats.double(), strict=True))
    torch.testing.assert_close(named["kl"], inputs.loss_weights @ kl, rtol=1e-5, atol=0)


def test_policy_stats_by_hand():
    """Ratios 2, 1/2, 1, 2 with advantages 1, -1, -3, 5 and clip 0.25; the last token is masked."""
    log2 = math.log(2.0)
    logprobs = torch.tensor([-1 + log2, -1 - log2, -1, -1 + log2], dtype=torch.double)
    inputs = PolicyInputs(
        old_logprobs=torch.full((4,), -1.0).double(),
        advantages=torch.tensor([1.0, -1.0, -3.0, 5.0]).double(),
        loss_weights=torch.tensor([1.0, 2.0, 0.5, 0.0]).double(),
        rollout_logprobs=torch.tensor([-1.5, -1.0, -1.25, 7.0]).double(),
        ref_logprobs=None,
    )
    entropies = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    terms = PolicyTerms(0.25, 0.25, math.inf, 0.0, 0.1, 0.0, math.inf, "k3", "none")
    loss, stats, grad_logprobs, grad_entropies = reference.policy_loss(
        logprobs, entropies, inputs, terms
    )
    # Clipped above: -1.25. Clipped below: +0.75, twice. In between: +3, half.
    expected = {
        "policy_loss": -1.25 + 2 * 0.75 + 0.5 * 3,
        "kl": 0.0,
        "entropy": 1 + 2 * 2 + 0.5 * 3,
        "clip_fraction_low": 2.0,
        "clip_fraction_high": 1.0,
        "clip_fraction_dual": 0.0,
        "ratio_max": 2.0,
        "approx_kl": (1 - log2) + 2 * (-0.5 + log2),
        "rollout_abs_diff": 0.5 + 0.5 * 0.25,
        "rollout_abs_diff_max": 0.5,
        "rollout_kl": (math.exp(0.5) - 1.5) + 0.5 * (math.exp(0.25) - 1.25),
        "rollout_clip_fraction": 0.0,
        "num_tokens": 3.0,
        "num_clamped_ratios": 0.0,
    }
    assert dict(zip(POLICY_STATS, stats.tolist(), strict=True)) == pytest.approx(expected)
    assert loss.item() == pytest.approx(expected["policy_loss"] - 0.1 * expected["entropy"])
    assert grad_logprobs.tolist() == pytest.approx([0, 0, 0.5 * 3, 0])
    assert grad_entropies.tolist() == pytest.approx([-0.1, -0.2, -0.05, 0])


@pytest.mark.parametrize("importance", ["none", "truncate", "mask"])
def test_dual_clip_and_importance_by_hand(importance):
    """Ratio 4 everywhere, dual clip 3; the trainer gives 1/4, 1, 2 and 8 times the engine's
    probability, and the weights of [0.5, 2] are let through."""
    log2 = math.log(2.0)
    old = torch.full((4,), -3.0).double()
    inputs = PolicyInputs(
        old_logprobs=old,
        advantages=torch.tensor([-1.0, -1.0, 1.0, -1.0]).double(),
        loss_weights=torch.ones(4).double(),
        rollout_logprobs=old - log2 * torch.tensor([-2.0, 0.0, 1.0, 3.0]).double(),
        ref_logprobs=None,
    )
    logprobs = old + torch.tensor([2 * log2, 0.0, 0.0, 1.0]).double()
    terms = PolicyTerms(0.2, 0.2, 3.0, 0.0, 0.0, 0.5, 2.0, "k3", importance)
    loss, stats, grad, _ = reference.policy_loss(logprobs, torch.zeros_like(old), inputs, terms)
    # Losses before the weights: dual clip stops the first at 3; ratios 1, 1 and e follow.
    u = {"none": [1, 1, 1, 1], "truncate": [0.5, 1, 2, 2], "mask": [0, 1, 2, 0]}[importance]
    assert loss.item() == pytest.approx(u[0] * 3 + u[1] - u[2] + u[3] * math.e)
    assert grad.tolist() == pytest.approx([0, u[1], -u[2], u[3] * math.e])
    named = dict(zip(POLICY_STATS, stats.tolist(), strict=True))
    assert named["clip_fraction_dual"] == 1
    assert named["rollout_clip_fraction"] == (0 if importance == "none" else 2)


def scan_loop(values, decay, cu_seqlens, reverse):
    result = list(values)
    for start, stop in itertools.pairwise(cu_seqlens):
        steps = range(stop - 2, start - 1, -1) if reverse else range(start + 1, stop)
        for t in steps:
            result[t] = values[t] + decay * result[t + 1 if reverse else t - 1]
    return result


# Empty sequences at both ends and in the middle, a single token, no sequence at all.
@pytest.mark.parametrize("cu_seqlens", [[0, 0, 1, 8, 8, 11, 30, 30], [0, 30], [0]])
@pytest.mark.parametrize("reverse", [True, False])
def test_segment_scan_equals_the_loop(cu_seqlens, reverse):
    x = torch.randn(cu_seqlens[-1], dtype=torch.double)
    boundaries = torch.tensor(cu_seqlens, dtype=torch.int32)
    y = reference.segment_scan(x, 0.9, boundaries, reverse=reverse)
    assert y.tolist() == scan_loop(x.tolist(), 0.9, cu_seqlens, reverse)


@given(
    lengths=st.lists(st.integers(0, 50), max_size=60),
    room=st.integers(0, 30),
)
def test_pack_bins_properties(lengths, room):
    capacity = max(lengths, default=1) + room
    bins = reference.pack_bins(np.array(lengths, dtype=np.int64), capacity)
    num_bins = int(bins.max(initial=-1)) + 1
    loads = np.bincount(bins, weights=lengths, minlength=num_bins)
    assert (loads <= capacity).all()
    # Bins are numbered without a gap, and no two of them would fit in one: best fit opens a bin
    # only for a length that fits nowhere.
    assert set(bins.tolist()) == set(range(num_bins))
    lightest = np.sort(loads)[:2]
    assert num_bins < 2 or lightest.sum() > capacity or 0 in lengths


def test_pack_bins_by_hand():
    # Longest first: 6 opens bin 0 and 5 opens bin 1. 4 fills bin 0, the fuller of the two. One 3
    # joins the 5, the other fits nowhere and opens bin 2, and 2 fills bin 1.
    assert reference.pack_bins(np.array([3, 5, 2, 6, 3, 4]), 10).tolist() == [1, 1, 1, 0, 2, 0]


def test_sequence_similarity_of_empty_sequences():
    empty, token = np.array([], dtype=np.int64), np.array([1])
    a, b = [empty, token, empty], [empty, empty, token]
    ratios = reference.sequence_similarity(a, b, autojunk=False)
    assert ratios.tolist() == [1.0, 0.0, 0.0]
