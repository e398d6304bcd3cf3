# SPDX-License-Identifier: Apache-2.0
"""The work to plan: which models a stage holds, what it reads and samples, and in what sizes.

`of_config` makes it from a config; everything else in this package only reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from satori_fast.planning.layouts import EngineKind
from satori_fast.planning.sizes import Kind, ModelSizes

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Role:
    """A model of a stage: "policy", "critic", "reward", or "reference" (also the start that
    imitation stays near)."""

    name: str
    kind: Kind
    trained: bool


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the sequences of a step, longest and expected. expected is an assumption."""

    prompt: int
    response: int
    expected_prompt: float
    expected_response: float

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.prompt + self.response

    @property
    def expected(self) -> float:
        """Tokens of a sequence, expected."""
        return self.expected_prompt + self.expected_response


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a run.

    num_sequences:   sampled in a step, or imitated in one; num_minibatches: optimizer steps of it.
    num_prompts:     different prompts among them.
    sampling:        with the engine: "in steps" of rollout, log-probs and update, while everything
                     else waits in memory; once "before" its steps, by the policy alone; or "never".
    keeps_start_hidden: hidden states of the start wait for the loss (a KL over the vocabulary).
    """

    name: str
    roles: tuple[Role, ...]
    lengths: Lengths
    num_sequences: int
    num_prompts: int
    num_minibatches: int
    sampling: Literal["in steps", "before", "never"]
    keeps_start_hidden: bool = False

    @property
    def learns_from_samples(self) -> bool:
        """Whether its steps sample."""
        return self.sampling == "in steps"


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """The sampler: what it needs beside the trainer.

    share:    of a GPU's memory, of vLLM. sleeps: it gives it back while the trainer updates.
    num_gpus: GPUs of its own, of all servers; 0: it works on the trainer's.
    tensor:   GPUs of a server. bucket_bytes: of a weight sync.
    """

    kind: EngineKind
    max_slots: int
    share: float = 0.0
    sleeps: bool = False
    num_gpus: int = 0
    tensor: int = 1
    bucket_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A run.

    model: what is shown of it. microbatch: most tokens of a packed microbatch. stages: those that
    train, at least one.
    """

    name: str
    model: str
    sizes: ModelSizes
    dtype: Dtype
    microbatch: int
    engine: EnginePlan
    stages: tuple[Stage, ...]

    @property
    def element_bytes(self) -> int:
        """Bytes of a weight, and of an activation."""
        return 2 if self.dtype == "bfloat16" else 4

    @property
    def main(self) -> Stage:
        """The stage whose steps are timed: the first that learns from samples, else the last."""
        online = [stage for stage in self.stages if stage.learns_from_samples]
        return online[0] if online else self.stages[-1]
