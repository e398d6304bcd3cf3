# SPDX-License-Identifier: Apache-2.0
"""FLOPs and bytes of real steps of a tiny run, against the sums that they must be."""

from __future__ import annotations

from pathlib import Path

from satori_fast.config import OptimizerConfig
from satori_fast.data.prompts import encode_demonstration
from satori_fast.profiling.flops import ModelShape
from satori_fast.stages.run import build_run
from satori_fast.stages.setup import learner_for
from satori_fast.stages.supervised import supervised_step
from satori_fast.stages.workload import count_decoding, count_scoring, count_training, shape_of
from satori_fast.types import Demonstration
from tests.stages.test_run import tiny_config

RESPONSES = ("pick 1", "pick 1 pick 2 sum 8")


def test_a_step_counts_what_its_models_compute(tmp_path: Path) -> None:
    with build_run(tiny_config(tmp_path)) as run:
        policy = learner_for(run, "policy", OptimizerConfig(learning_rate=1e-3), num_steps=1)
        critic = learner_for(run, "scalar", None)
        shape = shape_of(policy)
        vocab_size = len(run.renderer.tokenizer)
        assert shape == ModelShape(2, 32, 2, 1, 16, 64, vocab_size)
        assert shape_of(critic).num_logits == 1
        trajectories = [
            encode_demonstration(Demonstration(problem, response), run.renderer, group_id=0)
            for problem, response in zip(run.problems, RESPONSES, strict=False)
        ]
        lengths = [len(t.tokens) for t in trajectories]
        num_response_tokens = sum(t.num_response_tokens for t in trajectories)
        # A layer: 2 x 32 x 16 x 3 of the attention, 3 x 32 x 64 of the MLP.
        layer, pairs = 2 * 32 * 16 * 3 + 3 * 32 * 64, sum(n * (n + 1) // 2 for n in lengths)
        trunk = 2 * 2 * layer * sum(lengths) + 4 * 2 * 2 * 16 * pairs

        supervised_step(run, policy, trajectories, 0)
        head = 2 * 32 * vocab_size * num_response_tokens
        assert run.spans.end_step().flops == {"update": 3 * (trunk + head)}

        count_scoring(run, "logprob", [policy, critic], trajectories)
        count_training(run, [critic], trajectories)
        count_decoding(run, policy, 5)
        times = run.spans.end_step()
        heads = 2 * 32 * (vocab_size + 1) * sum(lengths)
        assert times.flops["logprob"] == 2 * trunk + heads
        assert times.flops["update"] == 3 * (trunk + 2 * 32 * sum(lengths))
        # Five passes over all matrices but the embedding, which is the head here; 4 bytes each.
        assert times.bytes_read == {"rollout": 5 * 4 * (2 * layer + 32 * vocab_size)}


def test_an_engine_elsewhere_reads_nothing_here(tmp_path: Path) -> None:
    with build_run(tiny_config(tmp_path)) as run:
        count_decoding(run, learner_for(run, "policy", None), 0)
        assert run.spans.end_step().bytes_read == {}
