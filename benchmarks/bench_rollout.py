# SPDX-License-Identifier: Apache-2.0
"""Completion tokens per CPU-second of the rollout engines on one model and the same prompts: the
embedded engine, vLLM where it is installed, transformers' generate and its continuous batching.

Three workloads, all sampled at temperature 1: equal lengths; long-tail lengths (log-normal, the
longest 8 times the mean); eight siblings of each prompt. A request's length is its limit, because a
random model seldom ends by itself.

transformers' generate gets the easier task. Its prompts have one length, so they need no padding;
requests come longest first, so that a batch ends with rows of like length; it has a cache, no
end-of-text to look for and as many rows as the engines have slots; and it returns no log-probs,
while the engines return those of all sampled tokens. Rows shorter than their batch's longest are
stopped by a criterion, which is not used where lengths are equal.

Every way runs on one thread; vLLM takes its number from OMP_NUM_THREADS when it starts:

    OMP_NUM_THREADS=1 python -m pytest benchmarks/bench_rollout.py --benchmark-only
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from benchmarks import measure
from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.backbone.step import Learner, build_learner
from satori_fast.data.prompts import PromptRenderer
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.rollout.embedded_engine import EmbeddedEngine
from satori_fast.rollout.engine import Engine, Request, SamplingParams
from satori_fast.rollout.weight_sync import push_weights

# The quickstart's model: 0.8 M parameters.
MODEL = {
    "vocab_size": 100,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 384,
    "max_position_embeddings": 1024,
}
NUM_REQUESTS, PROMPT_TOKENS, MEAN_TOKENS, MAX_SLOTS = 128, 40, 64, 64
SAMPLING = SamplingParams(temperature=1.0)
TARGETS = {"equal": 1.5, "long_tail": 3.0}


def lengths_of(workload: str) -> np.ndarray:
    if workload != "long_tail":
        return np.full(NUM_REQUESTS, MEAN_TOKENS)
    rng = np.random.default_rng(0)
    drawn = rng.lognormal(0.0, 1.0, NUM_REQUESTS)
    drawn[drawn.argmax()] = 0
    lengths = np.maximum(1, drawn / drawn.mean() * MEAN_TOKENS * (NUM_REQUESTS - 8) / NUM_REQUESTS)
    lengths = np.minimum(lengths, 8 * MEAN_TOKENS)
    lengths[0] = 8 * MEAN_TOKENS
    return lengths.round().astype(int)


def requests_of(workload: str) -> list[Request]:
    rng = np.random.default_rng(1)
    siblings = 8 if workload == "siblings" else 1
    prompts = rng.integers(5, MODEL["vocab_size"], (NUM_REQUESTS // siblings, PROMPT_TOKENS))
    return [
        Request(tuple(prompts[i // siblings].tolist()), int(length), (), seed=i)
        for i, length in enumerate(lengths_of(workload))
    ]


@cache
def model() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**MODEL, tie_word_embeddings=True)).eval()


@cache
def policy() -> Learner:
    initialize_parallel(seed=0)
    return build_learner(model().config, weights=model().state_dict())


@cache
def renderer() -> PromptRenderer:
    tokenizer = build_word_tokenizer([f"w{i}" for i in range(MODEL["vocab_size"] - 5)])
    return PromptRenderer(tokenizer, "{question}", PROMPT_TOKENS)


@cache
def embedded() -> Engine:
    limit = MODEL["max_position_embeddings"]
    return EmbeddedEngine.of_policy(
        policy(), renderer=renderer(), max_seqlen=limit, max_slots=MAX_SLOTS
    )


@cache
def vllm_engine(request_seeds: bool) -> Engine | None:
    """Started and synced, or None where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        return None
    from satori_fast.rollout.vllm_engine import VllmEngine, VllmSettings
    from satori_fast.stages.engines import write_engine_folder

    folder = Path(tempfile.mkdtemp())
    write_engine_folder(folder, policy().hf_config, renderer(), dtype="float32")
    settings = VllmSettings(
        dtype="float32",
        max_seqlen=MODEL["max_position_embeddings"],
        max_slots=MAX_SLOTS,
        request_seeds=request_seeds,
    )
    engine = VllmEngine(folder, settings, renderer=renderer())
    push_weights(policy().hf_weights(), engine, version=0)
    return engine


def sampled(engine: Engine, requests: list[Request]) -> int:
    """Completion tokens."""
    completions = [completion for _, completion in engine.generate(requests, SAMPLING)]
    assert len(completions) == len(requests)
    return sum(len(completion.tokens) for completion in completions)


def by_transformers(requests: list[Request]) -> int:
    """generate() on batches of as many rows as the engines have slots, longest first."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class OwnLength(StoppingCriteria):
        def __init__(self, limits: torch.Tensor) -> None:
            self.limits = limits

        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return input_ids.shape[1] >= self.limits + PROMPT_TOKENS

    ordered = sorted(requests, key=lambda r: -r.max_new_tokens)
    total = 0
    for start in range(0, len(ordered), MAX_SLOTS):
        batch = ordered[start : start + MAX_SLOTS]
        limits = torch.tensor([r.max_new_tokens for r in batch])
        is_ragged = bool((limits != limits[0]).any())
        with torch.inference_mode():
            model().generate(
                torch.tensor([r.prompt_ids for r in batch]),
                attention_mask=torch.ones(len(batch), PROMPT_TOKENS, dtype=torch.long),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                max_new_tokens=int(limits.max()),
                stopping_criteria=StoppingCriteriaList([OwnLength(limits)] if is_ragged else []),
                pad_token_id=0,
            )
        total += int(limits.sum())
    return total


def by_continuous_batching(requests: list[Request]) -> int:
    """transformers' generate_batch; it takes one limit, so only equal lengths are comparable."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    settings = GenerationConfig(
        do_sample=True, max_new_tokens=requests[0].max_new_tokens, pad_token_id=0, top_k=0
    )
    # Without a size its cache takes nine tenths of the free memory, on the host too.
    page = 32
    pages = -(-(PROMPT_TOKENS + requests[0].max_new_tokens) // page)
    batching = ContinuousBatchingConfig(
        page_size=page,
        num_blocks=MAX_SLOTS * pages,
        max_batch_tokens=MAX_SLOTS * PROMPT_TOKENS,
        max_requests_per_batch=MAX_SLOTS,
    )
    prompts = [list(r.prompt_ids) for r in requests]
    outputs = model().generate_batch(prompts, settings, batching, warmup=False)
    return sum(len(output.generated_tokens) for output in outputs.values())


def started(request_seeds: bool) -> tuple[Engine | None, dict[str, Any]]:
    """vLLM, and what its start took: seconds, the first sync included, and resident memory."""
    process, begin = psutil.Process(), time.perf_counter()
    before = process.memory_info().rss
    engine = vllm_engine(request_seeds)
    if engine is None:
        return None, {}
    startup_s, rss = time.perf_counter() - begin, process.memory_info().rss - before
    report = push_weights(policy().hf_weights(), engine, version=1)
    return engine, {
        "vllm_startup_s": measure.significant(startup_s),
        "vllm_startup_mib": measure.significant(rss / 2**20),
        "vllm_sync_s": measure.significant(report.wall_s),
    }


@pytest.mark.parametrize("workload", ["equal", "long_tail", "siblings"])
def test_rollout(race, one_thread, workload) -> None:
    requests = requests_of(workload)
    num_tokens = sum(r.max_new_tokens for r in requests)
    ways: dict[str, Callable[[], int] | None] = {
        "embedded": lambda: sampled(embedded(), requests),
        "transformers generate": lambda: by_transformers(requests),
    }
    figures: dict[str, Any] = {}
    seeded = vllm_engine(True) if workload != "equal" else None
    if workload == "equal":
        embedded()
        seeded, figures = started(True)
        free = vllm_engine(False)
        ways["vLLM, no seeds"] = None if free is None else lambda: sampled(free, requests)
        ways["transformers continuous"] = lambda: by_continuous_batching(requests)
    ways["vLLM"] = None if seeded is None else lambda: sampled(seeded, requests)
    for name, way in ways.items():
        assert way is None or way() == num_tokens, name
    figures |= {
        "completion_tokens": num_tokens,
        "requests": len(requests),
        "longest": int(max(r.max_new_tokens for r in requests)),
    }
    target = TARGETS.get(workload)
    targets = {"transformers generate": target} if target else {}
    race(
        workload, ways, targets=targets, repeats=3, warmup=0, memory=True, extra=figures,
        judged_by="cpu", amount={"tokens": num_tokens},
    )  # fmt: skip
