# SPDX-License-Identifier: Apache-2.0
"""Our side of a real training: plain GRPO on the task's questions, its lengths and its grader."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.contestant import Line, arguments, settle
from benchmarks.peers.satori_side import Made, Saves, compete, hash_of
from benchmarks.peers.task import Task, task_config
from satori_fast.experience.online import OnlineSource
from satori_fast.experience.source import Judge
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.rewards.terms import score
from satori_fast.rollout.engine import Engine
from satori_fast.stages.context import Context
from satori_fast.stages.rewards import build_rewards, length_penalty
from satori_fast.stages.run import build_run
from satori_fast.stages.trainer import Trainer
from satori_fast.types import Problem


class TaskProblems:
    """The task's questions, step by step."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def take(self, num_problems: int, *, step: int) -> list[Problem]:
        taken = self._task.problems(step)
        assert num_problems == len(taken)
        return [Problem(f"{step}/{i}", *taken[i]) for i in range(len(taken))]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def source_of(
    context: Context,
    trainer: Trainer,
    spans: SpanRecorder,
    *,
    task: Task,
    wrap: Callable[[Engine], Engine],
) -> Made:
    """Experience of the task, every group kept, as TRL does; and the hash of a step's prompts.

    wrap: puts another engine around the run's, or none.
    """
    config, problems = context.config.reinforce, TaskProblems(task)
    rewards = build_rewards(
        context.config.reward,
        grader=context.grader,
        worker=context.functions,
        format=context.renderer.format,
        spans=spans,
    )
    rewards += length_penalty(config, context.config.rollout.max_new_tokens)
    judge = Judge(
        partial(score, rewards=rewards),
        trainer.recipe.credit(),
        min_group_std=None,
        span=spans.span,
    )
    engine = context.engine(trainer.policy)
    engine.inner = wrap(engine.inner)
    source = OnlineSource(
        engine,
        problems,
        judge,
        sampling=lambda step: context.sampling(
            num_samples=config.samples_per_problem, seed=context.seeds.of("rollout", step)
        ),
        problems_per_step=config.problems_per_step,
    )

    def prompts_of(step: int) -> str:
        taken = problems.take(task.num_prompts, step=step)
        return hash_of([list(context.renderer.prompt_ids(problem)) for problem in taken])

    return source, prompts_of


def train(side: str, wrap: Callable[[Engine, Path, Task], Engine], *settings: str) -> None:
    """Do the race's steps, save, and leave the trained model.

    side: what the race calls it. wrap: given the run's engine, the race's folder and the task, the
    engine to sample from. settings: of the config, beside the task's.
    """
    line = Line()
    folder, core = arguments()
    task = Task.read(folder / "task.json")
    settle(core, task.threads)
    name = f"{side}-{task.first}"
    shutil.rmtree(folder / name, ignore_errors=True)  # of a leg that was cut off
    own = ("--output_dir", f"'{folder}'", "--name", name, "--seed", str(task.seed), *settings)
    own += ("--reinforce.kl_coefficient", str(task.kl))
    with build_run(task_config(task.config, task.model, *own)) as run:
        saves = Saves(folder / side, task.first, every=task.leg)

        def wrapped(engine: Engine) -> Engine:
            return wrap(engine, folder, task)

        make_source = partial(source_of, task=task, wrap=wrapped)
        context, trainer = compete(line, run, task.device == "cuda", make_source, saves)
        context.model_folders.export(trainer.policy, folder / f"trained-{side}")


def main() -> None:
    train("satori", lambda engine, folder, task: engine)


if __name__ == "__main__":
    main()
