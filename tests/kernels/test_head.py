# SPDX-License-Identifier: Apache-2.0
"""Shards of a vocabulary, without processes: cut the columns, merge the statistics, sum the
gradients. The truth is the dense softmax in float64."""

import pytest
import torch

from satori_fast.kernels import head

NUM_TOKENS, HIDDEN, VOCAB = 6, 5, 11


def make_problem():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(NUM_TOKENS, HIDDEN, generator=generator, dtype=torch.double)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator, dtype=torch.double)
    targets = torch.randint(VOCAB, (NUM_TOKENS,), generator=generator)
    return hidden, weight, targets


# One shard; two and three of unequal sizes; one with a single column.
@pytest.mark.parametrize("sizes", [[11], [7, 4], [5, 1, 5]])
def test_merged_shards_equal_the_dense_softmax(sizes):
    hidden, weight, targets = make_problem()
    every = slice(0, NUM_TOKENS)
    heads = [
        head.Head.of(shard, start, None, 0.7)
        for shard, start in zip(
            weight.split(sizes), torch.tensor([0, *sizes]).cumsum(0).tolist(), strict=False
        )
    ]
    statistics = torch.stack(
        [head.shard_statistics(h.logits(hidden, every), targets - h.start) for h in heads]
    )
    logprob, entropy, partition = head.merge_statistics(statistics)

    dense_hidden, dense_weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = dense_hidden @ dense_weight.T / 0.7
    log_probabilities = logits.log_softmax(dim=1)
    expected = log_probabilities.gather(1, targets[:, None]).squeeze(1)
    expected_entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=1)
    torch.testing.assert_close(logprob, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    maximum, total = partition.unbind(dim=1)
    torch.testing.assert_close(maximum, logits.amax(dim=1))
    torch.testing.assert_close(maximum + total.log(), logits.logsumexp(dim=1))

    g, h = torch.linspace(-1, 1, NUM_TOKENS).double(), torch.linspace(2, -1, NUM_TOKENS).double()
    (expected @ g + expected_entropy @ h).backward()
    grad_hidden, grad_weights = torch.zeros_like(hidden), []
    for shard in heads:
        gradients = head.HeadGradients(hidden, shard.weight, need_hidden=True, need_weight=True)
        rows = torch.arange(NUM_TOKENS)
        d = head.logit_gradients(
            shard.logits(hidden, rows), targets - shard.start, entropy, partition, g, h
        )
        gradients.add(d, hidden, shard, rows)
        part, grad_weight = gradients.finish(None)
        grad_hidden += part
        grad_weights.append(grad_weight)
    torch.testing.assert_close(grad_hidden, dense_hidden.grad)
    torch.testing.assert_close(torch.cat(grad_weights), dense_weight.grad)


def test_a_shard_of_padding_alone_changes_nothing():
    hidden, weight, targets = make_problem()
    logits = hidden @ weight.T
    real = head.shard_statistics(logits, targets)
    nothing = head.shard_statistics(logits[:, :0], targets - VOCAB)
    expected = head.merge_statistics(real[None])
    for order in ([real, nothing], [nothing, real]):
        torch.testing.assert_close(head.merge_statistics(torch.stack(order)), expected)


def test_chunks_tile_the_tokens_and_respect_the_budget():
    hidden = torch.zeros(0, 1)
    parts = list(head.chunks(10, 100, hidden, 3 * 100 * 4))
    assert parts == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]
    # A single row is never cut.
    assert len(list(head.chunks(10, 100, hidden, 1))) == 10
    assert list(head.chunks(0, 100, hidden, 1)) == []
    assert list(head.chunks(10, 100, hidden, None)) == [slice(0, 10)]
