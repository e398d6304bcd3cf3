# SPDX-License-Identifier: Apache-2.0
"""Our side: `stages.reinforce.reinforce_step` of a real run, metrics and TensorBoard included."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from benchmarks.peers.contestant import Line, StepRecord, arguments, settle
from benchmarks.peers.workload import Workload, reward_of
from satori_fast import __version__
from satori_fast.config import load_config
from satori_fast.grading import GradingPool, Verdict
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.rollout.engine import Completion, Engine, Request, SamplingParams
from satori_fast.stages.reinforce import build_actors, reinforce_step
from satori_fast.stages.run import build_run
from satori_fast.stages.setup import build_monitor
from satori_fast.types import Problem


class GivenLengths:
    """An engine whose completions have the lengths of the workload."""

    def __init__(self, engine: Engine, workload: Workload) -> None:
        self._engine, self._workload = engine, workload
        self.step = 0
        self.prompts = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        lengths = self._workload.lengths(self.step).tolist()
        self.prompts = hash_of(list(r.prompt_ids) for r in requests)
        return self._engine.generate(
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
        self.step = 0

    def take(self, num_problems: int) -> list[Problem]:
        prompts = self._workload.prompts(self.step)
        assert num_problems == len(prompts)
        return [Problem(f"{self.step}/{i}", text, "x") for i, text in enumerate(prompts)]


class GivenVerdicts:
    """The workload's reward where the grader stands."""

    pool = GradingPool(0)
    reasons: ClassVar[Counter[str]] = Counter()

    def grade_many(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        right = [reward_of(text) for text, _ in pairs]
        return [Verdict(r, None, "match" if r else "mismatch") for r in right]


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


def main() -> None:
    line = Line()
    folder, core = arguments()
    settle(core)
    workload = Workload.read(folder / "workload.json")
    run = build_run(config_of(workload, folder))
    on_gpu = workload.device == "cuda"
    run.spans = SpanRecorder(
        device=workload.device, clock=time.perf_counter if on_gpu else time.process_time
    )
    run.monitor = build_monitor(run.config, run.folder, run.parallel, run.spans)
    run.grader = GivenVerdicts()  # pyright: ignore[reportAttributeAccessIssue]
    run.stage = "reinforce"
    actors = build_actors(run)
    engine, problems = GivenLengths(actors.engine, workload), GivenProblems(workload)
    actors.engine, actors.problems = engine, problems  # pyright: ignore
    actors.recipe = replace(actors.recipe, min_group_std=None)  # TRL keeps every group
    line.ready(name="satori_fast", version=__version__)
    step = 0
    run.monitor.restart_step()
    while line.wait():
        problems.step = engine.step = step
        times = run.record(step, reinforce_step(run, actors, step))
        wall_s, cpu_s = line.elapsed()
        line.report(
            StepRecord(
                wall_s=wall_s,
                cpu_s=cpu_s,
                stages=times.spans_s,
                completion_tokens=times.tokens["rollout"],
                tokens=times.tokens["update"],
                optimizer_steps=workload.minibatches,
                prompts=engine.prompts,
            )
        )
        step += 1
        run.monitor.restart_step()


if __name__ == "__main__":
    main()
