# SPDX-License-Identifier: Apache-2.0
"""The policy loss of the output layer, in the interpreter, against the reference in float64."""

import datetime
import math

import pytest
import torch
import torch.distributed as dist

from satori_fast.kernels import reference, triton
from satori_fast.kernels.reference import POLICY_STATS, PolicyInputs, PolicyTerms
from satori_fast.kernels.triton import head as row_kernels
from satori_fast.kernels.triton import linear_policy_loss as file
from satori_fast.kernels.triton import products
from tests.kernels.extremes import (
    OFFSETS,
    assert_error_of_stored_logits,
    assert_impossible_words_are_harmless,
)
from tests.kernels.triton.conftest import interpreted

TERMS = PolicyTerms(0.2, 0.3, 3.0, 0.1, 0.02, 0.5, 2.0, "k3", "truncate")
# Relative error in the norm; the interpreter cuts bfloat16 off where a GPU rounds.
GRADIENT_ERROR = {torch.float32: 3e-6, torch.bfloat16: 9e-3, torch.float16: 1e-3}


@pytest.fixture(autouse=True)
def small_tiles(interpreter, resize):
    rows = (row_kernels.STATISTICS, *row_kernels.GRADIENTS.values(), *file.ROWS.values())
    resize(rows, LANES=8)


def make_problem(num_tokens, vocab, dtype=torch.float32, *, real=None, absent=()):
    """hidden, weight, targets, inputs. Tokens of weight 0 and phantom columns hold NaN."""
    generator = torch.Generator().manual_seed(num_tokens + vocab)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    hidden, weight = noise(num_tokens, 8).to(dtype), noise(vocab, 8).to(dtype)
    targets = torch.randint(real or vocab, (num_tokens,), generator=generator)
    logits = (hidden.double() @ weight[:real].double().T).log_softmax(1)
    logprobs = logits.gather(1, targets[:, None]).squeeze(1).float()
    old = logprobs + 0.5 * noise(num_tokens)
    fields = [old, 2 * noise(num_tokens), old + noise(num_tokens), logprobs + noise(num_tokens)]
    weights = torch.rand(num_tokens, generator=generator)
    dead = torch.arange(num_tokens) % 4 == 3
    weights[dead], targets[dead], hidden[dead] = 0, -100, math.nan
    for field in fields:
        field[dead] = math.nan
    weight[len(weight) if real is None else real :] = math.nan
    old, advantages, rollout, ref = fields
    inputs = PolicyInputs(old, advantages, weights, rollout, ref)
    return hidden, weight, targets, inputs._replace(**dict.fromkeys(absent))


def run(function, hidden, weight, targets, inputs, terms=TERMS, **how):
    how = {"temperature": 1.0, "vocab_size": None, "group": None} | how
    how = {"need_hidden": True, "need_weight": True} | how
    return function(hidden, weight, targets, inputs, terms, **how)


def in_float64(hidden, weight, targets, inputs, terms=TERMS, **how):
    inputs = PolicyInputs(*(None if t is None else t.double() for t in inputs))
    function = reference.linear_policy_loss
    return run(function, hidden.double(), weight.double(), targets, inputs, terms, **how)


def assert_close(got, expected, dtype):
    for value, truth in zip(got[:2], expected[:2], strict=True):
        assert value.dtype == torch.float32 and value.shape == truth.shape
        torch.testing.assert_close(value.double(), truth.double(), atol=2e-5, rtol=2e-5)
    for value, truth in zip(got[2:], expected[2:], strict=True):
        assert value.dtype == dtype and value.isfinite().all()
        assert (value.double() - truth).norm() <= GRADIENT_ERROR[dtype] * truth.norm() + 1e-7


SIZES = [(1, 1, None), (3, 31, None), (2, 64, 33), (19, 127, None), (9, 333, 320)]


@pytest.mark.parametrize(("num_tokens", "vocab", "real"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_reference_in_float64(num_tokens, vocab, real, dtype):
    problem = make_problem(num_tokens, vocab, dtype, real=real)
    how = {"temperature": torch.linspace(0.5, 2.0, num_tokens), "vocab_size": real}
    expected = in_float64(*problem, **how)
    how["chunk_bytes"] = 5 * vocab * 4
    got = run(file.linear_policy_loss, *problem, **how)
    assert_close(got, expected, dtype)
    dead = problem[3].loss_weights == 0
    assert (got[2][dead] == 0).all() and (got[3][real or vocab :] == 0).all()
    again = run(file.linear_policy_loss, *problem, **how)
    assert all(a.equal(b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("importance", ["none", "truncate", "mask"])
def test_every_choice(estimator, importance):
    terms = TERMS._replace(kl_estimator=estimator, importance=importance)
    problem = make_problem(40, 40)
    expected = in_float64(*problem, terms, temperature=0.8)
    got = run(file.linear_policy_loss, *problem, terms, temperature=0.8)
    assert_close(got, expected, torch.float32)
    named = dict(zip(POLICY_STATS, got[1].tolist(), strict=True))
    assert named["clip_fraction_low"] > 0 and named["clip_fraction_high"] > 0


def test_absent_inputs_and_terms_that_are_off():
    terms = PolicyTerms(0.2, 0.2, math.inf, 0.0, 0.0, 0.0, math.inf, "k3", "none")
    problem = make_problem(8, 40, absent=("rollout_logprobs", "ref_logprobs"))
    got = run(file.linear_policy_loss, *problem, terms)
    assert_close(got, in_float64(*problem, terms), torch.float32)


@pytest.fixture
def wide_tiles(small_tiles, resize):
    """Few turns of a row over its tiles: the interpreter pays for each."""
    resize(file.ROWS.values(), LANES=128)


@pytest.mark.usefixtures("wide_tiles")
@pytest.mark.parametrize(("offset", "temperature"), OFFSETS)
def test_an_offset_of_all_logits_costs_no_digits(offset, temperature):
    assert_error_of_stored_logits(triton.load, offset, temperature, "policy")


@pytest.mark.usefixtures("wide_tiles")
def test_a_word_of_logit_minus_infinity():
    assert_impossible_words_are_harmless(triton.load, "policy")


def test_only_what_is_needed():
    problem = make_problem(8, 40)
    full = run(file.linear_policy_loss, *problem)
    for needs in ((False, False), (True, False), (False, True)):
        how = dict(zip(("need_hidden", "need_weight"), needs, strict=True))
        outputs = run(file.linear_policy_loss, *problem, **how)
        torch.testing.assert_close(outputs[:2], full[:2])
        for gradient, truth, is_needed in zip(outputs[2:], full[2:], needs, strict=True):
            assert gradient.equal(truth) if is_needed else gradient is None


@pytest.mark.parametrize("num_tokens", [0, 6])
def test_no_loss_token_gives_zeros(num_tokens):
    hidden, weight, targets, inputs = make_problem(num_tokens, 40)
    inputs.loss_weights.zero_()
    outputs = run(file.linear_policy_loss, hidden, weight, targets, inputs)
    assert [tuple(output.shape) for output in outputs] == [
        (), (len(POLICY_STATS),), (num_tokens, 8), (40, 8),
    ]  # fmt: skip
    assert all((output == 0).all() for output in outputs)


def test_peak_memory_at_the_size_of_a_7b_model():
    """The arithmetic of `products`: what lives at once, beyond inputs and gradients."""
    num_tokens, hidden_size, vocab, gib = 32768, 3584, 152064, 2**30
    (chunk, *rest) = products.row_chunks(num_tokens, vocab, products.CHUNK_BYTES)
    rows = chunk.stop - chunk.start
    assert rows == 2304 and rest[-1].stop == num_tokens
    result, total = 2 * vocab * hidden_size, 4 * vocab * hidden_size
    while_working = total - result + 4 * rows * vocab + (2 + 4) * rows * hidden_size
    per_token = 64 * num_tokens
    assert max(while_working, total) + per_token < 2.5 * gib


# Unequal shards; with the second pair, rank 1 holds phantom columns only.
SHARD_SIZES = ([50, 25], [70, 5])


def worker(rank, folder, problem, terms, expected):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    hidden, weight, targets, inputs = problem
    for sizes in SHARD_SIZES:
        shard = weight.split(sizes)[rank]
        with interpreted():
            got = run(
                file.linear_policy_loss, hidden, shard, targets, inputs, terms, temperature=0.8,
                vocab_size=70, group=dist.group.WORLD, chunk_bytes=4 * 5 * max(sizes),
            )  # fmt: skip
        own = expected[3].split(sizes)[rank]
        assert_close(got, (*expected[:3], own), torch.float32)
    dist.destroy_process_group()


@pytest.mark.ranks
def test_two_shards(tmp_path):
    problem = make_problem(9, 75, real=70)
    expected = in_float64(*problem, temperature=0.8, vocab_size=70)
    arguments = (tmp_path, problem, TERMS, expected)
    torch.multiprocessing.spawn(worker, args=arguments, nprocs=2)
