# SPDX-License-Identifier: Apache-2.0
"""FLOPs and bytes of real steps of a tiny run, against the sums that they must be."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from satori_fast.config import OptimizerConfig
from satori_fast.data.formats.plain import PLAIN
from satori_fast.data.prompts import encode_demonstration
from satori_fast.experience.demonstrations import DemonstrationSource
from satori_fast.profiling.device import NvmlSampler
from satori_fast.profiling.flops import ModelShape
from satori_fast.profiling.metrics import MetricsWriter, read_metrics
from satori_fast.profiling.monitor import StepMonitor
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.stages.books import Books, shape_of
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
        attention = 4 * 2 * 2 * 16 * pairs
        trunk = 2 * 2 * layer * sum(lengths) + attention
        # What both begin with, the prompt at least, is computed once.
        beginnings = {
            t.tokens[: end + 1].tobytes() for t in trajectories for end in range(len(t.tokens))
        }
        assert len(beginnings) < sum(lengths)
        shared = 2 * 2 * layer * len(beginnings) + attention

        source = DemonstrationSource(trajectories, batch_size=2, seed=0)
        span, packing = books.spans.span, context.packing()
        options = {"packing": packing, "span": span}
        books.training(supervised_step(policy, source, 0, imitation=Imitation(), **options))
        head = 2 * 32 * vocab_size * num_response_tokens
        flops = books.spans.end_step().flops
        assert flops == pytest.approx({"update": 3 * (shared + head)}, rel=1e-12)
        # A starting model reads the tokens, and its head makes the logits of the loss.
        imitation = Imitation(start=models.policy(start), kl_coefficient=0.1)
        books.training(supervised_step(policy, source, 1, imitation=imitation, **options))
        flops = {"logprob": shared, "update": 3 * (shared + head) + head}
        assert books.spans.end_step().flops == pytest.approx(flops, rel=1e-12)

        books.count_scoring("logprob", [policy, critic], trajectories)
        books.count_training([critic], trajectories)
        books.count_decoding(policy, 5, 1)
        times = books.spans.end_step()
        heads = 2 * 32 * (vocab_size * num_response_tokens + sum(lengths))
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


# --- alarms --------------------------------------------------------------------------------------


class LeakingMonitor(StepMonitor):
    """A monitor that found a leak."""

    @property
    def alarm(self) -> str | None:
        return "host memory grows steadily"


def books_of(folder: Path, monitor: type[StepMonitor] = StepMonitor, **resumed: Any) -> Books:
    spans = SpanRecorder()
    writer = MetricsWriter(folder, tensorboard=False, **resumed)
    return Books(spans, monitor(spans, NvmlSampler("cpu")), writer, format_of=lambda _: PLAIN)


def test_alarms_are_in_the_log_and_in_the_line_of_their_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    books = books_of(tmp_path, LeakingMonitor)
    books.begin_stage("reinforce")
    cut = {"rollout/mean_response_tokens": 64.0, "rollout/truncated": 0.75}
    with caplog.at_level(logging.WARNING):
        books.alarm("no signal", "reinforce step 0: nothing to learn from")
        for step in range(6):
            if step == 3:
                books.alarm("no signal", "reinforce step 3: nothing to learn from")
            books.record(step, cut)
    books.close()
    alarms = [line.get("alarms") for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert alarms[0] == {
        "no signal": "reinforce step 0: nothing to learn from",
        "host memory": "reinforce step 0: host memory grows steadily",
    }
    assert list(alarms[4]) == ["length"]
    assert alarms[4]["length"].startswith("reinforce step 4: 75% of the responses are cut off")
    assert alarms[1:4] == [None] * 3 and alarms[5] is None
    # The monitor logs for itself; what was told twice is written once.
    assert [record.getMessage()[:16] for record in caplog.records] == [
        "reinforce step 0",
        "reinforce step 3",
        "reinforce step 4",
    ]


def test_a_resumed_stage_raises_the_alarms_of_an_uninterrupted_one(tmp_path: Path) -> None:
    steps = [{"rollout/mean_response_tokens": 9.0, "rollout/truncated": 0.08 * i} for i in range(9)]
    whole = books_of(tmp_path / "whole")
    killed = books_of(tmp_path / "killed")
    for books, number in ((whole, 9), (killed, 5)):
        books.begin_stage("reinforce")
        for step in range(number):
            books.record(step, steps[step])
        books.close()
    # The checkpoint is of step 3: what the killed run wrote beyond it is cut.
    again = books_of(tmp_path / "killed", resume_from_step=3, stage="reinforce")
    again.begin_stage("reinforce")
    for step in range(4, 9):
        again.record(step, steps[step])
    again.close()
    expected, found = (
        [line.get("alarms") for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "killed")
    )
    assert found == expected
    assert [i for i, alarms in enumerate(expected) if alarms] == [7]


def test_the_next_stage_begins_without_the_alarms_of_the_last(tmp_path: Path) -> None:
    books = books_of(tmp_path)
    for stage in ("reinforce", "reinforce_2"):
        books.begin_stage(stage)
        books.alarm("no signal", f"{stage} step 0: nothing to learn from")
        books.record(0, {})
    books.close()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [list(line["alarms"]) for line in lines] == [["no signal"]] * 2
