# SPDX-License-Identifier: Apache-2.0
"""Optimizer steps per second of the stage offline against the online loop of the same method.

Both update the quickstart's model with the same recipe (S2R's outcome level), 64 responses in an
optimizer step. Online, four of them follow each rollout of 64 problems, four samples each, as in
the paper; grading, the log-probs of policy and reference and the sync are its own. Offline, all
that is left is packing and updates. Two workloads: equal lengths, as a random model seldom ends by
itself and all responses are as long as their limit; and a long tail, with a word of the vocabulary
as one more stop token and the quickstart's own limit: lengths are geometric, as of trials whose
number and length vary. The same responses are stored.
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
NUM_UPDATES, BATCH_SIZE = 4, 64
OPTIONS = {
    "stages": "['reinforce']",
    "data.format": "trials",
    "reinforce.recipe": "s2r_outcome",
    "reinforce.min_group_std": "-1.0",  # all answers of a random model are wrong: keep them
    "reinforce.problems_per_step": "64",
    "reinforce.samples_per_problem": "4",
    "reinforce.num_minibatches": f"{NUM_UPDATES}",
    "reinforce.weighting": "sequence",
}
LENGTHS = {
    "equal": {"rollout.max_new_tokens": "64"},
    "long_tail": {"rollout.stop_tokens": "['wait']"},
}


def config_in(folder: Path, lengths: str) -> Config:
    options = OPTIONS | LENGTHS[lengths]
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    return load_config(QUICKSTART, [*words, "--output_dir", f"'{folder}'"])


def both_loops(run: Run) -> tuple[Any, Any]:
    """A call of each that makes `NUM_UPDATES` optimizer steps, offline first."""
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
    sampled = reinforce.build_source(context, run.folder, run.books, engine, judge=judge)
    stored = sampled.next(0).trajectories
    credits = LeaveOneOut().assign(stored)
    source = OfflineSource(stored, credits, batch_size=BATCH_SIZE, seed=0)
    trainer = offline.build_trainer(context, run.books, num_steps=1000)
    offline_steps, online_steps = count(), count(1)

    def offline_call() -> None:
        for _ in range(NUM_UPDATES):
            offline.offline_step(trainer, source, next(offline_steps))

    def online_call() -> None:
        reinforce.reinforce_step(online, sampled, next(online_steps))

    return offline_call, online_call


@pytest.mark.parametrize("lengths", LENGTHS)
def test_optimizer_steps(race: Any, one_thread: None, tmp_path: Path, lengths: str) -> None:
    """Ours is offline; the target is that of the method: three times the steps per second."""
    with build_run(config_in(tmp_path, lengths)) as run:
        offline_call, online_call = both_loops(run)
        race(
            f"{NUM_UPDATES} steps of {BATCH_SIZE} responses, {lengths}",
            {"offline": offline_call, "online": online_call},
            targets={"online": 3.0},
            repeats=5,
            extra={"responses": BATCH_SIZE, "updates": NUM_UPDATES, "lengths": lengths},
            judged_by="cpu",
        )
