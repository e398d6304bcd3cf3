# SPDX-License-Identifier: Apache-2.0
"""The policy loss kernel in the interpreter, against the reference in float64."""

import itertools
import math

import pytest
import torch

from satori_fast.kernels import reference
from satori_fast.kernels.reference import POLICY_STATS, PolicyInputs, PolicyTerms
from satori_fast.kernels.triton import policy_loss as file

TERMS = PolicyTerms(0.2, 0.3, 3.0, 0.1, 0.02, 0.5, 2.0, "k3", "truncate")


@pytest.fixture(autouse=True)
def small_blocks(interpreter, resize):
    """Several blocks, and several turns over the blocks, from few tokens."""
    resize([file.TOKENS], BLOCK=32)
    resize([file.TOTAL], BLOCKS_AT_ONCE=4)


def make_problem(num_tokens, *, absent=()):
    """logprobs, entropies and inputs in float32; every third token has weight 0 and is NaN."""
    generator = torch.Generator().manual_seed(num_tokens)

    def noise(scale):
        return scale * torch.randn(num_tokens, generator=generator)

    old = -2 + noise(0.5)
    logprobs, rollout, ref = old + noise(0.6), old + noise(0.5), old + noise(0.5)
    fields = [logprobs, noise(1.0).abs(), old, noise(2.0), rollout, ref]
    weights = torch.rand(num_tokens, generator=generator)
    weights[1::3] = 0
    for field in fields:
        field[1::3] = math.nan
    logprobs, entropies, old, advantages, rollout, ref = fields
    inputs = PolicyInputs(old, advantages, weights, rollout, ref)
    return logprobs, entropies, inputs._replace(**dict.fromkeys(absent))


def in_float64(logprobs, entropies, inputs, terms):
    inputs = PolicyInputs(*(None if t is None else t.double() for t in inputs))
    return reference.policy_loss(logprobs.double(), entropies.double(), inputs, terms)


def assert_equal(got, expected):
    for value, truth in zip(got, expected, strict=True):
        assert value.dtype == torch.float32 and value.shape == truth.shape
        torch.testing.assert_close(value.double(), truth.double(), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize(
    ("estimator", "importance"),
    list(itertools.product(["k1", "k2", "k3"], ["none", "truncate", "mask"])),
)
def test_every_choice_equals_the_reference_in_float64(estimator, importance):
    terms = TERMS._replace(kl_estimator=estimator, importance=importance)
    problem = make_problem(127)
    got = file.policy_loss(*problem, terms)
    assert_equal(got, in_float64(*problem, terms))
    named = dict(zip(POLICY_STATS, got[1].tolist(), strict=True))
    # Otherwise the comparison would say nothing of these branches.
    clips = ("clip_fraction_low", "clip_fraction_high", "clip_fraction_dual")
    assert all(named[clip] > 0 for clip in clips)
    assert (named["rollout_clip_fraction"] > 0) == (importance != "none")


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 32, 333])
@pytest.mark.parametrize("absent", [(), ("rollout_logprobs",), ("ref_logprobs",)])
def test_sizes_and_absent_inputs(num_tokens, absent):
    terms = TERMS
    if "rollout_logprobs" in absent:
        terms = terms._replace(importance="none")
    if "ref_logprobs" in absent:
        terms = terms._replace(kl_coefficient=0.0)
    problem = make_problem(num_tokens, absent=absent)
    got = file.policy_loss(*problem, terms)
    assert_equal(got, in_float64(*problem, terms))
    again = file.policy_loss(*problem, terms)
    assert all(a.equal(b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("clip_dual", [3.0, math.inf])
def test_log_ratios_are_clamped_and_keep_a_nan(estimator, clip_dual):
    logprobs, entropies, inputs = make_problem(70)
    # One log-ratio each, or two, of tokens that count; everything stays in one column of a block.
    for start, (tensor, drift) in enumerate(
        [(logprobs, 30), (logprobs, -math.inf), (inputs.old_logprobs, -60),
         (inputs.rollout_logprobs, 100), (inputs.ref_logprobs, 25), (inputs.ref_logprobs, -25)]
    ):  # fmt: skip
        tensor[3 * start] += drift
    # k1 and k2 of a log-probability of -inf are infinite: it is left out there.
    terms = TERMS._replace(
        kl_estimator=estimator, clip_dual=clip_dual, kl_coefficient=0.1 * (estimator == "k3")
    )
    got = file.policy_loss(logprobs, entropies, inputs, terms)
    expected = in_float64(logprobs, entropies, inputs, terms)
    assert_equal((got[0], *got[2:]), (expected[0], *expected[2:]))
    assert got[0].isfinite() and got[2].isfinite().all()
    named = dict(zip(POLICY_STATS, got[1].tolist(), strict=True))
    assert named["num_clamped_ratios"] == (6 if estimator == "k3" else 4)
    inputs.old_logprobs[30] = math.nan
    assert file.policy_loss(logprobs, entropies, inputs, terms)[2][30].isnan()


def test_no_limits_and_terms_that_are_off():
    terms = PolicyTerms(0.2, 0.2, math.inf, 0.0, 0.0, 0.0, math.inf, "k3", "mask")
    problem = make_problem(40)
    # The loss must not see a KL or an entropy that is infinite, as they are off.
    problem[1][0] = problem[2].ref_logprobs[0] = math.inf
    loss, _, *gradients = file.policy_loss(*problem, terms)
    expected = in_float64(*problem, terms)
    assert_equal((loss, *gradients), (expected[0], *expected[2:]))


def test_all_tokens_masked_and_poisoned_memory():
    logprobs, entropies, inputs = make_problem(50)
    inputs.loss_weights.zero_()
    outputs = file.policy_loss(logprobs, entropies, inputs, TERMS)
    assert all((output == 0).all() for output in outputs)


def test_small_differences_keep_their_digits():
    """k3 of 1e-3 is 5e-7: exp(d) - 1 - d in float32 has no digit of it."""
    logprobs = torch.tensor([-1.001, -1.0, -0.999])
    constant = torch.full((3,), -1.0)
    inputs = PolicyInputs(constant, torch.zeros(3), torch.ones(3), None, constant)
    terms = TERMS._replace(importance="none")
    got = file.policy_loss(logprobs, torch.zeros(3), inputs, terms)[1]
    truth = in_float64(logprobs, torch.zeros(3), inputs, terms)[1]
    for name in ("kl", "approx_kl"):
        index = POLICY_STATS.index(name)
        assert got[index].item() == pytest.approx(truth[index].item(), rel=1e-5)


def test_half_precision_and_strided_inputs():
    logprobs, entropies, inputs = make_problem(70)
    strided = torch.stack([logprobs, logprobs], dim=1)[:, 0]
    expected = file.policy_loss(logprobs.bfloat16().float(), entropies, inputs, TERMS)
    got = file.policy_loss(strided.bfloat16(), entropies, inputs, TERMS)
    assert all(a.equal(b) for a, b in zip(got, expected, strict=True))
