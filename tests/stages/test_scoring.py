# SPDX-License-Identifier: Apache-2.0
"""The reward model and the critic that starts from it, inside a run; what is missing is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from satori_fast.backbone.architecture import load_hf_config, score_statistics
from satori_fast.backbone.step import Learner, value
from satori_fast.config import ConfigError
from satori_fast.data.formats.coat import COAT
from satori_fast.data.packing import PackingSpec
from satori_fast.data.prompts import build_trajectory
from satori_fast.profiling.metrics import read_metrics
from satori_fast.rewards.preference import preference_rewards
from satori_fast.stages.books import Books
from satori_fast.stages.context import Context
from satori_fast.stages.mismatch import MismatchError
from satori_fast.stages.preference import preference
from satori_fast.stages.reinforce import build_trainer, reinforce
from satori_fast.stages.rewards import build_rewards
from satori_fast.stages.run import Run
from satori_fast.stages.scoring import (
    ScoringModel,
    load_critic,
    load_reward_model,
    score_trajectories,
)
from satori_fast.stages.trainer import Trainer
from satori_fast.types import ScoreStatistics, Trajectory
from tests.stages.preference_run import at_stage, open_run
from tests.tiny_models import random_batch

WITH_PREFERENCE = ("--reward.preference_weight", "1.0")


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained reward model."""
    with open_run(tmp_path_factory.mktemp("reward"), "--preference.num_epochs", "1.0") as run:
        return preference(at_stage(run), run.folder, run.books).models["reward"]


def at_reinforce(folder: Path, *overrides: str, reward: Path | None = None) -> Run:
    run = open_run(folder, *overrides)
    if reward is not None:
        run.models["reward"] = reward
    return run


def reward_model_of(run: Run) -> tuple[ScoringModel, ScoreStatistics] | None:
    context = at_stage(run, "reinforce")
    return load_reward_model(
        context.config.reward,
        context.model_folders,
        trained=context.models.get("reward"),
        packing=context.packing(),
        parallel=context.parallel,
        spans=run.books.spans,
    )


def critic_of(context: Context) -> Learner:
    return load_critic(
        context.config.reinforce,
        context.model_folders,
        policy=context.policy_folder,
        reward_model=context.models.get("reward"),
        num_steps=4,
    )


def answers(run: Run) -> list[Trajectory]:
    """Some long, some short, one cut by the limit."""
    texts = ["more 1 2", "less", "1 2 3 4 5 less 6 7", "more more", "9 8 7 6 more", "0"]
    return [
        build_trajectory(
            run.problems[number],
            np.array([*run.renderer.encode(text), *([] if number == 2 else [run.renderer.eos_id])]),
            renderer=run.renderer,
            group_id=number,
            finish="length" if number == 2 else "stop",
        )
        for number, text in enumerate(texts)
    ]


def test_scores_do_not_depend_on_packing(tmp_path: Path, reward_folder: Path) -> None:
    with at_reinforce(tmp_path) as run:
        learner = at_stage(run, "reinforce").model_folders.scalar(reward_folder)
        trajectories = answers(run)
        for capacity in (40, 1000):
            scores = score_trajectories(
                learner, trajectories, packing=PackingSpec(capacity, 1), parallel=run.parallel
            )
            alone = [float(value(learner, [_alone(t)])[0][-1]) for t in trajectories]
            assert scores.tolist() == pytest.approx(alone, abs=1e-5)
        empty = score_trajectories(learner, [], packing=PackingSpec(40, 1), parallel=run.parallel)
        assert empty.shape == (0,)


def _alone(trajectory: Trajectory):
    batch = random_batch([len(trajectory.tokens)])
    batch.tokens.copy_(torch.as_tensor(trajectory.tokens))
    return batch


def test_rewards_are_normalised_or_not(tmp_path: Path, reward_folder: Path) -> None:
    statistics = score_statistics(load_hf_config(reward_folder))
    assert statistics is not None and statistics.std > 0.01
    rewards = []
    for number, (normalize, used) in enumerate((("true", statistics), ("false", None))):
        folder = tmp_path / str(number)
        folder.mkdir()
        options = (*WITH_PREFERENCE, "--reward.normalize_preference", normalize)
        with at_reinforce(folder, *options, reward=reward_folder) as run:
            reward_model = reward_model_of(run)
            assert reward_model is not None
            model, own_statistics = reward_model
            assert own_statistics == (used or ScoreStatistics())
            trajectories = answers(run)
            _, term = build_rewards(
                run.config.reward,
                grader=run.grader,
                worker=run.functions,
                format=COAT,
                reward_model=reward_model,
                spans=run.books.spans,
            )
            rewards.append([part.terms["preference"] for part in term(trajectories)])
            ended = [t for t in trajectories if t.finish == "stop"]
            raw = preference_rewards(
                ended,
                lambda batch, model=model, run=run: score_trajectories(
                    model.learner, batch, packing=PackingSpec(99, 1), parallel=run.parallel
                ),
                own_statistics,
            )
            # The truncated one is scored too, with the end of text in its last place.
            assert [r for t, r in zip(trajectories, rewards[-1], strict=True) if t in ended] == (
                pytest.approx(raw, abs=1e-6)
            )
            times = run.books.spans.end_step()
            assert times.tokens["reward_model"] == sum(len(t.tokens) for t in trajectories)
            assert "reward_model" in times.spans_s
    logits = [np.log(np.array(r) / (1 - np.array(r))) for r in rewards]
    expected = (logits[1] - statistics.mean) / statistics.std
    np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-4)


def test_a_step_with_all_three_terms(tmp_path: Path, reward_folder: Path) -> None:
    options = (*WITH_PREFERENCE, "--reward.rule_weight", "0.5")
    with at_reinforce(tmp_path, *options, reward=reward_folder) as run:
        reinforce(at_stage(run, "reinforce"), run.folder, run.books)
    lines = read_metrics(tmp_path / "tiny" / "metrics.jsonl")
    for line in lines:
        assert 0 < line["reward/preference"] < 1
        assert line["reward/rule"] == pytest.approx(0.5 * (line["rollout/accuracy"] - 1))
        parts = (line["reward/rule"], line["reward/reflection"], line["reward/preference"])
        assert line["reward/total"] == pytest.approx(sum(parts))
        assert line["reward_model/tokens"] > 0 and line["reward_model/seconds"] > 0
        # Paper: the critic's rate is not the policy's.
        assert line["critic/learning_rate"] == pytest.approx(1e-3)
        assert line["update/learning_rate"] == pytest.approx(1e-4)
        assert line["rollout/logprob_abs_diff"] < 1e-5


def test_a_reward_that_cannot_be_given_stops_the_stage_before_it_samples(tmp_path: Path) -> None:
    with (
        at_reinforce(tmp_path, *WITH_PREFERENCE) as run,
        pytest.raises(ConfigError, match=r"preference_weight = 1\.0 needs a reward model"),
    ):
        reinforce(at_stage(run, "reinforce"), run.folder, run.books)
    assert not (tmp_path / "tiny" / "metrics.jsonl").read_text()


def test_a_reward_model_of_another_tokenizer_is_refused(
    tmp_path: Path, reward_folder: Path
) -> None:
    with at_reinforce(tmp_path, *WITH_PREFERENCE, reward=reward_folder) as run:
        run.renderer.tokenizer.add_tokens(["unheard"])
        with pytest.raises(ConfigError, match="another tokenizer than the policy: token 'unheard'"):
            reward_model_of(run)


def test_a_reward_model_without_statistics_is_refused(tmp_path: Path, reward_folder: Path) -> None:
    with at_reinforce(tmp_path, *WITH_PREFERENCE) as run:
        run.models["reward"] = run.models["base"]  # a policy has none
        with pytest.raises(ConfigError, match=r"normalize_preference needs the mean and std"):
            reward_model_of(run)
        with pytest.raises(ConfigError, match=r"normalize_critic needs the mean and std"):
            critic_of(at_stage(run, "reinforce"))


def test_a_score_that_is_not_a_number_names_the_model_and_the_problem(
    tmp_path: Path, reward_folder: Path
) -> None:
    with at_reinforce(tmp_path, *WITH_PREFERENCE, reward=reward_folder) as run:
        reward_model = reward_model_of(run)
        assert reward_model is not None
        scorer, _ = reward_model
        with torch.no_grad():
            scorer.learner.module.output_layer.weight[0, 0] = torch.nan
        message = (
            rf"reward model {reward_folder} scores 6 of 6 responses with a number that is not "
            r"finite, first nan for problem '.*' \(\d+ tokens\): a NaN or infinity in its weights"
        )
        with pytest.raises(ValueError, match=message):
            scorer(answers(run))


def test_a_policy_that_is_not_finite_stops_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(context: Context, books: Books) -> Trainer:
        trainer = build_trainer(context, books)
        with torch.no_grad():
            next(trainer.policy.module.parameters())[3, 0] = torch.nan
        return trainer

    monkeypatch.setattr("satori_fast.stages.reinforce.build_trainer", broken)
    with (
        at_reinforce(tmp_path) as run,
        pytest.raises(MismatchError, match=r"the policy gives .* a weight is NaN or inf"),
    ):
        reinforce(at_stage(run, "reinforce"), run.folder, run.books)


def test_the_critic_starts_from_the_reward_model_head_included(
    tmp_path: Path, reward_folder: Path
) -> None:
    with at_reinforce(tmp_path, reward=reward_folder) as run:
        context = at_stage(run, "reinforce")
        reward, critic = context.model_folders.scalar(reward_folder), critic_of(context)
        assert critic.optimizer is not None
        weights = dict(reward.hf_weights())
        assert weights["score.weight"].abs().max() > 0
        for name, tensor in critic.hf_weights():
            assert torch.equal(tensor, weights[name]), name
        batch = random_batch([9, 5], vocab_size=60)
        statistics = score_statistics(load_hf_config(reward_folder))
        assert statistics is not None
        expected = (value(reward, [batch])[0] - statistics.mean) / statistics.std
        torch.testing.assert_close(value(critic, [batch])[0], expected)


@pytest.mark.parametrize(
    ("overrides", "head_is_zero"),
    [
        (("--reinforce.critic_init", "policy"), True),
        (("--reinforce.critic_init", "reward_model"), False),
        (("--reinforce.normalize_critic", "false"), False),
    ],
)
def test_what_the_critic_starts_from_is_a_choice(
    tmp_path: Path, reward_folder: Path, overrides: tuple[str, ...], head_is_zero: bool
) -> None:
    with at_reinforce(tmp_path, *overrides, reward=reward_folder) as run:
        critic = critic_of(at_stage(run, "reinforce"))
    assert (not critic.module.output_layer.weight.any()) == head_is_zero
    normalized = critic.module.output_layer.statistics is not None
    assert normalized == (overrides == ("--reinforce.critic_init", "reward_model"))


def test_without_a_reward_model_the_critic_starts_from_the_policy(tmp_path: Path) -> None:
    with at_reinforce(tmp_path) as run:
        assert not critic_of(at_stage(run, "reinforce")).module.output_layer.weight.any()
    (tmp_path / "other").mkdir()
    wanted = ("--reinforce.critic_init", "reward_model")
    with (
        at_reinforce(tmp_path / "other", *wanted) as run,
        pytest.raises(ConfigError, match='critic_init = "reward_model" needs one'),
    ):
        critic_of(at_stage(run, "reinforce"))


@pytest.mark.parametrize(("kl", "loaded"), [("0.0", False), ("0.1", True)])
def test_the_reference_is_loaded_for_the_kl_term_only(
    tmp_path: Path, kl: str, loaded: bool
) -> None:
    # The recipe asks for a reference; the coefficient decides.
    options = ("--reinforce.recipe", "rloo", "--reinforce.kl_coefficient", kl)
    with at_reinforce(tmp_path, *options) as run:
        trainer = build_trainer(at_stage(run, "reinforce"), run.books)
        assert reward_model_of(run) is None
    assert (trainer.reference is not None) == loaded
    assert trainer.critic is None
