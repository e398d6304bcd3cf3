# SPDX-License-Identifier: Apache-2.0
"""Random Hugging Face models small enough for unit tests, and packed batches for them.

Weights are four times larger than the default initialisation and norms are not one, so that a wrong
layout, mask or rotation shows up in the logits. Not trained: their outputs mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from satori_fast.data.tokenizer import CHAT_TOKENS, train_tokenizer
from satori_fast.kernels import linear_logprob
from satori_fast.types import Advantages, LossOutput, PackedBatch

VOCAB_SIZE = 131  # odd, so that tensor parallelism has to pad it

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_LLAMA31_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 1e6}
_MODELS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "qwen2": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"tie_word_embeddings": False, "rope_parameters": _DEFAULT_ROPE},
    ),
    "qwen2_tied": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"tie_word_embeddings": True, "rope_parameters": _DEFAULT_ROPE},
    ),
    "llama31": (
        LlamaConfig,
        LlamaForCausalLM,
        {"tie_word_embeddings": True, "rope_parameters": _LLAMA31_ROPE},
    ),
    "qwen3": (
        Qwen3Config,
        Qwen3ForCausalLM,
        {"tie_word_embeddings": False, "head_dim": 16, "rope_parameters": _DEFAULT_ROPE},
    ),
}
NAMES = tuple(_MODELS)


def tiny_model(name: str, **overrides: Any) -> PreTrainedModel:
    """A random fp32 transformers model: one of `NAMES`, the same weights on every call."""
    config_type, model_type, options = _MODELS[name]
    config = config_type(**{**_SIZES, **options, **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_type(config).float().eval()
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.data.mul_(4)
    return model


# As ChatML is written by many models, with a system turn where there is one.
CHAT_TEMPLATE = """\
{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] \
+ '<|im_end|>\\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


def save_chat_model(folder: Path, texts: Sequence[str], **sizes: Any) -> Path:
    """Leave a random model with a chat template and a tokenizer that is trained on `texts`; a
    response ends at <|im_end|>. sizes: of its configuration."""
    tokenizer: Any = train_tokenizer(texts, 400, special_tokens=CHAT_TOKENS)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.eos_token = CHAT_TOKENS[1]
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = tiny_model(
        "qwen2_tied",
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **{**small, **sizes},
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_batch(
    lengths: Sequence[int],
    seed: int = 0,
    *,
    vocab_size: int = VOCAB_SIZE,
    minibatch: int = 0,
    num_minibatch_tokens: int | None = None,
) -> PackedBatch:
    """Random sequences end to end; every token but the last of each is a loss token."""
    generator = torch.Generator().manual_seed(seed)
    sequences = [torch.randint(0, vocab_size, (length,), generator=generator) for length in lengths]
    return packed(sequences, minibatch=minibatch, num_minibatch_tokens=num_minibatch_tokens)


def packed(
    sequences: Sequence[Tensor], *, minibatch: int = 0, num_minibatch_tokens: int | None = None
) -> PackedBatch:
    """Sequences of token ids end to end; every token but the last of each is a loss token."""
    lengths = [len(sequence) for sequence in sequences]
    loss_mask = torch.cat([torch.arange(length) < length - 1 for length in lengths])
    count = int(loss_mask.sum())
    total = sum(lengths)
    return PackedBatch(
        tokens=torch.cat(sequences),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        targets=torch.cat([sequence.roll(-1) for sequence in sequences]),
        loss_mask=loss_mask,
        loss_weights=loss_mask.float(),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_seqlen=max(lengths),
        segment_ids=torch.where(loss_mask, 0, -1).int(),
        credit=torch.zeros(total),
        rollout_logprobs=torch.zeros(total),
        source=torch.arange(len(lengths)).int(),
        minibatch=minibatch,
        num_minibatch_tokens=count if num_minibatch_tokens is None else num_minibatch_tokens,
    )


def reference_logits(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Logits [T, V] of transformers, one sequence at a time."""
    bounds = batch.cu_seqlens.tolist()
    return torch.cat(
        [model(batch.tokens[None, start:stop]).logits[0] for start, stop in pairwise(bounds)]
    )


class ImitationLoss:
    """-sum_t w_t A_t logprob_t for a policy, sum_t w_t (v_t - A_t)^2 for a scalar model."""

    def policy(
        self,
        hidden: Tensor,
        weight: Tensor,
        batch: PackedBatch,
        advantages: Advantages,
        *,
        vocab_size: int,
        vocab_start: int = 0,
        group: Any = None,
    ) -> LossOutput:
        logprobs, entropies = linear_logprob(
            hidden,
            weight,
            batch.targets,
            vocab_size=vocab_size,
            vocab_start=vocab_start,
            group=group,
        )
        loss = -(logprobs * batch.loss_weights * advantages.advantages).sum()
        entropy = (entropies * batch.loss_weights).sum()
        return LossOutput(loss, {"entropy": entropy}, {"nll_max": (-logprobs).amax()})

    def value(self, values: Tensor, batch: PackedBatch, advantages: Advantages) -> LossOutput:
        loss = ((values - advantages.advantages).square() * batch.loss_weights).sum()
        return LossOutput(loss, {"value_loss": loss}, {})


def ones(batches: Sequence[PackedBatch]) -> list[Advantages]:
    """Advantage 1 everywhere: plain imitation."""
    return [Advantages(torch.ones(batch.num_tokens)) for batch in batches]


def imitation_reference(model: PreTrainedModel, batches: Sequence[PackedBatch]) -> Tensor:
    """`ImitationLoss` with advantage 1, by transformers and torch, per loss token."""
    loss, num_tokens = torch.zeros(()), 0
    for batch in batches:
        logits = reference_logits(model, batch)
        nll = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        loss = loss + (nll * batch.loss_weights).sum()
        num_tokens += int(batch.loss_mask.sum())
    return loss / num_tokens
