# SPDX-License-Identifier: Apache-2.0
"""The sections of a configuration that belong to one stage each. See `config_sections`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from satori_fast.config_agents import JudgeConfig, VerifierConfig
from satori_fast.config_sections import OptimizerConfig, RolloutConfig, Section

StageName = Literal[
    "curate",
    "synthesize",
    "supervised",
    "initialise",
    "preference",
    "reinforce",
    "offline",
    "srl",
    "distill",
    "iterate",
]


def stage_names() -> tuple[str, ...]:
    """Every stage that a run can have, in their usual order."""
    return get_args(StageName)


class ImitationConfig(Section):
    num_epochs: float = Field(default=2.0, gt=0)
    """passes over the demonstrations"""
    batch_size: int = Field(default=128, gt=0)
    """demonstrations per optimizer step"""
    loss: Literal["all", "verify_and_last"] = "all"
    """segments that are trained: all, or verifications and the last solution (S2R: those before it
    are wrong); format = "trials" """
    kl_coefficient: float = Field(default=0.0, ge=0)
    """weight of the full-vocabulary KL to the starting model on the same tokens (S2R: 0.1, 0.01 for
    Qwen2.5-Math); 0: that model is not loaded a second time"""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-5, schedule="cosine")
    checkpoint_every: int = Field(default=500, ge=0)
    """optimizer steps between checkpoints; 0: only at the end"""
    export_every: int = Field(default=0, ge=0)
    """optimizer steps between models kept as models/STAGE-step-N (Hugging Face); 0: none"""


class SupervisedConfig(ImitationConfig):
    source: str | None = None
    """demonstrations: a .jsonl file; None: what the synthesize stage wrote, or the data's solutions
    """
    mapping: str | None = "coat"
    """field mapping of the file of demonstrations"""
    num_demonstrations: int | None = Field(default=None, gt=0)
    """demonstrations to imitate, the first ones; None: all"""
    step_share: float | None = Field(default=None, ge=0, le=1)
    """built-in domain: imitate its expert's titled steps, this share of them one by one, as the
    stage srl asks for them; None: plain solutions"""
    slip_share: float = Field(default=0.0, ge=0, le=1)
    """built-in domain: share of the imitated steps that slip (those that the pupil does not
    think about), for reinforcement to mend; needs step_share"""


class InitialiseConfig(ImitationConfig):
    num_epochs: float = Field(default=3.0, gt=0)
    """passes over the trajectories of trials (the paper: 3)"""
    batch_size: int = Field(default=32, gt=0)
    """trajectories per optimizer step (the paper: 32)"""
    loss: Literal["all", "verify_and_last"] = "verify_and_last"
    """segments that are trained: all, or verifications and the last solution (the paper)"""
    kl_coefficient: float = Field(default=0.1, ge=0)
    """weight of the full-vocabulary KL to the starting model on the same tokens (the paper: 0.1,
    0.01 for Qwen2.5-Math); 0: that model is not loaded a second time"""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-6, schedule="cosine")
    num_problems: int = Field(default=1000, gt=0)
    """training problems that the starting model solves"""
    num_samples: int = Field(default=5, gt=0)
    """solutions sampled per problem (the paper: 5)"""
    temperature: float = Field(default=0.7, gt=0)
    """sampling temperature of the solutions (the paper: 0.7)"""
    max_trials: int = Field(default=4, ge=1, le=4)
    """trials of a trajectory at most; how many depends on the number of wrong samples"""
    keep: tuple[float, float, float, float] = Field(default=(0.239, 0.5, 0.5, 0.5), strict=False)
    """share of problems kept, of those whose wrong samples ask for 1, 2, 3 and 4 trials and give
    as many (the released script's); those that give fewer are all kept"""
    confirming_share: float = Field(default=1.0, ge=0, le=1)
    """share of verifications that confirm the answer; the others solve the problem again"""
    verifier_skill: float = Field(default=1.0, ge=0, le=1)
    """scripted verifier: share of verifications without a slip; those with one are dropped"""
    num_concurrent: int = Field(default=256, gt=0)
    """problems that language models work on at once"""
    verifier: VerifierConfig = VerifierConfig()
    judge: JudgeConfig = JudgeConfig()

    @field_validator("keep")
    @classmethod
    def _shares(cls, keep: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= share <= 1 for share in keep):
            raise ValueError("give four shares from 0 to 1, for 1, 2, 3 and 4 trials")
        return keep


class SolutionsConfig(Section):
    num_problems: int = Field(default=1000, gt=0)
    """training problems that the starting model solves, for preference pairs and restarts"""
    num_samples: int = Field(default=8, gt=0)
    """solutions sampled per problem"""
    temperature: float | None = Field(default=None, gt=0)
    """sampling temperature of the solutions; None: the rollout's"""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """response limit of the solutions, tokens; None: the rollout's"""
    questions: Literal["all", "mixed"] = "all"
    """questions that reinforcement asks, whole and in restarts: all, or mixed (the paper), those
    with right and wrong solutions, sampled without restarts too"""
    keep_logprobs: bool = False
    """keep the samples' log-probs too, so that reinforce.source = "stored" can train on the file"""


class PreferenceConfig(Section):
    num_epochs: float = Field(default=2.0, gt=0)
    """passes over the preference pairs"""
    batch_size: int = Field(default=128, gt=0)
    """preference pairs per optimizer step"""
    margin: float = Field(default=2.0, ge=0)
    """tau: lead of the right solution's score that the loss asks for"""
    max_pairs_per_problem: int = Field(default=4, gt=0)
    """limit of random pairs of a right and a wrong sample (the paper does not say)"""
    heldout_fraction: float = Field(default=0.05, gt=0, lt=1)
    """share of the solved problems held out to choose the checkpoint"""
    max_heldout_problems: int = Field(default=1000, gt=0)
    """limit of the problems held out to choose the checkpoint"""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-6, schedule="cosine")
    checkpoint_every: int = Field(default=500, ge=0)
    """optimizer steps between checkpoints; 0: only at the end"""
    evaluate_every: int = Field(default=100, ge=0)
    """optimizer steps between validations; 0: only at the end"""


class RestartConfig(Section):
    enabled: bool | None = None
    """mix restarts into the problems (Satori: restart and explore); None: if data.format has them
    """
    refresh_every: int = Field(default=0, ge=0)
    """steps between new restart buffers from the current policy; 0: built once (the paper)"""
    max_backtrack: int = Field(default=2, ge=0)
    """T: a restart drops the last t actions of a solution, t uniform in 0..T"""
    cut_after: Literal["action", "step", "answer"] = "action"
    """last action that a restart keeps: any (the paper), a step, or a step with an answer"""
    original_weight: float = Field(default=1.0, ge=0)
    """share of whole problems in a step, relative"""
    correct_weight: float = Field(default=1.0, ge=0)
    """share of restarts from right solutions (D+), relative"""
    incorrect_weight: float = Field(default=1.0, ge=0)
    """share of restarts from wrong solutions (D-), relative"""


# Origins of trajectories: the values of reinforce.source.
EXPERIENCE_SOURCES = ("online", "stored")
# Keys of the section reinforce that replace a number of the recipe's row; None leaves it.
RECIPE_KEYS = (
    "clip_low",
    "clip_high",
    "clip_dual",
    "ratio",
    "ratio_mean",
    "importance",
    "importance_level",
    "importance_low",
    "importance_high",
    "weighting",
    "kl_coefficient",
    "kl_estimator",
    "kl_place",
    "baseline",
    "baseline_min_count",
    "double_right_verified",
    "double_flipped",
    "entropy_coefficient",
    "gae_lambda",
    "value_clip",
    "min_group_std",
)


class ReinforceConfig(Section):
    SECTION: ClassVar[str] = "reinforce"

    recipe: str = "ppo"
    """credit rule, advantage and loss: ppo, grpo, grpo_no_std, gspo, rloo, s2r_outcome,
    s2r_process or srl; show --recipe prints it"""
    num_steps: int = Field(default=100, gt=0)
    """rollout-and-update steps"""
    problems_per_step: int = Field(default=128, gt=0)
    """prompts sampled in a step"""
    samples_per_problem: int = Field(default=8, gt=0)
    """samples per prompt, which form a group; group recipes need at least 2"""
    num_minibatches: int = Field(default=2, gt=0)
    """minibatches, and so optimizer steps, per rollout step"""
    max_sampling_rounds: int = Field(default=1, gt=0)
    """rounds of new problems until problems_per_step groups are informative; a batch that they do
    not fill is learnt from as it is; 1: no refilling"""
    source: str = "online"
    """origin of the trajectories: online (sampled from the policy) or stored (a file: rollouts)"""
    rollouts: str | None = None
    """file of stored rollouts, for source = "stored": solutions/ sampled with keep_logprobs"""
    truncated: Literal["wrong", "mask", "penalty"] = "wrong"
    """responses cut at the length limit: graded as they are (wrong), left out of the loss or, ppo,
    valued by the critic (mask), or fined from 80 % of it on (penalty)"""
    max_uninformative_steps: int = Field(default=50, ge=0)
    """steps in a row with nothing to learn from, no group whose rewards differ, that stop the run;
    0: never"""
    clip_low: float | None = Field(default=None, gt=0)
    """lower clip of the probability ratio, its distance from 1; None: as in the recipe"""
    clip_high: float | None = Field(default=None, gt=0)
    """upper clip of the probability ratio, its distance from 1; None: as in the recipe"""
    clip_dual: float | None = Field(default=None, gt=1, allow_inf_nan=True)
    """bound of the ratio for negative advantages; inf: no bound; None: as in the recipe"""
    ratio: Literal["token", "segment", "sequence"] | None = None
    """unit of the clipped probability ratio: each token, or the segment or response that holds it;
    None: as in the recipe"""
    ratio_mean: bool | None = None
    """ratio of a segment or response: geometric mean over its tokens, or their product; None: as in
    the recipe"""
    importance: Literal["none", "truncate", "mask"] | None = None
    """importance sampling, trainer over engine probability: truncate (TIS) or mask (MIS) what is
    outside importance_low..importance_high; None: as in the recipe"""
    importance_level: Literal["token", "sequence"] | None = None
    """TIS and MIS: ratio of each token, or the product over a response; None: as in the recipe"""
    importance_low: float | None = Field(default=None, ge=0)
    """TIS and MIS: lower end of the range of ratios; None: as in the recipe (0)"""
    importance_high: float | None = Field(default=None, gt=0, allow_inf_nan=True)
    """TIS and MIS: upper end of the range of ratios; inf: none; None: as in the recipe (2)"""
    weighting: Literal["token", "sequence", "segment", "fixed"] | None = None
    """mean of the loss: over tokens; over responses, of token means (sequence), segments' means
    (segment), or sums / fixed_length (fixed); None: as in the recipe"""
    fixed_length: int | None = Field(default=None, gt=0)
    """weighting = "fixed": tokens that each response's sum is divided by; None: rollout's limit"""
    kl_coefficient: float | None = Field(default=None, ge=0)
    """weight of the KL to the starting model; 0: that model is not loaded; None: as in the recipe
    """
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    """estimator of the KL to the starting model, from its log-probs; None: as in the recipe"""
    kl_place: Literal["loss", "advantage"] | None = None
    """where the KL enters: a loss term of each token, or the advantage, summed over the response or
    action (S2R); None: as in the recipe"""
    baseline: Literal["running", "batch"] | None = None
    """s2r_process: expected reward of an action from the steps before (running) or from the step
    itself (batch); None: as in the recipe (running)"""
    baseline_min_count: int | None = Field(default=None, gt=0)
    """s2r_process, running: actions in a context before its mean counts; None: as in the recipe
    (10)"""
    double_right_verified: bool | None = None
    """s2r_process: twice the advantage of verifications of right solutions, as S2R's code has it
    and its paper does not; None: as in the recipe (no)"""
    double_flipped: bool | None = None
    """s2r_process: twice the advantage of solutions right after a wrong one, or wrong after a right
    one, as S2R's code has it; None: as in the recipe (no)"""
    entropy_coefficient: float | None = Field(default=None, ge=0)
    """weight of the entropy bonus in the loss; None: as in the recipe"""
    gae_lambda: float | None = Field(default=None, ge=0, le=1)
    """ppo: lambda of the advantage estimator; None: as in the recipe"""
    value_clip: float | None = Field(default=None, gt=0, allow_inf_nan=True)
    """ppo: how far a value may move from that at rollout, in units of reward; inf: any distance;
    None: as in the recipe"""
    min_group_std: float | None = None
    """groups with a standard deviation of rewards of at most this are dropped; below 0: none are;
    None: as in the recipe"""
    critic_init: Literal["reward_model", "policy"] | None = None
    """ppo: weights that the critic starts from; None: the reward model, head included, if any"""
    normalize_critic: bool = True
    """ppo: standardise the values of a critic from the reward model by its scores' mean and std"""
    critic_warmup_steps: int = Field(default=0, ge=0)
    """ppo: steps at the start that train the critic alone"""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6)
    critic_optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-6)
    restarts: RestartConfig = RestartConfig()
    checkpoint_every: int = Field(default=50, ge=0)
    """steps between checkpoints; 0: only at the end"""
    export_every: int = Field(default=0, ge=0)
    """steps between models kept as models/STAGE-step-N (Hugging Face folders); 0: none"""
    evaluate_every: int = Field(default=0, ge=0)
    """steps between evaluations; 0: only at the end"""
    keep: Literal["last", "best"] = "last"
    """weights that the stage leaves: the last step's, or those of the best evaluation (reinforce:
    by accuracy, srl: by mean similarity), the earliest of equals"""
    num_logged_samples: int = Field(default=2, ge=0)
    """trajectories of each step written to samples.jsonl"""

    @model_validator(mode="after")
    def _range_holds_one(self) -> Self:
        low, high = self.importance_low, self.importance_high
        if (low is not None and low > 1) or (high is not None and high < 1):
            given = {"importance_low": low, "importance_high": high}
            named = ", ".join(f"{k} = {v:g}" for k, v in given.items() if v is not None)
            raise ValueError(
                f"{self.SECTION}.{named}: the range must hold 1, the weight of a token on which "
                "engine and trainer agree"
            )
        return self

    def recipe_overrides(self) -> dict[str, Any]:
        """Arguments of `algorithms.recipe.effective_recipe` from this section, None where unset."""
        return {key: getattr(self, key) for key in RECIPE_KEYS}

    def changed_keys(self) -> set[str]:
        """Names of the keys that are not at their defaults."""
        fields = type(self).model_fields
        return {name for name, field in fields.items() if getattr(self, name) != field.default}


class DistillConfig(ImitationConfig):
    student: str | None = None
    """folder or hub name of the model that learns; None: the one that the run began with"""
    num_problems: int = Field(default=1000, gt=0)
    """training problems that the teacher solves"""
    num_samples: int = Field(default=8, gt=0)
    """solutions sampled per problem"""
    temperature: float | None = Field(default=None, gt=0)
    """sampling temperature of the solutions; None: the rollout's"""
    num_kept: int = Field(default=750, gt=0)
    """problems kept, those that the teacher solved least often, but at least once"""
    solutions_per_problem: int = Field(default=1, gt=0)
    """right solutions kept of each problem"""


class OfflineOptimizerConfig(OptimizerConfig):
    learning_rate: float = Field(default=5e-7, gt=0)
    """peak learning rate (the paper: 5e-7)"""


class OfflineConfig(Section):
    rollouts: str | None = None
    """file of the starting model's rollouts with log-probs (solutions/ with keep_logprobs); None:
    the stage samples them itself"""
    num_problems: int = Field(default=1000, gt=0)
    """training problems that the starting model solves"""
    num_samples: int = Field(default=8, gt=1)
    """responses sampled per problem"""
    temperature: float | None = Field(default=None, gt=0)
    """sampling temperature of the rollouts, stored ones too; None: the rollout's"""
    level: Literal["process", "outcome"] = "process"
    """what earns: each action (process), as s2r_process, or the last answer, as s2r_outcome"""
    min_accuracy: float = Field(default=0.1, ge=0, le=1)
    """smallest share of right responses of a problem that is learnt from"""
    max_accuracy: float = Field(default=0.7, ge=0, le=1)
    """largest share of right responses of a problem that is learnt from"""
    max_actions: int = Field(default=20, gt=1)
    """most solutions and verifications of a response, after it was cut"""
    balance: bool = True
    """as many wrong as right responses of each problem; the more numerous are thinned out"""
    baseline: Literal["accuracy_position", "accuracy_context", "context"] = "accuracy_position"
    """process: mean reward of actions at the same position or in the same context, of problems of
    the same accuracy or of all; outcome has the mean of the accuracy"""
    baseline_min_count: int = Field(default=10, gt=0)
    """actions, or responses, before their mean is a baseline; 0 is one below"""
    num_epochs: float = Field(default=1.0, gt=0)
    """passes over the responses that are left"""
    batch_size: int = Field(default=64, gt=0)
    """responses per optimizer step"""
    kl_coefficient: float = Field(default=0.1, ge=0)
    """weight of the KL of the policy of now to the starting model, inside the advantage"""
    clip_low: float | None = Field(default=None, gt=0)
    """lower clip of the ratio to the stored log-probs; None: as in the level's recipe (0.2)"""
    clip_high: float | None = Field(default=None, gt=0)
    """upper clip of the ratio to the stored log-probs; None: as in the level's recipe (0.2)"""
    ratio: Literal["token", "segment", "sequence"] | None = None
    """unit of the clipped ratio; None: as in the level's recipe (segment for process, sequence)"""
    ratio_mean: bool | None = None
    """ratio of a unit: geometric mean over its tokens, or their product; None: as in the recipe"""
    optimizer: OfflineOptimizerConfig = OfflineOptimizerConfig()
    checkpoint_every: int = Field(default=500, ge=0)
    """optimizer steps between checkpoints; 0: only at the end"""
    export_every: int = Field(default=0, ge=0)
    """optimizer steps between models kept as models/STAGE-step-N (Hugging Face); 0: none"""

    @model_validator(mode="after")
    def _range_is_one(self) -> Self:
        if self.min_accuracy > self.max_accuracy:
            raise ValueError(
                f"offline.min_accuracy = {self.min_accuracy:g} is above max_accuracy = "
                f"{self.max_accuracy:g}: no problem is left"
            )
        return self


class RoundConfig(Section):
    """A round of self-improvement: distil the policy into the base model, then train that. What is
    not set stays as in the sections distill, reinforce and rollout."""

    num_problems: int | None = Field(default=None, gt=0)
    """training problems that the policy solves for the distillation"""
    num_kept: int | None = Field(default=None, gt=0)
    """hardest problems kept for the distillation"""
    distill_temperature: float | None = Field(default=None, gt=0)
    """sampling temperature of the distillation"""
    num_steps: int | None = Field(default=None, gt=0)
    """reinforcement steps"""
    samples_per_problem: int | None = Field(default=None, gt=0)
    """samples per prompt, which form a group"""
    temperature: float | None = Field(default=None, ge=0)
    """sampling temperature of the reinforcement (the paper's second round: 1.2)"""
    learning_rate: float | None = Field(default=None, gt=0)
    """peak learning rate of the policy in the reinforcement"""
    restarts: bool = False
    """mix restarts into the problems of the reinforcement (the paper's second round: no)"""

    def distillation(self, base: DistillConfig) -> DistillConfig:
        """The section distill, as this round changes it."""
        return base.with_set(
            num_problems=self.num_problems,
            num_kept=self.num_kept,
            temperature=self.distill_temperature,
        )

    def reinforcement(self, base: ReinforceConfig) -> ReinforceConfig:
        """The section reinforce, as this round changes it."""
        return base.with_set(
            num_steps=self.num_steps,
            samples_per_problem=self.samples_per_problem,
            restarts=base.restarts.with_set(enabled=self.restarts),
            optimizer=base.optimizer.with_set(learning_rate=self.learning_rate),
        )

    def sampling(self, base: RolloutConfig) -> RolloutConfig:
        """The section rollout, as this round's reinforcement changes it."""
        return base.with_set(temperature=self.temperature)


class IterateConfig(Section):
    rounds: tuple[RoundConfig, ...] = Field(default=(RoundConfig(),), strict=False)
    """rounds of self-improvement after the first, in order"""
