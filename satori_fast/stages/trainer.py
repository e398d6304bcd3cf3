# SPDX-License-Identifier: Apache-2.0
"""The device half of a step: models, recipe, and the pass from experience to an update.

It owns the learners and how their work is packed and divided; where experience comes from is an
`ExperienceSource`, and neither half looks at the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from satori_fast.algorithms.advantages import estimate_advantages, reference_kl
from satori_fast.algorithms.importance import weigh_sequences
from satori_fast.algorithms.recipe import Recipe
from satori_fast.backbone.parallel import ParallelState
from satori_fast.backbone.scoring import LateScoring
from satori_fast.backbone.step import Learner, annotate, update
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.experience.source import Span
from satori_fast.rollout.weight_sync import SyncReport
from satori_fast.types import Advantages, Experience, PackedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The packing of a step, its seed included.
Packing = Callable[[int], PackingSpec]


@dataclass(frozen=True)
class StepResult:
    """All that a step leaves; every metric is made from it (`books`).

    batches, advantages: this rank's share, in the order of its microbatches.
    stats:   of the update, under metric names.
    trained: the learners that were updated, by role.
    scored:  share of the loss tokens that the policy scored before the update.
    start:   the frozen model that an imitation's KL is to, which read the batches too.
    """

    experience: Experience
    batches: Sequence[PackedBatch]
    advantages: Sequence[Advantages]
    stats: Mapping[str, float]
    trained: Mapping[str, Learner]
    synced: SyncReport | None = None
    start: Learner | None = None
    scored: float = 1.0


@dataclass
class Trainer:
    """The models of reinforcement and the recipe that trains them.

    critic, reference:   None where the recipe needs none.
    packing:             of a step, on this rank.
    span:                times a part of a step.
    tokenizer:           shows a sequence on which engine and trainer differ.
    max_logprob_diff:    limit of that difference, `rollout.max_logprob_diff`.
    critic_warmup_steps: first steps that train the critic alone.
    """

    recipe: Recipe
    policy: Learner
    critic: Learner | None
    reference: Learner | None
    parallel: ParallelState
    packing: Packing
    span: Span
    tokenizer: PreTrainedTokenizerBase
    max_logprob_diff: float | None = None
    critic_warmup_steps: int = 0
    learners: dict[str, Learner] = field(init=False)

    def __post_init__(self) -> None:
        both = {"policy": self.policy, "critic": self.critic}
        self.learners = {name: learner for name, learner in both.items() if learner is not None}

    @property
    def scorers(self) -> list[Learner]:
        """Models that see every trajectory before the update."""
        return [m for m in (self.policy, self.reference, self.critic) if m is not None]

    def trained(self, step: int) -> dict[str, Learner]:
        """Learners of a step: the critic alone while it warms up."""
        if self.critic is None or step >= self.critic_warmup_steps:
            return self.learners
        return {"critic": self.critic}

    def rest(self) -> None:
        """Leave the device to the sampler, where `parallel.offload` says so."""
        for learner in (*self.learners.values(), self.reference):
            if learner is not None:
                learner.rest()

    def pack(self, experience: Experience, step: int) -> list[PackedBatch]:
        """Microbatches of this rank, on its device."""
        packed = pack(
            experience.trajectories,
            experience.credits,
            self.packing(step),
            self.recipe.weighting,
        )
        return [batch.to(self.parallel.device) for batch in packed]

    def scores_late(self, step: int) -> bool:
        """Whether a step takes the policy's log-probs of its first minibatch from the update, whose
        forward pass makes them anyway: where nothing asks for them before."""
        loss = self.recipe.loss
        weighs_sequences = loss.importance_level == "sequence" and loss.terms.importance != "none"
        asked = weighs_sequences or bool(self.recipe.advantage.kl_coefficient)
        return "policy" in self.trained(step) and not asked and self.parallel.pipeline_size == 1

    def annotate(self, batches: Sequence[PackedBatch], *, late: bool = False) -> list[PackedBatch]:
        """The batches with the log-probs and values of the models of now. late: without those of
        the policy for the first minibatch (`scores_late`)."""
        first = [batch for batch in batches if late and batch.minibatch == batches[0].minibatch]
        others = batches[len(first) :]  # they come in the order of their minibatches
        models, temperature = (self.reference, self.critic), self.recipe.loss.temperature
        return [
            *annotate(first, None, *models, temperature=temperature),
            *annotate(others, self.policy, *models, temperature=temperature),
        ]

    def advantages(
        self, batches: Sequence[PackedBatch]
    ) -> tuple[list[Advantages], dict[str, float]]:
        """The learning signal of each token, and the metrics of importance weights and of a KL
        inside the advantage."""
        all_reduce_sum = self.parallel.all_reduce_sum
        estimates = estimate_advantages(batches, self.recipe.advantage, all_reduce_sum)
        weighed, counts = weigh_sequences(batches, estimates, self.recipe.loss)
        changed, total = all_reduce_sum(counts).tolist()
        metrics = {"rollout/sequence_clip_fraction": changed / total} if total else {}
        if self.recipe.advantage.kl_coefficient:
            nats, num_tokens = all_reduce_sum(reference_kl(batches)).tolist()
            metrics["rollout/kl"] = nats / num_tokens
        return weighed, metrics

    def update(
        self,
        batches: Sequence[PackedBatch],
        advantages: Sequence[Advantages],
        step: int,
        *,
        scored: Callable[[list[PackedBatch]], None] | None = None,
    ) -> dict[str, float]:
        """One optimizer step per minibatch for each learner of this step; its metrics, without a
        KL to the reference where there is none. scored: gets the batches that `annotate` left
        without log-probs before the policy's first step (`LateScoring.done`)."""
        late = scored and LateScoring(self.recipe.loss.temperature, scored)
        metrics = update(
            self.trained(step).get("policy"),
            self.critic,
            batches,
            advantages,
            self.recipe.loss,
            late=late,
        )
        if self.reference is None:
            metrics.pop("update/kl", None)
        return metrics


def scored_share(batches: Sequence[PackedBatch]) -> float:
    """Share of the loss tokens, over all ranks, of the minibatches that have log-probs."""
    num_tokens = {batch.minibatch: batch.num_minibatch_tokens for batch in batches}
    scored = {batch.minibatch for batch in batches if batch.old_logprobs is not None}
    total = sum(num_tokens.values())
    return sum(num_tokens[each] for each in scored) / total if total else 1.0
