# SPDX-License-Identifier: Apache-2.0
"""A continuous-batching decoder on the trained model's own parameters: weight sync costs nothing.

It reads the parameters of a Megatron `PolicyModel` in place (no copy, no second layout), keeps one
static key-value slot per running request, and refills a slot as soon as its request ends. Siblings
of a prompt are prefilled once. It serves one process (tensor = pipeline = 1); vLLM serves the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from satori_fast.backbone.architecture import head_dim
from satori_fast.backbone.parallel import parallel_state
from satori_fast.backbone.step import Learner
from satori_fast.data.coat import PromptRenderer
from satori_fast.rollout.engine import Completion, Engine, Request, SamplingParams


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The numbers of a dense decoder that its parameters do not tell.

    rope_frequencies: float32 [D / 2], radians per position, scaling included.
    """

    num_layers: int
    num_query_groups: int
    head_dim: int
    norm_eps: float
    vocab_size: int
    rope_frequencies: Tensor


@dataclass(slots=True)
class _Running:
    """A request that holds a slot."""

    index: int
    request: Request
    num_new: int = 0


@dataclass(slots=True)
class _Slots:
    """State of `B` running requests, one row each.

    keys, values: per layer [B, K, T_max, D]. position [B]: where the next token goes. token [B]:
    the token to feed next. out_tokens, out_logprobs [B, M]: what was sampled so far.
    """

    keys: list[Tensor]
    values: list[Tensor]
    position: Tensor
    token: Tensor
    out_tokens: Tensor
    out_logprobs: Tensor
    running: list[_Running | None] = field(default_factory=list)


class EmbeddedEngine(Engine):
    """Samples from live parameters.

    parameters: Megatron names to tensors, of an unsharded model; read at every step, never written.
    max_slots:  requests decoded at once. Memory: 2 * layers * slots * K * max_seqlen * D elements.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        shape: DecoderShape,
        *,
        renderer: PromptRenderer,
        max_seqlen: int,
        max_slots: int,
    ) -> None:
        self.renderer = renderer
        self.max_seqlen = max_seqlen
        self.policy_version = 0
        self._parameters = parameters
        self._shape = shape
        self._max_slots = max_slots
        self._device = parameters["embedding.word_embeddings.weight"].device
        angles = torch.outer(torch.arange(max_seqlen).float(), shape.rope_frequencies.float())
        angles = torch.cat([angles, angles], dim=-1).to(self._device)
        dtype = parameters["embedding.word_embeddings.weight"].dtype
        self._cos, self._sin = angles.cos().to(dtype), angles.sin().to(dtype)

    @classmethod
    def of_policy(
        cls, policy: Learner, *, renderer: PromptRenderer, max_seqlen: int, max_slots: int
    ) -> EmbeddedEngine:
        """An engine on the live weights of `policy`. Raises ValueError when they are sharded."""
        state = parallel_state()
        if state.tensor_size * state.pipeline_size > 1:
            raise ValueError(
                'rollout.engine = "embedded" needs parallel.tensor = 1 and parallel.pipeline = 1'
            )
        hf_config, module = policy.hf_config, policy.module
        shape = DecoderShape(
            num_layers=hf_config.num_hidden_layers,
            num_query_groups=hf_config.num_key_value_heads,
            head_dim=head_dim(hf_config),
            norm_eps=hf_config.rms_norm_eps,
            vocab_size=hf_config.vocab_size,
            rope_frequencies=module.rotary_frequencies,
        )
        return cls(
            dict(module.named_parameters()),
            shape,
            renderer=renderer,
            max_seqlen=max_seqlen,
            max_slots=max_slots,
        )

    def weight_sink(self) -> None:
        """None: the parameters are the trainer's own."""

    def sleep(self) -> None:
        """Nothing: between calls the engine holds no memory of its own."""

    def wake(self) -> None:
        """Nothing."""

    def close(self) -> None:
        self._parameters = {}

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index, completion) as requests finish. See `Engine.generate`."""
        for request in requests:
            if len(request.prompt_ids) + request.max_new_tokens > self.max_seqlen:
                raise ValueError(
                    f"a prompt of {len(request.prompt_ids)} tokens and {request.max_new_tokens} "
                    f"new ones exceed rollout.max_seqlen = {self.max_seqlen}"
                )
        # Longest budget first: the end, when slots can no longer refill, is then short.
        order = sorted(range(len(requests)), key=lambda i: -requests[i].max_new_tokens)
        waiting = deque(_Running(i, requests[i]) for i in order)
        slots = self._new_slots(requests)
        while waiting or any(slots.running):
            free = [row for row, running in enumerate(slots.running) if running is None]
            if waiting and free:
                logits, rows = self._admit(slots, waiting, free)
                yield from self._advance(slots, rows, logits, sampling)
                continue
            if len(free) * 2 > len(slots.running):
                slots = _compacted(slots)
            rows = [row for row, running in enumerate(slots.running) if running is not None]
            yield from self._advance(slots, rows, self._decode(slots, rows), sampling)

    # -- scheduling ---------------------------------------------------------------------------

    def _new_slots(self, requests: Sequence[Request]) -> _Slots:
        shape, num_slots = self._shape, min(self._max_slots, len(requests))
        longest = max((len(r.prompt_ids) + r.max_new_tokens for r in requests), default=1)
        most_new = max((r.max_new_tokens for r in requests), default=1)
        dtype = self._parameters["embedding.word_embeddings.weight"].dtype

        def cache() -> list[Tensor]:
            size = (num_slots, shape.num_query_groups, longest, shape.head_dim)
            return [
                torch.zeros(size, dtype=dtype, device=self._device) for _ in range(shape.num_layers)
            ]

        def integers(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int64, device=self._device)

        return _Slots(
            keys=cache(),
            values=cache(),
            position=integers(num_slots),
            token=integers(num_slots),
            out_tokens=integers(num_slots, most_new),
            out_logprobs=torch.zeros(num_slots, most_new, device=self._device),
            running=[None] * num_slots,
        )

    def _admit(
        self, slots: _Slots, waiting: deque[_Running], free: list[int]
    ) -> tuple[Tensor, list[int]]:
        """Prefill as many waiting requests as there are free slots; one prefill per distinct
        prompt.
        """
        rows = free[: len(waiting)]
        admitted = [waiting.popleft() for _ in rows]
        distinct: dict[tuple[int, ...], int] = {}
        prompt_of = [distinct.setdefault(r.request.prompt_ids, len(distinct)) for r in admitted]
        logits = self._prefill(slots, list(distinct), rows, prompt_of)
        for row, running in zip(rows, admitted, strict=True):
            slots.running[row] = running
        lengths = [len(running.request.prompt_ids) for running in admitted]
        slots.position[rows] = torch.tensor(lengths, device=self._device)
        return logits, rows

    def _advance(
        self, slots: _Slots, rows: list[int], logits: Tensor, sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        """Sample one token per row from `logits` [len(rows), V]; hand over what is finished."""
        running = [r for row in rows if (r := slots.running[row]) is not None]
        uniform = stream_uniform(
            np.array([r.request.seed for r in running], dtype=np.uint64),
            np.array([r.num_new for r in running], dtype=np.uint64),
        )
        tokens, logprobs = sample(logits, torch.from_numpy(uniform).to(logits.device), sampling)
        index = torch.tensor(rows, device=self._device)
        column = torch.tensor([r.num_new for r in running], device=self._device)
        slots.out_tokens[index, column] = tokens
        slots.out_logprobs[index, column] = logprobs
        slots.token[index] = tokens
        for row, state, token in zip(rows, running, tokens.tolist(), strict=True):
            state.num_new += 1
            stopped = token in state.request.stop_ids
            if stopped or state.num_new == state.request.max_new_tokens:
                slots.running[row] = None
                yield (
                    state.index,
                    Completion(
                        tokens=slots.out_tokens[row, : state.num_new]
                        .cpu()
                        .numpy()
                        .astype(np.int32),
                        logprobs=slots.out_logprobs[row, : state.num_new].cpu().numpy().copy(),
                        finish="stop" if stopped else "length",
                    ),
                )

    # -- the network --------------------------------------------------------------------------

    def _prefill(
        self,
        slots: _Slots,
        prompts: Sequence[tuple[int, ...]],
        rows: list[int],
        prompt_of: list[int],
    ) -> Tensor:
        """Run the prompts right-padded, copy keys and values into `rows`; last logits [rows, V]."""
        lengths = torch.tensor([len(p) for p in prompts], device=self._device)
        longest = int(lengths.max())
        tokens = torch.zeros(len(prompts), longest, dtype=torch.int64, device=self._device)
        for i, prompt in enumerate(prompts):
            tokens[i, : len(prompt)] = torch.tensor(prompt, device=self._device)
        cos, sin = self._cos[:longest, None], self._sin[:longest, None]
        source = torch.tensor(prompt_of, device=self._device)
        index = torch.tensor(rows, device=self._device)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # [n, S, K, g, D] and [n, S, K, D]. Right padding is harmless under the causal mask.
            slots.keys[layer][index, :, :longest] = k.transpose(1, 2)[source]
            slots.values[layer][index, :, :longest] = v.transpose(1, 2)[source]
            n, s, groups, per_group, dim = q.shape
            out = F.scaled_dot_product_attention(
                q.reshape(n, s, groups * per_group, dim).transpose(1, 2),
                k.transpose(1, 2),
                v.transpose(1, 2),
                is_causal=True,
                enable_gqa=per_group > 1,
            )
            return out.transpose(1, 2).reshape(n, s, -1)

        hidden = self._forward(tokens, cos, sin, attend)
        last = hidden[torch.arange(len(prompts), device=self._device), lengths - 1]
        return self._logits(last)[source]

    def _decode(self, slots: _Slots, rows: list[int]) -> Tensor:
        """Feed each row's last token; logits [len(rows), V]."""
        everyone = len(rows) == len(slots.running)
        index = torch.tensor(rows, device=self._device)
        position = slots.position[index]
        longest = int(position.max()) + 1
        mask = (torch.arange(longest, device=self._device) <= position[:, None])[:, None, None]
        cos, sin = self._cos[position][:, None, None], self._sin[position][:, None, None]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = slots.keys[layer], slots.values[layer]
            keys[index, :, position] = k[:, 0]
            values[index, :, position] = v[:, 0]
            keys, values = keys[:, :, :longest], values[:, :, :longest]
            if not everyone:
                keys, values = keys[index], values[index]
            # Grouped-query attention with the group folded into the query axis: no key is repeated.
            out = F.scaled_dot_product_attention(q[:, 0], keys, values, attn_mask=mask)
            return out.reshape(len(rows), 1, -1)

        hidden = self._forward(slots.token[index, None], cos, sin, attend)
        slots.position[index] += 1
        return self._logits(hidden[:, 0])

    def _forward(self, tokens: Tensor, cos: Tensor, sin: Tensor, attend) -> Tensor:
        """tokens [n, S] -> hidden [n, S, H] before the final norm; `attend` owns the cache."""
        weights, shape = self._parameters, self._shape
        x = F.embedding(tokens, weights["embedding.word_embeddings.weight"])
        for layer in range(shape.num_layers):
            at = f"decoder.layers.{layer}."
            mixed = F.linear(
                self._norm(x, at + "input_layernorm.weight"),
                weights[at + "self_attention.linear_qkv.weight"],
                weights.get(at + "self_attention.linear_qkv.bias"),
            ).unflatten(-1, (shape.num_query_groups, -1, shape.head_dim))
            q, k, v = mixed[..., :-2, :], mixed[..., -2, :], mixed[..., -1, :]
            if at + "self_attention.q_layernorm.weight" in weights:
                q = self._norm(q, at + "self_attention.q_layernorm.weight")
                k = self._norm(k, at + "self_attention.k_layernorm.weight")
            q = _rotate(q, cos[..., None, :], sin[..., None, :])
            k = _rotate(k, cos, sin)
            attended = attend(layer, q, k, v)
            x = x + F.linear(attended, weights[at + "self_attention.linear_proj.weight"])
            gate, up = F.linear(
                self._norm(x, at + "pre_mlp_layernorm.weight"),
                weights[at + "mlp.linear_fc1.weight"],
            ).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, weights[at + "mlp.linear_fc2.weight"])
        return x

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self._parameters[name], self._shape.norm_eps)

    def _logits(self, hidden: Tensor) -> Tensor:
        """hidden [n, H] -> float32 [n, vocab_size]; padding columns of the head never appear."""
        weights = self._parameters
        head = weights.get("output_layer.weight", weights["embedding.word_embeddings.weight"])
        hidden = self._norm(hidden, "decoder.final_layernorm.weight")
        return F.linear(hidden, head)[:, : self._shape.vocab_size].float()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, halves convention (Hugging Face's)."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


def _compacted(slots: _Slots) -> _Slots:
    """Drop free rows: when most are free, copying costs less than decoding around them."""
    rows = [row for row, running in enumerate(slots.running) if running is not None]
    index = torch.tensor(rows, device=slots.position.device)
    return _Slots(
        keys=[k[index] for k in slots.keys],
        values=[v[index] for v in slots.values],
        position=slots.position[index],
        token=slots.token[index],
        out_tokens=slots.out_tokens[index],
        out_logprobs=slots.out_logprobs[index],
        running=[slots.running[row] for row in rows],
    )


def sample(logits: Tensor, uniform: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """One token per row by inverse transform: tokens int64 [B], logprobs float32 [B].

    logits float32 [B, V]; uniform float64 [B] in [0, 1). One number per row decides, so a sample
    depends on its own stream alone.
    """
    if sampling.temperature == 0:
        logprobs = torch.log_softmax(logits, dim=-1)
        tokens = logits.argmax(dim=-1)
        return tokens, logprobs.gather(1, tokens[:, None])[:, 0]
    logprobs = torch.log_softmax(logits / sampling.temperature, dim=-1)
    kept = _filtered(logprobs, sampling.top_k, sampling.top_p)
    # fp64: over 150,000 words an fp32 running sum loses the tail.
    cumulative = kept.double().exp().cumsum(dim=-1)
    drawn = uniform[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, drawn, right=True)[:, 0]
    tokens = tokens.clamp_(max=logits.shape[-1] - 1)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _filtered(logprobs: Tensor, top_k: int, top_p: float) -> Tensor:
    """Log-probs with everything outside top-k and top-p at -inf."""
    if 0 < top_k < logprobs.shape[-1]:
        cut = logprobs.topk(top_k, dim=-1).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < cut, -torch.inf)
    if top_p < 1.0:
        ordered, order = logprobs.sort(dim=-1, descending=True)
        mass = torch.softmax(ordered, dim=-1)
        # A word stays while the mass before it is below top_p; the first one always stays.
        outside = (mass.cumsum(dim=-1) - mass) >= top_p
        logprobs = logprobs.masked_fill(outside.scatter(1, order, outside), -torch.inf)
    return logprobs


def stream_uniform(seeds: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Uniform float64 [B] in [0, 1) from (seed, counter): SplitMix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        z = seeds + (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
