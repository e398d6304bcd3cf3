# SPDX-License-Identifier: Apache-2.0
"""A chat model behind an OpenAI-compatible server: vLLM, SGLang, or a provider's.

What passes (a full server, a lost connection, an answer that is no JSON) is asked again, later and
later, and as late as the server says; what does not is an error that names the setting.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from satori_fast.redaction import redacted
from satori_fast.synthesis.chat import ChatError, ChatFinish, ChatReply, ChatRequest
from satori_fast.synthesis.rate_limit import RateLimit

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 60.0
# Of a tokenizer that is not here: only a guess, put right by the server's count.
_CHARACTERS_PER_TOKEN = 4
_TRANSIENT_STATUS = (408, 409, 425, 429)
_TOO_LARGE_STATUS = (400, 413, 422)
# A model that refuses so many requests and answers none is not asked the right way.
_MOST_REFUSALS = 16


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Address of a model, and the limits of its use.

    url: with its path, as http://127.0.0.1:8000/v1. model: its name there.
    requests_per_minute, tokens_per_minute: limits that are kept (None: none).
    timeout_s: longest wait for one answer. max_retries: of one request.
    """

    url: str
    model: str
    api_key: str
    max_concurrency: int = 64
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout_s: float = 600.0
    max_retries: int = 10


class EndpointChat:
    """Implements `chat.ChatModel` with the `openai` package. Use it within one event loop.

    setting: the config section that errors name. first_wait_s: before the first retry, seconds.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        setting: str = "endpoint",
        first_wait_s: float = _FIRST_WAIT_S,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ChatError(
                f'{setting}.kind = "endpoint" needs the openai package: '
                "pip install 'satori_fast[synthesis]'"
            ) from error
        self.name = settings.model
        self._settings, self._setting, self._first_wait_s = settings, setting, first_wait_s
        self._openai = openai
        self._client = openai.AsyncOpenAI(
            base_url=settings.url,
            api_key=settings.api_key,
            timeout=settings.timeout_s,
            max_retries=0,  # counted, and held against the limits, here
        )
        self._slots = asyncio.Semaphore(settings.max_concurrency)
        self._requests = RateLimit(settings.requests_per_minute)
        self._tokens = RateLimit(settings.tokens_per_minute)
        self._num_answers = self._num_refusals = 0

    async def complete(self, request: ChatRequest) -> ChatReply:
        async with self._slots:
            for num_retries in range(self._settings.max_retries + 1):
                try:
                    return await self._ask(request, num_retries)
                except self._openai.APIStatusError as error:
                    if not _is_transient(error.status_code):
                        return self._refusal(error, num_retries)
                    reason, asked_wait_s = _said(error), _retry_after(error.response.headers)
                except (self._openai.APIError, ValueError) as error:
                    # No connection, no answer in time, or one that cannot be read.
                    reason, asked_wait_s = _said(error), None
                if num_retries < self._settings.max_retries:
                    await self._wait(num_retries, asked_wait_s, reason)
        raise ChatError(
            f"{self._setting}: {self.name} at {self._settings.url} failed "
            f"{self._settings.max_retries + 1} times in a row, last with: {reason}. Bring it back "
            "and pass --resume: what was answered is kept"
        )

    async def close(self) -> None:
        await self._client.close()

    async def _ask(self, request: ChatRequest, num_retries: int) -> ChatReply:
        sampling = request.sampling
        booked = len(request.prompt) // _CHARACTERS_PER_TOKEN + sampling.max_new_tokens
        await self._requests.take()
        await self._tokens.take(booked)
        answer: Any = await self._client.chat.completions.create(
            model=self._settings.model,
            messages=[{"role": "user", "content": request.prompt}],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            seed=request.seed,
        )
        reply = _read(answer, num_retries)
        self._tokens.give_back(booked - reply.prompt_tokens - reply.completion_tokens)
        self._num_answers += 1
        return reply

    async def _wait(self, num_retries: int, asked_wait_s: float | None, reason: str) -> None:
        wait_s = min(self._first_wait_s * 2**num_retries, _LONGEST_WAIT_S)
        wait_s *= random.uniform(0.75, 1.0)  # so that many do not come back at once
        wait_s = max(wait_s, asked_wait_s or 0.0)
        # Short waits are many under a rate limit, and counted; a long one wants to be known.
        level = logging.WARNING if wait_s >= _LONGEST_WAIT_S / 2 else logging.DEBUG
        logger.log(level, "%s: asked again in %.1f s: %s", self._setting, wait_s, reason)
        await asyncio.sleep(wait_s)

    def _refusal(self, error: Any, num_retries: int) -> ChatReply:
        """A request that this model does not take; ChatError where it takes none at all."""
        self._num_refusals += 1
        hopeless = self._num_answers == 0 and self._num_refusals >= _MOST_REFUSALS
        if error.status_code not in _TOO_LARGE_STATUS or hopeless:
            raise ChatError(
                f"{self._setting}: {self._settings.url} refuses model {self.name!r}: "
                f"{_said(error)}. Check url, model, max_new_tokens and api_key_variable"
            )
        return ChatReply(_said(error), "refused", num_retries=num_retries)


def _read(answer: Any, num_retries: int) -> ChatReply:
    """ValueError for an answer that is none: a proxy's page, or a model that crashed half-way."""
    try:
        choice, usage = answer.choices[0], answer.usage
        finish: ChatFinish = "length" if choice.finish_reason == "length" else "stop"
        text = choice.message.content or ""
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"an answer without a message: {str(answer)[:200]!r}") from error
    return ChatReply(
        text=text,
        finish=finish,
        prompt_tokens=0 if usage is None else usage.prompt_tokens,
        completion_tokens=0 if usage is None else usage.completion_tokens,
        num_retries=num_retries,
    )


def _is_transient(status: int) -> bool:
    return status in _TRANSIENT_STATUS or status >= 500


def _said(error: Any) -> str:
    """Describe an error, with what the server wrote about it, on one line."""
    response = getattr(error, "response", None)
    said = error if response is None else f"{error.status_code} {response.text}"
    # A server may echo the key that it refuses, or a part of the request's headers.
    return " ".join(redacted(f"{type(error).__name__} {said}").split())[:300]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, of a number or of a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "")
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
