# SPDX-License-Identifier: Apache-2.0
"""The embedded engine against transformers' generate, the trainer's log-probs, and statistics."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from satori_fast.backbone.model import PolicyModel
from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.backbone.step import Learner, build_learner, score
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.data.prompts import PromptRenderer
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.rollout import embedded_engine
from satori_fast.rollout.embedded_engine import EmbeddedEngine, sample, stream_uniform
from satori_fast.rollout.engine import Completion, Request, SamplingParams, collect
from satori_fast.types import Problem
from tests.tiny_models import NAMES, VOCAB_SIZE, reference_logits, tiny_model

WORDS = [f"w{i}" for i in range(VOCAB_SIZE - 5)]
PROMPT_LENGTHS = (3, 17, 9, 9, 30)

PADDED = Problem("1", "w1 w2 w3", "1")
SPREAD = SamplingParams(temperature=2.0, max_new_tokens=40, num_samples=8, seed=7)


@pytest.fixture(autouse=True)
def one_process() -> None:
    initialize_parallel(seed=0)


def renderer() -> PromptRenderer:
    return PromptRenderer(build_word_tokenizer(WORDS), "{question}", max_prompt_tokens=64)


def policy_of(name: str, **overrides: Any) -> tuple[Learner, torch.nn.Module]:
    model = tiny_model(name, **overrides)
    return build_learner(model.config, weights=model.state_dict()), model


def engine_of(policy: Learner, *, max_slots: int = 8, max_seqlen: int = 96) -> EmbeddedEngine:
    return EmbeddedEngine.of_policy(
        policy, renderer=renderer(), max_seqlen=max_seqlen, max_slots=max_slots
    )


def random_requests(lengths: tuple[int, ...], *, new_tokens: int, stop: tuple[int, ...] = ()):
    rng = np.random.default_rng(0)
    return [
        Request(tuple(int(t) for t in rng.integers(5, VOCAB_SIZE, n)), new_tokens, stop, seed=i)
        for i, n in enumerate(lengths)
    ]


def run(engine: EmbeddedEngine, requests: list[Request], sampling: SamplingParams):
    done: dict[int, Completion] = dict(engine.generate(requests, sampling))
    assert sorted(done) == list(range(len(requests)))
    return [done[i] for i in range(len(requests))]


def greedy_by_transformers(model: Any, request: Request) -> list[int]:
    out = model.generate(
        torch.tensor([request.prompt_ids]),
        attention_mask=torch.ones(1, len(request.prompt_ids), dtype=torch.long),
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        eos_token_id=list(request.stop_ids) or None,
        pad_token_id=0,
    )
    return out[0, len(request.prompt_ids) :].tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("max_slots", [2, 8])
def test_greedy_equals_transformers(name: str, max_slots: int) -> None:
    # Two slots for five requests of different lengths: slots are refilled while others decode.
    policy, model = policy_of(name)
    requests = random_requests(PROMPT_LENGTHS, new_tokens=20)
    got = run(engine_of(policy, max_slots=max_slots), requests, SamplingParams(temperature=0))
    for request, completion in zip(requests, got, strict=True):
        assert completion.tokens.tolist() == greedy_by_transformers(model, request)
        assert completion.finish == "length"


def test_stop_id_ends_a_request_and_is_kept() -> None:
    policy, model = policy_of("qwen2_tied")
    free = run(engine_of(policy), random_requests(PROMPT_LENGTHS, new_tokens=20), SamplingParams(0))
    stop = int(free[1].tokens[7])
    requests = random_requests(PROMPT_LENGTHS, new_tokens=20, stop=(stop,))
    got = run(engine_of(policy, max_slots=3), requests, SamplingParams(temperature=0))
    for request, completion in zip(requests, got, strict=True):
        assert completion.tokens.tolist() == greedy_by_transformers(model, request)
        stopped = completion.tokens[-1] == stop
        assert completion.finish == ("stop" if stopped else "length")
        assert stop not in completion.tokens[:-1]
    assert got[1].finish == "stop"


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_equal_the_trainers(temperature: float) -> None:
    policy, _ = policy_of("qwen2")
    problems = [Problem(str(n), " ".join(WORDS[:n]), "1") for n in (4, 11, 25)]
    sampling = SamplingParams(temperature=temperature, max_new_tokens=30, num_samples=3, seed=7)
    trajectories = collect(engine_of(policy, max_slots=4), problems, sampling).trajectories
    packing = PackingSpec(max_tokens_per_microbatch=256, num_minibatches=1)
    batches = pack(trajectories, None, packing, "token")
    scores = score(policy, batches, temperature=temperature)
    for batch, logprobs in zip(batches, scores, strict=True):
        difference = (logprobs - batch.rollout_logprobs)[batch.loss_mask]
        assert difference.abs().max() < 1e-5


def test_logits_of_half_precision_weights_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("qwen2").to(torch.bfloat16)
    policy = build_learner(model.config, weights=model.state_dict(), dtype=torch.bfloat16)
    seen: list[Tensor] = []
    draw = embedded_engine.sample

    def watched(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        seen.append(logits.clone())
        return draw(logits, *rest)

    monkeypatch.setattr(embedded_engine, "sample", watched)
    run(engine_of(policy), random_requests((5, 9), new_tokens=6), SamplingParams(temperature=1.0))
    logits = torch.cat(seen)
    assert logits.dtype == torch.float32
    assert (logits.bfloat16().float() != logits).float().mean() > 0.9


@pytest.mark.parametrize("name", ["qwen2", "qwen2_tied"])
def test_padding_of_the_vocabulary_is_never_sampled_nor_in_the_trainers_softmax(name: str) -> None:
    policy, model = policy_of(name)
    num_tokens, temperature = VOCAB_SIZE - 40, 2.0
    free = collect(engine_of(policy), [PADDED], SPREAD).trajectories
    assert max(t.response_tokens.max() for t in free) >= num_tokens
    assert isinstance(policy.module, PolicyModel)
    policy.module.limit_vocabulary(num_tokens)
    trajectories = collect(engine_of(policy), [PADDED], SPREAD).trajectories
    assert max(t.response_tokens.max() for t in trajectories) < num_tokens
    packing = PackingSpec(max_tokens_per_microbatch=256, num_minibatches=1)
    batches = pack(trajectories, None, packing, "token")
    scores = score(policy, batches, temperature=temperature)
    for batch, logprobs in zip(batches, scores, strict=True):
        mask = batch.loss_mask
        assert (logprobs - batch.rollout_logprobs)[mask].abs().max() < 1e-5
        with torch.no_grad():
            known = reference_logits(model, batch)[:, :num_tokens] / temperature
        expected = known.log_softmax(-1)[mask].gather(1, batch.targets[mask][:, None])[:, 0]
        assert (logprobs[mask] - expected).abs().max() < 1e-5


def test_a_sample_does_not_depend_on_the_batch_it_was_decoded_in() -> None:
    policy, _ = policy_of("qwen2_tied")
    requests = random_requests(PROMPT_LENGTHS, new_tokens=16)
    sampling = SamplingParams(temperature=1.0)
    together = run(engine_of(policy, max_slots=8), requests, sampling)
    crowded = run(engine_of(policy, max_slots=2), requests, sampling)
    alone = [run(engine_of(policy), [request], sampling)[0] for request in requests]
    for a, b, c in zip(together, crowded, alone, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist() == c.tokens.tolist()
        np.testing.assert_allclose(a.logprobs, c.logprobs, atol=1e-5)


def test_the_engine_follows_the_weights_without_a_sync() -> None:
    policy, model = policy_of("qwen2_tied")
    engine, requests = engine_of(policy), random_requests((8,), new_tokens=12)
    before = run(engine, requests, SamplingParams(temperature=0))[0].tokens.tolist()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        fresh = build_learner(model.config, weights=model.state_dict()).module
        for parameter, moved in zip(policy.module.parameters(), fresh.parameters(), strict=True):
            parameter.copy_(moved)
    after = run(engine, requests, SamplingParams(temperature=0))[0].tokens.tolist()
    assert after == greedy_by_transformers(model, requests[0]) != before


def test_long_tail_lengths_are_all_served() -> None:
    policy, _ = policy_of("qwen2_tied")
    budgets = [1, 40, 2, 3, 25, 1, 9, 60, 5, 5]
    requests = [Request((7, 8, 9), budget, (), seed=i) for i, budget in enumerate(budgets)]
    got = run(engine_of(policy, max_slots=3), requests, SamplingParams(temperature=1.0))
    assert [len(c.tokens) for c in got] == budgets


def test_a_request_beyond_the_context_is_refused() -> None:
    policy, _ = policy_of("qwen2_tied")
    with pytest.raises(ValueError, match=r"rollout\.max_seqlen = 16"):
        run(engine_of(policy, max_seqlen=16), [Request((1,) * 10, 7, (), 0)], SamplingParams())


# -- sampling ---------------------------------------------------------------------------------


def draw(logits: torch.Tensor, sampling: SamplingParams, num_draws: int = 20_000) -> Counter:
    uniform = torch.from_numpy(np.random.default_rng(0).random(num_draws))
    tokens, logprobs = sample(logits.expand(num_draws, -1), uniform, sampling)
    expected = torch.log_softmax(logits / (sampling.temperature or 1.0), -1)[tokens]
    torch.testing.assert_close(logprobs, expected)
    return Counter(tokens.tolist())


def test_samples_have_the_softmax_frequencies_at_the_temperature() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    counts = draw(logits, SamplingParams(temperature=0.5))
    expected = torch.softmax(logits / 0.5, -1)
    for token in range(4):
        assert counts[token] / 20_000 == pytest.approx(expected[token].item(), abs=0.01)


def test_top_k_and_top_p_restrict_what_is_sampled() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(draw(logits, SamplingParams(top_k=2))) == {0, 1}
    # 0.5 alone is below 0.6, so the second word is still needed; the third is not.
    assert set(draw(logits, SamplingParams(top_p=0.6))) == {0, 1}
    assert set(draw(logits, SamplingParams(top_p=0.01))) == {0}
    kept = draw(logits, SamplingParams(top_k=2))
    assert kept[0] / 20_000 == pytest.approx(0.5 / 0.8, abs=0.01)


def test_greedy_takes_the_largest_logit() -> None:
    assert set(draw(torch.tensor([0.0, 3.0, 1.0]), SamplingParams(temperature=0), 10)) == {1}


def test_uniform_streams_are_uniform_and_distinct() -> None:
    seeds = np.arange(200, dtype=np.uint64).repeat(500)
    counters = np.tile(np.arange(500, dtype=np.uint64), 200)
    values = stream_uniform(seeds, counters)
    assert values.min() >= 0 and values.max() < 1
    assert values.mean() == pytest.approx(0.5, abs=0.005)
    assert values.var() == pytest.approx(1 / 12, abs=0.002)
    assert len(np.unique(values)) == len(values)
    table = values.reshape(200, 500)
    assert abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.01
