# SPDX-License-Identifier: Apache-2.0
"""Our side: `stages.reinforce.reinforce_step` of a real run, metrics and TensorBoard included."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.contestant import Line, StepRecord, arguments, settle
from benchmarks.peers.workload import Workload, reward_of
from satori_fast import __version__
from satori_fast.backbone.checkpoint import load_checkpoint, prune_checkpoints, save_checkpoint
from satori_fast.config import load_config
from satori_fast.experience.online import OnlineSource
from satori_fast.experience.source import ExperienceSource, Judge
from satori_fast.grading import BOXED, Verdict
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.rewards.terms import score
from satori_fast.rollout.distributed import WrappedEngine
from satori_fast.rollout.embedded_engine import EmbeddedEngine
from satori_fast.rollout.engine import Completion, Engine, Request, SamplingParams
from satori_fast.rollout.restarting import Restarting
from satori_fast.stages.books import Books
from satori_fast.stages.context import Context
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.reinforce import build_trainer, reinforce_step
from satori_fast.stages.rewards import build_rewards
from satori_fast.stages.run import Run, build_run
from satori_fast.stages.setup import build_monitor
from satori_fast.stages.trainer import Trainer
from satori_fast.types import Problem

# The experience of a race, and the hash of a step's prompts.
Made = tuple[ExperienceSource, Callable[[int], str]]


class GivenLengths(WrappedEngine):
    """An engine whose completions have the lengths of the workload, a step at each call."""

    def __init__(self, inner: Engine, workload: Workload) -> None:
        super().__init__(inner)
        self._workload = workload
        self._step = 0
        self.prompts = ""

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        lengths = self._workload.lengths(self._step).tolist()
        self._step += 1
        self.prompts = hash_of(list(r.prompt_ids) for r in requests)
        return self.inner.generate(
            [
                replace(request, max_new_tokens=length, stop_ids=())
                for request, length in zip(requests, lengths, strict=True)
            ],
            sampling,
        )


class GivenProblems:
    """Problems of the workload, step by step."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload

    def take(self, num_problems: int, *, step: int) -> list[Problem]:
        prompts = self._workload.prompts(step)
        assert num_problems == len(prompts)
        return [Problem(f"{step}/{i}", text, "x") for i, text in enumerate(prompts)]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class GivenVerdicts:
    """The workload's reward where the grader stands."""

    finder = BOXED

    def grade_many(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        right = [reward_of(text) for text, _ in pairs]
        return [Verdict(r, None, "match" if r else "mismatch") for r in right]


@dataclass(frozen=True)
class Saves:
    """Checkpoints in a folder, by step. first: the step that training begins with. every: the steps
    between them."""

    folder: Path
    first: int
    every: int

    def load(self, trainer: Trainer, source: ExperienceSource) -> int:
        """Go on from the checkpoint before the first step, which is the result."""
        if self.first:
            load_checkpoint(self._at(self.first), trainer.learners)
            source.sync(trainer.policy, version=self.first)
        return self.first

    def save(self, trainer: Trainer, step: int) -> None:
        """Leave a checkpoint where one is due. The one before stays: the other side may not have
        come so far."""
        if step % self.every == 0:
            save_checkpoint(self._at(step), trainer.learners, {})
            prune_checkpoints(self.folder, num_kept=2)

    def _at(self, step: int) -> Path:
        return self.folder / f"step-{step}"


def hash_of(prompts: Iterable[list[int]]) -> str:
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]


def config_of(workload: Workload, folder: Any) -> Any:
    """Group advantages over the standard deviation, means of sequences, clip 0.2, no KL: TRL's
    loss_type "grpo" with beta 0. AdamW at a constant rate."""
    text = f"""
schema_version = 1
name = "race"
stages = ["reinforce"]
output_dir = "{folder}"
[model]
path = "{folder / "model"}"
dtype = "{workload.dtype}"
[tokenizer]
kind = "model"
[data]
source = "arithmetic"
levels = [1]
num_train = 8
template = "plain"
max_prompt_tokens = {workload.prompt_tokens}
[rollout]
max_seqlen = {workload.prompt_tokens + workload.max_tokens}
max_new_tokens = {workload.max_tokens}
max_slots = {workload.num_rows}
temperature = 1.0
[reinforce]
recipe = "grpo"
num_steps = 1000
problems_per_step = {workload.num_prompts}
samples_per_problem = {workload.num_samples}
num_minibatches = {workload.minibatches}
[reinforce.optimizer]
learning_rate = 1e-6
schedule = "constant"
[reinforce.restarts]
enabled = false
[evaluation]
num_problems = 1
"""
    path = folder / "race.toml"
    path.write_text(text)
    return load_config(path)


def source_of(
    context: Context, trainer: Trainer, workload: Workload, *, spans: SpanRecorder
) -> tuple[GivenLengths, OnlineSource]:
    """Experience with the workload's prompts, lengths and rewards; every group is kept, as TRL
    does."""
    config, rollout = context.config.reinforce, context.config.rollout
    embedded = EmbeddedEngine.of_policy(
        trainer.policy,
        renderer=context.renderer,
        max_seqlen=rollout.max_seqlen,
        max_slots=rollout.max_slots,
    )
    engine = GivenLengths(embedded, workload)
    rewards = build_rewards(
        context.config.reward,
        grader=GivenVerdicts(),
        worker=context.functions,
        format=context.renderer.format,
        spans=spans,
    )
    judge = Judge(
        partial(score, rewards=rewards),
        trainer.recipe.credit(),
        min_group_std=None,
        span=spans.span,
    )
    source = OnlineSource(
        Restarting(engine, context.parallel, max_restarts=0),
        GivenProblems(workload),
        judge,
        sampling=lambda step: context.sampling(
            num_samples=config.samples_per_problem, seed=context.seeds.of("rollout", step)
        ),
        problems_per_step=config.problems_per_step,
    )
    return engine, source


def compete(
    line: Line,
    run: Run,
    on_gpu: bool,
    make_source: Callable[[Context, Trainer, SpanRecorder], Made],
    saves: Saves | None = None,
) -> tuple[Context, Trainer]:
    """Do the steps of a run's only stage as the race says; its trainer at the end.

    make_source: the experience, and the hash of a step's prompts, given the number of the step once
    it is done. saves: what training goes on from, and leaves.
    """
    spans = SpanRecorder(
        device="cuda" if on_gpu else "cpu",
        clock=time.perf_counter if on_gpu else time.process_time,
    )
    monitor = build_monitor(run.config, run.folder.path, run.parallel, spans)
    books = Books(spans, monitor, run.books.writer, format_of=run.renderer.format_of)
    books.begin_stage("reinforce")
    context = run.context(plan_stages(run.config)[0])
    trainer = build_trainer(context, books)
    source, prompts_of = make_source(context, trainer, spans)
    config = context.config.reinforce
    step = 0 if saves is None else saves.load(trainer, source)
    line.ready(name="satori_fast", version=__version__)
    monitor.reset_clock()
    while line.wait():
        result = reinforce_step(trainer, source, step)
        metrics = books.reinforcement(step, result, trainer, num_samples=config.num_logged_samples)
        times = books.record(step, metrics)
        wall_s, cpu_s = line.elapsed()
        line.report(
            StepRecord(
                wall_s=wall_s,
                cpu_s=cpu_s,
                stages=times.spans_s,
                completion_tokens=times.tokens["rollout"],
                tokens=times.tokens["update"],
                optimizer_steps=config.num_minibatches,
                prompts=prompts_of(step),
                scored_tokens=times.tokens["logprob"],
            )
        )
        step += 1
        if saves is not None:
            saves.save(trainer, step)
        monitor.reset_clock()
    return context, trainer


def main() -> None:
    line = Line()
    folder, core = arguments()
    settle(core)
    workload = Workload.read(folder / "workload.json")

    def make_source(context: Context, trainer: Trainer, spans: SpanRecorder) -> Made:
        engine, source = source_of(context, trainer, workload, spans=spans)
        return source, lambda _: engine.prompts

    run = build_run(config_of(workload, folder))
    compete(line, run, workload.device == "cuda", make_source)


if __name__ == "__main__":
    main()
