# SPDX-License-Identifier: Apache-2.0
"""Bytes that a rank holds, by part and phase.

Counted are tensors: weights, gradients, the optimizer's state, what the backward pass keeps, what
the output head works in, keys and values, the engine's share. On a GPU the program, collectives'
buffers and what an allocator loses to fragments are not: `profiling.data_sheets` says where there
is room for them. On a host program and allocator are parts of their own.

Letters: T tokens of a microbatch, H the hidden size, Q and K those of queries and keys, F that of
the MLP, V the vocabulary, t tensor-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from satori_fast.planning.devices import Device
from satori_fast.planning.job import Job, Role, Stage
from satori_fast.planning.layouts import Layout
from satori_fast.planning.sizes import ModelSizes

# "step" is the optimizer's.
Phase = Literal["rollout", "annotate", "update", "step", "sync", "evaluate"]

# Of the output head on a GPU: `kernels.triton.products` has the same, which a test compares.
HEAD_CHUNK_BYTES = 1344 * 2**20
SCORE_CHUNK_BYTES = 512 * 2**20
# Of that on a CPU: `kernels.cpu_head`.
HOST_CHUNK_BYTES = 64 * 2**20
# Measured, benchmarks/results/step.json: a process on a host with all libraries before it has a
# model, and what malloc holds beyond the activations that are freed and made again.
PROGRAM_BYTES = 640e6
ALLOCATOR_SHARE = 0.3
# Parts of a host that are no tensors.
HOST_PARTS = ("program", "allocator", "head's chunk")
# Of a rank at rest, what training alone needs.
_TRAINING_PARTS = {"gradients", "optimizer"}
# Ids, positions, targets, masks, weights, log-probs and advantages of a token on the device.
_TOKEN_BYTES = 64


@dataclass(frozen=True, slots=True)
class ParameterBytes:
    """Bytes of a parameter: 18 in bfloat16, 16 in float32, where nobody shares."""

    weight: float
    gradient: float
    optimizer: float

    @property
    def total(self) -> float:
        """Bytes of a trained parameter."""
        return self.weight + self.gradient + self.optimizer


def parameter_bytes(dtype: str, layout: Layout | None = None) -> ParameterBytes:
    """Bytes of a trained parameter: weight, gradient in float32, the optimizer's copy in float32 of
    a weight in bfloat16, and two moments. Sharded, copy and moments are divided by the ranks that
    share them: 6 + 12 / data bytes in bfloat16."""
    layout = layout or Layout()
    sharers = layout.num_sharers if layout.shard_optimizer else 1
    copy = 4 if dtype == "bfloat16" else 0
    return ParameterBytes(2 if dtype == "bfloat16" else 4, 4, (copy + 8) / sharers)


@dataclass(frozen=True, slots=True)
class LayerNumbers:
    """Numbers (elements) of a token of a layer.

    kept: until its backward pass. again: computed again for that, and gone after it.
    """

    kept: float
    again: float = 0.0


def layer_numbers(sizes: ModelSizes, layout: Layout, *, on_host: bool = False) -> LayerNumbers:
    """Numbers of a token that a layer keeps, and what it computes again:

        none       4 H + (3 Q + 3 K + 3 F) / t
        selective  4 H + (2 Q + 2 K + 2 F) / t
        full       H, and again the rest of "none"

    Inputs and outputs of two norms; queries, keys and values as one product (Q + 2 K, which the
    values keep whole), rotated queries and keys (Q + K), the attention's output (Q); gate and up
    (2 F), and their product (F). On the host attention copies its output once more, Q / t. Ranks
    that share tokens divide the first term by t too; those that share a context keep the keys and
    values of all.
    """
    shape, t = sizes.shape, layout.tensor
    outside = 4 * shape.hidden_size / (t if layout.shares_tokens else 1)
    gathered = 2 * sizes.key_size * layout.context / t if layout.context > 1 else 0.0
    attention = (4 if on_host else 3) * sizes.query_size + 3 * sizes.key_size
    whole = outside + (attention + 3 * shape.intermediate_size) / t + gathered
    if layout.recompute == "full":
        return LayerNumbers(outside / 4, whole - outside / 4)
    if layout.recompute == "selective":
        inside = 2 * sizes.query_size + 2 * sizes.key_size + 2 * shape.intermediate_size
        # The product beside its gradient, which otherwise takes its place.
        return LayerNumbers(outside + inside / t, 2 * shape.intermediate_size / t)
    return LayerNumbers(whole)


def kept_bytes(
    sizes: ModelSizes, layout: Layout, tokens: float, *, size: int, on_host: bool, stage: int = 0
) -> float:
    """Bytes that the layers keep of microbatches of so many tokens until their backward passes.

    stage: of the pipeline; the first one keeps as many microbatches as there are stages, and more
    where chunks take turns.
    """
    kept = layer_numbers(sizes, layout, on_host=on_host).kept
    layers, chunks = sizes.shape.num_layers / layout.pipeline, layout.chunks
    in_flight = float(layout.pipeline - stage)
    if chunks > 1:
        waiting = 2 * (layout.pipeline - stage - 1) + (chunks - 1) * layout.pipeline + 1
        in_flight = waiting / chunks
    return size * tokens / layout.context * layers * kept * in_flight


def backward_bytes(
    sizes: ModelSizes, layout: Layout, tokens: float, *, size: int, on_host: bool
) -> float:
    """Bytes that a backward pass adds at its fullest, in the last layer's MLP: gradients of the
    hidden states, of gate and of up, and what is computed again. Where ranks share tokens they
    gather the hidden states, and their gradients, of all for a product."""
    shape, t = sizes.shape, layout.tensor
    again = layer_numbers(sizes, layout, on_host=on_host).again
    inside = 2 * shape.intermediate_size / t
    outside = float(shape.hidden_size)
    if layout.shares_tokens:
        inside, outside = max(inside, 2 * shape.hidden_size), outside / t
    return size * tokens / layout.context * (again + inside + outside)


def head_bytes(
    sizes: ModelSizes, layout: Layout, tokens: float, *, size: int, on_host: bool
) -> float:
    """Bytes that the loss of a policy needs beside what the layers keep: input and output of the
    last norm, that of all ranks together, the gradient of the output, the gradient of the head's
    weight in float32, and a chunk of logits in float32 or, when that is gone, the gradient in the
    weight's type.

    On a CPU that gradient is made of the tokens with a loss first, what all ranks have is copied
    once more, and the chunk is not torch's: `host_chunk_bytes`.
    """
    hidden = sizes.shape.hidden_size
    elements = -(-sizes.shape.num_logits // layout.tensor) * hidden
    result = size * elements if size < 4 else 0
    chunk = 0.0 if on_host else min(HEAD_CHUNK_BYTES, 4.0 * elements / hidden * tokens)
    own = 2.0 / layout.context / (layout.tensor if layout.shares_tokens else 1)
    gathers = layout.shares_tokens or layout.context > 1
    states = own + (2 if gathers else 1) * (2 if on_host else 1)
    return size * tokens * hidden * states + 4.0 * elements + max(chunk, result)


def host_chunk_bytes(sizes: ModelSizes, tokens: float) -> float:
    """Bytes of the chunk of logits that the compiled head of a CPU works on."""
    shape = sizes.shape
    return min(HOST_CHUNK_BYTES, 4.0 * tokens * (shape.num_logits + 18 * shape.hidden_size))


def cache_bytes(sizes: ModelSizes, tokens: float, *, size: int, tensor: int = 1) -> float:
    """Bytes of the keys and values of so many tokens, on one of `tensor` ranks."""
    return 2.0 * sizes.shape.num_layers * sizes.key_size * tokens * size / tensor


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes of the fullest rank in each phase of a stage, by part.

    pipeline_stage: where that rank is.
    """

    stage: str
    phases: Mapping[Phase, Mapping[str, float]]
    pipeline_stage: int

    @property
    def peak(self) -> float:
        """Bytes of the fullest phase."""
        return max(sum(parts.values()) for parts in self.phases.values())


def stage_memory(job: Job, stage: Stage, layout: Layout, device: Device) -> StageMemory:
    """Bytes that the fullest rank holds in a stage."""
    on_ends = sorted({0, layout.pipeline - 1})
    found = [_RankMemory(job, stage, layout, device, at).memory() for at in on_ends]
    return max(found, key=lambda memory: memory.peak)


@dataclass(frozen=True, slots=True)
class _RankMemory:
    """The sums of one rank, at pipeline stage `at`."""

    job: Job
    stage: Stage
    layout: Layout
    device: Device
    at: int

    def memory(self) -> StageMemory:
        phases: dict[Phase, Mapping[str, float]] = {}
        at_work = self._present(training=True)
        if self.stage.learns_from_samples:
            phases["rollout"] = {**self._present("reward"), "engine": self._engine()}
        elif self.stage.sampling == "before":
            phases["rollout"] = {**self._frozen(), "engine": self._engine()}
        awake = self._resident_engine() if self._has_engine_awake() else {}
        if self.stage.learns_from_samples:
            scorers = self._present("reference")
            phases["annotate"] = {**scorers, **awake, "head": self._scoring()}
        phases["update"] = {**at_work, **awake, **self._update()}
        phases["step"] = {**at_work, **awake, "optimizer's work": self._optimizer_work()}
        if self.stage.learns_from_samples and self.job.engine.kind != "embedded":
            phases["sync"] = {**self._present(), **self._resident_engine(), "sync": self._sync()}
        elif self.stage.roles[0].name == "policy" and self._engine_share():
            phases["evaluate"] = {**at_work, **self._resident_engine()}
        return StageMemory(self.stage.name, phases, self.at)

    def _present(self, scorer: str = "", *, training: bool = False) -> dict[str, float]:
        """What is here beside the work itself. With `offload`, where a stage samples, the host
        holds frozen models but the `scorer` at work, and what training adds unless it is on."""
        parts = self._resting()
        if self.layout.offload and self.stage.learns_from_samples:
            frozen = {role.name for role in self.stage.roles if not role.trained}
            away = {f"{name} weights" for name in frozen - {scorer}}
            away |= set() if training else _TRAINING_PARTS
            parts = {name: size for name, size in parts.items() if name not in away}
        return parts

    def _resting(self) -> dict[str, float]:
        """Weights of all models, and what training adds to those that are trained."""
        each = parameter_bytes(self.job.dtype, self.layout)
        parts = {"gradients": 0.0, "optimizer": 0.0}
        weights: dict[str, float] = {}
        for role in self.stage.roles:
            number = self._parameters(role)
            weights[f"{role.name} weights"] = each.weight * number
            if role.trained:
                parts["gradients"] += each.gradient * number
                parts["optimizer"] += each.optimizer * number
        return {**weights, **parts, "batch": _TOKEN_BYTES * self._step_tokens(), **self._program()}

    def _program(self) -> dict[str, float]:
        return {"program": PROGRAM_BYTES} if self._on_host() else {}

    def _frozen(self) -> dict[str, float]:
        """The policy alone, as a stage loads it that samples before it trains."""
        number = self.job.sizes.rank_parameters(self.layout, stage=self.at)
        weights = parameter_bytes(self.job.dtype).weight * number
        return {"policy weights": weights, **self._program()}

    def _parameters(self, role: Role) -> int:
        return self.job.sizes.rank_parameters(self.layout, kind=role.kind, stage=self.at)

    def _step_tokens(self) -> float:
        stage = self.stage
        return stage.num_sequences * stage.lengths.longest / self.layout.data

    def _microbatch(self) -> float:
        """Tokens of the largest microbatch: what packing allows, or all of a minibatch."""
        minibatch = self._step_tokens() / self.stage.num_minibatches
        longest = self.stage.lengths.longest
        return min(self.job.microbatch, max(minibatch, longest))

    # -- phases -------------------------------------------------------------------------------

    def _update(self) -> dict[str, float]:
        """The fuller moment of an update: the loss, or the backward pass of the last layer."""
        sizes, layout, tokens = self.job.sizes, self.layout, self._microbatch()
        size, on_host = self.job.element_bytes, self._on_host()
        kept = kept_bytes(sizes, layout, tokens, size=size, on_host=on_host, stage=self.at)
        if self.stage.keeps_start_hidden:
            minibatch = self._step_tokens() / self.stage.num_minibatches
            kept += size * sizes.shape.hidden_size * minibatch
        backward = backward_bytes(sizes, layout, tokens, size=size, on_host=on_host)
        head = waiting = 0.0
        is_last = self.at == layout.pipeline - 1
        if is_last and any(role.trained and role.kind == "policy" for role in self.stage.roles):
            head = head_bytes(sizes, layout, tokens, size=size, on_host=on_host)
            if sizes.tied and layout.pipeline == 1:
                # It waits for the embedding's part, the last of the backward pass.
                waiting = size * sizes.embedding_size / layout.tensor
        moments = (
            {"activations": kept, "head": head},
            {"activations": kept + backward, "head": waiting},
        )
        fullest = max(moments, key=lambda parts: sum(parts.values()))
        return {**fullest, **self._host_work(fullest)} if self._on_host() else fullest

    def _host_work(self, parts: Mapping[str, float]) -> dict[str, float]:
        """What lies beside the tensors of an update on a host."""
        work = {"allocator": ALLOCATOR_SHARE * parts["activations"]}
        if any(role.trained and role.kind == "policy" for role in self.stage.roles):
            # It is gone in the backward pass; malloc has not given it back.
            work["head's chunk"] = host_chunk_bytes(self.job.sizes, self._microbatch())
        return work

    def _optimizer_work(self) -> float:
        """torch's AdamW takes the roots of all second moments at once on a GPU; on a CPU matrix by
        matrix."""
        if self._on_host():
            return 0.0
        numbers = max(self._parameters(role) for role in self.stage.roles if role.trained)
        sharers = self.layout.num_sharers if self.layout.shard_optimizer else 1
        return 4.0 * numbers / sharers

    def _scoring(self) -> float:
        """A forward pass: one layer, and logits on the last stage."""
        sizes, layout, size = self.job.sizes, self.layout, self.job.element_bytes
        tokens = self._microbatch() / layout.context
        hidden, inner = sizes.shape.hidden_size, sizes.shape.intermediate_size / layout.tensor
        layer = size * tokens * (3 * hidden + 3 * inner)
        chunk = 0.0 if self._on_host() else SCORE_CHUNK_BYTES
        return max(layer, chunk if self.at == layout.pipeline - 1 else 0.0)

    def _engine(self) -> float:
        if self.job.engine.kind != "embedded":
            return self._engine_share()
        stage, sizes, size = self.stage, self.job.sizes, self.job.element_bytes
        slots = min(self.job.engine.max_slots, -(-stage.num_sequences // self.layout.data))
        cache = cache_bytes(sizes, slots * stage.lengths.longest, size=size)
        logits = 2 * 4 * slots * sizes.shape.num_logits
        return cache + logits

    def _has_engine_awake(self) -> bool:
        """Whether the engine keeps its memory in updates: it is made for the first samples, those
        of an evaluation at the end of a stage too."""
        is_made = self.stage.sampling != "never" or self.stage is not self.job.stages[0]
        return is_made and not self.job.engine.sleeps

    def _resident_engine(self) -> dict[str, float]:
        return {"engine": self._engine_share()} if self._engine_share() else {}

    def _engine_share(self) -> float:
        """Bytes of vLLM on a trainer's GPU."""
        engine = self.job.engine
        on_trainers = engine.kind == "vllm" or (engine.kind == "server" and not engine.num_gpus)
        return engine.share * self.device.memory_bytes if on_trainers else 0.0

    def _sync(self) -> float:
        """A bucket, and the largest tensor, whole."""
        whole = self.job.sizes.embedding_size * self.job.element_bytes
        return self.job.engine.bucket_bytes + whole

    def _on_host(self) -> bool:
        return self.device.kind == "cpu"
