# SPDX-License-Identifier: Apache-2.0
"""An engine that returns given texts: for tests of what stands above or beside the sampler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from satori_fast.data.prompts import PromptRenderer
from satori_fast.rollout.engine import Completion, Engine, Request, SamplingParams

LOGPROB = -0.25


@dataclass
class ScriptedEngine(Engine):
    """Answers each prompt with its texts in turn, and finishes the last request first.

    responses:     text of a prompt (as `renderer` decodes it) to the texts that answer it; sibling
                   k gets text k, and the first one again after the last.
    losing:        indices of requests that never finish.
    requests, sampling: what the latest call asked for.
    """

    renderer: PromptRenderer
    responses: Mapping[str, Sequence[str]]
    max_seqlen: int = 256
    policy_version: int = 0
    losing: frozenset[int] = frozenset()
    requests: list[Request] = field(default_factory=list)
    sampling: SamplingParams | None = None
    closed: bool = False

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        self.requests, self.sampling = list(requests), sampling
        asked: dict[str, int] = {}
        completions: list[Completion] = []
        tokenizer: Any = self.renderer.tokenizer
        for request in requests:
            prompt = tokenizer.decode(request.prompt_ids, clean_up_tokenization_spaces=False)
            texts = self.responses[prompt]
            completions.append(self._completion(texts[asked.get(prompt, 0) % len(texts)], request))
            asked[prompt] = asked.get(prompt, 0) + 1
        for index in reversed(range(len(requests))):
            if index not in self.losing:
                yield index, completions[index]

    def close(self) -> None:
        self.closed = True

    def _completion(self, text: str, request: Request) -> Completion:
        ids = [*self.renderer.encode(text), request.stop_ids[0]]
        kept = np.asarray(ids[: request.max_new_tokens], dtype=np.int32)
        finish = "stop" if len(ids) <= request.max_new_tokens else "length"
        return Completion(kept, np.full(len(kept), LOGPROB, dtype=np.float32), finish)
