# SPDX-License-Identifier: Apache-2.0
"""Plain responses: one segment, whatever the tokens, and nothing that belongs to COAT."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from satori_fast.config import load_config
from satori_fast.data.formats import FORMATS
from satori_fast.data.formats.coat import META_ACTION_TOKENS
from satori_fast.data.formats.plain import PLAIN
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer, build_trajectory, full_response
from satori_fast.data.tokenizer import build_word_tokenizer, load_tokenizer
from satori_fast.profiling.metrics import read_metrics
from satori_fast.stages import run_stages
from satori_fast.types import Prefix, Problem, Segment, SegmentKind

RENDERER = PromptRenderer(
    build_word_tokenizer(["a", "b"], ()), PLAIN_TEMPLATE, 16, format=FORMATS["plain"]
)


@given(words=st.lists(st.sampled_from(["a", "b"])), prefix=st.sampled_from([None, "b"]))
def test_one_segment_covers_the_response(words: list[str], prefix: str | None) -> None:
    start = None if prefix is None else Prefix(prefix, "restart")
    ids = np.asarray([*RENDERER.encode(" ".join(words)), RENDERER.eos_id])
    made = build_trajectory(
        Problem("1", "a", "b", start), ids, renderer=RENDERER, group_id=0, finish="stop"
    )
    assert made.segments == (Segment(SegmentKind.WHOLE, 0, len(ids), " ".join(words)),)
    assert full_response(made) == (prefix or "") + " ".join(words)
    assert PLAIN.metrics(made) == {} and PLAIN.attempts(full_response(made)) == []


def test_plain_has_no_tokens_and_no_restarts() -> None:
    assert PLAIN.special_tokens == () and not PLAIN.has_restarts and not PLAIN.self_corrects
    assert RENDERER.special_ids == {}
    assert PLAIN.pieces("a<|reflect|>") == [(SegmentKind.WHOLE, "a<|reflect|>")]
    assert PLAIN.pieces("") == [] and set(PLAIN.colours) == {SegmentKind.WHOLE}


# --- a whole run ---------------------------------------------------------------------------------

CONFIG = """
schema_version = 1
name = "plain"
stages = ["supervised", "reinforce"]
[model]
hidden_size = 32
num_layers = 2
intermediate_size = 64
num_attention_heads = 2
num_key_value_heads = 1
[tokenizer]
kind = "bpe"
vocab_size = 301
[data]
format = "plain"
template = "plain"
mapping = "coat"
max_prompt_tokens = 32
[packing]
max_tokens_per_microbatch = 512
[rollout]
max_seqlen = 64
max_new_tokens = 16
max_slots = 16
[reward]
num_workers = 0
[supervised]
num_epochs = 20.0
batch_size = 16
optimizer = { learning_rate = 1e-2 }
[reinforce]
recipe = "grpo"
num_steps = 3
problems_per_step = 4
samples_per_problem = 4
optimizer = { learning_rate = 1e-3 }
[evaluation]
num_problems = 8
"""


def test_a_plain_run_trains_on_a_file(tmp_path: Path) -> None:
    rows = [
        {"question": f"{i} or {i + 1}", "answer": f"{i % 2}", "response": f"\\boxed{{{i % 2}}}"}
        for i in range(60)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "plain.toml").write_text(CONFIG)
    options = ("--output_dir", f"'{tmp_path}'", "--data.source", f"'{tmp_path / 'sums.jsonl'}'")
    config = load_config(tmp_path / "plain.toml", options)
    assert not config.restarts_enabled
    summary = run_stages(config)

    folder = tmp_path / "plain"
    assert not set(META_ACTION_TOKENS) & set(load_tokenizer(folder / "tokenizer").get_vocab())
    assert not (folder / "restarts").exists()
    losses = [line["update/loss"] for line in read_metrics(folder / "metrics.jsonl")]
    assert np.mean(losses[-10:-3]) < 0.5 * losses[0]
    trained = [line for line in read_metrics(folder / "metrics.jsonl") if "reward/total" in line]
    assert len(trained) == 3 and max(line["rollout/kept"] for line in trained) > 0
    weights = [
        load_file(folder / "models" / name / "model.safetensors")["model.norm.weight"]
        for name in ("supervised", "reinforce")
    ]
    assert not torch.equal(*weights)
    # What belongs to reflections is not there, or null.
    names = {name for line in read_metrics(folder / "metrics.jsonl") for name in line}
    assert not {n for n in names if "reflections" in n or "_to_" in n or "restart" in n} - {
        "rollout/engine_restarts"
    }
    entry = summary["stages"][-1]
    assert entry["accuracy"] is not None and "wrong_to_right" in entry
    assert entry["reflections_per_answer"] is None and entry["wrong_to_right"] is None
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    kinds = {segment["kind"] for sample in samples for segment in sample["segments"]}
    assert kinds == {"whole"}
    assert (folder / "report.html").stat().st_size > 0
