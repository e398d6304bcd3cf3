# SPDX-License-Identifier: Apache-2.0
"""Optimizer steps per second of the stage offline against the online loop of the same method.

Both update the quickstart's model with the same recipe (S2R's outcome level); offline a step has 64
responses, as in the paper. Online, several of them follow each rollout; grading, the log-probs of
policy and reference and the sync are its own. Offline, all that is left is packing and updates.

Three workloads. A random model seldom ends by itself: all responses are as long as their limit
("equal"), or, with a word of the vocabulary as one more stop token and the quickstart's own limit,
of geometric lengths, as trials are whose number and length vary ("long_tail"). Both have the
paper's rollout, 64 problems with four samples for four steps of 64 responses: the ratio is what
offline saves. "two_steps" has the long tail and the quickstart's rollout, 32 problems with eight
samples for two steps, of 128 responses each. The same responses are stored.
"""

from __future__ import annotations

from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from satori_fast.algorithms.credit import LeaveOneOut
from satori_fast.config import Config, load_config
from satori_fast.experience.offline import OfflineSource
from satori_fast.experience.source import Judge
from satori_fast.rewards.terms import score
from satori_fast.stages import offline, reinforce
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.rewards import build_rewards
from satori_fast.stages.run import Run, build_run

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.toml"
BATCH_SIZE = 64
OPTIONS = {
    "stages": "['reinforce']",
    "data.format": "trials",
    "reinforce.recipe": "s2r_outcome",
    "reinforce.min_group_std": "-1.0",  # all answers of a random model are wrong: keep them
    "reinforce.weighting": "sequence",
}
PAPER = {
    "reinforce.problems_per_step": "64",
    "reinforce.samples_per_problem": "4",
    "reinforce.num_minibatches": "4",
}
LONG_TAIL = {"rollout.stop_tokens": "['wait']"}
WORKLOADS = {
    "equal": {**PAPER, "rollout.max_new_tokens": "64"},
    "long_tail": {**PAPER, **LONG_TAIL},
    "two_steps": LONG_TAIL,
}


def config_in(folder: Path, workload: str) -> Config:
    options = OPTIONS | WORKLOADS[workload]
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    return load_config(QUICKSTART, [*words, "--output_dir", f"'{folder}'"])


def both_loops(run: Run) -> tuple[Any, Any]:
    """A call of each that makes the optimizer steps of one rollout, offline first."""
    context = run.context(plan_stages(run.config)[0])
    run.books.begin_stage(context.stage)
    online = reinforce.build_trainer(context, run.books)
    rewards = build_rewards(
        run.config.reward,
        grader=run.grader,
        worker=run.functions,
        format=run.renderer.format,
    )
    judge = Judge(
        partial(score, rewards=rewards), online.recipe.credit(), None, run.books.spans.span
    )
    engine = context.engine(online.policy)
    sampled = reinforce.build_source(
        context, run.folder, run.books, engine, judge=judge, problems=context.problems
    )
    stored = sampled.next(0).trajectories
    credits = LeaveOneOut().assign(stored)
    source = OfflineSource(stored, credits, batch_size=BATCH_SIZE, seed=0)
    trainer = offline.build_trainer(context, run.books, num_steps=1000)
    offline_steps, online_steps = count(), count(1)

    def offline_call() -> None:
        for _ in range(run.config.reinforce.num_minibatches):
            offline.offline_step(trainer, source, next(offline_steps))

    def online_call() -> None:
        reinforce.reinforce_step(online, sampled, next(online_steps))

    return offline_call, online_call


@pytest.mark.parametrize("workload", WORKLOADS)
def test_optimizer_steps(race: Any, one_thread: None, tmp_path: Path, workload: str) -> None:
    """Ours is offline; the target is that of the method: three times the steps per second."""
    with build_run(config_in(tmp_path, workload)) as run:
        offline_call, online_call = both_loops(run)
        race(
            workload,
            {"offline": offline_call, "online": online_call},
            targets={"online": 3.0},
            repeats=5,
            extra={"updates": run.config.reinforce.num_minibatches, **WORKLOADS[workload]},
            judged_by="cpu",
        )
