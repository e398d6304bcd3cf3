# SPDX-License-Identifier: Apache-2.0
"""Distillation: the current policy solves problems, another model imitates what was hard.

With the model that the run began with as student this is the first half of a round of iterative
self-improvement (Satori, appendix D.3: of 240 K questions the hardest 180 K are kept, and the base
model is tuned on them); with another student it is the paper's distillation into weaker models
(section 5). The student may have a tokenizer of its own: solutions change hands as text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np

from satori_fast.config import ConfigError, DistillConfig, SolutionsConfig
from satori_fast.data.prompts import full_response
from satori_fast.stages.run import Run, StageOutcome
from satori_fast.stages.setup import keep_tokenizer, learner_for, model_folder
from satori_fast.stages.solutions import Solved, load_or_sample_solutions
from satori_fast.stages.supervised import imitate, load_trajectories
from satori_fast.stages.synthesize import write_demonstrations
from satori_fast.storage import read_sealed, wait_for_file, write_sealed
from satori_fast.types import Demonstration

logger = logging.getLogger(__name__)


def distill(run: Run) -> StageOutcome:
    """Solve, keep the hardest, tune the student; it is the policy from here on."""
    config = run.config.distill
    path = run.folder / f"demonstrations_{run.stage}.jsonl"
    figures_path = path.with_suffix(".json")
    if not run.parallel.from_main(path.exists):
        demonstrations, teacher_accuracy = solved_by_teacher(run, config)
        note = {"teacher_accuracy": teacher_accuracy}
        run.parallel.on_main(lambda: write_sealed(figures_path, note))
        run.parallel.on_main(lambda: write_demonstrations(path, demonstrations))
        run.keep(path)
    figures = read_sealed(wait_for_file(figures_path))
    start = run.models["base"]
    if config.student is not None:
        start = model_folder(config.student)
        tokenizer = run.folder / f"tokenizer_{run.stage}"
        if not run.place.has(tokenizer.name):
            special = run.renderer.format.special_tokens
            run.parallel.on_main(lambda: keep_tokenizer(start, tokenizer, special))
            run.keep(tokenizer)
        run.use_tokenizer(tokenizer)
    trajectories = load_trajectories(run, str(wait_for_file(path)), "coat")
    outcome = imitate(run, trajectories, config, start=start)
    models = {**outcome.models, "tokenizer": run.models["tokenizer"], "base": start}
    figures["num_demonstrations"] = len(trajectories)
    return StageOutcome(models, outcome.evaluation, outcome.times, figures)


def solved_by_teacher(run: Run, config: DistillConfig) -> tuple[list[Demonstration], float]:
    """Right solutions of the hardest problems, and the share of all samples that were right."""
    size = SolutionsConfig(
        num_problems=config.num_problems,
        num_samples=config.num_samples,
        temperature=config.temperature,
    )
    engine = run.engine(learner_for(run, "policy", None))
    solved = list(load_or_sample_solutions(run, engine, name=run.stage, size=size))
    accuracy = float(np.mean([correct for group in solved for _, correct in group]))
    kept = hardest(
        solved,
        num_kept=config.num_kept,
        solutions_per_problem=config.solutions_per_problem,
        rng=run.rng(run.stage, "solutions"),
    )
    logger.info(
        "distillation: %d solutions of %d problems; the teacher was right in %.1f %% of its tries",
        len(kept),
        len(solved),
        100 * accuracy,
    )
    if not kept:
        raise ConfigError("the teacher solved no problem of distill.num_problems: nothing to learn")
    return kept, accuracy


def hardest(
    solved: Iterable[Solved],
    *,
    num_kept: int,
    solutions_per_problem: int,
    rng: np.random.Generator,
) -> list[Demonstration]:
    """Right solutions of the `num_kept` problems with the lowest share of right samples above 0.

    Equal shares are ordered at random, and each problem gives random ones of its distinct right
    solutions that ended by themselves.
    """
    candidates: list[tuple[float, list[Demonstration]]] = []
    for group in solved:
        right = {
            full_response(trajectory): Demonstration(trajectory.problem, full_response(trajectory))
            for trajectory, correct in group
            if correct and trajectory.finish == "stop"
        }
        if right:
            share = float(np.mean([correct for _, correct in group]))
            candidates.append((share, [right[text] for text in sorted(right)]))
    shuffled = [candidates[i] for i in rng.permutation(len(candidates))]
    kept = sorted(shuffled, key=lambda candidate: candidate[0])[:num_kept]
    return [
        solutions[i]
        for _, solutions in kept
        for i in rng.permutation(len(solutions))[:solutions_per_problem]
    ]
