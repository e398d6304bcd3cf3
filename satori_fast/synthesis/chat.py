# SPDX-License-Identifier: Apache-2.0
"""Language model as synthesis uses it: one user turn in, one text out, and what that cost.

Who answers is elsewhere: an OpenAI-compatible server (`endpoint_chat`) or an engine of ours
(`engine_chat`). `journal` remembers the answers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

ChatFinish = Literal["stop", "length", "refused"]


class ChatError(ValueError):
    """A model that cannot be asked at all. What it has answered is kept: a resumed run goes on."""


@dataclass(frozen=True, slots=True)
class ChatSampling:
    """Sampling of a role. temperature 0 is greedy; max_new_tokens limits the answer.

    seed: every sample derives its own from it (`ChatRequest.seed`), where the model takes one.
    """

    temperature: float
    max_new_tokens: int
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One answer to ask for. sample: number among several answers to the same prompt."""

    prompt: str
    sampling: ChatSampling
    sample: int = 0

    def key(self, *names: str) -> str:
        """128 bits, in hexadecimal, of the request and of `names` (who asks, who is asked)."""
        text = json.dumps([*names, self.prompt, asdict(self.sampling), self.sample])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def seed(self) -> int:
        """A 31-bit seed of this sample's own."""
        return int(self.key()[:8], 16) >> 1


@dataclass(frozen=True, slots=True)
class ChatReply:
    """Answer of a model.

    finish:      "length" where the token limit cut it; "refused": the model takes no such request,
                 and `text` is its reason.
    num_retries: how often it had to be asked again.
    """

    text: str
    finish: ChatFinish = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_retries: int = 0


@dataclass(slots=True)
class Usage:
    """Usage of one role: requests, retries, and tokens of prompts and of answers."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, reply: ChatReply) -> None:
        self.requests += 1
        self.retries += reply.num_retries
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens

    def cost(self, prompt_price: float, completion_price: float) -> float:
        """Cost in the currency of the prices, which are per million tokens."""
        spent = self.prompt_tokens * prompt_price + self.completion_tokens * completion_price
        return spent / 1e6


class ChatModel(Protocol):
    """Answers requests, many at once: whoever waits for one lets the others go on.

    name: what tells it from other models, wherever it runs.
    """

    name: str

    async def complete(self, request: ChatRequest) -> ChatReply:
        """The answer to one request. ChatError when the model cannot be reached or used."""
        ...

    async def close(self) -> None:
        """Give back connections, memory or processes. It cannot be asked afterwards."""
        ...
