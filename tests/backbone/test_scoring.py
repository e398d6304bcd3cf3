# SPDX-License-Identifier: Apache-2.0
"""Log-probs out of a forward pass, and those that an update finds on its way."""

from __future__ import annotations

import pytest
import torch

from satori_fast.backbone.optimizer import OptimizerSettings
from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.backbone.scoring import LateScoring, logprob_head
from satori_fast.backbone.step import Learner, build_learner, score, update
from satori_fast.types import PackedBatch
from tests.tiny_models import ImitationLoss, ones, random_batch, tiny_model


@pytest.fixture
def policy() -> Learner:
    initialize_parallel(seed=0)
    model = tiny_model("qwen2_tied")
    settings = OptimizerSettings(learning_rate=1e-2)
    return build_learner(model.config, weights=model.state_dict(), optimizer=settings)


def test_targets_without_a_loss_have_none() -> None:
    initialize_parallel(seed=0)
    generator = torch.Generator().manual_seed(0)
    batch = random_batch([5, 3], vocab_size=11)
    hidden, weight = (torch.randn(n, 4, generator=generator) for n in (8, 11))
    shard = {"vocab_size": 11, "vocab_start": 0, "group": None}
    found = logprob_head(batch, temperature=2.0)(hidden, weight, **shard)
    expected = (hidden @ weight.T / 2.0).log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
    torch.testing.assert_close(found, torch.where(batch.loss_mask, expected, 0.0))


def test_an_update_scores_its_first_minibatch_under_the_weights_before_it(policy: Learner) -> None:
    batches = [random_batch([9, 4], seed, minibatch=seed // 2) for seed in range(4)]
    expected = score(policy, batches, temperature=0.8)
    given = [
        batch if batch.minibatch == 0 else batch.annotated(old_logprobs=scores)
        for batch, scores in zip(batches, expected, strict=True)
    ]
    calls: list[list[PackedBatch]] = []
    update(policy, None, given, ones(given), ImitationLoss(), late=LateScoring(0.8, calls.append))
    (scored,) = calls
    for batch, before, scores in zip(scored, batches, expected, strict=True):
        assert batch.tokens is before.tokens
        torch.testing.assert_close(batch.require("old_logprobs"), scores, atol=1e-6, rtol=1e-6)


def test_whoever_compares_them_can_stop_the_step(policy: Learner) -> None:
    before = {name: tensor.clone() for name, tensor in policy.hf_weights()}

    def refuse(_: list[PackedBatch]) -> None:
        raise ValueError("engine and trainer differ")

    batch = random_batch([9, 4])
    late = LateScoring(1.0, refuse)
    with pytest.raises(ValueError, match="differ"):
        update(policy, None, [batch], ones([batch]), ImitationLoss(), late=late)
    for name, tensor in policy.hf_weights():
        assert torch.equal(before[name], tensor), name
