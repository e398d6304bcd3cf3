# SPDX-License-Identifier: Apache-2.0
"""The outcome reward model: trained on pairs of the policy's own right and wrong samples (Satori,
appendix D.3).

Bradley-Terry with margin, from the current policy with a new head. The problems of a share of the
samples are held out; the checkpoint that picks best among their samples is the one that stays, with
the mean and standard deviation of its scores. Using the model is `scoring`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from satori_fast.algorithms.losses import pairwise_loss
from satori_fast.backbone.architecture import with_score_statistics
from satori_fast.backbone.step import Learner, update_one
from satori_fast.config import ConfigError
from satori_fast.data.cursor import ProblemCursor
from satori_fast.data.packing import pack_pairs
from satori_fast.data.pairs import GradedSamples, finished, form_pairs
from satori_fast.evaluation.best_of import SelectionResult, evaluate_selection
from satori_fast.stages.alarms import warn_of_large_batch
from satori_fast.stages.run import Run, StageOutcome
from satori_fast.stages.scoring import score_trajectories
from satori_fast.stages.setup import learner_for
from satori_fast.stages.solutions import load_or_sample_solutions
from satori_fast.stages.step_loop import StepLoop
from satori_fast.stages.workload import count_training
from satori_fast.storage import check_digests, digests
from satori_fast.types import PreferencePair, ScoreStatistics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreferenceData:
    """Pairs to train on, and all samples of the problems that are held out."""

    pairs: list[PreferencePair]
    heldout: list[GradedSamples]


def preference_step(
    run: Run, model: Learner, pairs: Sequence[PreferencePair], step: int
) -> dict[str, float]:
    """One optimizer step on `pairs`; metrics without times."""
    with run.spans.span("pack"):
        packing = run.packing(1, run.seed(run.stage, "minibatches", step))
        batches = [batch.to(run.parallel.device) for batch in pack_pairs(pairs, packing)]
    with run.spans.span("update"):
        terms = partial(pairwise_loss, margin=run.config.preference.margin)
        stats = update_one(model, batches, terms, name="preference")
    num_tokens = sum(pair.num_tokens for pair in pairs)
    run.spans.count("update", num_tokens)
    run.spans.count("step", num_tokens)
    count_training(run, (model,), [t for pair in pairs for t in (pair.chosen, pair.rejected)])
    return stats


def preference(run: Run) -> StageOutcome:
    """Train a reward model for `preference.num_epochs`; its best checkpoint is exported."""
    config = run.config.preference
    data = preference_data(run)
    warn_of_large_batch(run.stage, config.batch_size, len(data.pairs), num_epochs=config.num_epochs)
    num_steps = math.ceil(len(data.pairs) * config.num_epochs / config.batch_size)
    model = learner_for(run, "scalar", config.optimizer, num_steps=num_steps)
    cursor = ProblemCursor(data.pairs, seed=run.seed(run.stage, "order"))
    learners = {"reward": model}
    done = run.resume_stage(learners)
    best: SelectionResult | None = None
    exported: dict[str, str] = {}
    if done.data is not None:
        cursor.load_state_dict(done.data["pairs"])
        best = None if done.data["best"] is None else SelectionResult(**done.data["best"])
        exported = done.data["exported"]
    with StepLoop(run, learners, num_steps, done, checkpoint_every=config.checkpoint_every) as loop:
        for step in loop:
            metrics = preference_step(run, model, cursor.take(config.batch_size), step)
            if loop.is_due(config.evaluate_every):
                result = validate(run, model, data.heldout)
                metrics |= {f"preference/heldout_{name}": x for name, x in asdict(result).items()}
                if is_better(result, best):
                    best = result
                    exported = export_reward_model(run, model, result)
            state = {
                "pairs": cursor.state_dict(),
                "best": None if best is None else asdict(best),
                "exported": exported,
            }
            loop.finish_step(metrics, state, shown={"accuracy": metrics["preference/accuracy"]})
    assert best is not None
    # A resumed stage may leave the model of an earlier session: it must still be that model.
    run.parallel.on_main(lambda: check_digests(run.exported_model, exported))
    figures = {**asdict(best), "num_pairs": len(data.pairs), "num_heldout": len(data.heldout)}
    return StageOutcome({"reward": run.exported_model}, None, loop.done.times, figures)


def preference_data(run: Run) -> PreferenceData:
    """Pairs of the policy's samples on training problems; the first problems are held out (their
    order is random). ConfigError when there is nothing to train on, or to choose by."""
    config = run.config.preference
    engine = run.engine(learner_for(run, "policy", None))
    solved = load_or_sample_solutions(run, engine, name=run.model_folder.name)
    num_problems = min(run.config.solutions.num_problems, len(run.problems))
    share = max(1, round(config.heldout_fraction * num_problems))
    groups = iter(solved)
    heldout: list[GradedSamples] = list(islice(groups, min(share, config.max_heldout_problems)))
    pairs = form_pairs(
        groups,
        max_per_problem=config.max_pairs_per_problem,
        eos_id=run.renderer.eos_id,
        rng=run.rng(run.stage, "pairs"),
    )
    mixed = [group for group in heldout if len({correct for _, correct in group}) == 2]
    for what, found in (("training", pairs), ("held-out", mixed)):
        if not found:
            raise ConfigError(
                f"no {what} problem of solutions.num_problems = {num_problems} has both right and "
                "wrong samples: raise it, solutions.num_samples or solutions.temperature"
            )
    logger.info(
        "preference pairs: %d; %d of %d held-out problems have right and wrong samples",
        len(pairs),
        len(mixed),
        len(heldout),
    )
    return PreferenceData(pairs, heldout)


def validate(run: Run, model: Learner, heldout: Sequence[GradedSamples]) -> SelectionResult:
    """How well the model picks among the samples of each held-out problem; span "validate"."""
    eos_id = run.renderer.eos_id
    samples = [finished(trajectory, eos_id) for group in heldout for trajectory, _ in group]
    with run.spans.span("validate"):
        scores = score_trajectories(
            model, samples, packing=run.packing(1, 0), parallel=run.parallel
        )
    run.spans.count("validate", sum(len(t.tokens) for t in samples))
    correct = [np.array([is_right for _, is_right in group]) for group in heldout]
    ends = np.cumsum([len(group) for group in correct])[:-1]
    return evaluate_selection(np.split(scores, ends), correct)


def is_better(result: SelectionResult, best: SelectionResult | None) -> bool:
    """By best-of-n accuracy, then by pair accuracy."""
    if best is None:
        return True
    return (result.best_of_n, result.pair_accuracy) > (best.best_of_n, best.pair_accuracy)


def export_reward_model(run: Run, model: Learner, result: SelectionResult) -> dict[str, str]:
    """The model with the statistics of its scores, in place of an earlier one of this stage; the
    digests of its files."""
    statistics = ScoreStatistics(result.score_mean, result.score_std or 1.0)
    hf_config: Any = with_score_statistics(model.hf_config, statistics)
    run.export(replace(model, hf_config=hf_config), run.exported_model)
    return run.parallel.from_main(lambda: digests(run.exported_model))
