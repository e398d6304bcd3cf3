# SPDX-License-Identifier: Apache-2.0
"""The public operations: gradients, torch.library, torch.compile, tensor-parallel groups, errors.
What they compute is tested in test_reference.py."""

import datetime
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from satori_fast.kernels import (
    MAX_LOG_RATIO,
    POLICY_STATS,
    PolicyTerms,
    cpu_head,
    gae,
    implementation,
    linear_logits,
    linear_logprob,
    linear_policy_loss,
    pack_bins,
    policy_loss,
    reference,
    sample_tokens,
    schemas,
    segment_scan,
    sequence_similarity,
)

NUM_TOKENS, HIDDEN, VOCAB, REAL = 7, 5, 13, 11
POLICY = PolicyTerms(
    clip_high=0.28,
    clip_dual=3.0,
    kl_coefficient=0.1,
    entropy_coefficient=0.02,
    importance="truncate",
    importance_low=0.5,
    importance_high=2.0,
)

PLAIN = PolicyTerms()


@pytest.fixture
def head():
    """hidden, weight (two phantom columns), targets."""
    torch.manual_seed(0)
    hidden = torch.randn(NUM_TOKENS, HIDDEN, dtype=torch.double, requires_grad=True)
    weight = torch.randn(VOCAB, HIDDEN, dtype=torch.double, requires_grad=True)
    return hidden, weight, torch.randint(REAL, (NUM_TOKENS,))


@pytest.fixture
def policy():
    """old_logprobs, advantages, loss_weights (one 0), rollout_logprobs, ref_logprobs."""
    torch.manual_seed(1)
    old, advantages, rollout, ref = torch.randn(4, NUM_TOKENS).sub(2).unbind()
    weights = torch.rand(NUM_TOKENS)
    weights[2] = 0
    return old, advantages + 2, weights, rollout, ref


def policy_terms():
    return POLICY.flat()


@pytest.mark.parametrize("temperature", [1.3, torch.linspace(0.5, 2, NUM_TOKENS)])
def test_linear_logprob_passes_gradcheck(head, temperature):
    hidden, weight, targets = head

    def both(x, w):
        return linear_logprob(x, w, targets, temperature=temperature, vocab_size=REAL)

    assert torch.autograd.gradcheck(both, (hidden, weight))


def test_a_kept_softmax_gives_the_same_gradients(head):
    """By the operation itself: the public function stashes on a GPU only."""
    hidden, weight, targets = head
    temperatures = torch.linspace(0.5, 2, NUM_TOKENS)

    def both(x, w, mode="stash"):
        layout = (1.0, temperatures, REAL, 0, None)
        return schemas.linear_logprob(x, w, targets, *layout, mode)

    *_, stash = both(hidden, weight)
    assert stash.shape == (NUM_TOKENS, 16) and both(hidden, weight, "recompute")[-1].numel() == 0
    assert torch.autograd.gradcheck(lambda x, w: both(x, w)[:2], (hidden, weight))
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    results = []
    for function in (both, compiled):
        logprob, entropy, *_ = function(hidden, weight)
        results.append(torch.autograd.grad((logprob * entropy).sum(), (hidden, weight)))
    torch.testing.assert_close(results[1], results[0])


def test_temperature_as_a_number_or_a_tensor(head):
    expected = linear_logprob(*head, temperature=2.0)
    for temperature in (2, torch.tensor(2.0), torch.full((NUM_TOKENS,), 2.0)):
        torch.testing.assert_close(linear_logprob(*head, temperature=temperature), expected)


def test_one_output_or_one_input_may_need_no_gradient(head):
    hidden, weight, targets = head
    for index in (0, 1):
        full = torch.autograd.grad(
            linear_logprob(hidden, weight, targets)[index].sum(), (hidden, weight)
        )
        (alone,) = torch.autograd.grad(
            linear_logprob(hidden, weight.detach(), targets)[index].sum(), hidden
        )
        torch.testing.assert_close(alone, full[0])
        (alone,) = torch.autograd.grad(
            linear_logprob(hidden.detach(), weight, targets)[index].sum(), weight
        )
        torch.testing.assert_close(alone, full[1])


def test_linear_policy_loss_passes_gradcheck(head, policy):
    hidden, weight, targets = head
    old, advantages, weights, rollout, ref = policy

    def loss(x, w):
        return linear_policy_loss(
            x, w, targets, old, advantages, weights, POLICY, rollout_logprobs=rollout,
            ref_logprobs=ref, temperature=1.2, vocab_size=REAL,
        )[0]  # fmt: skip

    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_linear_policy_loss_equals_policy_loss_of_linear_logprob(head, policy):
    hidden, weight, targets = head
    old, advantages, weights, rollout, ref = policy
    keywords = {"rollout_logprobs": rollout, "ref_logprobs": ref}
    loss, stats = linear_policy_loss(
        hidden, weight, targets, old, advantages, weights, POLICY, vocab_size=REAL, **keywords
    )
    logprob, entropy = linear_logprob(hidden, weight, targets, vocab_size=REAL)
    two_steps, two_step_stats = policy_loss(
        logprob, entropy, old, advantages, weights, POLICY, **keywords
    )
    torch.testing.assert_close(loss, two_steps)
    torch.testing.assert_close(stats, two_step_stats)
    assert stats.dtype == torch.float32 and stats.shape == (len(POLICY_STATS),)
    # A scale that arrives from above, as the division by the token count does.
    torch.testing.assert_close(
        torch.autograd.grad(loss / 3, (hidden, weight)),
        torch.autograd.grad(two_steps / 3, (hidden, weight)),
    )


# How far the first of 64 tokens has moved up since the rollout, in nats.
DRIFTS = (5.0, 19.99, 60.0, 100.0, math.inf)


def drifted(kind, drift, advantage, **terms):
    """loss, stats and the gradient [64] in the log-probabilities (kind "policy_loss") or [64, H] in
    the hidden states, with all log-probabilities at -3 and old ones that lie `drift` lower."""
    old = torch.full((64,), -3.0)
    old[0] -= drift
    advantages, weights = torch.full((64,), advantage), torch.ones(64)
    terms = PolicyTerms(**terms)
    if kind == "policy_loss":
        x = torch.full((64,), -3.0, requires_grad=True)
        loss, stats = policy_loss(x, torch.ones(64), old, advantages, weights, terms)
    else:
        # Word 0 has probability exp(-3) everywhere.
        x = torch.zeros(64, 2)
        x[:, 0] = math.log(4 * math.exp(-3.0) / (1 - math.exp(-3.0)))
        x.requires_grad_()
        w = torch.tensor([[1.0, 0.5], [0.0, 1.0], [0.0, 0.0], [0.0, -1.0], [0.0, 0.0]])
        targets = torch.zeros(64, dtype=torch.long)
        loss, stats = linear_policy_loss(x, w, targets, old, advantages, weights, terms)
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.item(), dict(zip(POLICY_STATS, stats.tolist(), strict=True)), gradient


@pytest.mark.parametrize("kind", ["policy_loss", "linear_policy_loss"])
@pytest.mark.parametrize("drift", DRIFTS)
def test_no_single_token_makes_the_loss_or_its_gradient_infinite(kind, drift):
    clamped = drift > MAX_LOG_RATIO
    top = math.exp(min(drift, MAX_LOG_RATIO))
    loss, stats, gradient = drifted(kind, drift, -1.0)
    # Negative advantages are not clipped above: 63 ratios of 1, and one of the drift.
    assert loss == pytest.approx(63 + top, rel=1e-5) and gradient.isfinite().all()
    assert stats["num_clamped_ratios"] == clamped
    _, _, usual = drifted(kind, 0.0, -1.0)
    assert gradient[1:].equal(usual[1:])
    torch.testing.assert_close(gradient[0], usual[0] * (0.0 if clamped else top), rtol=1e-4, atol=0)
    # Positive ones are clipped, far below the clamp.
    loss, stats, gradient = drifted(kind, drift, 1.0)
    assert loss == pytest.approx(-63 - 1.2, rel=1e-5) and gradient[0].eq(0).all()
    assert stats["num_clamped_ratios"] == clamped and stats["clip_fraction_high"] == 1
    # The other way: a ratio near 0.
    loss, stats, gradient = drifted(kind, -drift, 1.0)
    assert loss == pytest.approx(-63 - 1 / top, rel=1e-5) and gradient.isfinite().all()
    assert stats["num_clamped_ratios"] == clamped


@pytest.mark.parametrize("kind", ["policy_loss", "linear_policy_loss"])
@pytest.mark.parametrize("drift", DRIFTS)
def test_a_dual_clip_bounds_a_drifted_token(kind, drift):
    loss, stats, gradient = drifted(kind, drift, -1.0, clip_dual=3.0)
    assert loss == pytest.approx(63 + 3, rel=1e-5)
    assert stats["clip_fraction_dual"] == 1 and gradient[0].eq(0).all()
    # 63 tokens at ratio 1, whatever the drift is: not even the largest that 3 lets through.
    _, _, largest = drifted(kind, math.log(2.99), -1.0, clip_dual=3.0)
    assert gradient.isfinite().all() and gradient.norm() < largest.norm()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("drift", [5.0, -5.0, 60.0, -100.0])
def test_ratios_to_engine_and_reference_are_clamped_where_they_are_exponentiated(estimator, drift):
    constant = torch.full((3,), -3.0)
    moved = constant + torch.tensor([drift, 0.0, 0.0])
    logprobs, zero, one = constant.clone().requires_grad_(), torch.zeros(3), torch.ones(3)
    loss, stats = policy_loss(
        logprobs, zero, constant, one, one,
        PolicyTerms(kl_coefficient=1.0, kl_estimator=estimator, importance="truncate"),
        rollout_logprobs=moved, ref_logprobs=moved,
    )  # fmt: skip
    d = max(-MAX_LOG_RATIO, min(drift, MAX_LOG_RATIO))
    kl = {"k1": -drift, "k2": drift**2 / 2, "k3": math.exp(d) - 1 - d}[estimator]
    kl_slope = {"k1": 1.0, "k2": -drift, "k3": (1 - math.exp(d)) * (d == drift)}[estimator]
    assert loss.item() == pytest.approx(kl - math.exp(-d) - 2, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    plain = 1.0 if estimator == "k1" else 0.0
    expected = [kl_slope - math.exp(-d), plain - 1, plain - 1]
    assert gradient.tolist() == pytest.approx(expected, rel=1e-5)
    named = dict(zip(POLICY_STATS, stats.tolist(), strict=True))
    assert named["num_clamped_ratios"] == (d != drift)


def test_without_gradients_the_policy_loss_is_the_same(head, policy):
    hidden, weight, targets = head
    with torch.no_grad():
        quiet = linear_policy_loss(hidden, weight, targets, *policy[:3])[0]
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, linear_policy_loss(hidden, weight, targets, *policy[:3])[0])


def test_no_token_at_all(head):
    _, weight, _ = head
    hidden = torch.empty(0, HIDDEN, dtype=torch.double, requires_grad=True)
    nothing, targets = torch.empty(0), torch.empty(0, dtype=torch.long)
    loss, stats = linear_policy_loss(hidden, weight, targets, nothing, nothing, nothing)
    logprob, entropy = linear_logprob(hidden, weight, targets)
    (loss + logprob.sum() + entropy.sum()).backward()
    assert loss.item() == 0 and stats.tolist() == [0] * len(POLICY_STATS)
    assert hidden.grad.shape == (0, HIDDEN) and weight.grad.abs().max() == 0


def test_non_contiguous_inputs(head, policy):
    hidden, weight, targets = head
    strided = [torch.stack([t, t], dim=-1)[..., 0] for t in (hidden, weight, targets, *policy[:3])]
    assert not strided[0].is_contiguous() and not strided[2].is_contiguous()
    plain = linear_policy_loss(hidden, weight, targets, *policy[:3])[0]
    torch.testing.assert_close(linear_policy_loss(*strided)[0], plain)
    torch.testing.assert_close(
        torch.autograd.grad(linear_policy_loss(*strided)[0], (hidden, weight)),
        torch.autograd.grad(plain, (hidden, weight)),
    )
    transposed = weight.detach().T.contiguous().T
    torch.testing.assert_close(
        linear_logprob(hidden, transposed, targets), linear_logprob(hidden, weight, targets)
    )
    x, boundaries = torch.randn(8, 2)[:, 0], torch.tensor([0, 9, 3, 9, 8])[::2]
    torch.testing.assert_close(
        segment_scan(x, 0.9, boundaries), segment_scan(x.clone(), 0.9, boundaries.clone())
    )


def test_runs_give_the_same_bits(head, policy):
    hidden, weight, targets = head

    def run():
        loss, stats = linear_policy_loss(hidden, weight, targets, *policy[:3])
        return loss, stats, *torch.autograd.grad(loss, (hidden, weight))

    assert all(a.equal(b) for a, b in zip(run(), run(), strict=True))


def test_segment_scan_gradient():
    x = torch.randn(9, dtype=torch.double, requires_grad=True)
    boundaries = torch.tensor([0, 4, 4, 9], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda x: segment_scan(x, 0.8, boundaries), x)
    assert torch.autograd.gradgradcheck(lambda x: segment_scan(x, 0.8, boundaries), x)


# The public function never stashes on the host, but the operation does.
@pytest.mark.parametrize(
    ("temperatures", "mode"),
    [(None, "recompute"), (torch.linspace(0.5, 2, NUM_TOKENS), "stash")],
)
def test_opcheck(head, policy, temperatures, mode):
    hidden, weight, targets = head
    head_arguments = (1.2, temperatures, REAL)
    logprob, entropy = (t.detach() for t in linear_logprob(hidden, weight, targets))
    x = torch.randn(7, requires_grad=True)
    samples = {
        schemas.linear_logprob: (*head, *head_arguments, 0, None, mode),
        schemas.linear_policy_loss: (
            *head, *policy, *policy_terms(), *head_arguments, None, True, True,
        ),
        schemas.policy_loss: (
            logprob.requires_grad_(), entropy.requires_grad_(), *policy, *policy_terms(),
        ),
        schemas.segment_scan: (x, 0.9, torch.tensor([0, 3, 7], dtype=torch.int32), True),
        schemas.gae: (
            x.detach(), x.detach() + 1, x > 9, torch.arange(7).int() // 2, torch.tensor([0, 3, 7]),
            0.9, 0.8,
        ),
    }  # fmt: skip
    for operation, arguments in samples.items():
        outcome = torch.library.opcheck(operation.operator, arguments)
        assert set(outcome.values()) == {"SUCCESS"}


def everything(hidden, weight, targets, policy, boundaries):
    old, advantages, weights, rollout, ref = policy
    logprob, entropy = linear_logprob(
        hidden, weight, targets, vocab_size=REAL, temperature=weights + 0.5
    )
    keywords = {"rollout_logprobs": rollout, "ref_logprobs": ref}
    loss, stats = policy_loss(logprob, entropy, old, advantages, weights, POLICY, **keywords)
    fused, fused_stats = linear_policy_loss(
        hidden, weight, targets, old, advantages, weights, POLICY, temperature=0.9, **keywords
    )
    scanned = segment_scan(logprob, 0.9, boundaries)
    return loss + 2 * fused + scanned.sum(), stats + fused_stats


def test_torch_compile_has_no_graph_break(head, policy):
    boundaries = torch.tensor([0, 3, 7], dtype=torch.int32)
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for function in (everything, compiled):
        loss, stats = function(*head, policy, boundaries)
        gradients = torch.autograd.grad(loss, head[:2])
        if function is everything:
            expected = [loss, stats, *gradients]
    torch.testing.assert_close([loss, stats, *gradients], expected)


# Unequal shards; with the second pair, rank 1 holds phantom columns only.
SHARD_SIZES = ([9, 4], [REAL, VOCAB - REAL])


def sharded_worker(rank, folder, problem, policy, expected):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    group = dist.group.WORLD
    hidden, weight, targets = problem
    hidden.requires_grad_()
    for sizes in SHARD_SIZES:
        shard = weight.split(sizes)[rank].clone().requires_grad_()
        logprob, entropy = linear_logprob(
            hidden, shard, targets, vocab_size=REAL, vocab_start=sum(sizes[:rank]), group=group
        )
        gradients = torch.autograd.grad((logprob * entropy).sum(), (hidden, shard))
        *replicated, grad_weight = expected["logprob"]
        torch.testing.assert_close([logprob, entropy, gradients[0]], replicated)
        torch.testing.assert_close(gradients[1], grad_weight.split(sizes)[rank])

        loss, stats = linear_policy_loss(
            hidden, shard, targets, *policy[:3], vocab_size=REAL, group=group
        )
        gradients = torch.autograd.grad(loss, (hidden, shard))
        *replicated, grad_weight = expected["policy"]
        torch.testing.assert_close([loss, stats, gradients[0]], replicated)
        torch.testing.assert_close(gradients[1], grad_weight.split(sizes)[rank])
    dist.destroy_process_group()


@pytest.mark.ranks
def test_sharded_equals_unsharded(tmp_path, head, policy):
    hidden, weight, targets = head
    logprob, entropy = linear_logprob(hidden, weight, targets, vocab_size=REAL)
    gradients = torch.autograd.grad((logprob * entropy).sum(), (hidden, weight))
    loss, stats = linear_policy_loss(hidden, weight, targets, *policy[:3], vocab_size=REAL)
    policy_gradients = torch.autograd.grad(loss, (hidden, weight))
    expected = {
        "logprob": [t.detach() for t in (logprob, entropy, *gradients)],
        "policy": [t.detach() for t in (loss, stats, *policy_gradients)],
    }
    problem = (hidden.detach(), weight.detach(), targets)
    torch.multiprocessing.spawn(
        sharded_worker, args=(tmp_path, problem, policy, expected), nprocs=2
    )


def test_errors_name_the_argument(head, policy):
    hidden, weight, targets = head
    old, beyond = policy[0], targets.clone()
    beyond[3] = REAL

    def loss(terms=PLAIN, **keywords):
        return linear_policy_loss(hidden, weight, targets, *policy[:3], terms, **keywords)

    def temperatures(position, wrong):
        values = torch.ones(NUM_TOKENS, dtype=torch.double)
        values[position] = wrong
        return values

    for message, call in {
        "weight": lambda: linear_logprob(hidden, weight[:, :-1], targets),
        "share a floating type": lambda: linear_logprob(hidden, weight.float(), targets),
        r"targets has shape \[6\], expected \[7\]": lambda: linear_logprob(
            hidden, weight, targets[1:]
        ),
        r"targets\[3\] is 11": lambda: linear_logprob(hidden, weight, beyond, vocab_size=REAL),
        "temperature": lambda: linear_logprob(hidden, weight, targets, temperature=0.0),
        "temperature has shape": lambda: linear_logprob(
            hidden, weight, targets, temperature=torch.ones(3)
        ),
        r"temperature\[3\] is 0.0: it must be positive and finite": lambda: linear_logprob(
            hidden, weight, targets, temperature=temperatures(3, 0.0)
        ),
        r"temperature\[0\] is -1.0": lambda: loss(temperature=temperatures(0, -1.0)),
        r"temperature\[6\] is inf": lambda: loss(temperature=temperatures(6, math.inf)),
        r"temperature\[2\] is nan": lambda: linear_logprob(
            hidden, weight, targets, temperature=temperatures(2, math.nan)
        ),
        r"temperature\[0\] is 0.0": lambda: loss(temperature=torch.tensor(0.0)),
        "temperature is nan": lambda: loss(temperature=math.nan),
        "temperature is inf": lambda: loss(temperature=math.inf),
        "temperature is -1.0": lambda: loss(temperature=-1.0),
        r"temperature\[1\] is 1e-50": lambda: linear_logprob(
            hidden.float(), weight.float(), targets, temperature=temperatures(1, 1e-50)
        ),
        "mode": lambda: linear_logprob(hidden, weight, targets, mode="fast"),
        "ref_logprobs is needed": lambda: loss(PolicyTerms(kl_coefficient=0.1)),
        "kl_estimator": lambda: loss(PolicyTerms(kl_estimator="k4")),
        "importance is 'clip'": lambda: loss(PolicyTerms(importance="clip")),
        "clip_dual is 1.0": lambda: loss(PolicyTerms(clip_dual=1.0)),
        "rollout_logprobs is needed": lambda: loss(PolicyTerms(importance="mask")),
        "ref_logprobs has shape": lambda: loss(ref_logprobs=old[1:]),
        "cu_seqlens must rise": lambda: segment_scan(old, 0.9, torch.tensor([0, 5, 3, 7])),
        "cu_seqlens must be integers": lambda: segment_scan(old, 0.9, torch.tensor([0.0, 7.0])),
        "x must be floating": lambda: segment_scan(targets, 0.9, torch.tensor([0, 7])),
        "compared in pairs": lambda: sequence_similarity([[1]], []),
        r"b\[0\] must be a sequence of integers": lambda: sequence_similarity([[1]], [[1.5]]),
        r"lengths\[1\] is 9": lambda: pack_bins([3, 9], 8),
        r"lengths\[0\] is -1": lambda: pack_bins([-1], 8),
        "lengths must be integers": lambda: pack_bins([0.5], 8),
        "unknown operation": lambda: implementation("matmul"),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_similarity_takes_lists_and_arrays():
    a, b = [[1, 2, 3], np.arange(5, dtype=np.int32)], [(2, 3), np.arange(2, 9)]
    assert sequence_similarity(a, b).tolist() == [2 * 2 / 5, 2 * 3 / 12]
    assert sequence_similarity([], []).shape == (0,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_device_agrees_with_the_host(head, policy, dtype):
    hidden, weight, targets = (t.detach() for t in head)
    results = []
    for device in ("cpu", "cuda"):
        x = hidden.to(device, dtype).requires_grad_()
        w = weight.to(device, dtype).requires_grad_()
        loss, _ = linear_policy_loss(
            x, w, targets.to(device), *(t.to(device) for t in policy[:3]), vocab_size=REAL
        )
        gradients = torch.autograd.grad(loss, (x, w))
        results.append([t.cpu().float() for t in (loss, *gradients)])
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(*results, atol=tolerance, rtol=tolerance)


def test_gae_of_segments_counts_the_reward_at_the_end_of_each():
    # Two sequences of a prompt entry, a segment of two tokens and one of one, and the last entry.
    mask = torch.tensor([False, True, True, True, False] * 2)
    ids = torch.tensor([-1, 0, 0, 1, -1, -1, 2, 2, 3, -1]).int()
    spread = torch.tensor([0.0, 1, 1, 2, 0, 0, 3, 3, 4, 0])
    at_ends = torch.tensor([0.0, 0, 1, 2, 0, 0, 0, 3, 4, 0])
    values, boundaries = torch.randn(10), torch.tensor([0, 5, 10])
    terms = {"gamma": 0.9, "lambda_": 0.8}
    got = gae(values, spread, mask, boundaries, segment_ids=ids, **terms)
    expected = gae(values, at_ends, mask, boundaries, **terms)
    assert all(a.equal(b) for a, b in zip(got, expected, strict=True))


def test_gae_refuses_a_mask_that_is_none():
    x, boundaries = torch.randn(4), torch.tensor([0, 4])
    with pytest.raises(ValueError, match=r"mask must be bool, got torch.float32"):
        gae(x, x, torch.ones(4), boundaries, gamma=1.0, lambda_=0.9)
    with pytest.raises(ValueError, match=r"rewards has shape \[3\], expected \[4\]"):
        gae(x, x[:3], x > 0, boundaries, gamma=1.0, lambda_=0.9)
    with pytest.raises(ValueError, match=r"values must be float32 or float64 \[T\]"):
        gae(x.half(), x, x > 0, boundaries, gamma=1.0, lambda_=0.9)
    with pytest.raises(ValueError, match=r"segment_ids must be int32, got torch.int64"):
        ids = torch.arange(4)
        gae(x, x, x > 0, boundaries, gamma=1.0, lambda_=0.9, segment_ids=ids)


# Sampled tokens against the cumulative probabilities in float64, on every instruction set.


@pytest.fixture(params=cpu_head.instruction_sets() or ["none"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    before = cpu_head.instruction_set()
    if request.param != "none":
        cpu_head.use_instruction_set(request.param)
    yield
    if request.param != "none":
        cpu_head.use_instruction_set(before)


def distributions(num_rows: int, num_columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_columns)
    logits = 3 * torch.randn(num_rows, num_columns, generator=generator)
    return logits, torch.rand(num_rows, generator=generator, dtype=torch.float64)


# Around the tokens of a panel and the columns of a tile and of a block.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("num_rows", "num_columns"), [(1, 1), (3, 131), (33, 97), (70, 1000)])
def test_logits_are_summed_and_kept_in_single_precision(
    instruction_set: None, dtype: torch.dtype, num_rows: int, num_columns: int
) -> None:
    generator = torch.Generator().manual_seed(num_columns)
    hidden = torch.randn(num_rows, 57, generator=generator).to(dtype)
    weight = torch.randn(num_columns + 5, 57, generator=generator).to(dtype)
    logits = linear_logits(hidden, weight, vocab_size=num_columns)
    exact = hidden.double() @ weight[:num_columns].double().T
    assert logits.shape == (num_rows, num_columns)
    assert logits.dtype == torch.promote_types(dtype, torch.float32)
    assert (logits.double() - exact).abs().max() < 2e-5  # rounded to bfloat16 it would be 0.06
    torch.testing.assert_close(
        logits, reference.linear_logits(hidden, weight, num_columns), rtol=0, atol=2e-5
    )
    assert linear_logits(hidden, weight).shape == (num_rows, num_columns + 5)


def test_logits_are_those_of_the_softmax_that_trains(instruction_set: None) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(40, 64, generator=generator).bfloat16()
    weight = torch.randn(300, 64, generator=generator).bfloat16()
    targets = torch.randint(300, (40,), generator=generator)
    logprob, _ = linear_logprob(hidden, weight, targets)
    sampled = linear_logits(hidden, weight).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(sampled, logprob, rtol=0, atol=1e-5)


def test_the_logits_of_a_row_depend_on_it_alone(instruction_set: None) -> None:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(50, 64, generator=generator).bfloat16()
    weight = torch.randn(200, 64, generator=generator).bfloat16()
    together = linear_logits(hidden, weight)
    for row in (0, 31, 49):
        assert torch.equal(linear_logits(hidden[row : row + 1], weight)[0], together[row])


def test_opcheck_and_errors_of_logits() -> None:
    hidden, weight = torch.randn(4, 8), torch.randn(30, 8)
    outcome = torch.library.opcheck(schemas.linear_logits.operator, (hidden, weight, 27))
    assert set(outcome.values()) == {"SUCCESS"}
    with pytest.raises(ValueError, match=r"must be \[T, H\] and \[V, H\]"):
        linear_logits(hidden, weight[:, :7])
    with pytest.raises(ValueError, match=r"hidden is torch\.float32, weight is torch\.bfloat16"):
        linear_logits(hidden, weight.bfloat16())
    assert implementation("linear_logits", "cuda") == "reference"


# Around the lanes of a vector and the 256 columns of a block.
@pytest.mark.parametrize("num_columns", [1, 3, 8, 100, 256, 257, 1000, 5000])
def test_samples_and_their_logprobs_are_those_of_float64(
    instruction_set: None, num_columns: int
) -> None:
    logits, uniform = distributions(400, num_columns)
    tokens, logprobs = sample_tokens(logits, uniform, temperature=0.7)
    cumulative = (logits.double() / 0.7).softmax(-1).cumsum(-1)
    # Within rounding of the sums, the drawn number lies in the token's interval.
    column = tokens[:, None]
    upper = cumulative.gather(1, column)[:, 0]
    lower = upper - (logits.double() / 0.7).softmax(-1).gather(1, column)[:, 0]
    assert ((lower - 1e-6 <= uniform) & (uniform <= upper + 1e-6)).all()
    exact_tokens, _ = sample_tokens(logits.double(), uniform, temperature=0.7)
    assert (tokens == exact_tokens).float().mean() > 0.99
    exact = (logits.double() / 0.7).log_softmax(-1).gather(1, column)[:, 0]
    torch.testing.assert_close(logprobs.double(), exact, rtol=0, atol=2e-6)


def test_a_sample_depends_on_its_row_alone(instruction_set: None) -> None:
    logits, uniform = distributions(50, 700)
    before = torch.get_num_threads()
    results = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        results.append(sample_tokens(logits, uniform))
    torch.set_num_threads(before)
    for tokens, logprobs in results:
        assert torch.equal(tokens, results[0][0]) and torch.equal(logprobs, results[0][1])
    for row in range(50):
        token, logprob = sample_tokens(logits[row : row + 1], uniform[row : row + 1])
        assert token[0] == results[0][0][row] and logprob[0] == results[0][1][row]


def test_the_ends_of_the_interval_and_columns_of_probability_0(instruction_set: None) -> None:
    logits = torch.full((2, 600), -torch.inf)
    logits[:, [5, 590]] = 2.0
    uniform = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    tokens, logprobs = sample_tokens(logits, uniform)
    assert tokens.tolist() == [5, 590]
    torch.testing.assert_close(logprobs, torch.full((2,), 0.5).log())
    # Rows without stride, as a test of one distribution makes them.
    assert sample_tokens(logits[:1].expand(2, -1), uniform)[0].tolist() == [5, 590]


def test_the_reference_samples_alike_and_half_precision_is_widened() -> None:
    logits, uniform = distributions(300, 150)
    tokens, logprobs = sample_tokens(logits, uniform)
    expected = reference.sample_tokens(logits, uniform, 1.0)
    assert (tokens == expected[0]).float().mean() > 0.99
    torch.testing.assert_close(logprobs[tokens == expected[0]], expected[1][tokens == expected[0]])
    tokens, logprobs = sample_tokens(logits.bfloat16(), uniform)
    assert torch.equal(tokens, sample_tokens(logits.bfloat16().float(), uniform)[0])
    assert logprobs.dtype == torch.float32


def test_opcheck_and_torch_compile_of_sampling() -> None:
    logits, uniform = distributions(4, 30)
    outcome = torch.library.opcheck(schemas.sample_tokens.operator, (logits, uniform, 0.8))
    assert set(outcome.values()) == {"SUCCESS"}
    compiled = torch.compile(sample_tokens, fullgraph=True, backend="aot_eager")
    for got, expected in zip(
        compiled(logits, uniform), sample_tokens(logits, uniform), strict=True
    ):
        assert torch.equal(got, expected)


def test_sampling_errors_name_the_argument() -> None:
    logits, uniform = distributions(4, 30)
    with pytest.raises(ValueError, match=r"logits must be floating point \[B, V\]"):
        sample_tokens(logits[0], uniform)
    with pytest.raises(ValueError, match=r"uniform must be float64 \[4\], got torch.float32"):
        sample_tokens(logits, uniform.float())
    with pytest.raises(ValueError, match="temperature is 0"):
        sample_tokens(logits, uniform, temperature=0)


def test_sampling_by_device() -> None:
    assert implementation("sample_tokens", "cpu") in ("cpp", "reference")
    assert implementation("sample_tokens", "cuda") == "reference"
