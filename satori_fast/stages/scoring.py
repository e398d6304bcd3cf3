# SPDX-License-Identifier: Apache-2.0
"""The outcome reward model at work: found, checked, loaded, and shared out over the ranks.

Training it is `preference`; what becomes of a score is `rewards.preference`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from satori_fast.backbone.architecture import load_hf_config, score_statistics
from satori_fast.backbone.parallel import ParallelState
from satori_fast.backbone.step import Learner, value
from satori_fast.config import ConfigError
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.data.pairs import finished
from satori_fast.data.tokenizer import load_tokenizer
from satori_fast.rewards.preference import preference_rewards
from satori_fast.stages.run import Run
from satori_fast.stages.setup import learner_for, model_folder
from satori_fast.types import ScoreStatistics, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Microbatches on the device at once.
_CHUNK = 64


@dataclass(frozen=True)
class RewardModel:
    """A frozen scalar model, and the statistics that its scores are normalised with."""

    learner: Learner
    statistics: ScoreStatistics
    folder: Path

    def rewards(self, run: Run, trajectories: Sequence[Trajectory]) -> list[float]:
        """`preference_rewards` of the trajectories, the same on every rank; span "reward_model"."""
        ended = [finished(trajectory, run.renderer.eos_id) for trajectory in trajectories]
        with run.spans.span("reward_model"):
            rewards = preference_rewards(
                ended,
                lambda batch: score_trajectories(
                    self.learner,
                    batch,
                    packing=run.packing(1, 0),
                    parallel=run.parallel,
                    name=f"reward model {self.folder}",
                ),
                self.statistics,
            )
        run.spans.count("reward_model", sum(len(t.tokens) for t in ended))
        return rewards


def score_trajectories(
    learner: Learner,
    trajectories: Sequence[Trajectory],
    *,
    packing: PackingSpec,
    parallel: ParallelState,
    name: str = "the reward model",
) -> npt.NDArray[np.float32]:
    """The value of each trajectory's last token, [N] in their order, on every rank.

    Every rank holds all trajectories and scores its share of them. ValueError, on every rank, for a
    score that is not finite: `name`, what scores, begins its message.
    """
    batches = pack(trajectories, None, packing, "token")
    own: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]] = []
    for begin in range(0, len(batches), _CHUNK):
        chunk = [batch.to(parallel.device) for batch in batches[begin : begin + _CHUNK]]
        scores = [
            values[batch.last_tokens]
            for batch, values in zip(chunk, value(learner, chunk), strict=True)
        ]
        sources = [batch.source[: len(s)] for batch, s in zip(chunk, scores, strict=True)]
        own.append((torch.cat(sources).numpy(), torch.cat(scores).cpu().numpy()))
    gathered = np.zeros(len(trajectories), dtype=np.float32)
    for part in parallel.all_gather(own):
        for source, scores in part:
            gathered[source] = scores
    broken = np.flatnonzero(~np.isfinite(gathered))
    if len(broken):
        first = trajectories[broken[0]]
        raise ValueError(
            f"{name} scores {len(broken)} of {len(gathered)} responses with a number that is not "
            f"finite, first {gathered[broken[0]]} for problem {first.problem.problem_id!r} "
            f"({len(first.tokens)} tokens): a NaN or infinity in its weights, or an overflow of "
            "its dtype"
        )
    return gathered


def load_reward_model(run: Run) -> RewardModel | None:
    """The run's reward model, None where the preference reward is off.

    ConfigError when the reward is on and there is no model, or one that cannot give it.
    """
    config = run.config.reward
    if not config.preference_weight:
        return None
    folder = reward_model_folder(run)
    if folder is None:
        raise ConfigError(
            f"reward.preference_weight = {config.preference_weight} needs a reward model: put "
            "preference before this stage in stages, set reward.model, or set the weight to 0"
        )
    statistics = ScoreStatistics()
    if config.normalize_preference:
        statistics = statistics_of(folder, "reward.normalize_preference")
    return RewardModel(learner_for(run, "scalar", None, weights=folder), statistics, folder)


def critic_for(run: Run, num_steps: int) -> Learner:
    """A critic that starts from the reward model, its head included, or from the policy, its head
    at zero (`reinforce.critic_init`).

    The paper starts it from the reward model; its code also normalises the critic's values with
    the statistics of the scores, so that they begin in units of the reward's own scale.
    """
    config = run.config.reinforce
    folder = None if config.critic_init == "policy" else reward_model_folder(run)
    if folder is None:
        if config.critic_init == "reward_model":
            raise ConfigError(
                'reinforce.critic_init = "reward_model" needs one: put preference before this '
                'stage in stages, set reward.model, or choose "policy"'
            )
        return learner_for(run, "scalar", config.critic_optimizer, num_steps=num_steps)
    if config.normalize_critic:
        statistics_of(folder, "reinforce.normalize_critic")
    return learner_for(
        run,
        "scalar",
        config.critic_optimizer,
        num_steps=num_steps,
        weights=folder,
        normalized=config.normalize_critic,
    )


def reward_model_folder(run: Run) -> Path | None:
    """`reward.model`, or what the preference stage left, checked against the run's tokenizer."""
    chosen = run.config.reward.model
    folder = run.models.get("reward") if chosen is None else model_folder(chosen)
    if folder is not None:
        load_hf_config(folder)
        check_same_tokens(str(folder), load_tokenizer(folder).get_vocab(), run.renderer.tokenizer)
    return folder


def check_same_tokens(
    reward_model: str, known: Mapping[str, int], tokenizer: PreTrainedTokenizerBase
) -> None:
    """ConfigError when a reward model that knows these ids would read another text than the policy
    wrote, without an error."""
    for token, number in tokenizer.get_vocab().items():
        if known.get(token) != number:
            raise ConfigError(
                f"reward model {reward_model} has another tokenizer than the policy: token "
                f"{token!r} is {known.get(token)} to it, and {number} here; take one that was "
                "trained from this policy, or set reward.preference_weight = 0 and "
                'reinforce.critic_init = "policy"'
            )


def statistics_of(folder: Path, option: str) -> ScoreStatistics:
    """Mean and std of a reward model's scores; ConfigError naming the `option` that needs them."""
    statistics = score_statistics(load_hf_config(folder))
    if statistics is None:
        raise ConfigError(
            f"{option} needs the mean and std of the scores, which {folder / 'config.json'} does "
            "not have: set it to false"
        )
    return statistics
