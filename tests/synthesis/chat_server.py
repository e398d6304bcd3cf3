# SPDX-License-Identifier: Apache-2.0
"""A small HTTP server that speaks the OpenAI chat protocol, and a made-up model of sums behind it.

It keeps a log of what it answered, and can fail as real servers do.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """An answer that is none: another status or another text, late, or a connection that ends."""

    status: int = 200
    text: str = ""
    retry_after: str | None = None
    delay_s: float = 0.0
    hangs_up: bool = False


def say(text: str) -> Callable[[Body], str]:
    return lambda body: text


@dataclass
class ChatServer:
    """Use it as a context manager.

    answer:   the reply to a request. faults: taken off one by one, before anything is answered.
    completed: requests whose answer was sent whole. stop_after: answers after which all wait until
    `gate` is set. most_at_once: requests that were worked on together.
    """

    answer: Callable[[Body], str]
    faults: list[Fault] = field(default_factory=list)
    delay_s: float = 0.0
    stop_after: int | None = None
    finish_reason: str = "stop"
    completed: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    num_received: int = 0
    most_at_once: int = 0
    gate: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> ChatServer:
        self._lock, self._num_begun, self._at_once = threading.Lock(), 0, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.respond(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that was killed is none of our errors."""

        self._http = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        assert handler.path == "/v1/chat/completions"
        with self._lock:
            self.num_received += 1
            self.headers.append({k.lower(): v for k, v in handler.headers.items()})
            fault = self.faults.pop(0) if self.faults else None
            self._num_begun += fault is None
            waits = self.stop_after is not None and self._num_begun > self.stop_after
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if waits:
                self.gate.wait()
            time.sleep(self.delay_s if fault is None else fault.delay_s)
            if fault is not None:
                self._fail(handler, fault)
                return
            self._send(handler, 200, json.dumps(self._completion(body)))
            with self._lock:
                self.completed.append(body)
        finally:
            with self._lock:
                self._at_once -= 1

    def _completion(self, body: Body) -> Body:
        text = self.answer(body)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        num_prompt, num_reply = len(prompt_of(body).split()), len(text.split())
        return {
            "id": "chat",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": {
                "prompt_tokens": num_prompt,
                "completion_tokens": num_reply,
                "total_tokens": num_prompt + num_reply,
            },
        }

    def _fail(self, handler: BaseHTTPRequestHandler, fault: Fault) -> None:
        if fault.hangs_up:
            handler.close_connection = True
            return
        self._send(handler, fault.status, fault.text, retry_after=fault.retry_after)

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        text: str,
        *,
        retry_after: str | None = None,
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(text.encode())))
        if retry_after is not None:
            handler.send_header("Retry-After", retry_after)
        handler.end_headers()
        handler.wfile.write(text.encode())
        handler.wfile.flush()


def prompt_of(body: Body) -> str:
    (message,) = body["messages"]
    assert message["role"] == "user"
    return message["content"]


def role_of(body: Body) -> str:
    """Whose template a prompt is of."""
    prompt = prompt_of(body)
    if "Rate how good" in prompt:
        return "reward_model"
    return "critic" if "Verify: [" in prompt or "In Step <id>" in prompt else "generator"


def sums_model(body: Body) -> str:
    """Replies to every template about "What is 17 + 25?"; some wrong, some malformed.

    The same request gets the same reply.
    """
    prompt = prompt_of(body)
    chance = random.Random(json.dumps(body, sort_keys=True))
    role = role_of(body)
    if role == "reward_model":
        return f"Rating: {chance.randint(0, 100)}" if chance.random() < 0.8 else "Very good!"
    if role == "critic":
        return _criticism(prompt, chance)
    left, right = map(int, re.findall(r"What is (\d+) \+ (\d+)\?", prompt)[-1])
    return _solution(left, right, chance)


def sum_problems(count: int) -> list[dict[str, str]]:
    """Rows of a data set that `sums_model` knows."""
    pairs = [(11 + 3 * i, 7 + 5 * i) for i in range(count)]
    return [{"question": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in pairs]


def _criticism(prompt: str, chance: random.Random) -> str:
    if chance.random() < 0.2:
        return chance.choice(["I see no mistake.", "In Step 99: it is wrong.\nAlternatively: do."])
    word = chance.choice(["carry", "sum", "order"])
    if "Verify: [" in prompt:
        return f"Verify: The {word} of this step is right."
    return (
        f"In Step 1: The {word} is wrong.\nAlternatively: Add the tens and ones, mind the {word}."
    )


def _solution(left: int, right: int, chance: random.Random) -> str:
    total = left + right + (0 if chance.random() < 0.5 else chance.randint(1, 9))
    way = chance.choice(["Add the ones.", "Add the tens first.", "Count on from the left number."])
    steps = f"Step: {way}\nStep: Together they make \\boxed{{{total}}}."
    return chance.choice(
        [
            *[steps] * 8,
            f"Step: {way}\nStep: I do not know.",
            f"Step: By the ground truth it is \\boxed{{{total}}}.",
            f"Step: \u6240\u4ee5\u7b54\u6848\u662f \\boxed{{{total}}}.",
            "",
        ]
    )
