# SPDX-License-Identifier: Apache-2.0
"""A continuous-batching decoder on the trained model's own parameters: weight sync costs nothing.

It reads the parameters of a Megatron `PolicyModel` in place (no copy, no second layout), keeps one
static key-value slot per running request, and refills a slot as soon as its request ends. Siblings
of a prompt are prefilled once. It serves one process (tensor = pipeline = 1); vLLM serves the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from satori_fast.backbone.architecture import head_dim
from satori_fast.backbone.parallel import parallel_state
from satori_fast.backbone.step import Learner
from satori_fast.data.prompts import PromptRenderer
from satori_fast.kernels import (
    decode_attention,
    linear_logits,
    rms_norm,
    rope,
    sample_tokens,
    swiglu,
)
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


# attend(layer, queries [T, K, G, D], keys [T, K, D], values) -> [T, K G D]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(slots=True)
class _Slots:
    """State of `B` running requests, one row each; all but the cache is on the host.

    cache: [layers, 2, B, K, T_max, D], keys and values. index: which request, -1 in a free row.
    seed: of its stream. position: where its next token goes. num_new, limit: tokens it has, and may
    have. tokens, logprobs [B, M]: what was sampled so far.
    """

    cache: Tensor
    index: np.ndarray
    seed: np.ndarray
    position: np.ndarray
    num_new: np.ndarray
    limit: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray


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
        angles = angles.to(self._device)
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
            vocab_size=module.num_tokens,
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
        waiting = deque(sorted(range(len(requests)), key=lambda i: -requests[i].max_new_tokens))
        slots = self._new_slots(requests)
        while waiting or (slots.index >= 0).any():
            self.num_passes += 1
            rows = np.flatnonzero(slots.index < 0)[: len(waiting)]
            if len(rows):
                admitted = [waiting.popleft() for _ in rows]
                logits = self._admit(slots, rows, admitted, requests)
            else:
                rows = np.flatnonzero(slots.index >= 0)
                logits = self._decode(slots, rows)
            yield from self._advance(slots, rows, logits, sampling, requests)

    # -- scheduling ---------------------------------------------------------------------------

    def _new_slots(self, requests: Sequence[Request]) -> _Slots:
        shape, num_slots = self._shape, min(self._max_slots, len(requests))
        longest = max((len(r.prompt_ids) + r.max_new_tokens for r in requests), default=1)
        most_new = max((r.max_new_tokens for r in requests), default=1)
        size = (shape.num_layers, 2, num_slots, shape.num_query_groups, longest, shape.head_dim)
        return _Slots(
            cache=self._parameters["embedding.word_embeddings.weight"].new_empty(size),
            index=np.full(num_slots, -1),
            seed=np.zeros(num_slots, np.uint64),
            position=np.zeros(num_slots, np.int64),
            num_new=np.zeros(num_slots, np.int64),
            limit=np.zeros(num_slots, np.int64),
            tokens=np.zeros((num_slots, most_new), np.int32),
            logprobs=np.zeros((num_slots, most_new), np.float32),
        )

    def _admit(
        self, slots: _Slots, rows: np.ndarray, admitted: list[int], requests: Sequence[Request]
    ) -> Tensor:
        """Prefill the admitted requests into free rows, each distinct prompt once; logits of their
        first tokens."""
        taken = [requests[i] for i in admitted]
        distinct: dict[tuple[int, ...], int] = {}
        prompt_of = [distinct.setdefault(r.prompt_ids, len(distinct)) for r in taken]
        slots.index[rows] = admitted
        slots.seed[rows] = np.array([r.seed for r in taken], np.uint64)
        slots.position[rows] = [len(r.prompt_ids) for r in taken]
        slots.num_new[rows] = 0
        slots.limit[rows] = [r.max_new_tokens for r in taken]
        return self._prefill(slots, list(distinct), rows, prompt_of)

    def _advance(
        self,
        slots: _Slots,
        rows: np.ndarray,
        logits: Tensor,
        sampling: SamplingParams,
        requests: Sequence[Request],
    ) -> Iterator[tuple[int, Completion]]:
        """Sample one token per row from `logits` [len(rows), V]; hand over what is finished."""
        column = slots.num_new[rows]
        uniform = stream_uniform(slots.seed[rows], column.astype(np.uint64))
        drawn, logprobs = sample(logits, torch.from_numpy(uniform).to(logits.device), sampling)
        tokens = drawn.cpu().numpy()
        slots.tokens[rows, column] = tokens
        slots.logprobs[rows, column] = logprobs.cpu().numpy()
        slots.num_new[rows] += 1
        is_full = slots.num_new[rows] == slots.limit[rows]
        for row, token, full in zip(rows.tolist(), tokens.tolist(), is_full.tolist(), strict=True):
            index = int(slots.index[row])
            stopped = token in requests[index].stop_ids
            if stopped or full:
                slots.index[row] = -1
                length = slots.num_new[row]
                yield (
                    index,
                    Completion(
                        tokens=slots.tokens[row, :length].copy(),
                        logprobs=slots.logprobs[row, :length].copy(),
                        finish="stop" if stopped else "length",
                    ),
                )

    # -- the network --------------------------------------------------------------------------

    def _prefill(
        self,
        slots: _Slots,
        prompts: Sequence[tuple[int, ...]],
        rows: np.ndarray,
        prompt_of: list[int],
    ) -> Tensor:
        """Run the prompts end to end, copy keys and values into `rows`; last logits [rows, V]."""
        lengths = np.array([len(p) for p in prompts])
        ends, longest = lengths.cumsum(), int(lengths.max())
        tokens = self._on_device(np.concatenate(prompts))
        sequence = self._on_device(np.arange(len(prompts)).repeat(lengths))
        position = self._on_device(np.arange(ends[-1]) - (ends - lengths).repeat(lengths))
        last, source = self._on_device(ends - 1), self._on_device(np.array(prompt_of))
        cos, sin = self._cos[position], self._sin[position]
        cache, index = slots.cache[..., :longest, :], self._on_device(rows)

        is_even = len(tokens) == len(prompts) * longest

        def padded(x: Tensor) -> Tensor:
            """[T, heads, D] -> [prompts, heads, longest, D]."""
            if is_even:
                return x.unflatten(0, (len(prompts), longest)).transpose(1, 2)
            out = x.new_zeros(len(prompts), longest, *x.shape[1:])
            out[sequence, position] = x
            return out.transpose(1, 2)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = padded(rope(q, cos, sin).flatten(1, 2)), padded(rope(k, cos, sin)), padded(v)
            cache[layer, 0, index], cache[layer, 1, index] = k[source], v[source]
            # Right padding is harmless under the causal mask.
            grouped = q.shape[1] > k.shape[1]
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
            out = out.transpose(1, 2)
            return (out.flatten(0, 1) if is_even else out[sequence, position]).flatten(1)

        return self._logits(self._forward(tokens, attend, last))[source]

    def _decode(self, slots: _Slots, rows: np.ndarray) -> Tensor:
        """Feed each row's last token; logits [len(rows), V]."""
        position = slots.position[rows]
        tokens = self._on_device(slots.tokens[rows, slots.num_new[rows] - 1].astype(np.int64))
        at = self._on_device(position)
        angles = {"cos": self._cos[at], "sin": self._sin[at]}
        everyone = len(rows) == len(slots.index)
        index = None if everyone else self._on_device(rows)
        layers = slots.cache[..., : int(position.max()) + 1, :].unbind(0)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = layers[layer].unbind(0)
            return decode_attention(q, k, v, keys, values, at, **angles, slots=index).flatten(1)

        slots.position[rows] += 1
        return self._logits(self._forward(tokens, attend))

    def _forward(self, tokens: Tensor, attend: Attend, last: Tensor | None = None) -> Tensor:
        """tokens [T] -> normed hidden [T, H]; `attend` rotates and owns the cache. With `last`,
        only of these tokens: the others end with the keys and values of the last layer."""
        weights, shape = self._parameters, self._shape
        x = F.embedding(tokens, weights["embedding.word_embeddings.weight"])
        normed = self._norm(x, "decoder.layers.0.input_layernorm.weight")
        for layer in range(shape.num_layers):
            at, is_last = f"decoder.layers.{layer}.", layer + 1 == shape.num_layers
            mixed = F.linear(
                normed,
                weights[at + "self_attention.linear_qkv.weight"],
                weights.get(at + "self_attention.linear_qkv.bias"),
            ).unflatten(-1, (shape.num_query_groups, -1, shape.head_dim))
            q, k, v = mixed[..., :-2, :], mixed[..., -2, :], mixed[..., -1, :]
            if at + "self_attention.q_layernorm.weight" in weights:
                q = self._norm(q, at + "self_attention.q_layernorm.weight")
                k = self._norm(k, at + "self_attention.k_layernorm.weight")
            attended = attend(layer, q, k, v)
            if is_last and last is not None:
                attended, x = attended[last], x[last]
            attended = F.linear(attended, weights[at + "self_attention.linear_proj.weight"])
            normed, x = self._add_norm(attended, x, at + "pre_mlp_layernorm.weight")
            hidden = swiglu(F.linear(normed, weights[at + "mlp.linear_fc1.weight"]))
            hidden = F.linear(hidden, weights[at + "mlp.linear_fc2.weight"])
            following = "final_layernorm" if is_last else f"layers.{layer + 1}.input_layernorm"
            normed, x = self._add_norm(hidden, x, f"decoder.{following}.weight")
        return normed

    def _on_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return rms_norm(x, self._parameters[name], eps=self._shape.norm_eps)

    def _add_norm(self, x: Tensor, residual: Tensor, name: str) -> tuple[Tensor, Tensor]:
        weight, eps = self._parameters[name], self._shape.norm_eps
        return rms_norm(x, weight, eps=eps, residual=residual)

    def _logits(self, normed: Tensor) -> Tensor:
        """normed [n, H] -> float32 [n, vocab_size]; padding columns of the head never appear."""
        weights = self._parameters
        head = weights.get("output_layer.weight", weights["embedding.word_embeddings.weight"])
        return linear_logits(normed, head, vocab_size=self._shape.vocab_size)


def sample(logits: Tensor, uniform: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """One token per row by inverse transform: tokens int64 [B], logprobs float32 [B].

    logits float32 [B, V]; uniform float64 [B] in [0, 1). One number per row decides, so a sample
    depends on its own stream alone.
    """
    if sampling.temperature == 0:
        logprobs = torch.log_softmax(logits, dim=-1)
        tokens = logits.argmax(dim=-1)
        return tokens, logprobs.gather(1, tokens[:, None])[:, 0]
    if not sampling.top_k and sampling.top_p == 1.0:
        return sample_tokens(logits, uniform, temperature=sampling.temperature)
    logprobs = torch.log_softmax(logits / sampling.temperature, dim=-1)
    tokens, _ = sample_tokens(_filtered(logprobs, sampling.top_k, sampling.top_p), uniform)
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
