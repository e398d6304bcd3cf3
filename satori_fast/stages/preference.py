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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from satori_fast.algorithms.losses import pairwise_loss
from satori_fast.backbone.architecture import with_score_statistics
from satori_fast.backbone.parallel import parallel_state
from satori_fast.backbone.step import Learner, update_one
from satori_fast.config import ConfigError, PreferenceConfig
from satori_fast.data.cursor import ProblemCursor
from satori_fast.data.packing import PackingSpec, pack_pairs
from satori_fast.data.pairs import GradedSamples, finished, form_pairs
from satori_fast.evaluation.best_of import SelectionResult, evaluate_selection
from satori_fast.experience.source import Span
from satori_fast.stages.alarms import warn_of_large_batch
from satori_fast.stages.books import Books
from satori_fast.stages.context import Context
from satori_fast.stages.models import ModelFolders
from satori_fast.stages.outcome import StageOutcome
from satori_fast.stages.run_folder import RunFolder
from satori_fast.stages.scoring import score_trajectories
from satori_fast.stages.step_loop import StepLoop
from satori_fast.stages.trainer import StepResult
from satori_fast.storage import check_digests, digests
from satori_fast.types import Experience, PreferencePair, ScoreStatistics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreferenceData:
    """Pairs to train on, and all samples of the problems that are held out."""

    pairs: list[PreferencePair]
    heldout: list[GradedSamples]


def preference_step(
    model: Learner,
    pairs: Sequence[PreferencePair],
    *,
    margin: float,
    packing: PackingSpec,
    span: Span,
) -> StepResult:
    """One optimizer step on `pairs`."""
    solutions = tuple(t for pair in pairs for t in (pair.chosen, pair.rejected))
    with span("pack"):
        packed = pack_pairs(pairs, packing)
        batches = [batch.to(parallel_state().device) for batch in packed]
    with span("update"):
        terms = partial(pairwise_loss, margin=margin)
        stats = update_one(model, batches, terms, name="preference")
    experience = Experience(solutions)
    return StepResult(experience, batches, (), stats, {"reward": model})


def preference(context: Context, folder: RunFolder, books: Books) -> StageOutcome:
    """Train a reward model for `preference.num_epochs`; its best checkpoint is exported."""
    config, seeds, stage = context.config.preference, context.seeds, context.stage
    models, exported = context.model_folders, folder.exported(stage)
    # No name keeps the policy: its memory is the reward model's once the samples are there.
    solved = context.solver(folder, books).solutions(
        context.engine(models.policy(context.policy_folder)), name=context.policy_folder.name
    )
    data = preference_data(
        solved,
        config,
        num_problems=min(context.config.solutions.num_problems, len(context.problems)),
        eos_id=context.renderer.eos_id,
        rng=seeds.rng(stage, "pairs"),
    )
    warn_of_large_batch(stage, config.batch_size, len(data.pairs), num_epochs=config.num_epochs)
    num_steps = math.ceil(len(data.pairs) * config.num_epochs / config.batch_size)
    model = models.scalar(context.policy_folder, config.optimizer, num_steps=num_steps)
    cursor = ProblemCursor(data.pairs, seed=seeds.of(stage, "order"))
    validation = Validation(data.heldout, context.renderer.eos_id, context.packing(), books)
    best = Best(models, folder, exported)
    loop = StepLoop(
        stage,
        {"reward": model},
        num_steps,
        folder,
        books,
        checkpoint_every=config.checkpoint_every,
    )
    if (state := loop.resume()) is not None:
        cursor.load_state_dict(state["pairs"])
        best.load_state_dict(state)
    with loop:
        for step in loop:
            packing = context.packing(seed=seeds.of(stage, "minibatches", step))
            result = preference_step(
                model,
                cursor.take(config.batch_size),
                margin=config.margin,
                packing=packing,
                span=books.spans.span,
            )
            metrics = books.training(result)
            if loop.is_due(config.evaluate_every):
                metrics |= best.compare(model, validation.validate(model))
            loop.finish_step(
                metrics,
                {"pairs": cursor.state_dict()} | best.state_dict(),
                shown={"accuracy": metrics["preference/accuracy"]},
            )
    figures = best.figures() | {"num_pairs": len(data.pairs), "num_heldout": len(data.heldout)}
    return StageOutcome({"reward": exported}, None, loop.done.times, figures)


def preference_data(
    solved: Iterable[GradedSamples],
    config: PreferenceConfig,
    *,
    num_problems: int,
    eos_id: int,
    rng: np.random.Generator,
) -> PreferenceData:
    """Pairs of the policy's samples on training problems; the first problems are held out (their
    order is random). ConfigError when there is nothing to train on, or to choose by."""
    share = max(1, round(config.heldout_fraction * num_problems))
    groups = iter(solved)
    heldout: list[GradedSamples] = list(islice(groups, min(share, config.max_heldout_problems)))
    pairs = form_pairs(groups, max_per_problem=config.max_pairs_per_problem, eos_id=eos_id, rng=rng)
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


@dataclass(frozen=True)
class Validation:
    """Accuracy of a reward model's choice among the samples of each held-out problem."""

    heldout: Sequence[GradedSamples]
    eos_id: int
    packing: PackingSpec
    books: Books

    def validate(self, model: Learner) -> SelectionResult:
        """The selection by `model`'s scores; span "validate"."""
        samples = [finished(t, self.eos_id) for group in self.heldout for t, _ in group]
        with self.books.spans.span("validate"):
            scores = score_trajectories(
                model, samples, packing=self.packing, parallel=parallel_state()
            )
        self.books.spans.count("validate", sum(len(t.tokens) for t in samples))
        correct = [np.array([is_right for _, is_right in group]) for group in self.heldout]
        ends = np.cumsum([len(group) for group in correct])[:-1]
        return evaluate_selection(np.split(scores, ends), correct)


class Best:
    """The best reward model of a stage so far: its validation, and its folder."""

    def __init__(self, models: ModelFolders, folder: RunFolder, exported: Path) -> None:
        self._models, self._folder, self._exported = models, folder, exported
        self._result: SelectionResult | None = None
        self._digests: dict[str, str] = {}

    def compare(self, model: Learner, result: SelectionResult) -> dict[str, float]:
        """Export `model` if it is better than those before; the metrics of its validation."""
        if is_better(result, self._result):
            self._result = result
            statistics = ScoreStatistics(result.score_mean, result.score_std or 1.0)
            hf_config: Any = with_score_statistics(model.hf_config, statistics)
            self._models.export(replace(model, hf_config=hf_config), self._exported)
            self._digests = self._folder.from_main(lambda: digests(self._exported))
        return {f"preference/heldout_{name}": value for name, value in asdict(result).items()}

    def figures(self) -> dict[str, float]:
        """The validation of the exported model; DamagedFile where the folder is not that model's: a
        resumed stage may leave the model of an earlier session."""
        assert self._result is not None
        self._folder.on_main(lambda: check_digests(self._exported, self._digests))
        return asdict(self._result)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: the validation and the digests of the exported files."""
        result = None if self._result is None else asdict(self._result)
        return {"best": result, "exported": self._digests}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._result = None if state["best"] is None else SelectionResult(**state["best"])
        self._digests = state["exported"]


def is_better(result: SelectionResult, best: SelectionResult | None) -> bool:
    """Whether it is better, by best-of-n accuracy, then by pair accuracy."""
    if best is None:
        return True
    return (result.best_of_n, result.pair_accuracy) > (best.best_of_n, best.pair_accuracy)
