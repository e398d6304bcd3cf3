# SPDX-License-Identifier: Apache-2.0
"""What S2R's parts cost in a step of its quickstart.

The update with one ratio per action or per response against one per token: the same batches, the
same model. And reading a step's responses (cutting them into actions, verdicts, grading every
solution) against the whole step: the responses are the experts' trials on the problems of a step,
their number and lengths are those of the step that is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from satori_fast.config import Config, load_config
from satori_fast.data.chains import confirming_text, parse_chain, resolving_text, solution_text
from satori_fast.data.formats.trials import WORDS, Trial
from satori_fast.data.prompts import build_trajectory
from satori_fast.experience.source import Judge
from satori_fast.rewards.terms import score
from satori_fast.stages import reinforce
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.rewards import build_rewards
from satori_fast.stages.run import Run, build_run
from satori_fast.types import Experience, Problem, Trajectory

QUICKSTART = Path(__file__).parents[1] / "configs" / "s2r" / "quickstart.toml"
OPTIONS = {
    "stages": "['reinforce']",
    "reinforce.min_group_std": "-1.0",  # all answers of a random model are wrong: keep them
    "rollout.stop_tokens": "['wait']",  # geometric lengths
}


def config_in(folder: Path, more: Mapping[str, str]) -> Config:
    options = {**OPTIONS, **more, "output_dir": f"'{folder}'"}
    return load_config(QUICKSTART, [word for key, x in options.items() for word in (f"--{key}", x)])


def expert_response(problem: Problem, rng: np.random.Generator) -> str:
    """A wrong trial that is found out by walking back, then the right one, solved again."""
    chain = parse_chain(problem.question)
    wrong = (int(chain.answer) + int(rng.integers(1, 100))) % 100
    solution = solution_text(chain).replace(f"boxed{{ {chain.answer} }}", f"boxed{{ {wrong} }}")
    return WORDS.join_trials(
        [
            Trial(solution, confirming_text(chain, wrong)),
            Trial(solution_text(chain), resolving_text(chain, int(chain.answer))),
        ]
    )


class Step:
    """The models of a reinforcement stage, and the responses of one step, two trials each."""

    def __init__(self, run: Run) -> None:
        self._context = run.context(plan_stages(run.config)[0])
        run.books.begin_stage(self._context.stage)
        self._run, self._steps = run, count()
        self.trainer = reinforce.build_trainer(self._context, run.books)
        self._rewards = build_rewards(
            run.config.reward, grader=run.grader, worker=run.functions, format=run.renderer.format
        )
        config, rng = run.config.reinforce, np.random.default_rng(0)
        number = config.problems_per_step * config.samples_per_problem
        self._sampled = [
            (problem, np.asarray([*run.renderer.encode(response), run.renderer.eos_id]))
            for problem in run.problems[:number]
            for response in [expert_response(problem, rng)]
        ]

    def read(self) -> list[Trajectory]:
        """Cut the responses into actions, and judge all of them."""
        renderer = self._run.renderer
        cut = [
            build_trajectory(problem, ids, renderer=renderer, group_id=number, finish="stop")
            for number, (problem, ids) in enumerate(self._sampled)
        ]
        return score(cut, self._rewards)

    def update(self) -> Callable[[], object]:
        """A call of the update on the responses."""
        trajectories = self.read()
        credits = self.trainer.recipe.credit().assign(trajectories)
        experience = Experience(tuple(trajectories), tuple(credits))
        batches = self.trainer.annotate(self.trainer.pack(experience, 0))
        advantages, _ = self.trainer.advantages(batches)
        return lambda: self.trainer.update(batches, advantages, next(self._steps))

    def whole(self) -> Callable[[], object]:
        """A call of a whole step, sampling included."""
        run, context = self._run, self._context
        judge = Judge(
            partial(score, rewards=self._rewards),
            self.trainer.recipe.credit(),
            None,
            run.books.spans.span,
        )
        engine = context.engine(self.trainer.policy)
        source = reinforce.build_source(
            context, run.folder, run.books, engine, judge=judge, problems=context.problems
        )
        return lambda: reinforce.reinforce_step(self.trainer, source, next(self._steps))


def test_update_by_unit_of_the_ratio(race: Any, one_thread: None, tmp_path: Path) -> None:
    """Ours is a ratio per action; the target is an update of at most four thirds of the time."""
    with ExitStack() as stack:
        calls: dict[str, Callable[[], object] | None] = {}
        for ratio in ("segment", "sequence", "token"):
            config = config_in(tmp_path / ratio, {"reinforce.ratio": ratio})
            calls[ratio] = Step(stack.enter_context(build_run(config))).update()
        race("update", calls, targets={"token": 0.75}, repeats=7, judged_by="cpu")


def test_reading_a_step(race: Any, one_thread: None, tmp_path: Path) -> None:
    """Ours is reading; the target is a fiftieth of a step whose responses are random."""
    with build_run(config_in(tmp_path, {})) as run:
        step = Step(run)
        calls = {"reading": step.read, "step": step.whole()}
        race("reading", calls, targets={"step": 50.0}, repeats=5, judged_by="cpu")
