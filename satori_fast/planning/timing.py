# SPDX-License-Identifier: Apache-2.0
"""Seconds of a step by stage, and the bytes that a rank sends in it.

Model FLOPs over what a device reaches (`devices.Efficiency`), plus what is sent and not hidden
behind work, plus the bubble of a pipeline. Not counted: rewards, packing, evaluations, checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from satori_fast.planning.devices import Device
from satori_fast.planning.job import Job, Role, Stage
from satori_fast.planning.layouts import GPUS_PER_MACHINE, Layout
from satori_fast.planning.memory import cache_bytes, parameter_bytes
from satori_fast.profiling.flops import TRAINING_PASSES, ModelShape, forward_flops

Part = Literal["rollout", "annotate", "update", "sync"]

# A collective of tensor-parallel ranks on the few tokens of a decoding pass: its latency, assumed.
_LATENCY_S = 15e-6
# The kernels of a layer, however little they do: when an engine replays them, when a trainer starts
# each, assumed; backward passes have twice as many.
_REPLAY_S, _START_S = 15e-6, 150e-6


@dataclass(frozen=True, slots=True)
class PartTime:
    """A part of a step on one rank.

    seconds: in all. sending: of them, what waits for other ranks. num_bytes: sent by this rank.
    """

    seconds: float
    sending: float = 0.0
    num_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class StepTime:
    """A step by its parts. num_tokens: of prompts and responses, all ranks."""

    parts: Mapping[Part, PartTime]
    num_tokens: float

    @property
    def seconds(self) -> float:
        """Seconds of the whole step."""
        return sum(part.seconds for part in self.parts.values())

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the step, over all ranks, per second."""
        return self.num_tokens / self.seconds


def step_time(job: Job, stage: Stage, layout: Layout, device: Device) -> StepTime:
    """The expected time of a step of `stage`."""
    clock = _Clock(job, stage, layout, device)
    parts: dict[Part, PartTime] = {}
    if stage.learns_from_samples:
        parts["rollout"] = clock.rollout()
        parts["annotate"] = clock.forward([role for role in stage.roles if role.name != "reward"])
    parts["update"] = clock.update()
    if stage.learns_from_samples:
        parts["sync"] = clock.sync()
    return StepTime(parts, stage.num_sequences * stage.lengths.expected)


@dataclass(frozen=True, slots=True)
class _Clock:
    job: Job
    stage: Stage
    layout: Layout
    device: Device

    # -- parts --------------------------------------------------------------------------------

    def rollout(self) -> PartTime:
        """Prompts once each, then a token of every running sequence at a time; rewards by a reward
        model on top."""
        shape, lengths = self.job.sizes.shape, self.stage.lengths
        replicas, tensor = self._replicas()
        sequences = max(1.0, self.stage.num_sequences / replicas)
        slots = min(float(self.job.engine.max_slots), sequences)
        # Freed slots are filled again; what is left is the longest response, in an emptying batch.
        passes = sequences / slots * lengths.expected_response
        passes += lengths.response - lengths.expected_response
        prompts = self._flops(shape, self.stage.num_prompts / replicas, lengths.expected_prompt)
        prefill = prompts / tensor / self.device.rate("forward")
        seconds = prefill + passes * self._pass_seconds(slots, tensor)
        scoring = [role for role in self.stage.roles if role.name == "reward"]
        scored = self.forward(scoring) if scoring else PartTime(0.0)
        return PartTime(seconds + scored.seconds, scored.sending, scored.num_bytes)

    def forward(self, roles: Sequence[Role]) -> PartTime:
        """A forward pass of each model over all sequences of a step."""
        flops = sum(self._sequence_flops(role) for role in roles)
        seconds = flops / self.layout.num_ranks / self.device.rate("forward")
        seconds = max(seconds, len(roles) * self._starts())
        sent, sending = (len(roles) * each for each in self._pass_sends(1, stages=1))
        return PartTime(seconds * self._stretch() + sending, sending, sent)

    def update(self) -> PartTime:
        """Forward, backward and optimizer steps of each model that is trained."""
        trained = [role for role in self.stage.roles if role.trained]
        passes = TRAINING_PASSES + self._recomputed()
        responses = self.stage.lengths.expected_response
        flops = sum(passes * self._sequence_flops(role, head=responses) for role in trained)
        seconds = flops / self.layout.num_ranks / self.device.rate("update")
        seconds = max(seconds, len(trained) * passes * self._starts())
        hidden = self._hidden(seconds / len(trained))
        seconds *= self._stretch()
        start = [role for role in self.stage.roles if not role.trained]
        if not self.stage.learns_from_samples and start:  # imitation stays near it
            seconds += self.forward(start).seconds
        # Backward sends as much as forward, recomputation once more.
        sends = 2 + self._recomputed()
        sent, sending = (len(trained) * each for each in self._pass_sends(sends, stages=2))
        for role in trained:
            of_gradients = self.stage.num_minibatches * self._gradient_bytes(role)
            sent += of_gradients
            link = self._link(self.layout.tensor, self.layout.num_sharers)
            sending += max(0.0, of_gradients / link - hidden)
        return PartTime(seconds + sending + self._fetching(), sending, sent)

    def _fetching(self) -> float:
        """Seconds in which optimizer state and frozen models come from the host and go back."""
        if not (self.layout.offload and self.stage.learns_from_samples):
            return 0.0
        each = parameter_bytes(self.job.dtype, self.layout)
        moved = 0.0
        for role in self.stage.roles:
            number = self.job.sizes.rank_parameters(self.layout, kind=role.kind)
            moved += 2 * number * (each.optimizer if role.trained else each.weight)
        return moved / self.device.rate("host")

    def sync(self) -> PartTime:
        """Weights on their way to the engine: none where it reads the trainer's own."""
        if self.job.engine.kind == "embedded":
            return PartTime(0.0)
        whole = self.job.sizes.num_parameters() * self.job.element_bytes
        # Whole tensors come together on every rank; those of servers of their own leave through
        # the main process's network.
        rate = "network" if self.job.engine.num_gpus else "link"
        seconds = whole / self.device.rate(rate)
        return PartTime(seconds, seconds, whole)

    # -- work ---------------------------------------------------------------------------------

    def _flops(self, shape: ModelShape, number: float, length: float) -> float:
        return number * forward_flops(shape, [round(length)])

    def _sequence_flops(self, role: Role, *, head: float | None = None) -> float:
        """Of a forward pass over all sequences. head: tokens of each with logits; None: all."""
        shape, length = self.job.sizes.shape_of(role.kind), round(self.stage.lengths.expected)
        tokens = None if head is None else round(head)
        each = forward_flops(shape, [length], num_head_tokens=tokens)
        return self.stage.num_sequences * each

    def _pass_seconds(self, slots: float, tensor: int) -> float:
        """Of one pass of an engine: weights and caches are read, or products take longer."""
        sizes, size = self.job.sizes, self.job.element_bytes
        context = self.stage.lengths.expected_prompt + self.stage.lengths.expected_response / 2
        read = sizes.shape.num_weights_read * size / tensor
        read += cache_bytes(sizes, slots * context, size=size, tensor=tensor)
        flops = 2.0 * slots * sizes.shape.num_weights_read / tensor
        waits = 2 * sizes.shape.num_layers * _LATENCY_S if tensor > 1 else 0.0
        busy = max(read / self.device.rate("decode"), flops / self.device.rate("forward"))
        if self.device.kind == "cuda":
            busy = max(busy, sizes.shape.num_layers * _REPLAY_S)
        return busy + waits

    def _replicas(self) -> tuple[float, int]:
        """Engines that share the sequences, and the ranks of each."""
        engine, layout = self.job.engine, self.layout
        if engine.kind == "embedded":
            return layout.num_ranks, 1
        if engine.kind == "vllm":
            return layout.num_ranks / layout.tensor, layout.tensor
        return max(1.0, engine.num_gpus / engine.tensor), engine.tensor

    def _starts(self) -> float:
        """Seconds in which a rank starts the kernels of a pass over its microbatches of a step."""
        if self.device.kind == "cpu":
            return 0.0
        layers = self.job.sizes.shape.num_layers / self.layout.pipeline
        return layers * _START_S * self._num_microbatches() * self.stage.num_minibatches

    def _num_microbatches(self) -> float:
        """Of a minibatch, on a data-parallel rank; at least one."""
        tokens = self._tokens() / self.stage.num_minibatches
        return max(1.0, tokens / self.job.microbatch)

    def _stretch(self) -> float:
        """Of the time of a pass, by a pipeline that fills and empties in every minibatch."""
        turns = self._num_microbatches() * self.layout.chunks
        return 1.0 + (self.layout.pipeline - 1) / turns

    def _recomputed(self) -> int:
        """Forward passes more of an update. Attention and activation again cost little."""
        return 1 if self.layout.recompute == "full" else 0

    def _hidden(self, seconds: float) -> float:
        """Seconds of sending that an update of a model hides: gradients leave during the backward
        pass of a minibatch's last microbatch, weights come back during the next forward pass."""
        return seconds / self._num_microbatches() if self.layout.overlap else 0.0

    # -- sending ------------------------------------------------------------------------------

    def _tokens(self) -> float:
        """Of a step, that a rank works on."""
        layout = self.layout
        total = self.stage.num_sequences * self.stage.lengths.expected
        return total / layout.data / layout.context

    def _pass_sends(self, passes: int, *, stages: int) -> tuple[float, float]:
        """Bytes and seconds of so many passes of a model; stages: times that a pipeline sends."""
        sent = self._tensor_bytes(passes=passes) + self._context_bytes(passes=passes)
        seconds = self._tensor_seconds(passes=passes) + self._context_seconds(passes=passes)
        sent += self._pipeline_bytes(passes=stages * self.layout.chunks)
        return sent, seconds + self._pipeline_seconds(passes=stages * self.layout.chunks)

    def _tensor_bytes(self, *, passes: int) -> float:
        """Two sums over the tensor-parallel ranks in every layer and pass, each sent around twice
        but for a rank's own part."""
        t, shape = self.layout.tensor, self.job.sizes.shape
        each = self._tokens() * shape.hidden_size * self.job.element_bytes
        return passes * shape.num_layers / self.layout.pipeline * 2 * each * 2 * (t - 1) / t

    def _tensor_seconds(self, *, passes: int) -> float:
        return self._tensor_bytes(passes=passes) / self._link(1, self.layout.tensor)

    def _context_bytes(self, *, passes: int) -> float:
        """Keys and values of the other ranks' tokens in every layer, or their gradients back."""
        layout, sizes = self.layout, self.job.sizes
        others = self._tokens() * (layout.context - 1)
        layers = sizes.shape.num_layers / layout.pipeline
        numbers = 2 * sizes.key_size / layout.tensor
        return passes * layers * others * numbers * self.job.element_bytes

    def _context_seconds(self, *, passes: int) -> float:
        stride = self.layout.tensor
        return self._context_bytes(passes=passes) / self._link(stride, self.layout.context)

    def _pipeline_bytes(self, *, passes: int) -> float:
        """Hidden states, or their gradients, to the next stage."""
        if self.layout.pipeline == 1:
            return 0.0
        hidden = self.job.sizes.shape.hidden_size * self.job.element_bytes
        return passes * self._tokens() * hidden

    def _pipeline_seconds(self, *, passes: int) -> float:
        stride = self.layout.num_ranks // self.layout.pipeline
        return self._pipeline_bytes(passes=passes) / self._link(stride, self.layout.pipeline)

    def _gradient_bytes(self, role: Role) -> float:
        """Of an optimizer step: gradients in float32 to all and back; with a shared optimizer to
        those that step them, and the weights back in their own type."""
        ranks = self.layout.num_sharers
        number = self.job.sizes.rank_parameters(self.layout, kind=role.kind)
        each = 4 + (self.job.element_bytes if self.layout.shard_optimizer else 4)
        return number * each * (ranks - 1) / ranks

    def _link(self, stride: int, size: int) -> float:
        """Bytes/s between ranks of a group: the first `stride` * `size` ranks hold one of it."""
        in_machine = stride * size <= GPUS_PER_MACHINE
        return self.device.rate("link" if in_machine else "network")
