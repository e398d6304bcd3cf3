# SPDX-License-Identifier: Apache-2.0
"""The vLLM engine on a real vLLM: what it samples after a sync is what a fresh engine samples."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from satori_fast.backbone.architecture import load_hf_config
from satori_fast.backbone.model import PolicyModel
from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.backbone.step import build_learner, score
from satori_fast.data.prompts import PromptRenderer
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.stages.engines import write_engine_folder
from tests.rollout.test_embedded_engine import greedy_by_transformers
from tests.tiny_models import VOCAB_SIZE, random_batch, tiny_model

ROOT = Path(__file__).parents[2]
HAS_VLLM = importlib.util.find_spec("vllm") is not None
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed: make setup-vllm"),
]

# vLLM's CPU attention wants heads of 32 numbers or more.
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}


def checkpoints(folder: Path, name: str, dtype: str = "float32") -> Path:
    """FOLDER/old, FOLDER/new: two sets of weights of one architecture; FOLDER/empty: none."""
    extra = {"head_dim": 32} if name == "qwen3" else {}
    model = tiny_model(name, **HEADS, **extra).to(getattr(torch, dtype))
    words = [f"w{i}" for i in range(VOCAB_SIZE - 5)]
    tokenizer = build_word_tokenizer(words)
    tokenizer.save_pretrained(folder / "tokenizer")
    renderer = PromptRenderer(tokenizer, "{question}", 64)
    write_engine_folder(folder / "empty", model.config, renderer, dtype=dtype)
    model.save_pretrained(folder / "old")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / "new")
    return folder


def run_scenario(
    scenario: str, folder: Path, *options: str, num_processes: int = 1
) -> dict[str, Any]:
    launcher = [sys.executable, "-m"]
    if num_processes > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node"]
        launcher += [str(num_processes), "-m"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
    }
    finished = subprocess.run(
        [*launcher, "tests.rollout.vllm_scenarios", scenario, str(folder), *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    lines = [line for line in finished.stdout.splitlines() if line.startswith("RESULT ")]
    assert finished.returncode == 0 and lines, finished.stdout[-2000:] + finished.stderr[-4000:]
    return json.loads(lines[-1].removeprefix("RESULT "))


@pytest.mark.parametrize(
    ("name", "dtype", "num_syncs"),
    [
        ("qwen2_tied", "float32", 101),
        ("qwen2", "float32", 3),
        ("qwen2_tied", "bfloat16", 3),
        ("qwen3", "bfloat16", 3),
    ],
)
def test_greedy_after_a_sync_equals_a_fresh_engine(
    tmp_path: Path, name: str, dtype: str, num_syncs: int
) -> None:
    folder = checkpoints(tmp_path, name, dtype)
    ours = run_scenario("synced", folder, "--dtype", dtype, "--num-syncs", str(num_syncs))
    fresh = run_scenario("fresh", folder, "--dtype", dtype)
    assert ours["tokens"] == [fresh["tokens"]]
    assert ours["awake"] == fresh["tokens"]
    assert ours["version"] == num_syncs - 1


@pytest.mark.ranks
@pytest.mark.parametrize(("tensor", "name"), [(2, "qwen2_tied"), (2, "qwen2"), (1, "qwen2_tied")])
def test_two_processes_sample_as_a_fresh_engine_does(
    tmp_path: Path, tensor: int, name: str
) -> None:
    folder = checkpoints(tmp_path, name)
    ours = run_scenario("synced", folder, "--tensor", str(tensor), num_processes=2)
    assert ours["tokens"] == [run_scenario("fresh", folder)["tokens"]] * len(ours["tokens"])


def test_a_failed_sync_names_the_tensor_and_loses_nothing(tmp_path: Path) -> None:
    folder = checkpoints(tmp_path, "qwen2_tied")
    result = run_scenario("failures", folder)
    assert "push_weights first" in result["unsynced"]
    assert "'model.layers.1.self_attn.qkv_proj' on engine rank 0" in result["dropped"]
    changed = "'model.layers.1.self_attn.k_proj.weight' changed on its way to engine rank 0"
    assert changed in result["corrupted"]
    assert "k_proj.weight' came later than rollout.sync_timeout_s = 120" in result["late"]
    assert result["version"] == 1 and "push_weights first" in result["refuses"]
    assert result["tokens"] == run_scenario("fresh", folder)["tokens"]


def test_padding_of_the_vocabulary_is_never_sampled_and_every_stop_token_stops(
    tmp_path: Path,
) -> None:
    from tests.rollout.vllm_scenarios import requests

    folder, num_tokens = checkpoints(tmp_path, "qwen2_tied"), 120
    result = run_scenario("padded", folder, "--num-tokens", str(num_tokens))
    initialize_parallel(seed=0)
    learner = build_learner(load_hf_config(folder / "new"), weights=folder / "new")
    assert isinstance(learner.module, PolicyModel)
    learner.module.limit_vocabulary(num_tokens)
    stops = []
    for request, tokens, logprobs, finish in zip(
        requests(), result["tokens"], result["logprobs"], result["finish"], strict=True
    ):
        start, response = len(request.prompt_ids), tokens[len(request.prompt_ids) :]
        assert max(response) < num_tokens
        assert (finish == "stop") == (response[-1] in (7, 11)) and not {7, 11} & {*response[:-1]}
        stops += [response[-1]] if finish == "stop" else []
        # The trainer's own log-probs.
        batch = replace(random_batch([len(tokens)]), tokens=torch.tensor(tokens))
        batch = replace(batch, targets=batch.tokens.roll(-1))
        (expected,) = score(learner, [batch], temperature=2.0)
        np.testing.assert_allclose(logprobs, expected[start - 1 : -1], atol=2e-5)
    assert set(stops) <= {7, 11} and stops


def test_samples_and_their_logprobs(tmp_path: Path) -> None:
    from tests.rollout.vllm_scenarios import requests

    folder = checkpoints(tmp_path, "qwen2_tied")
    result = run_scenario("sampling", folder)
    # A sample depends on its own seed, not on the batch it was decoded in.
    assert result["tokens"] == result["reordered"]
    assert len({tuple(tokens) for tokens in result["siblings"]}) == 8
    assert result["unfinished"] is False
    assert "top_k = 0" in result["top_k"]

    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(folder / "new", dtype=torch.float32)
    wanted = requests()
    for request, tokens, logprobs, finish in zip(
        wanted, result["tokens"], result["logprobs"], result["finish"], strict=True
    ):
        with torch.no_grad():
            logits = model(torch.tensor([[*request.prompt_ids, *tokens]])).logits[0]
        table = torch.log_softmax(logits[len(request.prompt_ids) - 1 : -1] / 0.7, dim=-1)
        expected = table.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        np.testing.assert_allclose(logprobs, expected, atol=2e-5)
        assert (finish == "stop") == (tokens[-1] == 7) and 7 not in tokens[:-1]
    greedy = [greedy_by_transformers(model, request) for request in wanted]
    assert result["again"] == greedy
