# SPDX-License-Identifier: Apache-2.0
"""The nouns of the project: one frozen type for each stage that the data passes through.

    Problem -> Trajectory -> (RewardBreakdown, Credit) -> Experience -> PackedBatch -> Advantages

Letters in shapes: ``L`` tokens in a trajectory (prompt and response), ``R`` response tokens,
``S`` segments, ``T`` tokens in a packed batch (padding included), ``N`` sequences in it,
``V`` vocabulary.

Host types hold numpy and Python; device types (`PackedBatch`, `Advantages`, `LossOutput`) hold
torch. The crossing happens in `data.packing` and nowhere else. Nothing here computes: a type says
what its fields mean and checks that they fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Finish = Literal["stop", "length"]
Weighting = Literal["token", "sequence", "segment", "fixed"]  # how a loss is averaged


class SegmentKind(StrEnum):
    """Purpose of an action of a response."""

    CONTINUE = "continue"
    REFLECT = "reflect"
    EXPLORE = "explore"
    SOLVE = "solve"
    VERIFY = "verify"
    THINK = "think"
    STEP = "step"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Prefix:
    """A partial solution that the policy must continue from. It is prompt: it gets no gradient.

    text:    the partial response, meta-action tokens included; a Satori restart ends with
             ``<|reflect|>``.
    kind:    "restart" (Satori restart and explore), "step" (SRL step-wise training) or "solution"
             (a whole solution to be written as the expert's, SRL's ablation).
    correct: did the trajectory that it was cut from reach the right answer? None if unknown (SRL).
    target:  the expert's next step, or solution (SRL), else None.
    title:   of that step, where the prompt tells it (SRL), else None.
    """

    text: str
    kind: Literal["restart", "step", "solution"]
    correct: bool | None = None
    target: str | None = None
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a verifiable answer, possibly starting in the middle (`prefix`).

    answer is None for problems that are never graded: synthesis input, or a reward without a gold
    answer.
    level: how hard the data set says that it is, in its own words ("Level 5"); "" if it does not.
    """

    problem_id: str
    question: str
    answer: str | None
    prefix: Prefix | None = None
    level: str = ""

    @property
    def asks_step(self) -> bool:
        """Whether the expert's next step, or solution, is asked for, and no answer (SRL)."""
        return self.prefix is not None and self.prefix.kind != "restart"

    @property
    def restart(self) -> Prefix | None:
        """The prefix that the response itself goes on from: a restart, and no partial solution."""
        return None if self.prefix is None or self.prefix.kind != "restart" else self.prefix


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A worked response to imitate.

    response:        the whole response, meta-action tokens included, end-of-text token excluded.
    trajectory_type: "I", "II-I", "II-II", "III-I", "III-II" (Satori appendix D.1), "unchecked" for
                     a wrong solution, or "" when unknown.
    """

    problem: Problem
    response: str
    trajectory_type: str = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """One action of a response: tokens ``start <= i < stop``, 0 being the first response token.

    The segments of a trajectory tile its response: no gap, no overlap; the last one holds the
    end-of-text token.
    verdict: what a verification claims (S2R), else None.
    """

    kind: SegmentKind
    start: int
    stop: int
    text: str
    verdict: bool | None = None


@dataclass(frozen=True, slots=True)
class RewardBreakdown:
    """Reward of one trajectory: named terms, each with its weight in it already.

    terms:    value by name, in the order in which they are added; a term that is off is absent.
              "rule" is Satori's 0 when right and -1 when wrong, "reflection" its bonus (-beta, 0,
              beta), "preference" the reward model's sigmoid(score); any other is a user's function.
    segments: float32 [S], process rewards of the segments; None where no term gives them. They are
              not part of the total.
    correct:  is the final answer right? None where nothing graded it.
    answered: was there a final answer to grade? None where nothing was graded.
    actions:  is each segment right, [S]: a solution by its own answer, a verification by its
              verdict (S2R)? None where nothing judged them.

    >>> RewardBreakdown({"rule": -1.0, "short_answers": 0.25}, correct=False).total
    -0.75
    """

    terms: Mapping[str, float]
    segments: np.ndarray | None = None
    correct: bool | None = None
    actions: tuple[bool, ...] | None = None
    answered: bool | None = None

    @property
    def total(self) -> float:
        """Sum of the terms, added from left to right."""
        total = 0.0
        for value in self.terms.values():  # `sum` compensates from Python 3.12 on: other bits
            total += value
        return total


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A prompt and the response sampled (or demonstrated) for it.

    group_id:       trajectories with the same id answer the same problem from the same prefix.
    tokens:         int32 [L], prompt then response (end-of-text included when finish == "stop").
    prompt_len:     prompt tokens, prefix included; R = L - prompt_len.
    logprobs:       float32 [R], nats, of each response token under the sampler at the sampling
                    temperature; zeros for a demonstration.
    policy_version: version of the weights that sampled its last token; -1 for a demonstration.
    finish:         "stop" (a stop id was sampled) or "length" (cut by the token limit).
    segments:       tile the response.
    versions:       int64 [R], the version that sampled each token, where they are not all the same.

    Example: prompt "2 + 2", response "5 <|reflect|> no <|explore|> 4 <eos>", one token per word:
    L = 9, prompt_len = 3, R = 6, segments continue [0, 1), reflect [1, 3), explore [3, 6).
    """

    problem: Problem
    group_id: int
    tokens: np.ndarray
    prompt_len: int
    logprobs: np.ndarray
    policy_version: int
    finish: Finish
    segments: tuple[Segment, ...]
    reward: RewardBreakdown | None = None
    versions: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert 0 < self.prompt_len < len(self.tokens), (self.prompt_len, len(self.tokens))
        assert len(self.logprobs) == self.num_response_tokens
        assert self.segments and self.segments[0].start == 0
        assert self.segments[-1].stop == self.num_response_tokens
        assert all(a.stop == b.start for a, b in pairwise(self.segments))

    @property
    def num_response_tokens(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def response_tokens(self) -> np.ndarray:
        return self.tokens[self.prompt_len :]

    def with_reward(self, reward: RewardBreakdown) -> Trajectory:
        return replace(self, reward=reward)


def groups_of(trajectories: Sequence[Trajectory]) -> list[list[int]]:
    """Indices of the members of each group, by `group_id`; groups in the order they come in."""
    members: dict[int, list[int]] = {}
    for index, trajectory in enumerate(trajectories):
        members.setdefault(trajectory.group_id, []).append(index)
    return list(members.values())


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two finished solutions of one problem: `chosen` is right, `rejected` is wrong.

    Both end with the end-of-text token, where a reward model reads its score.
    """

    chosen: Trajectory
    rejected: Trajectory

    @property
    def num_tokens(self) -> int:
        return len(self.chosen.tokens) + len(self.rejected.tokens)


@dataclass(frozen=True, slots=True)
class ScoreStatistics:
    """Mean and standard deviation of a reward model's raw scores on samples of its policy.

    They bring scores to a known scale: ``(score - mean) / std``. The defaults change nothing.
    """

    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """Result of one call of `rollout.engine.collect`.

    num_prompt_tokens counts each prompt once per sample; wall_s is seconds for the whole call.
    """

    trajectories: tuple[Trajectory, ...]
    num_prompt_tokens: int
    num_generated_tokens: int
    wall_s: float
    policy_version: int


@dataclass(frozen=True, slots=True)
class StoredRollouts:
    """Sampled groups on their way to or from a file, and what made them.

    groups:      siblings of a problem each; log-probs are those of the sampler, at `temperature`.
    format:      name of the response format that cut them into segments.
    fingerprint: of the weights that sampled them (`rollout.weight_sync`).
    tokenizer:   fingerprint of vocabulary, template and format (`data.prompts`).
    """

    groups: tuple[tuple[Trajectory, ...], ...]
    temperature: float
    format: str
    fingerprint: str
    tokenizer: str


@dataclass(frozen=True, slots=True)
class Credit:
    """Values and baselines of the segments of a trajectory. Host side, from whole groups.

    values, baselines: float32 [S]. The advantage of a segment is ``values - baselines``, before it
    is spread over tokens or enters GAE.
    scale: what both were divided by, so that readers see them in units of reward.
    goes_on: the response was cut, and what it would have earned after that is unknown: the critic's
             value at the cut stands for it (GAE).
    """

    values: np.ndarray
    baselines: np.ndarray
    scale: float = 1.0
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class Experience:
    """Material of one update: whole groups, scored, filtered, with their credit. Host side.

    trajectories:   what is learnt from, siblings together, in the order of their groups.
    credits:        one for each of them; None where nothing is compared (imitation).
    stats:          counted on the way: shares and counts under the names of metrics, as
                    "rollout/kept", and what rates and FLOPs are made from: "prompt_tokens",
                    "generated_tokens" (of this step), "passes" of the engine on this device.
    sampled:        everything that was scored on the way to them, dropped groups included, in the
                    order in which it was sampled; `trajectories`, where none is given.
    policy_version: version of the weights that were sampled from; -1 where none were.

    Example: two groups of two are sampled with rewards 1, 0 and 0, 0; a filter drops the second,
    so `trajectories` and `credits` have two entries and `sampled` has four.
    """

    trajectories: tuple[Trajectory, ...]
    credits: tuple[Credit, ...] | None = None
    stats: Mapping[str, float] = field(default_factory=dict[str, float])
    sampled: tuple[Trajectory, ...] = ()
    policy_version: int = -1

    def __post_init__(self) -> None:
        if not self.sampled:
            object.__setattr__(self, "sampled", self.trajectories)
        if self.credits is not None:
            assert len(self.credits) == len(self.trajectories)
        assert len(self.trajectories) <= len(self.sampled)

    @property
    def num_tokens(self) -> int:
        """Tokens that are learnt from, prompts included."""
        return sum(len(t.tokens) for t in self.trajectories)


@dataclass(frozen=True, slots=True)
class SharedRows:
    """Rows that a model computes once for all sequences of a batch that begin alike.

    tokens:  int64 [R], the first token that each row stands for.
    rows:    int64 [T], the row of each token.
    repeats: rows that stand for k > 1 tokens, by k: (rows int64 [S], their tokens int64 [S, k]).
    """

    tokens: Tensor
    rows: Tensor
    repeats: tuple[tuple[Tensor, Tensor], ...]

    def to(self, device: torch.device | str) -> SharedRows:
        """The same on `device`."""
        repeats = tuple((rows.to(device), tokens.to(device)) for rows, tokens in self.repeats)
        return SharedRows(self.tokens.to(device), self.rows.to(device), repeats)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One microbatch: sequences laid end to end (THD), label-aligned. Device type.

    Label-aligned: entry ``t`` of every [T] field is about *predicting* ``targets[t]``, which is
    token ``t + 1`` of the same sequence. The last entry of each sequence, and padding, have
    ``loss_mask = False``. Nothing is shifted outside `data.packing`.

    tokens, positions, targets: int64 [T].
    loss_mask:        bool [T], True where a response token is predicted that has a loss.
    loss_weights:     float32 [T], 0 where masked; token mean, sequence mean and Dr.GRPO differ only
                      here.
    cu_seqlens:       int32 [N + 1], ends at T; padding, if any, is one more sequence at the end.
    max_seqlen:       longest sequence, a Python int, so that attention needs no device sync.
    segment_ids:      int32 [T], running number (over the batch) of the segment that holds
                      targets[t]; -1 where masked.
    credit:           float32 [T], values - baselines of that segment; 0 where masked.
    rollout_logprobs: float32 [T], nats, from the sampler; 0 where masked.
    source:           int32 [N], index of each sequence in the list given to `pack`, -1 for padding;
                      stays on the host.
    minibatch:        which optimizer step this microbatch belongs to.
    num_minibatch_tokens: loss tokens of that optimizer step over ALL its microbatches and ALL
                      ranks: the one denominator of every loss. In a batch of preference pairs,
                      whose loss has a term for each, the number of pairs.
    old_logprobs, ref_logprobs, values: float32 [T], None until `backbone.step.annotate`.
    goes_on:          bool [T], True where the last response token of a sequence is predicted whose
                      credit says `Credit.goes_on`; None where there is none.
    start_hidden:     [loss tokens, H], hidden states of the starting model where `loss_mask` is
                      True, in order; None until `backbone.step.with_start_hidden`.
    shared:           rows of the trunk where sequences begin alike; None: one for each token.
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    loss_mask: Tensor
    loss_weights: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    segment_ids: Tensor
    credit: Tensor
    rollout_logprobs: Tensor
    source: Tensor
    minibatch: int
    num_minibatch_tokens: int
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    values: Tensor | None = None
    goes_on: Tensor | None = None
    start_hidden: Tensor | None = None
    shared: SharedRows | None = None

    @property
    def num_tokens(self) -> int:
        return self.tokens.shape[0]

    @property
    def num_rows(self) -> int:
        """Rows that the layers of a model compute for the tokens."""
        return self.num_tokens if self.shared is None else self.shared.tokens.shape[0]

    @property
    def last_tokens(self) -> Tensor:
        """int64 [N], position of the last token of each sequence in order, padding left out.

        A reward model is read there.
        """
        num_sequences = int((self.source >= 0).sum())  # on the host: no device sync
        return self.cu_seqlens[1 : num_sequences + 1].long() - 1

    def sequence_sums(self, values: Tensor) -> Tensor:
        """Sum of `values` [T] over each sequence, [N]; by differences of a running sum, so that no
        order of threads can change it."""
        running = torch.cat([values.new_zeros(1), values.cumsum(0)])
        boundaries = self.cu_seqlens.long()
        return running[boundaries[1:]] - running[boundaries[:-1]]

    def sequence_of_token(self) -> Tensor:
        """Index of the sequence that holds each entry, int64 [T]."""
        places = torch.arange(self.num_tokens, device=self.cu_seqlens.device)
        return torch.bucketize(places, self.cu_seqlens[1:].long(), right=True)

    def annotated(self, **tensors: Tensor) -> PackedBatch:
        """A new batch with `old_logprobs` or another field that is None at first filled."""
        return replace(self, **tensors)

    def require(
        self, name: Literal["old_logprobs", "ref_logprobs", "values", "start_hidden"]
    ) -> Tensor:
        """The annotation `name`, or a ValueError that says which stage forgot it."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(
                f"batch.{name} is missing: run annotate() with the model that gives it"
            )
        return value

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on `device`; `source` stays on the host."""
        moved = {
            f.name: value.to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor) and f.name != "source"
        }
        return replace(self, **moved, shared=self.shared and self.shared.to(device))


@dataclass(frozen=True, slots=True)
class Advantages:
    """Per-token learning signal, aligned with one `PackedBatch`: float32 [T], 0 where masked.

    returns: targets of the value loss (GAE), None without a critic.
    """

    advantages: Tensor
    returns: Tensor | None = None


@dataclass(frozen=True, slots=True)
class SegmentSignal:
    """Learning signal of the segments of one trajectory: float64 [S] each. For readers.

    rewards:    process reward of the segment where there is one, else what it earned: values of
                `Credit`, in units of reward.
    baselines:  what was expected of it, in units of reward.
    advantages: mean of the advantages of its tokens (`Advantages`).
    weights:    loss weight of each of its tokens (`PackedBatch`); 0 where they are not trained on.
    """

    rewards: np.ndarray
    baselines: np.ndarray
    advantages: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss of one microbatch, before any division.

    loss:  scalar, a weighted SUM over tokens; the caller divides by `num_minibatch_tokens`.
    sums:  named scalars to add over microbatches and ranks, then divide by the same denominator.
    maxes: named scalars to take the maximum of.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    maxes: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class StepReport:
    """One line of metrics.jsonl.

    metrics: every scalar of the step under its full name ("stage/what"); spans_s: seconds per span.
    alarms:  what went wrong in it, by kind, each in one line.
    """

    stage: str
    step: int
    metrics: dict[str, float]
    spans_s: dict[str, float]
    alarms: Mapping[str, str] = field(default_factory=dict[str, str])
