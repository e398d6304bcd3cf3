# SPDX-License-Identifier: Apache-2.0
"""A tiny run whose reward model has something easy to learn. Not a test itself.

Samples are written by hand, not drawn from a policy: one that is right says "more" somewhere, one
that is wrong says "less", and the other words are the same noise. One sample of each problem was
cut by the limit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from satori_fast.config import load_config
from satori_fast.stages.context import Context
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.run import Run, build_run
from satori_fast.storage import sealed_line

NUM_PROBLEMS, NUM_SAMPLES = 24, 6

CONFIG = f"""
schema_version = 1
name = "tiny"
stages = ["preference", "reinforce"]
[model]
hidden_size = 32
num_layers = 2
intermediate_size = 64
num_attention_heads = 2
num_key_value_heads = 1
[tokenizer]
kind = "words"
[data]
levels = [1]
num_train = {NUM_PROBLEMS}
template = "plain"
max_prompt_tokens = 60
[packing]
max_tokens_per_microbatch = 256
[rollout]
max_seqlen = 80
max_new_tokens = 12
max_slots = 16
[reward]
num_workers = 0
[solutions]
num_problems = {NUM_PROBLEMS}
num_samples = {NUM_SAMPLES}
[preference]
num_epochs = 4.0
batch_size = 16
max_pairs_per_problem = 4
heldout_fraction = 0.25
checkpoint_every = 7
evaluate_every = 6
optimizer = {{ learning_rate = 3e-3, schedule = "cosine" }}
[reinforce]
recipe = "ppo"
num_steps = 2
problems_per_step = 4
samples_per_problem = 2
optimizer = {{ learning_rate = 1e-4, warmup_fraction = 0.0 }}
critic_optimizer = {{ learning_rate = 1e-3, warmup_fraction = 0.0 }}
[reinforce.restarts]
enabled = false
[evaluation]
num_problems = 4
"""


def open_run(folder: Path, *overrides: str, resume: bool = False) -> Run:
    """A run in `folder`, its samples on disk."""
    path = folder / "tiny.toml"
    path.write_text(CONFIG)
    config = load_config(path, ["--output_dir", f"'{folder}'", *overrides])
    run = build_run(config, resume=resume)
    samples = run.folder.path / "solutions" / "initial.jsonl"
    if not samples.exists():
        samples.parent.mkdir()
        samples.write_text("".join(map(sealed_line, _rows(run))))
    return run


def at_stage(run: Run, stage: str = "preference") -> Context:
    """The context of a stage that begins."""
    run.books.begin_stage(stage)
    return run.context(next(plan for plan in plan_stages(run.config) if plan.kind == stage))


def _rows(run: Run) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for group in range(NUM_PROBLEMS):
        problem = run.problems[group]
        for sample in range(NUM_SAMPLES):
            # One problem in eight has wrong samples only.
            correct = sample % 3 == 0 and group % 8 != 3
            words = [str(n) for n in rng.integers(0, 20, 5)]
            words.insert(int(rng.integers(0, 6)), "more" if correct else "less")
            text = " ".join(words)
            cut = sample == 5
            ids = run.renderer.encode(text) + ([] if cut else [run.renderer.eos_id])
            rows.append(
                {
                    "problem_id": problem.problem_id,
                    "question": problem.question,
                    "answer": problem.answer,
                    "group": group,
                    "response": text,
                    "response_ids": ids,
                    "finish": "length" if cut else "stop",
                    "correct": correct,
                    "chunk": 0,
                }
            )
    rows[-1]["ends_chunk"] = True
    return rows
