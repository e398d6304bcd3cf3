# SPDX-License-Identifier: Apache-2.0
"""FLOPs and bytes of real steps of a tiny run, against the sums that they must be."""

from __future__ import annotations

from pathlib import Path

from satori_fast.config import OptimizerConfig
from satori_fast.data.prompts import encode_demonstration
from satori_fast.experience.demonstrations import DemonstrationSource
from satori_fast.profiling.flops import ModelShape
from satori_fast.stages.books import shape_of
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.run import build_run
from satori_fast.stages.supervised import Imitation, supervised_step
from satori_fast.types import Demonstration
from tests.stages.test_run import tiny_config

RESPONSES = ("pick 1", "pick 1 pick 2 sum 8")


def test_a_step_counts_what_its_models_compute(tmp_path: Path) -> None:
    with build_run(tiny_config(tmp_path)) as run:
        context = run.context(plan_stages(run.config)[-1])
        models, start, books = context.model_folders, context.policy_folder, run.books
        policy = models.policy(start, OptimizerConfig(learning_rate=1e-3), num_steps=1)
        critic = models.scalar(start)
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

        source = DemonstrationSource(trajectories, batch_size=2, seed=0)
        span, packing = books.spans.span, context.packing()
        options = {"packing": packing, "span": span}
        books.training(supervised_step(policy, source, 0, imitation=Imitation(), **options))
        head = 2 * 32 * vocab_size * num_response_tokens
        assert books.spans.end_step().flops == {"update": 3 * (trunk + head)}
        # A starting model reads the tokens, and its head makes the logits of the loss.
        imitation = Imitation(start=models.policy(start), kl_coefficient=0.1)
        books.training(supervised_step(policy, source, 1, imitation=imitation, **options))
        flops = {"logprob": trunk, "update": 3 * (trunk + head) + head}
        assert books.spans.end_step().flops == flops

        books.count_scoring("logprob", [policy, critic], trajectories)
        books.count_training([critic], trajectories)
        books.count_decoding(policy, 5, 1)
        times = books.spans.end_step()
        heads = 2 * 32 * (vocab_size + 1) * sum(lengths)
        assert times.flops["logprob"] == 2 * trunk + heads
        assert times.flops["update"] == 3 * (trunk + 2 * 32 * sum(lengths))
        # Five passes over all matrices but the embedding, which is the head here; 4 bytes each.
        assert times.bytes_read == {"rollout": 5 * 4 * (2 * layer + 32 * vocab_size)}


def test_an_engine_elsewhere_reads_nothing_here(tmp_path: Path) -> None:
    with build_run(tiny_config(tmp_path)) as run:
        context = run.context(plan_stages(run.config)[-1])
        policy = context.model_folders.policy(context.policy_folder)
        run.books.count_decoding(policy, 0, 1)
        assert run.books.spans.end_step().bytes_read == {}
