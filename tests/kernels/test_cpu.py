# SPDX-License-Identifier: Apache-2.0
"""The compiled operations against difflib and the reference; and life without them."""

import difflib
import functools
import itertools
import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from satori_fast.kernels import cpu, reference
from satori_fast.kernels.reference import POLICY_STATS, PolicyInputs, PolicyTerms

compiled = pytest.mark.skipif(
    not cpu.OPERATIONS, reason="satori_fast._C is missing: install with a C++17 compiler"
)


@st.composite
def token_pairs(draw):
    """Pairs that share runs, from few or many different tokens; some have 200 tokens and more:
    there autojunk wakes up.
    """
    alphabet = draw(st.sampled_from([1, 2, 3, 20, 2**40]))
    tokens = st.lists(st.integers(-1, alphabet), max_size=30)
    a, b, shared = draw(tokens), draw(tokens), draw(tokens)
    repeats = draw(st.sampled_from([1, 1, 8]))
    return (a + shared) * draw(st.integers(0, 2)), (shared * repeats + b) * draw(st.integers(1, 2))


@compiled
@given(pairs=st.lists(token_pairs(), max_size=4))
# Popular tokens start no match but extend one, even one of length 0.
@example(pairs=[([7] * 50, [7] * 250), ([1, 7, 7, 2], [7, 7, 1, 2] * 60)])
def test_similarity_equals_difflib_to_the_last_bit(pairs):
    a = [np.array(pair[0], dtype=np.int64) for pair in pairs]
    b = [np.array(pair[1], dtype=np.int64) for pair in pairs]
    for autojunk in (False, True):
        expected = [
            difflib.SequenceMatcher(None, x.tolist(), y.tolist(), autojunk).ratio()
            for x, y in zip(a, b, strict=True)
        ]
        assert cpu.sequence_similarity(a, b, autojunk=autojunk).tolist() == expected


def similarities(pairs, autojunk):
    """Ours and difflib's."""
    a, b = ([np.array(pair[side], dtype=np.int64) for pair in pairs] for side in (0, 1))
    expected = reference.sequence_similarity(a, b, autojunk=autojunk)
    return cpu.sequence_similarity(a, b, autojunk=autojunk).tolist(), expected.tolist()


# From rows compared in vectors (few different tokens) to rows that visit positions (many), with
# lengths around the 16 tokens of a vector and the 200 from which autojunk counts.
@compiled
@pytest.mark.parametrize("num_different", [2, 4, 30, 300, 5000])
@pytest.mark.parametrize("autojunk", [False, True])
def test_similarity_of_edited_copies(num_different, autojunk):
    generator = random.Random(num_different)
    pairs = []
    for length in (15, 16, 17, 33, 199, 200, 700):
        a = [generator.randrange(num_different) for _ in range(length)]
        b = list(a)
        for _ in range(1 + length // 10):
            at = generator.randrange(len(b) + 1)
            start = generator.randrange(length)
            b[at : at + generator.randrange(4)] = a[start : start + generator.randrange(9)]
        pairs += [(a, b), (b, a), (a, a[::-1])]
    ours, expected = similarities(pairs, autojunk)
    assert ours == expected


@compiled
@pytest.mark.parametrize("autojunk", [False, True])
def test_similarity_of_ten_thousand_random_pairs(autojunk):
    generator = random.Random(17)
    pairs = []
    for number in range(10_000):
        alphabet = "ab \n+é\U0001d538z"[: 1 + number % 8]
        a, b = (generator.choices(alphabet, k=generator.randrange(61)) for _ in range(2))
        # Some targets are long enough for autojunk.
        pairs.append(([ord(c) for c in a], [ord(c) for c in b] * (5 if number % 50 == 0 else 1)))
    ours, expected = similarities(pairs, autojunk)
    assert ours == expected


@compiled
def test_similarity_of_sequences_too_long_for_vectors_of_int16():
    a = list(range(33_000))
    b = a[20_000:] + a[:10_000] + [0] * 40
    ours, expected = similarities([(a, b), (b, a)], False)
    assert ours == expected


@compiled
@pytest.mark.slow
def test_similarity_of_real_text(data_dir):
    with (data_dir / "train" / "gsm8k_train.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(line)["answer"] for line in itertools.islice(file, 120)]
    characters = [[ord(c) for c in text] for text in texts]
    words: dict[str, int] = {}
    tokens = [[words.setdefault(w, len(words)) for w in text.split()] for text in texts]
    for sequences in (characters, tokens):
        for autojunk in (False, True):
            ours, expected = similarities(list(itertools.pairwise(sequences)), autojunk)
            assert ours == expected


@pytest.mark.parametrize("values", [[], [0, -1, 2**63 - 1, -(2**63)]])
def test_integer_array(values):
    assert cpu.integer_array(values).tolist() == values


@pytest.mark.parametrize("values", [[1.0], [None], ["1"], [2**63]])
def test_integer_array_refuses_what_is_not_an_integer(values):
    with pytest.raises((TypeError, OverflowError)):
        cpu.integer_array(values)


@pytest.fixture
def any_number_of_threads():
    """Runs a function on 1, 2 and 3 threads, twice each; returns the results."""
    before = torch.get_num_threads()

    def run(function):
        results = []
        for count in (1, 1, 2, 2, 3, 3):
            torch.set_num_threads(count)
            results.append(function())
        return results

    yield run
    torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reverse", [True, False])
# Up to 8 sequences are scanned at once: fewer, more, and of very different lengths.
@pytest.mark.parametrize("lengths", [[40], [7, 0, 30], [5] * 8, None])
def test_segment_scan_has_the_bits_of_the_reference(dtype, reverse, lengths, any_number_of_threads):
    generator = torch.Generator().manual_seed(0)
    random_lengths = torch.randint(0, 60, (40,), generator=generator)
    lengths = random_lengths if lengths is None else torch.tensor(lengths)
    boundaries = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
    x = torch.randn(int(boundaries[-1]), generator=generator).to(dtype)
    expected = reference.segment_scan(x, 0.97, boundaries, reverse=reverse)
    scan = functools.partial(cpu.segment_scan, x, 0.97, boundaries, reverse=reverse)
    for y in any_number_of_threads(scan):
        assert y.dtype == dtype and y.equal(expected)


@pytest.mark.parametrize("boundaries", [[0, 3, 2, 5], [1, 5], [0, 4], [0, 6]])
@pytest.mark.parametrize("module", [reference, pytest.param(cpu, marks=compiled)])
def test_segment_scan_refuses_boundaries_that_do_not_rise_to_the_length(module, boundaries):
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to 5"):
        module.segment_scan(torch.zeros(5), 0.9, torch.tensor(boundaries), reverse=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lengths", [[1], [5, 1, 0, 300, 2], [40] * 11, []])
@pytest.mark.parametrize("has_segments", [False, True])
def test_gae_has_the_bits_of_the_reference(dtype, lengths, has_segments):
    generator = torch.Generator().manual_seed(len(lengths))
    total = sum(lengths)
    values, rewards = torch.randn(2, total, generator=generator, dtype=dtype)
    boundaries = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    mask = torch.rand(total, generator=generator) < 0.8
    mask[boundaries[1:][boundaries[1:] > 0].long() - 1] = False
    values[~mask] = math.nan
    segment_ids = torch.where(mask, torch.arange(total) // 7, -1).int() if has_segments else None
    arguments = (values, rewards, mask, segment_ids, boundaries)
    expected = reference.gae(*arguments, gamma=0.99, decay=0.9)
    got = cpu.gae(*arguments, gamma=0.99, decay=0.9)
    assert all(a.equal(b) for a, b in zip(got, expected, strict=True))


PLAIN = PolicyTerms(0.2, 0.28, math.inf, 0.0, 0.0, 0.0, math.inf, "k3", "none")
FULL = PolicyTerms(0.2, 0.28, 3.0, 0.3, 0.01, 0.8, 1.25, "k3", "truncate")


def policy_tensors(num_tokens, dtype=torch.float64, spread=0.3, seed=0):
    """logprobs, entropies and PolicyInputs; about a quarter of the tokens has weight 0."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(7, num_tokens, generator=generator, dtype=torch.float64)
    old = -1.5 + noise[0]
    weights = noise[1].abs() * (noise[2] > -0.7)
    rollout, ref = old + 0.5 * spread * noise[3], old + spread * noise[4]
    tensors = (old, noise[5], weights, rollout, ref)
    logprobs, entropies = old + spread * noise[6], noise[2].abs()
    inputs = PolicyInputs(*(x.to(dtype) for x in tensors))
    return logprobs.to(dtype), entropies.to(dtype), inputs


@compiled
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("importance", ["none", "truncate", "mask"])
@pytest.mark.parametrize("terms", [PLAIN, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("num_tokens", [1, 255, 257, 9000])
def test_policy_loss_equals_the_reference(estimator, importance, terms, num_tokens):
    terms = terms._replace(kl_estimator=estimator, importance=importance)
    logprobs, entropies, inputs = policy_tensors(num_tokens, spread=0.8)
    # Beyond what a log-ratio is clamped to, on either side.
    logprobs[50::100] += 30
    logprobs[51::100] -= 25
    inputs.old_logprobs[52::100] -= 30
    ours = cpu.policy_loss(logprobs, entropies, inputs, terms)
    expected = reference.policy_loss(logprobs, entropies, inputs, terms)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-13 * num_tokens)
    if num_tokens == 9000 and importance != "none" and terms.clip_dual < math.inf:
        named = dict(zip(POLICY_STATS, ours[1].tolist(), strict=True))
        assert all(value > 0 for name, value in named.items() if name != "policy_loss")


@compiled
@pytest.mark.parametrize("absent", ["rollout_logprobs", "ref_logprobs", "both"])
def test_policy_loss_without_the_optional_inputs(absent):
    names = ("rollout_logprobs", "ref_logprobs") if absent == "both" else (absent,)
    logprobs, entropies, inputs = policy_tensors(500)
    inputs = inputs._replace(**dict.fromkeys(names))
    torch.testing.assert_close(
        cpu.policy_loss(logprobs, entropies, inputs, PLAIN),
        reference.policy_loss(logprobs, entropies, inputs, PLAIN),
    )


@compiled
@pytest.mark.parametrize("spread", [1e-4, 1e-2, 0.3, 5.0])
def test_policy_loss_in_float32_is_as_exact_as_the_reference(spread):
    logprobs, entropies, inputs = policy_tensors(20_000, torch.float32, spread)
    doubles = PolicyInputs(*(x.double() for x in inputs))
    truth = reference.policy_loss(logprobs.double(), entropies.double(), doubles, FULL)
    ours = cpu.policy_loss(logprobs, entropies, inputs, FULL)
    eager = reference.policy_loss(logprobs, entropies, inputs, FULL)
    for name, got, theirs, exact in zip(
        ("loss", "stats", "logprobs", "entropies"), ours, eager, truth, strict=True
    ):
        assert got.dtype == torch.float32
        if name == "stats":  # each on its own scale
            limit = 2 * (theirs - exact).abs() + 4e-7 * exact.abs()
        else:
            limit = 2 * (theirs - exact).abs().max() + 2e-7 * exact.abs().max()
        assert ((got - exact).abs() <= limit).all(), name


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k3_keeps_its_digits_near_zero(dtype):
    """exp(d) - 1 - d is d^2 / 2 + ...: computed as written it has none left at d = 1e-4."""
    d = torch.tensor([1e-3, -1e-3, 1e-4, 1e-5, -1e-6, 0.3, -0.34, 0.36, -0.5, 2.0], dtype=dtype)
    exact = (d.double().square() / 2 + d.double() ** 3 / 6).where(
        d.abs() < 0.1, torch.expm1(d.double()) - d.double()
    )
    zero, one = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
    for value, expected in zip(d.split(1), exact, strict=True):
        inputs = PolicyInputs(zero, one, one, None, value)
        stats = cpu.policy_loss(zero, zero, inputs, PLAIN)[1]
        assert stats[POLICY_STATS.index("kl")].item() == pytest.approx(expected.item(), rel=1e-6)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("terms", [PLAIN, FULL], ids=["plain", "full"])
def test_policy_loss_at_the_ends_of_the_exponential(dtype, terms):
    """One token at a time: log-ratios where exp is 0, huge, infinite or not a number."""
    edges = [0.0, 88.6, 88.8, 200.0, 709.7, 710.0, 1e30, math.inf, math.nan]
    for edge in [sign * edge for edge in edges for sign in (1, -1)]:
        for advantage in (1.0, -1.0, 0.0):
            logprob = torch.tensor([edge], dtype=dtype)
            zero, one = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
            for inputs in (
                PolicyInputs(zero, one * advantage, one, zero, zero),
                PolicyInputs(logprob, one * advantage, one, zero, logprob),
            ):
                ours = cpu.policy_loss(logprob, zero, inputs, terms)
                expected = reference.policy_loss(logprob, zero, inputs, terms)
                torch.testing.assert_close(ours, expected, equal_nan=True, rtol=1e-5, atol=1e-37)


@compiled
@pytest.mark.parametrize("anything", [math.nan, math.inf, -math.inf])
def test_masked_tokens_may_hold_anything(anything):
    logprobs, entropies, inputs = policy_tensors(1000, torch.float32)
    expected = cpu.policy_loss(logprobs, entropies, inputs, FULL)
    masked = inputs.loss_weights == 0
    for tensor in (logprobs, entropies, *inputs):
        if tensor is not inputs.loss_weights:
            tensor[masked] = anything
    ours = cpu.policy_loss(logprobs, entropies, inputs, FULL)
    assert all(a.equal(b) for a, b in zip(ours, expected, strict=True))


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_masked_by_importance_has_no_gradient_at_an_infinite_ratio(dtype):
    old = torch.tensor([-2000.0, -1.0], dtype=dtype)
    engine = policy = torch.full((2,), -1.0, dtype=dtype)
    advantages, weights = torch.tensor([-1.0, 1.0], dtype=dtype), torch.ones(2, dtype=dtype)
    inputs = PolicyInputs(old, advantages, weights, engine, None)
    terms = FULL._replace(kl_coefficient=0.0, clip_dual=math.inf, importance="mask")
    for module in (cpu, reference):
        loss, _, gradient, _ = module.policy_loss(policy, torch.zeros_like(old), inputs, terms)
        assert loss.item() == -1 and gradient.tolist() == [0, -1]


@pytest.mark.parametrize("num_tokens", [0, 300])
def test_no_loss_token_gives_zeros(num_tokens):
    logprobs, entropies, inputs = policy_tensors(num_tokens)
    inputs.loss_weights.zero_()
    outputs = cpu.policy_loss(logprobs, entropies, inputs, FULL)
    assert [x.shape for x in outputs] == [(), (len(POLICY_STATS),), (num_tokens,), (num_tokens,)]
    assert all((x == 0).all() for x in outputs)


@compiled
def test_policy_loss_of_strided_and_half_precision_inputs():
    logprobs, entropies, inputs = policy_tensors(700, torch.bfloat16)
    strided = [torch.stack([x, x], dim=1)[:, 1] for x in (logprobs, entropies, *inputs)]
    assert not strided[0].is_contiguous()
    ours = cpu.policy_loss(*strided[:2], PolicyInputs(*strided[2:]), FULL)
    expected = reference.policy_loss(logprobs, entropies, inputs, FULL)
    assert [x.dtype for x in ours] == [torch.float32] * 4
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_policy_loss_has_the_same_bits_on_any_number_of_threads(dtype, any_number_of_threads):
    logprobs, entropies, inputs = policy_tensors(30_000, dtype)
    run = functools.partial(cpu.policy_loss, logprobs, entropies, inputs, FULL)
    first, *others = any_number_of_threads(run)
    for outputs in others:
        assert all(a.equal(b) for a, b in zip(outputs, first, strict=True))


@compiled
@given(lengths=st.lists(st.integers(0, 40), max_size=80), room=st.integers(0, 20))
def test_pack_bins_equals_the_reference(lengths, room):
    values = np.array(lengths, dtype=np.int64)
    capacity = max(lengths, default=1) + room
    assert cpu.pack_bins(values, capacity).tolist() == (
        reference.pack_bins(values, capacity).tolist()
    )


def test_without_the_compiled_module_the_reference_runs_with_one_warning():
    script = """
import sys, warnings
sys.modules["satori_fast._C"] = None  # what an installation without a compiler looks like
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    from satori_fast.kernels import implementation, pack_bins, segment_scan, sequence_similarity
    x = segment_scan(torch.ones(3, requires_grad=True), 0.5, torch.tensor([0, 3]))
    x.sum().backward()
    assert x.tolist() == [1.75, 1.5, 1.0], x
    assert pack_bins([2, 1, 2], 3).tolist() == [0, 0, 1]
    assert sequence_similarity([[1, 2]], [[2, 3]]).tolist() == [0.5]
    assert implementation("segment_scan", "cpu") == "reference"
ours = [w for w in caught if "satori_fast" in str(w.message)]
assert len(ours) == 1 and ours[0].category is RuntimeWarning, caught
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
