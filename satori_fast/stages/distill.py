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
from satori_fast.rollout.restarting import Restarting
from satori_fast.stages.agent_work import write_demonstrations
from satori_fast.stages.books import Books
from satori_fast.stages.context import Context
from satori_fast.stages.models import model_folder
from satori_fast.stages.outcome import StageOutcome
from satori_fast.stages.run_folder import RunFolder
from satori_fast.stages.setup import keep_tokenizer
from satori_fast.stages.solutions import Solved, Solver
from satori_fast.stages.supervised import imitate, load_trajectories
from satori_fast.storage import read_sealed, wait_for_file, write_sealed
from satori_fast.types import Demonstration

logger = logging.getLogger(__name__)


def distill(context: Context, folder: RunFolder, books: Books) -> StageOutcome:
    """Solve, keep the hardest, tune the student; it is the policy from here on."""
    config, stage = context.config.distill, context.stage
    path = folder.path / f"demonstrations_{stage}.jsonl"
    figures_path = path.with_suffix(".json")
    if not folder.from_main(path.exists):
        # No name keeps the teacher: its memory is the student's once the samples are there.
        demonstrations, teacher_accuracy = solved_by_teacher(
            context.solver(folder, books),
            context.engine(context.model_folders.policy(context.policy_folder)),
            config,
            stage=stage,
            rng=context.seeds.rng(stage, "solutions"),
        )
        note = {"teacher_accuracy": teacher_accuracy}
        folder.on_main(lambda: write_sealed(figures_path, note))
        folder.on_main(lambda: write_demonstrations(path, demonstrations))
        folder.keep(path)
    figures = read_sealed(wait_for_file(figures_path))
    start = context.models["base"]
    if config.student is not None:
        start = model_folder(config.student)
        tokenizer = folder.path / f"tokenizer_{stage}"
        if not folder.has(tokenizer.name):
            special_tokens = context.renderer.format.special_tokens
            folder.on_main(lambda: keep_tokenizer(start, tokenizer, special_tokens))
            folder.keep(tokenizer)
        context = context.with_tokenizer(tokenizer, folder=folder)
    trajectories = load_trajectories(
        str(wait_for_file(path)),
        "coat",
        context.renderer,
        problems=context.problems,
        heldout=context.heldout,
        max_seqlen=context.config.rollout.max_seqlen,
    )
    outcome = imitate(context, folder, books, trajectories, config=config, start=start)
    models = {**outcome.models, "tokenizer": context.models["tokenizer"], "base": start}
    figures["num_demonstrations"] = len(trajectories)
    return StageOutcome(models, outcome.evaluation, outcome.times, figures)


def solved_by_teacher(
    solver: Solver,
    engine: Restarting,
    config: DistillConfig,
    *,
    stage: str,
    rng: np.random.Generator,
) -> tuple[list[Demonstration], float]:
    """Right solutions of the hardest problems, and the share of all samples that were right."""
    size = SolutionsConfig(
        num_problems=config.num_problems,
        num_samples=config.num_samples,
        temperature=config.temperature,
    )
    solved = list(solver.solutions(engine, name=stage, size=size))
    accuracy = float(np.mean([correct for group in solved for _, correct in group]))
    kept = hardest(
        solved,
        num_kept=config.num_kept,
        solutions_per_problem=config.solutions_per_problem,
        rng=rng,
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
