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
from satori_fast.config import ConfigError, ReinforceConfig, RewardConfig
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.data.pairs import finished
from satori_fast.data.prompts import PromptRenderer
from satori_fast.data.tokenizer import load_tokenizer
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.stages.models import ModelFolders, model_folder
from satori_fast.types import ScoreStatistics, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Microbatches on the device at once.
_CHUNK = 64


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


@dataclass(frozen=True)
class ScoringModel:
    """A frozen scalar model that scores trajectories; a `rewards.preference.Scorer`.

    name: begins the message of a score that is not finite.
    """

    learner: Learner
    name: str
    eos_id: int
    packing: PackingSpec
    parallel: ParallelState
    spans: SpanRecorder

    def __call__(self, trajectories: Sequence[Trajectory]) -> npt.NDArray[np.float32]:
        """Raw score of each trajectory, the same on every rank. One that the length limit cut is
        scored with the end of text in its last place."""
        ended = [finished(trajectory, self.eos_id) for trajectory in trajectories]
        self.spans.count("reward_model", sum(len(t.tokens) for t in ended))
        scores = score_trajectories(
            self.learner, ended, packing=self.packing, parallel=self.parallel, name=self.name
        )
        self.learner.rest()
        return scores


def load_reward_model(
    config: RewardConfig,
    models: ModelFolders,
    *,
    trained: Path | None,
    packing: PackingSpec,
    parallel: ParallelState,
    spans: SpanRecorder,
) -> tuple[ScoringModel, ScoreStatistics] | None:
    """The reward model, and the statistics of its scores; None where the preference reward is off.

    trained: the folder that the preference stage left, taken where `reward.model` is not set.
    ConfigError when the reward is on and there is no model, or one that cannot give it.
    """
    if not config.preference_weight:
        return None
    folder = reward_model_folder(config.model or trained, models.renderer)
    if folder is None:
        raise ConfigError(
            f"reward.preference_weight = {config.preference_weight} needs a reward model: put "
            "preference before this stage in stages, set reward.model, or set the weight to 0"
        )
    statistics = ScoreStatistics()
    if config.normalize_preference:
        statistics = statistics_of(folder, "reward.normalize_preference")
    model = ScoringModel(
        models.scalar(folder),
        f"reward model {folder}",
        models.renderer.eos_id,
        packing,
        parallel,
        spans,
    )
    return model, statistics


def load_critic(
    config: ReinforceConfig,
    models: ModelFolders,
    *,
    policy: Path,
    reward_model: str | Path | None,
    num_steps: int,
) -> Learner:
    """A critic that starts from the reward model, its head included, or from the policy, its head
    at zero (`reinforce.critic_init`).

    The paper starts it from the reward model; its code also normalises the critic's values with
    the statistics of the scores, so that they begin in units of the reward's own scale.
    """
    folder = None
    if config.critic_init != "policy":
        folder = reward_model_folder(reward_model, models.renderer)
    if folder is None:
        if config.critic_init == "reward_model":
            raise ConfigError(
                'reinforce.critic_init = "reward_model" needs one: put preference before this '
                'stage in stages, set reward.model, or choose "policy"'
            )
        return models.scalar(policy, config.critic_optimizer, num_steps=num_steps)
    if config.normalize_critic:
        statistics_of(folder, "reinforce.normalize_critic")
    return models.scalar(
        folder,
        config.critic_optimizer,
        num_steps=num_steps,
        normalized=config.normalize_critic,
    )


def reward_model_folder(chosen: str | Path | None, renderer: PromptRenderer) -> Path | None:
    """The folder of a reward model, checked against the policy's tokenizer; None where there is
    none."""
    folder = model_folder(chosen) if isinstance(chosen, str) else chosen
    if folder is not None:
        load_hf_config(folder)
        check_same_tokens(str(folder), load_tokenizer(folder).get_vocab(), renderer.tokenizer)
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
