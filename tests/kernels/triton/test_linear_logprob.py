# SPDX-License-Identifier: Apache-2.0
"""The output layer on row kernels, in the interpreter: against the reference in float64, which
test_reference.py compares with a dense softmax. Products are torch's own on the host, so bfloat16
is exact in here but for what the kernels round."""

import math

import pytest
import torch

from satori_fast.kernels import (
    dispatch,
    linear_policy_loss,
    policy_loss,
    reference,
    schemas,
    segment_scan,
    triton,
)
from satori_fast.kernels.head import kept_partition, stash_dtype, stash_width
from satori_fast.kernels.triton import head as row_kernels
from satori_fast.kernels.triton import linear_logprob as file
from satori_fast.kernels.triton import stash as stashed
from tests.kernels.extremes import (
    OFFSETS,
    assert_broken_tokens_stay_alone,
    assert_error_of_stored_logits,
    assert_impossible_words_are_harmless,
)

TILE = 32
# Relative error of a gradient, in the norm. The interpreter cuts bfloat16 off where a GPU rounds,
# 2^-8 on average, here twice: in what is kept and in the gradient of the logits.
GRADIENT_ERROR = {torch.float32: 2e-6, torch.bfloat16: 9e-3, torch.float16: 1e-3}


@pytest.fixture(autouse=True)
def small_tiles(interpreter, resize):
    resize([row_kernels.STATISTICS, *row_kernels.GRADIENTS.values()], LANES=TILE // 4)
    resize(stashed.CONFIGURATIONS, LANES=TILE // 4)
    resize([row_kernels.MERGE], BLOCK=16)


def make_head(num_tokens, vocab, dtype=torch.float32, *, real=None, hidden_size=8):
    """hidden, weight, targets, g, h; columns from `real` on are phantoms that hold NaN."""
    generator = torch.Generator().manual_seed(num_tokens + vocab)
    hidden = torch.randn(num_tokens, hidden_size, generator=generator).to(dtype)
    weight = torch.randn(vocab, hidden_size, generator=generator).to(dtype)
    targets = torch.randint(real or vocab, (num_tokens,), generator=generator)
    if real is not None:
        weight[real:] = math.nan
    g, h = torch.randn(2, num_tokens, generator=generator).unbind()
    return hidden, weight, targets, g, h


def run(functions, hidden, weight, targets, g, h, *, stash=None, **how):
    """logprob, entropy and both gradients."""
    how = {"temperature": 1.0, "vocab_size": None, "vocab_start": 0, "group": None} | how
    kept = {} if stash is None else {"stash": stash}
    logprob, entropy, partition = functions.linear_logprob(hidden, weight, targets, **how, **kept)
    kept |= {} if stash is None else {"logprob": logprob}
    inputs = (hidden, weight, targets, entropy, partition)
    gradients = functions.linear_logprob_backward(
        g, h, *inputs, **how, **kept, need_hidden=True, need_weight=True
    )
    return logprob, entropy, *gradients


def in_float64(hidden, weight, targets, g, h, **how):
    g, h = (None if t is None else t.double() for t in (g, h))
    return run(reference, hidden.double(), weight.double(), targets, g, h, **how)


def assert_close(got, expected, dtype, *, atol=3e-6):
    for value, truth in zip(got[:2], expected[:2], strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), truth, atol=atol, rtol=1e-6)
    for value, truth in zip(got[2:], expected[2:], strict=True):
        assert value.dtype == dtype and value.isfinite().all()
        assert (value.double() - truth).norm() <= GRADIENT_ERROR[dtype] * truth.norm() + 1e-7


# One row or column; fewer columns than a tile, one more, whole tiles, and a rest; phantoms.
SIZES = [(1, 1, None), (3, 31, None), (2, 64, 33), (19, 127, None), (7, 333, 320), (5, 96, None)]


@pytest.mark.parametrize(("num_tokens", "vocab", "real"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keeps", [False, True])
def test_equals_the_reference_in_float64(num_tokens, vocab, real, dtype, keeps):
    problem = make_head(num_tokens, vocab, dtype, real=real)
    temperature = torch.linspace(0.4, 2.0, num_tokens)
    how = {"temperature": temperature, "vocab_size": real}
    expected = in_float64(*problem, **how)
    # Chunks of a few rows.
    how["chunk_bytes"] = 5 * vocab * 4
    shape = (num_tokens, stash_width(real or vocab))
    stash = torch.empty(shape, dtype=stash_dtype(dtype)) if keeps else None
    got = run(file, *problem, stash=stash, **how)
    assert_close(got, expected, dtype)
    again = run(file, *problem, stash=stash, **how)
    assert all(a.equal(b) for a, b in zip(got, again, strict=True))


def test_shipped_tiles_with_the_rest_of_a_real_vocabulary(monkeypatch, resize):
    shipped = 2048
    resize([row_kernels.STATISTICS, *row_kernels.GRADIENTS.values()], LANES=shipped)
    resize(stashed.CONFIGURATIONS, LANES=shipped)
    vocab = 4 * shipped + 151936 % (4 * shipped)
    problem = make_head(2, vocab, hidden_size=4)
    stash = torch.empty(2, stash_width(vocab))
    for kept in (None, stash):
        assert_close(run(file, *problem, stash=kept), in_float64(*problem), torch.float32)


def test_float16():
    problem = make_head(5, 70, torch.float16)
    assert_close(run(file, *problem), in_float64(*problem), torch.float16)


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("missing", ["logprob", "entropy", "both"])
def test_absent_gradients(missing, keeps):
    hidden, weight, targets, g, h = make_head(6, 40)
    # A token without a gradient is left out.
    g[2] = h[2] = 0
    g = None if missing in ("logprob", "both") else g
    h = None if missing in ("entropy", "both") else h
    stash = torch.empty(6, 48) if keeps else None
    got = run(file, hidden, weight, targets, g, h, stash=stash)
    expected = in_float64(hidden, weight, targets, g, h)
    assert_close(got, expected, torch.float32)
    assert got[2][2].abs().max() == 0


def test_only_the_gradient_that_is_needed():
    hidden, weight, targets, g, h = make_head(6, 40)
    how = {"temperature": 1.0, "vocab_size": None, "vocab_start": 0, "group": None}
    _, entropy, partition = file.linear_logprob(hidden, weight, targets, **how)
    inputs = (g, h, hidden, weight, targets, entropy, partition)
    full = file.linear_logprob_backward(*inputs, **how, need_hidden=True, need_weight=True)
    for index in (0, 1):
        needs = {"need_hidden": index == 0, "need_weight": index == 1}
        alone = file.linear_logprob_backward(*inputs, **how, **needs)
        assert alone[index].equal(full[index]) and alone[1 - index] is None


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("shift", [-100.0, 100.0])
def test_a_shift_of_all_logits_changes_nothing(shift, keeps):
    hidden, weight, targets, g, h = make_head(6, 50, real=40)
    expected = in_float64(hidden, weight, targets, g, h, vocab_size=40)
    # One more feature, equal to 1 everywhere, moves every logit by `shift`.
    hidden = torch.cat([hidden, torch.ones(6, 1)], dim=1)
    weight = torch.cat([weight, torch.full((50, 1), shift)], dim=1)
    stash = torch.empty(6, 48) if keeps else None
    got = run(file, hidden, weight, targets, g, h, vocab_size=40, stash=stash)
    # One rounding of a logit of 100 in float32 is 4e-6.
    for value, truth in zip(got[:2], expected[:2], strict=True):
        torch.testing.assert_close(value.double(), truth, atol=4e-5, rtol=0)
    for value, truth in zip(got[2:], expected[2:], strict=True):
        torch.testing.assert_close(value[:, :-1].double(), truth, atol=2e-4, rtol=1e-4)


@pytest.fixture
def wide_tiles(small_tiles, resize):
    """Few turns of a row over its tiles: the interpreter pays for each."""
    rows = [row_kernels.STATISTICS, *row_kernels.GRADIENTS.values(), *stashed.CONFIGURATIONS]
    resize(rows, LANES=128)


@pytest.mark.usefixtures("wide_tiles")
@pytest.mark.parametrize(("offset", "temperature"), OFFSETS)
@pytest.mark.parametrize("keeps", [False, True])
def test_an_offset_of_all_logits_costs_no_digits(offset, temperature, keeps):
    assert_error_of_stored_logits(triton.load, offset, temperature, "logprob", keeps=keeps)


@pytest.mark.usefixtures("wide_tiles")
@pytest.mark.parametrize("keeps", [False, True])
def test_a_word_of_logit_minus_infinity(keeps):
    assert_impossible_words_are_harmless(triton.load, "logprob", keeps=keeps)


@pytest.mark.usefixtures("wide_tiles")
@pytest.mark.parametrize("keeps", [False, True])
def test_tokens_that_are_not_numbers(keeps):
    assert_broken_tokens_stay_alone(triton.load, keeps=keeps)


@pytest.mark.parametrize("keeps", [False, True])
def test_a_single_huge_logit_and_a_tiny_probability_stay_finite(keeps):
    hidden = torch.tensor([[1.0], [1.0]])
    weight = torch.zeros(70, 1)
    weight[33], weight[69] = 20000.0, -20000.0
    targets, ones = torch.tensor([33, 0]), torch.ones(2)
    stash = torch.empty(2, 80) if keeps else None
    logprob, entropy, *gradients = run(file, hidden, weight, targets, ones, ones, stash=stash)
    assert logprob.tolist() == [0.0, -20000.0]
    assert entropy.tolist() == [0.0, 0.0]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_stash_keeps_the_gradient_of_a_likely_target():
    """1 - p = 1e-4 is far below the rounding of p in bfloat16, 2e-3."""
    weight = torch.tensor([[9.2], [0.0], [-40.0]]).bfloat16()
    hidden, targets = torch.ones(1, 1).bfloat16(), torch.tensor([0])
    g, h = torch.ones(1), torch.zeros(1)
    stash = torch.empty(1, 16, dtype=torch.bfloat16)
    *_, expected = in_float64(hidden, weight, targets, g, h)
    *_, got = run(file, hidden, weight, targets, g, h, stash=stash)
    torch.testing.assert_close(got[0].double(), expected[0], rtol=0.01, atol=0)


# One shard; unequal ones; a single column; one of padding alone.
@pytest.mark.parametrize("sizes", [[75], [33, 42], [40, 1, 34], [75, 0]])
@pytest.mark.parametrize("keeps", [False, True])
def test_shards_equal_the_whole(sizes, keeps):
    hidden, weight, targets, g, h = make_head(6, 75)
    expected = in_float64(hidden, weight, targets, g, h, temperature=0.7)
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    statistics, kept, shards = [], [], weight.split(sizes)
    for shard, start in zip(shards, starts, strict=False):
        rows = row_kernels.Rows.of(targets, 0.7, start, len(shard))
        own = torch.empty(6, 4)
        logits = torch.empty(6, stash_width(len(shard)) or 16)[:, : len(shard)]
        logits.copy_(hidden @ shard.T)
        row_kernels.statistics(logits, rows, own)
        stash = torch.empty(6, stash_width(len(shard)))
        stashed.keep(logits, own, rows, stash)
        statistics.append(own)
        kept.append(stash)
    logprob, entropy, partition = row_kernels.merge(torch.stack(statistics))
    grad_hidden, grad_weights = 0, []
    for shard, start, own, stash in zip(shards, starts, statistics, kept, strict=False):
        how = {"temperature": 0.7, "vocab_size": None, "vocab_start": start, "group": None}
        constant = partition
        if keeps:
            constant = kept_partition(partition, own)
            how |= {"stash": stash, "logprob": logprob}
        part, grad_weight = file.linear_logprob_backward(
            g, h, hidden, shard, targets, entropy, constant, **how,
            need_hidden=True, need_weight=True,
        )  # fmt: skip
        grad_hidden += part
        grad_weights.append(grad_weight)
    got = (logprob, entropy, grad_hidden, torch.cat(grad_weights))
    assert_close(got, expected, torch.float32)


def test_strided_inputs_and_no_token():
    hidden, weight, targets, g, h = make_head(6, 40)
    strided = torch.stack([hidden, hidden], dim=-1)[..., 0]
    transposed = weight.T.contiguous().T
    targets = torch.stack([targets, targets], dim=-1)[..., 0].int()
    expected = in_float64(hidden, weight, targets, g, h)
    assert_close(run(file, strided, transposed, targets, g, h), expected, torch.float32)
    nothing = run(file, hidden[:0], weight, targets[:0], g[:0], h[:0])
    assert nothing[0].shape == nothing[1].shape == (0,) and nothing[2].shape == (0, 8)
    assert nothing[3].shape == (40, 8) and (nothing[3] == 0).all()


@pytest.mark.parametrize("mode", ["recompute", "stash"])
def test_the_operation_reaches_the_kernels_and_their_gradient(monkeypatch, mode):
    """From the schema through autograd, as a CUDA tensor would go."""
    monkeypatch.setattr(dispatch, "implementation", lambda name, device: "triton")
    monkeypatch.setattr(dispatch, "function_for", lambda name, x: triton.load(name))
    hidden, weight, targets, g, h = make_head(6, 40, torch.bfloat16, real=37)
    x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    arguments = (x, w, targets, 0.8, None, 37, 0, None, mode)
    logprob, entropy, _, stash = schemas.linear_logprob(*arguments)
    assert stash.shape == ((6, 48) if mode == "stash" else (0,))
    gradients = torch.autograd.grad(g @ logprob + h @ entropy, (x, w), retain_graph=True)
    expected = in_float64(hidden, weight, targets, g, h, temperature=0.8, vocab_size=37)
    assert_close((logprob.detach(), entropy.detach(), *gradients), expected, torch.bfloat16)

    constants = (logprob.detach() - 0.1, g, torch.ones(6))
    fused, _ = linear_policy_loss(x, w, targets, *constants, temperature=0.8, vocab_size=37)
    two_steps, _ = policy_loss(logprob, entropy, *constants)
    torch.testing.assert_close(fused, two_steps)
    scanned = segment_scan(logprob, 0.9, torch.tensor([0, 2, 6])).sum()
    for value in (fused, two_steps, scanned):
        gradients = torch.autograd.grad(value, (x, w), retain_graph=True)
        assert all(gradient.isfinite().all() for gradient in gradients)
