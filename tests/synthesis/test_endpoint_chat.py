# SPDX-License-Identifier: Apache-2.0
"""A real HTTP server that fails in every way a chat endpoint can; no answer is lost."""

from __future__ import annotations

import asyncio
import email.utils
import threading
import time
from typing import Any

import pytest

from satori_fast.synthesis.chat import ChatError, ChatReply, ChatRequest, ChatSampling
from satori_fast.synthesis.endpoint_chat import EndpointChat, EndpointSettings, _retry_after
from tests.synthesis.chat_server import Body, ChatServer, Fault, prompt_of, say

SAMPLING = ChatSampling(temperature=0.3, max_new_tokens=64, seed=5)


def ask(server: ChatServer, num_requests: int = 1, **settings: Any) -> list[ChatReply]:
    """Answers to as many prompts, asked at once."""
    defaults = {"url": server.url, "model": "sums", "api_key": "secret", "timeout_s": 20.0}

    async def run() -> list[ChatReply]:
        chat = EndpointChat(
            EndpointSettings(**(defaults | settings)), setting="critic", first_wait_s=0.01
        )
        try:
            requests = [ChatRequest(f"prompt {i}", SAMPLING, sample=i) for i in range(num_requests)]
            return await asyncio.gather(*(chat.complete(request) for request in requests))
        finally:
            await chat.close()

    return asyncio.run(run())


def test_request_and_reply() -> None:
    with ChatServer(say("four words in all")) as server:
        (reply,) = ask(server)
    assert reply == ChatReply("four words in all", "stop", prompt_tokens=2, completion_tokens=4)
    (body,) = server.completed
    assert prompt_of(body) == "prompt 0" and body["model"] == "sums"
    assert (body["temperature"], body["max_tokens"], body["top_p"]) == (0.3, 64, 1.0)
    assert body["seed"] == ChatRequest("prompt 0", SAMPLING).seed
    assert server.headers[0]["authorization"] == "Bearer secret"


def test_a_reply_that_the_limit_cut_says_so() -> None:
    with ChatServer(say("and so on"), finish_reason="length") as server:
        assert ask(server)[0].finish == "length"


@pytest.mark.parametrize(
    "fault",
    [
        Fault(429, "slow down"),
        Fault(500, "oh"),
        Fault(503, '{"error": {"message": "starting"}}'),
        Fault(200, '{"choices": [{"mess'),
        Fault(200, "<html>a proxy</html>"),
        Fault(200, '{"choices": []}'),
        Fault(hangs_up=True),
    ],
    ids=["full", "error", "starting", "torn", "page", "empty", "hung_up"],
)
def test_what_passes_is_asked_again(fault: Fault) -> None:
    with ChatServer(say("fine"), faults=[fault, fault]) as server:
        (reply,) = ask(server)
    assert (reply.text, reply.num_retries) == ("fine", 2)
    assert server.num_received == 3 and len(server.completed) == 1


def test_a_server_that_does_not_answer_in_time_is_asked_again() -> None:
    with ChatServer(say("fine"), faults=[Fault(200, "{}", delay_s=3.0)]) as server:
        (reply,) = ask(server, timeout_s=2.0)
    assert (reply.text, reply.num_retries) == ("fine", 1)


def test_retry_after_is_waited_for() -> None:
    with ChatServer(say("fine"), faults=[Fault(429, retry_after="1")]) as server:
        begin = time.monotonic()
        ask(server)
        assert time.monotonic() - begin >= 1.0


def test_retry_after_may_be_a_date() -> None:
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    seconds = _retry_after({"retry-after": date})
    assert seconds is not None and 25 < seconds <= 30
    assert _retry_after({"retry-after": email.utils.formatdate(0, usegmt=True)}) == 0
    assert _retry_after({"retry-after": "soon"}) is None
    assert _retry_after({}) is None


def test_a_server_that_stays_away_is_an_error() -> None:
    with (
        ChatServer(say("fine"), faults=[Fault(500, "down")] * 9) as server,
        pytest.raises(ChatError, match=r"critic: sums at .* failed 3 times in a row.*--resume"),
    ):
        ask(server, max_retries=2)
    assert server.num_received == 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_is_an_error_at_once(status: int) -> None:
    with (
        ChatServer(say("fine"), faults=[Fault(status, "no")]) as server,
        pytest.raises(ChatError, match=r"critic: .* refuses model 'sums'.*api_key_variable"),
    ):
        ask(server)
    assert server.num_received == 1


def test_a_request_that_is_too_long_is_refused_alone() -> None:
    with ChatServer(say("fine"), faults=[Fault(400, "context length")]) as server:
        replies = ask(server, 3, max_concurrency=1)
    assert [reply.finish for reply in replies] == ["refused", "stop", "stop"]
    assert "context length" in replies[0].text


def test_a_model_that_refuses_everything_is_an_error() -> None:
    with (
        ChatServer(say("fine"), faults=[Fault(400, "unknown parameter")] * 99) as server,
        pytest.raises(ChatError, match="unknown parameter"),
    ):
        ask(server, 30)


def test_concurrency_is_used_and_limited() -> None:
    six = threading.Barrier(6, timeout=60)  # nobody is answered before six have asked

    def answer(body: Body) -> str:
        six.wait()
        return "fine"

    with ChatServer(answer) as server:
        replies = ask(server, 24, max_concurrency=6)
    assert len(replies) == 24 and server.most_at_once == 6


def test_rate_limits_hold() -> None:
    with ChatServer(say("fine")) as server:
        begin = time.monotonic()
        ask(server, 12, requests_per_minute=600)  # 10 a second, after the first second's burst
        by_requests = time.monotonic() - begin
        begin = time.monotonic()
        # 66 tokens are booked for each, 1100 a second; what was not used is given back.
        ask(server, 40, tokens_per_minute=66_000, max_concurrency=40)
        by_tokens = time.monotonic() - begin
    assert by_requests >= 0.1 - 0.02
    assert by_tokens >= 1.0


def test_many_samples_of_one_prompt_have_seeds_of_their_own() -> None:
    seeds = {ChatRequest("p", SAMPLING, sample=i).seed for i in range(1000)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**31 for seed in seeds)
