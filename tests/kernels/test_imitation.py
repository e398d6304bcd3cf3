# SPDX-License-Identifier: Apache-2.0
"""Imitation with a KL over the vocabulary, against torch's own softmax in float64; its memory."""

from __future__ import annotations

import datetime
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.measure import peak_bytes
from satori_fast.kernels import imitation, linear_logprob
from satori_fast.kernels.imitation import Anchor, linear_imitation_loss
from tests.kernels.test_reference import LargestTensor

COEFFICIENT = 0.3


def make_problem(
    num_tokens: int, hidden_size: int, vocab: int, *, padding: int = 0, scale: float = 0.3
) -> tuple[Tensor, Tensor, Tensor, Tensor, Anchor]:
    """hidden, weight, targets, loss weights, and an anchor that is near but not the same."""
    generator = torch.Generator().manual_seed(num_tokens)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    hidden, weight = noise(num_tokens, hidden_size), scale * noise(vocab + padding, hidden_size)
    targets = torch.randint(vocab, (num_tokens,), generator=generator)
    loss_weights = torch.rand(num_tokens, generator=generator)
    anchor = Anchor(
        hidden + 0.3 * noise(*hidden.shape), weight + 0.1 * scale * noise(*weight.shape)
    )
    if padding:
        weight[vocab:] = math.nan
        anchor.weight[vocab:] = math.nan
    return hidden, weight, targets, loss_weights, anchor


def dense(
    hidden: Tensor, weight: Tensor, targets: Tensor, loss_weights: Tensor, anchor: Anchor
) -> tuple[Tensor, Tensor, Tensor]:
    """nll, KL and entropy as torch's own softmax has them."""
    logp = (hidden @ weight.T).log_softmax(dim=1)
    kl = torch.nn.functional.kl_div(
        (anchor.hidden @ anchor.weight.T).log_softmax(dim=1),
        logp,
        reduction="none",
        log_target=True,
    )
    nll = -logp.gather(1, targets[:, None])[:, 0]
    entropy = -(logp.exp() * logp).sum(dim=1)
    return (
        (loss_weights * nll).sum(),
        (loss_weights * kl.sum(dim=1)).sum(),
        (loss_weights * entropy).sum(),
    )


@pytest.mark.parametrize(
    ("num_tokens", "hidden_size", "vocab", "padding"),
    [(1, 3, 2, 0), (50, 16, 13, 3), (300, 64, 4099, 5), (40, 32, 32_000, 0)],
)
def test_values_and_gradients_are_those_of_the_dense_formula(
    num_tokens: int, hidden_size: int, vocab: int, padding: int
) -> None:
    hidden, weight, *rest = make_problem(num_tokens, hidden_size, vocab, padding=padding)
    hidden.requires_grad_()
    weight.requires_grad_()
    loss, sums = linear_imitation_loss(
        hidden, weight, *rest, kl_coefficient=COEFFICIENT, vocab_size=vocab
    )
    # The gradient of twice the loss: what comes in is not always 1.
    gradients = torch.autograd.grad(2 * loss, (hidden, weight))

    wide = hidden.detach().double().requires_grad_()
    wide_weight = weight.detach()[:vocab].double().requires_grad_()
    targets, loss_weights, anchor = rest
    wide_anchor = Anchor(anchor.hidden.double(), anchor.weight[:vocab].double())
    expected = dense(wide, wide_weight, targets, loss_weights.double(), wide_anchor)
    # A KL near 0 is a difference of logits that float32 has rounded.
    assert sums.tolist() == pytest.approx([e.item() for e in expected], rel=1e-6, abs=1e-7)
    total = expected[0] + COEFFICIENT * expected[1]
    assert loss.item() == pytest.approx(total.item(), rel=1e-6)
    wanted = torch.autograd.grad(2 * total, (wide, wide_weight))
    assert not gradients[1][vocab:].any()
    for actual, truth in zip((gradients[0], gradients[1][:vocab]), wanted, strict=True):
        assert float((actual.double() - truth).norm()) <= 1e-6 * float(truth.norm())
    assert not sums.requires_grad


def test_a_kl_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2): KL = 3/4 log 3/2 + 1/4 log 1/2."""
    hidden = torch.eye(2, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]], dtype=torch.float64)
    anchor = Anchor(torch.zeros(2, 2, dtype=torch.float64), weight)
    loss, sums = linear_imitation_loss(
        hidden,
        weight,
        torch.zeros(2, dtype=torch.int64),
        torch.tensor([1.0, 0.0]),
        anchor,
        kl_coefficient=2.0,
        vocab_size=2,
    )
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert sums.tolist() == pytest.approx([-math.log(0.75), kl, 0.562335], abs=1e-6)
    assert loss.item() == pytest.approx(-math.log(0.75) + 2 * kl)
    # dKL/dl_0 = p_0 (log 3/2 - KL); the row of the weight is log 3.
    slope = -0.25 + 2 * 0.75 * (math.log(1.5) - kl)
    assert torch.autograd.grad(loss, hidden)[0].tolist() == [
        pytest.approx([slope * math.log(3), 0.0]),
        [0.0, 0.0],
    ]


def test_the_kl_of_a_model_to_itself_is_nothing() -> None:
    hidden, weight, targets, loss_weights, _ = make_problem(70, 24, 501, padding=3)
    hidden.requires_grad_()
    loss, sums = linear_imitation_loss(
        hidden,
        weight,
        targets,
        loss_weights,
        Anchor(hidden.detach(), weight),
        kl_coefficient=COEFFICIENT,
        vocab_size=501,
    )
    assert sums[1] == 0.0
    logprobs, _ = linear_logprob(hidden, weight, targets, vocab_size=501)
    plain = torch.autograd.grad(-(loss_weights * logprobs).sum(), hidden)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, hidden)[0], plain, rtol=1e-5, atol=1e-6)


def test_impossible_words_have_no_part() -> None:
    """A word with the logit -inf under the policy, and one under both."""
    hidden, weight, targets, loss_weights, _ = make_problem(9, 4, 6)
    hidden, anchor_hidden = hidden.abs(), hidden.abs() + 0.1
    anchor_weight = weight + 0.05
    weight[5] = anchor_weight[5] = weight[4] = -math.inf
    targets %= 4
    hidden.requires_grad_()
    anchor = Anchor(anchor_hidden, anchor_weight)
    given = (targets, loss_weights, anchor)
    loss, sums = linear_imitation_loss(hidden, weight, *given, kl_coefficient=1.0, vocab_size=6)
    logp = (hidden.detach() @ weight.T).log_softmax(1)[:, :4].double()
    logq = (anchor.hidden @ anchor.weight.T).log_softmax(1)[:, :4].double()
    kl = (loss_weights * (logp.exp() * (logp - logq)).sum(1)).sum()
    assert sums[1].item() == pytest.approx(kl.item(), rel=1e-5)
    assert loss.isfinite()


def test_half_precision_is_computed_in_single() -> None:
    hidden, weight, targets, loss_weights, anchor = make_problem(40, 32, 300)
    hidden, weight = hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
    anchor = Anchor(anchor.hidden.bfloat16(), anchor.weight.bfloat16())
    given = (targets, loss_weights)
    loss, sums = linear_imitation_loss(
        hidden, weight, *given, anchor, kl_coefficient=COEFFICIENT, vocab_size=300
    )
    wide_anchor = Anchor(anchor.hidden.double(), anchor.weight.double())
    expected = dense(hidden.double(), weight.double(), *given, wide_anchor)
    assert loss.dtype == sums.dtype == torch.float32
    assert sums.tolist() == pytest.approx([e.item() for e in expected], rel=1e-5)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 2


def test_no_tokens_give_zero_and_zero_gradients() -> None:
    hidden, weight, targets, loss_weights, anchor = make_problem(4, 3, 7)
    hidden, weight = hidden[:0].requires_grad_(), weight.requires_grad_()
    anchor = Anchor(anchor.hidden[:0], anchor.weight)
    loss, sums = linear_imitation_loss(
        hidden, weight, targets[:0], loss_weights[:0], anchor, kl_coefficient=1.0, vocab_size=7
    )
    assert loss.item() == 0.0 and not sums.any()
    assert not torch.autograd.grad(loss, weight)[0].any()


def test_the_gradients_can_be_taken_once() -> None:
    hidden, weight, *rest = make_problem(4, 3, 7)
    hidden.requires_grad_()
    loss, _ = linear_imitation_loss(hidden, weight, *rest, kl_coefficient=1.0, vocab_size=7)
    torch.autograd.grad(loss, hidden, retain_graph=True)
    with pytest.raises(RuntimeError, match="taken already"):
        torch.autograd.grad(loss, hidden)


def step(
    hidden: Tensor, weight: Tensor, targets: Tensor, loss_weights: Tensor, anchor: Anchor
) -> None:
    loss, _ = linear_imitation_loss(
        hidden,
        weight,
        targets,
        loss_weights,
        anchor,
        kl_coefficient=COEFFICIENT,
        vocab_size=len(weight),
    )
    torch.autograd.grad(loss, (hidden, weight))


def test_no_tensor_of_tokens_times_vocabulary_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imitation, "_CHUNK_BYTES", 0)
    hidden, weight, *rest = make_problem(300, 8, 500)
    with LargestTensor() as largest:
        step(hidden.requires_grad_(), weight.requires_grad_(), *rest)
    assert largest.num_elements == imitation._HOST_TOKENS * 500


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory needs /proc")
def test_4096_tokens_and_32000_words_add_at_most_64_mib() -> None:
    """Beyond the loss without a KL, and in whole not much more: 500 MiB would be one set of logits.
    The high-water mark of the process, gradients included."""
    hidden, weight, *rest = make_problem(4096, 16, 32_000)
    hidden.requires_grad_()
    weight.requires_grad_()
    targets, loss_weights, _ = rest

    def without() -> None:
        logprobs, _ = linear_logprob(hidden, weight, targets)
        torch.autograd.grad(-(loss_weights * logprobs).sum(), (hidden, weight))

    extra = peak_bytes(lambda: step(hidden, weight, *rest)) - peak_bytes(without)
    assert extra <= 64 * 2**20


# Unequal shards; rank 1 holds the columns beyond the vocabulary.
VOCAB, SHARDS = 13, (6, 10)


def outcome(part: slice = slice(None), **shard: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, sums, and the gradients of the hidden states and of these rows of the weight."""
    hidden, weight, targets, loss_weights, anchor = make_problem(30, 8, VOCAB, padding=3)
    hidden, weight = hidden.requires_grad_(), weight[part].clone().requires_grad_()
    loss, sums = linear_imitation_loss(
        hidden,
        weight,
        targets,
        loss_weights,
        Anchor(anchor.hidden, anchor.weight[part]),
        kl_coefficient=COEFFICIENT,
        vocab_size=VOCAB,
        **shard,
    )
    return loss, sums, *torch.autograd.grad(loss, (hidden, weight))


def sharded_worker(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    part = slice(0, SHARDS[0]) if rank == 0 else slice(SHARDS[0], sum(SHARDS))
    *whole, whole_weight = outcome()
    *sharded, of_weight = outcome(part, group=dist.group.WORLD)
    torch.testing.assert_close(sharded, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(of_weight, whole_weight[part], rtol=1e-5, atol=1e-6)
    dist.destroy_process_group()


@pytest.mark.ranks
def test_shards_of_a_tensor_parallel_group_give_the_whole(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(sharded_worker, args=(tmp_path,), nprocs=2)
