# SPDX-License-Identifier: Apache-2.0
"""A chat model that is an engine of ours: everything that waits is generated together.

The engine works in a thread of its own, so that prompts are made, replies read and other models
asked meanwhile. What arrives while it works makes the next batch; samples do not depend on their
batch (`rollout.engine`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from satori_fast.data.prompts import ChatTemplate
from satori_fast.rollout.engine import Completion, Engine, Request, SamplingParams
from satori_fast.synthesis.chat import ChatReply, ChatRequest, ChatSampling


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request and the place where its reply is waited for."""

    request: ChatRequest
    prompt_ids: tuple[int, ...]
    reply: asyncio.Future[ChatReply]


class EngineChat:
    """Implements `chat.ChatModel` on an engine and its tokenizer. Use it within one event loop."""

    def __init__(self, engine: Engine, *, name: str) -> None:
        self.name = name
        self._engine = engine
        self._waiting: dict[ChatSampling, list[_Waiting]] = {}
        self._at_work: asyncio.Task[None] | None = None
        self._is_closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine chat")

    async def complete(self, request: ChatRequest) -> ChatReply:
        prompt_ids = self._prompt_ids(request.prompt)
        if len(prompt_ids) >= self._engine.max_seqlen:
            reason = f"{len(prompt_ids)} prompt tokens, the context is {self._engine.max_seqlen}"
            return ChatReply(reason, "refused")
        reply = asyncio.get_running_loop().create_future()
        waiting = _Waiting(request, prompt_ids, reply)
        self._waiting.setdefault(request.sampling, []).append(waiting)
        if self._at_work is None:
            self._at_work = asyncio.create_task(self._work())
        return await reply

    async def close(self) -> None:
        self._is_closed = True
        self._thread.shutdown(wait=True)
        self._engine.close()

    def _prompt_ids(self, prompt: str) -> tuple[int, ...]:
        """One user turn in the model's own chat template; the bare prompt where it has none.

        Control tokens in the prompt stay text: no question can forge a turn. Begin-of-text is the
        template's business where there is one, as in transformers.
        """
        renderer = self._engine.renderer
        tokenizer: Any = renderer.tokenizer
        if not tokenizer.chat_template:
            return tuple(renderer.opened(renderer.encode_quoting("{}\n".format, prompt)))
        return tuple(renderer.encode_quoting(partial(ChatTemplate().render, tokenizer), prompt))

    async def _work(self) -> None:
        """Batch after batch, until nothing waits."""
        loop = asyncio.get_running_loop()
        batch: list[_Waiting] = []
        try:
            while self._waiting:
                await asyncio.sleep(0)  # whoever is about to ask joins the batch
                sampling = next(iter(self._waiting))
                batch = self._waiting.pop(sampling)
                await loop.run_in_executor(self._thread, self._generate, batch, sampling, loop)
        except Exception as error:
            for waiting in [*batch, *(w for rest in self._waiting.values() for w in rest)]:
                if not waiting.reply.done():
                    waiting.reply.set_exception(error)
            self._waiting.clear()
        finally:
            self._at_work = None

    def _generate(
        self, batch: Sequence[_Waiting], sampling: ChatSampling, loop: asyncio.AbstractEventLoop
    ) -> None:
        """Generate in the engine's thread, and hand each reply over as soon as it is there."""
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_new_tokens,
            seed=sampling.seed,
        )
        requests = [
            Request(
                prompt_ids=waiting.prompt_ids,
                max_new_tokens=min(
                    sampling.max_new_tokens, self._engine.max_seqlen - len(waiting.prompt_ids)
                ),
                stop_ids=self._engine.renderer.stop_ids,
                seed=waiting.request.seed,
            )
            for waiting in batch
        ]
        for index, completion in self._engine.generate(requests, params):
            if self._is_closed:
                return
            reply = self._reply(batch[index], completion)
            loop.call_soon_threadsafe(_hand_over, batch[index].reply, reply)

    def _reply(self, waiting: _Waiting, completion: Completion) -> ChatReply:
        return ChatReply(
            text=self._engine.renderer.decode(completion.tokens),
            finish="stop" if completion.finish == "stop" else "length",
            prompt_tokens=len(waiting.prompt_ids),
            completion_tokens=len(completion.tokens),
        )


def _hand_over(future: asyncio.Future[ChatReply], reply: ChatReply) -> None:
    if not future.done():  # its problem was given up meanwhile
        future.set_result(reply)
