# SPDX-License-Identifier: Apache-2.0
"""The compiled output head against dense float64 autograd, on every instruction set at hand."""

import datetime
import functools

import pytest
import torch
import torch.distributed as dist

from satori_fast.kernels import (
    PolicyTerms,
    cpu_head,
    implementation,
    linear_logprob,
    linear_policy_loss,
)
from tests.kernels.extremes import (
    KINDS,
    OFFSETS,
    assert_broken_tokens_stay_alone,
    assert_error_of_stored_logits,
    assert_impossible_words_are_harmless,
)

pytestmark = pytest.mark.skipif(
    not cpu_head.OPERATIONS, reason="satori_fast._C is missing: install with a C++17 compiler"
)

DTYPES = [torch.float32, torch.bfloat16]
# Tokens, hidden size, columns, real columns: below, at and above the sizes of tiles and blocks.
SHAPES = [
    (1, 1, 1, 1),
    (1, 3, 7, 7),
    (7, 5, 13, 11),
    (33, 127, 1, 1),
    (127, 33, 333, 333),
    (16, 48, 192, 192),
    (300, 17, 1100, 1091),
]
LOAD = functools.partial(getattr, cpu_head)
POLICY = PolicyTerms(clip_dual=3.0, kl_coefficient=0.1, entropy_coefficient=0.02)


@pytest.fixture(params=cpu_head.instruction_sets())
def instruction_set(request):
    before = cpu_head.instruction_set()
    cpu_head.use_instruction_set(request.param)
    yield request.param
    cpu_head.use_instruction_set(before)


@pytest.fixture
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def problem(shape, dtype, scale=1.0):
    """hidden, weight, targets, temperature; phantom columns hold NaN."""
    num_tokens, hidden_size, num_columns, real = shape
    generator = torch.Generator().manual_seed(sum(shape))
    hidden = torch.randn(num_tokens, hidden_size, generator=generator) * scale
    weight = torch.randn(num_columns, hidden_size, generator=generator)
    weight[real:] = torch.nan
    targets = torch.randint(real, (num_tokens,), generator=generator)
    temperature = torch.rand(num_tokens, generator=generator) + 0.5
    return hidden.to(dtype), weight.to(dtype), targets, temperature


def dense(hidden, weight, targets, temperature, real):
    """What `linear_logprob` means, with the logits stored; half precision rounds them."""
    logits = hidden @ weight[:real].T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature[:, None]
    logprobs = logits.log_softmax(dim=1)
    picked = logprobs.gather(1, targets[:, None])[:, 0]
    return picked, -(logprobs.exp() * logprobs).sum(dim=1)


def policy_inputs(shape):
    """old_logprobs, advantages, loss_weights (every third 0), ref_logprobs, near the policy's."""
    hidden, weight, targets, temperature = problem(shape, torch.float64)
    logprobs = dense(hidden, weight, targets, temperature.double(), shape[-1])[0].float()
    generator = torch.Generator().manual_seed(shape[0])
    old, advantages, ref = torch.randn(3, shape[0], generator=generator).unbind()
    weights = torch.rand(shape[0], generator=generator)
    weights[1::3] = 0
    return logprobs + 0.3 * old, advantages, weights, logprobs + 0.3 * ref


def differentiate(operation, hidden, weight, real, upstream):
    """logprob, entropy and the gradients of their sum weighted by `upstream` [2, T]."""
    hidden, weight = (t.detach().requires_grad_() for t in (hidden, weight))
    logprob, entropy = operation(hidden, weight)
    total = sum(
        (output * factor).sum()
        for output, factor in zip((logprob, entropy), upstream, strict=True)
        if factor is not None
    )
    grad_hidden, grad_weight = torch.autograd.grad(total, (hidden, weight))
    assert not real < len(grad_weight) or grad_weight[real:].abs().max() == 0
    return logprob.detach(), entropy.detach(), grad_hidden, grad_weight[:real]


def errors(results, truths):
    """Frobenius norms of the differences, over that of the truth or at least 1e-3 an element."""
    return [
        (result - truth).norm().item() / max(truth.norm().item(), 1e-3 * truth.numel() ** 0.5)
        for result, truth in zip(results, truths, strict=True)
    ]


def run_logprob(shape, dtype, scale=1.0, upstream=None):
    """Results of ours, of the dense computation in the same type, and in float64."""
    hidden, weight, targets, temperature = problem(shape, dtype, scale)
    real = shape[-1]
    if upstream is None:
        upstream = torch.linspace(-1, 1, shape[0]), torch.linspace(0.3, -0.7, shape[0])

    def ours(x, w):
        return linear_logprob(x, w, targets, temperature=temperature, vocab_size=real)

    def eager(x, w):
        return dense(x, w, targets, temperature.to(torch.promote_types(x.dtype, torch.float)), real)

    return (
        differentiate(ours, hidden, weight, real, upstream),
        differentiate(eager, hidden, weight, real, upstream),
        differentiate(eager, hidden.double(), weight.double(), real, upstream),
    )


def assert_close(ours, truths, dtype, output_error=5e-6):
    *outputs, grad_hidden, grad_weight = errors(ours, truths)
    assert max(outputs) < output_error
    # The gradients are summed in float32 and rounded once.
    assert max(grad_hidden, grad_weight) < (5e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_log_probabilities_and_gradients_are_those_of_float64(instruction_set, shape, dtype):
    ours, _, truths = run_logprob(shape, dtype)
    assert ours[0].dtype == torch.float32 and ours[2].dtype == ours[3].dtype == dtype
    assert_close(ours, truths, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_are_at_most_twice_those_of_stored_logits(instruction_set, dtype):
    ours, eager, truths = run_logprob((200, 64, 2000, 2000), dtype)
    for own, other in zip(errors(ours, truths), errors(eager, truths), strict=True):
        assert own <= 2 * other


def test_float16_is_cast(instruction_set):
    ours, _, truths = run_logprob((40, 24, 200, 190), torch.float16)
    assert ours[2].dtype == torch.float16
    assert_close(ours, truths, torch.bfloat16)


def run_policy(shape, dtype, **keywords):
    """(loss, stats, gradients); the hidden states of tokens of weight 0 are NaN."""
    hidden, weight, targets, temperature = problem(shape, dtype)
    old, advantages, weights, ref = policy_inputs(shape)
    hidden[weights == 0] = torch.nan
    targets[weights == 0] = -5
    hidden, weight = (t.detach().requires_grad_() for t in (hidden, weight))
    loss, stats = linear_policy_loss(
        hidden, weight, targets, old, advantages, weights, POLICY, ref_logprobs=ref,
        temperature=temperature, vocab_size=shape[-1], **keywords,
    )  # fmt: skip
    gradients = torch.autograd.grad(loss, (hidden, weight))
    return loss.detach(), stats, *gradients


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_policy_loss_is_that_of_float64(instruction_set, shape, dtype):
    ours = run_policy(shape, dtype)
    # float64 runs the reference, here on the very values that `dtype` holds.
    hidden, weight, targets, temperature = problem(shape, dtype)
    old, advantages, weights, ref = policy_inputs(shape)
    targets[weights == 0] = 0
    hidden, weight = (t.double().requires_grad_() for t in (hidden, weight))
    loss, stats = linear_policy_loss(
        hidden, weight, targets, old, advantages, weights, POLICY, ref_logprobs=ref,
        temperature=temperature, vocab_size=shape[-1],
    )  # fmt: skip
    truths = loss.detach(), stats.double(), *torch.autograd.grad(loss, (hidden, weight))
    # Terms of both signs cancel in the loss.
    assert_close(ours, truths, dtype, output_error=2e-5)
    assert ours[2][weights == 0].eq(0).all()


@pytest.mark.parametrize(("offset", "temperature"), OFFSETS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_offset_of_all_logits_costs_no_digits(instruction_set, offset, temperature, kind):
    assert_error_of_stored_logits(LOAD, offset, temperature, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_of_logit_minus_infinity(instruction_set, kind):
    assert_impossible_words_are_harmless(LOAD, kind)


def test_tokens_that_are_not_numbers(instruction_set):
    assert_broken_tokens_stay_alone(LOAD)


def test_an_infinite_weight_reaches_no_other_word(instruction_set):
    """Tokens that fill up a vector have hidden states of 0: 0 times infinity."""
    hidden, weight, targets, _ = problem((3, 4, 40, 40), torch.float32)
    hidden[:, 0], weight[9] = 2.0, 0.0
    weight[9, 0] = -torch.inf
    targets[:] = torch.tensor([0, 5, 8])
    weight.requires_grad_()
    logprob, entropy = linear_logprob(hidden, weight, targets)
    (grad_weight,) = torch.autograd.grad((logprob + entropy).sum(), weight)
    assert logprob.isfinite().all() and entropy.isfinite().all() and grad_weight.isfinite().all()
    assert grad_weight[9].eq(0).all()


@pytest.mark.parametrize("shift", [-100.0, 100.0])
def test_a_shift_of_all_logits_changes_nothing(instruction_set, shift):
    hidden, weight, targets, _ = problem((50, 20, 400, 400), torch.float32)
    shifted_hidden = torch.cat([hidden, torch.ones(50, 1)], dim=1)
    shifted_weight = torch.cat([weight, torch.full((400, 1), shift)], dim=1)
    upstream = torch.ones(2, 50)
    plain = differentiate(lambda x, w: linear_logprob(x, w, targets), hidden, weight, 400, upstream)
    shifted = differentiate(
        lambda x, w: linear_logprob(x, w, targets), shifted_hidden, shifted_weight, 400, upstream
    )
    # A float32 of 100 ends at 4e-6.
    for a, b in zip(plain[:2], shifted[:2], strict=True):
        torch.testing.assert_close(a, b, atol=3e-5, rtol=0)
    torch.testing.assert_close(plain[2], shifted[2][:, :-1], atol=3e-4, rtol=0)
    torch.testing.assert_close(plain[3], shifted[3][:, :-1], atol=3e-4, rtol=0)


@pytest.mark.parametrize("column", [0, 250, 399])
def test_one_huge_logit_takes_all(instruction_set, column):
    hidden, weight, targets, temperature = problem((20, 8, 400, 400), torch.float32)
    hidden[:, 0], weight[column, 0] = 300.0, 33_333.0
    targets[::2] = column

    def ours(x, w):
        return linear_logprob(x, w, targets, temperature=temperature)

    logprob, entropy, *gradients = differentiate(ours, hidden, weight, 400, torch.ones(2, 20))
    won = targets == column
    assert logprob[won].eq(0).all() and entropy.eq(0).all()
    assert logprob[~won].lt(-1e6).all() and logprob.isfinite().all()
    assert gradients[0][won].eq(0).all() and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("index", [0, 1])
def test_one_output_may_have_no_gradient(instruction_set, index):
    upstream = [None, None]
    upstream[index] = torch.linspace(-1, 1, 40)
    ours, _, truths = run_logprob((40, 24, 200, 190), torch.float32, upstream=upstream)
    assert_close(ours, truths, torch.float32)


@pytest.mark.parametrize("num_tokens", [0, 40])
def test_tokens_that_are_all_left_out(num_tokens):
    hidden, weight, targets, _ = problem((num_tokens, 24, 200, 190), torch.float32)
    hidden = hidden.mul(torch.nan).requires_grad_()
    weight.requires_grad_()
    nothing = torch.zeros(num_tokens)
    loss, stats = linear_policy_loss(
        hidden, weight, targets, nothing, nothing, nothing, vocab_size=190
    )
    gradients = torch.autograd.grad(loss, (hidden, weight))
    assert loss == 0 and stats.eq(0).all() and all(g.eq(0).all() for g in gradients)


def test_logits_kept_for_the_policy_loss_need_a_gradient(instruction_set):
    shape = (40, 24, 200, 190)
    hidden, weight, targets, temperature = problem(shape, torch.float32)
    old, advantages, weights, ref = policy_inputs(shape)
    loss, stats = linear_policy_loss(
        hidden, weight, targets, old, advantages, weights, POLICY, ref_logprobs=ref,
        temperature=temperature, vocab_size=190,
    )  # fmt: skip
    assert not loss.requires_grad
    torch.testing.assert_close([loss, stats], list(run_policy(shape, torch.float32)[:2]))


def test_the_number_of_chunks_changes_only_roundings(monkeypatch):
    shape = (300, 17, 1100, 1091)
    whole = run_logprob(shape, torch.float32)[0], run_policy(shape, torch.float32)
    monkeypatch.setattr(cpu_head, "CHUNK_BYTES", 1)
    monkeypatch.setattr(cpu_head, "MIN_CHUNK_TOKENS", 64)
    many = run_logprob(shape, torch.float32)[0], run_policy(shape, torch.float32)
    for results, others in zip(many, whole, strict=True):
        assert max(errors(results, [other.double() for other in others])) < 1e-6


def test_poisoned_buffers(monkeypatch):
    shape = (77, 24, 200, 190)
    clean = run_logprob(shape, torch.float32)[0], run_policy(shape, torch.float32)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    # Memory that the compiled code takes and gives back holds NaN after this.
    hidden, weight, targets, _ = problem(shape, torch.float32)
    poison = hidden.mul(torch.nan).requires_grad_()
    linear_logprob(poison, weight, targets)[0].sum().backward()
    poisoned = run_logprob(shape, torch.float32)[0], run_policy(shape, torch.float32)
    for a, b in zip((*clean[0], *clean[1]), (*poisoned[0], *poisoned[1]), strict=True):
        assert a.equal(b)


def test_non_contiguous_inputs():
    hidden, weight, targets, temperature = problem((40, 24, 200, 200), torch.bfloat16)
    plain = linear_logprob(hidden, weight, targets, temperature=temperature)
    strided = [torch.stack([t, t], dim=-1)[..., 0] for t in (hidden, weight, targets, temperature)]
    assert not strided[0].is_contiguous()
    again = linear_logprob(*strided[:3], temperature=strided[3])
    assert all(a.equal(b) for a, b in zip(plain, again, strict=True))


# One group of blocks and several parts of the tokens; several groups.
@pytest.mark.parametrize("shape", [(1200, 16, 60, 60), (300, 16, 3000, 3000)])
def test_bits_depend_neither_on_threads_nor_on_the_run(restore_threads, instruction_set, shape):
    results = []
    for num_threads in (1, 2, 3, 3):
        torch.set_num_threads(num_threads)
        outcome = run_logprob(shape, torch.float32)[0], run_policy(shape, torch.float32)
        results.append((*outcome[0], *outcome[1]))
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], other, strict=True))


SHARDED = (70, 24, 200, 190)
# One rank may hold phantom columns only.
SHARD_SIZES = ([200], [120, 80], [190, 10], [90, 3, 107], [190, 4, 6])


def sharded_worker(rank, folder, expected):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=3,
        timeout=datetime.timedelta(seconds=60),
    )
    torch.set_num_threads(1)
    groups = {size: dist.new_group(list(range(size))) for size in (1, 2, 3)}
    for dtype in DTYPES:
        for sizes in SHARD_SIZES:
            if rank < len(sizes):
                check_shard(rank, sizes, groups[len(sizes)], dtype, expected[dtype])
    dist.destroy_process_group()


def check_shard(rank, sizes, group, dtype, expected):
    hidden, weight, targets, temperature = problem(SHARDED, dtype)
    old, advantages, weights, ref = policy_inputs(SHARDED)
    hidden.requires_grad_()
    shard = weight.split(sizes)[rank].clone().requires_grad_()

    def assert_expected(name, *results):
        *replicated, grad_weight = expected[name]
        truths = [*replicated, grad_weight.split(sizes)[rank]]
        assert_close(results, [truth.double() for truth in truths], dtype)

    logprob, entropy = linear_logprob(
        hidden, shard, targets, temperature=temperature, vocab_size=190,
        vocab_start=sum(sizes[:rank]), group=group,
    )  # fmt: skip
    gradients = torch.autograd.grad((logprob * entropy).sum(), (hidden, shard))
    assert_expected("logprob", logprob, entropy, *gradients)

    loss, stats = linear_policy_loss(
        hidden, shard, targets, old, advantages, weights, POLICY, ref_logprobs=ref,
        temperature=temperature, vocab_size=190, group=group,
    )  # fmt: skip
    gradients = torch.autograd.grad(loss, (hidden, shard))
    assert_expected("policy", loss, stats, *gradients)


@pytest.mark.ranks
def test_sharded_equals_unsharded(tmp_path):
    expected = {}
    for dtype in DTYPES:
        hidden, weight, targets, temperature = problem(SHARDED, dtype)
        old, advantages, weights, ref = policy_inputs(SHARDED)
        hidden.requires_grad_(), weight.requires_grad_()
        logprob, entropy = linear_logprob(
            hidden, weight, targets, temperature=temperature, vocab_size=190
        )
        gradients = torch.autograd.grad((logprob * entropy).sum(), (hidden, weight))
        loss, stats = linear_policy_loss(
            hidden, weight, targets, old, advantages, weights, POLICY, ref_logprobs=ref,
            temperature=temperature, vocab_size=190,
        )  # fmt: skip
        policy_gradients = torch.autograd.grad(loss, (hidden, weight))
        expected[dtype] = {
            "logprob": [t.detach() for t in (logprob, entropy, *gradients)],
            "policy": [t.detach() for t in (loss, stats, *policy_gradients)],
        }
    torch.multiprocessing.spawn(sharded_worker, args=(tmp_path, expected), nprocs=3)


def test_the_instruction_set_can_be_chosen(instruction_set):
    assert cpu_head.instruction_set() == instruction_set
    assert cpu_head.instruction_sets()[-1] == "scalar"
    with pytest.raises(ValueError, match="no instruction set avx1024"):
        cpu_head.use_instruction_set("avx1024")
    assert cpu_head.instruction_set() == instruction_set


def test_the_head_is_compiled_by_default(monkeypatch):
    assert implementation("linear_logprob") == implementation("linear_policy_loss") == "cpp"
    called = []
    for name in ("linear_logprob", "linear_logprob_backward"):
        function = getattr(cpu_head, name)
        monkeypatch.setattr(
            cpu_head, name, lambda *a, f=function, n=name, **k: called.append(n) or f(*a, **k)
        )
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        hidden, weight, targets, _ = problem((7, 5, 13, 13), dtype)
        linear_logprob(hidden.requires_grad_(), weight, targets)[0].sum().backward()
    assert called == ["linear_logprob", "linear_logprob_backward"] * 3
