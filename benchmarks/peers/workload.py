# SPDX-License-Identifier: Apache-2.0
"""What both sides of the race are given: a model folder, prompts, lengths and a reward.

Everything is random and from one seed, so that both sides can make it for themselves.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

QUICKSTART = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 384,
}
MEDIUM = {
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 1536,
}
QWEN_1_5B = {
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
}
QWEN_7B = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
}


@dataclass(frozen=True)
class Workload:
    """One event of the race.

    tail:       the longest completion over the mean of the log-normal lengths; 1: all are equal.
    minibatches: optimizer steps for each rollout. With two, TRL too scores the old log-probs apart.
    steps:      measured steps of each side.
    targets:    ours over TRL's: step tokens per second, and peak memory.
    """

    title: str
    vocab_size: int = 64
    shape: dict[str, int] = field(default_factory=lambda: QUICKSTART)
    num_prompts: int = 8
    num_samples: int = 8
    prompt_tokens: int = 32
    mean_tokens: int = 64
    tail: int = 1
    minibatches: int = 2
    steps: int = 8
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    targets: tuple[float | None, float | None] = (None, None)

    @property
    def num_rows(self) -> int:
        return self.num_prompts * self.num_samples

    @property
    def max_tokens(self) -> int:
        """Longest completion."""
        return self.tail * self.mean_tokens

    def lengths(self, step: int) -> np.ndarray:
        """Completion tokens of each row of a step, int [num_rows]; siblings follow each other."""
        if self.tail == 1:
            return np.full(self.num_rows, self.mean_tokens)
        rng = np.random.default_rng((self.seed, 1, step))
        drawn = rng.lognormal(0.0, 1.0, self.num_rows)
        # One row is the longest; the rest keep the mean.
        rest = self.mean_tokens * self.num_rows - self.max_tokens
        lengths = np.clip(drawn * rest / (drawn.sum() - drawn[0]), 1, self.max_tokens)
        lengths[0] = self.max_tokens
        return rng.permutation(lengths.round().astype(int))

    def prompts(self, step: int) -> list[str]:
        """Text of the problems of a step; each word is a token."""
        rng = np.random.default_rng((self.seed, 2, step))
        ids = rng.integers(0, self.num_words, (self.num_prompts, self.prompt_tokens))
        return [" ".join(f"w{i}" for i in row) for row in ids]

    @property
    def num_words(self) -> int:
        """Of the vocabulary, special tokens left out."""
        return self.vocab_size - 5

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Workload:
        values = json.loads(path.read_text())
        return cls(**{**values, "targets": tuple(values["targets"])})


WORKLOADS = {
    "W1": Workload("equal lengths, quickstart model", targets=(1.3, 1.0)),
    "W2": Workload("long-tail lengths", tail=8, targets=(3.0, 0.5)),
    "W3": Workload("vocabulary 151,936", vocab_size=151_936, steps=3, targets=(3.0, 1 / 3)),
    "W1-medium": Workload("equal lengths, 8 layers of 512", shape=MEDIUM),
    "W2-medium": Workload("long-tail lengths, 8 layers of 512", shape=MEDIUM, tail=8),
}
# Random weights: speed and memory depend on shapes alone.
GPU_WORKLOADS = {
    name: Workload(
        title,
        vocab_size=151_936,
        shape=shape,
        num_prompts=8,
        num_samples=8,
        prompt_tokens=256,
        mean_tokens=256,
        tail=4,
        device="cuda",
        dtype="bfloat16",
    )
    for name, title, shape in (
        ("gpu-1.5b", "Qwen2.5 1.5B shape, long tail", QWEN_1_5B),
        ("gpu-7b", "Qwen2.5 7B shape, long tail", QWEN_7B),
    )
}


def reward_of(text: str) -> bool:
    """A verdict that both sides can give to any text, right half of the time."""
    return zlib.crc32(text.encode()) % 2 == 0


def make_model(workload: Workload, folder: Path) -> None:
    """A random Qwen2 with its tokenizer of single words, in Hugging Face form."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from satori_fast.data.tokenizer import build_word_tokenizer

    words: Any = (f"w{i}" for i in range(workload.num_words))
    tokenizer = build_word_tokenizer(words)
    torch.manual_seed(workload.seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        **workload.shape,
        max_position_embeddings=workload.prompt_tokens + workload.max_tokens,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device(workload.device):
        model = Qwen2ForCausalLM._from_config(config, dtype=getattr(torch, workload.dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
