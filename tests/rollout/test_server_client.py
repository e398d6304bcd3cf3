# SPDX-License-Identifier: Apache-2.0
"""Requests and messages over HTTP, to a server of a page: order, refusals, deaths, taking back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from satori_fast.rollout.engine import EngineDied
from satori_fast.rollout.server_client import RequestPool, ServerClient
from satori_fast.rollout.weight_sync import SyncError


class Script(ThreadingHTTPServer):
    """Answers a completion with its prompt after `delay` seconds; `replies` override by path.

    most: completions that were under way at once.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: dict[str, tuple[int, Any]] = {"/health": (200, {})}
        self.delay = 0.0
        self.running = self.most = 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Script

    def do_GET(self) -> None:
        self._reply(*self.server.replies[self.path])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"null")
        server = self.server
        if self.path != "/v1/completions" or self.path in server.replies:
            return self._reply(*server.replies.get(self.path, (404, {})))
        with server.lock:
            server.running += 1
            server.most = max(server.most, server.running)
        time.sleep(server.delay)
        with server.lock:
            server.running -= 1
        return self._reply(200, {"echo": body["prompt"]})

    def _reply(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Script]:
    script = Script()
    thread = threading.Thread(target=script.serve_forever, args=(0.05,))
    thread.start()
    yield script
    script.shutdown()
    script.server_close()
    thread.join()


def bodies(num: int) -> list[dict[str, Any]]:
    return [{"prompt": [i]} for i in range(num)]


def test_every_request_lands_once_with_its_number(server: Script) -> None:
    server.delay = 0.05
    answer = dict(RequestPool([server.url], bodies(20), slots=4))
    assert answer == {i: {"echo": [i]} for i in range(20)}
    assert server.most <= 4


def test_no_request_is_no_flight(server: Script) -> None:
    pool = RequestPool([server.url], [], slots=4)
    assert list(pool) == []
    pool.close()


def test_a_refusal_is_an_error_with_the_servers_words(server: Script) -> None:
    server.replies["/v1/completions"] = (400, {"error": "too long"})
    with pytest.raises(RuntimeError, match=r"answered 400.*too long") as caught:
        list(RequestPool([server.url], bodies(3), slots=2))
    assert not isinstance(caught.value, EngineDied)


def test_a_server_whose_engine_is_dead_is_dead(server: Script) -> None:
    server.replies["/v1/completions"] = (500, {"error": "engine"})
    server.replies["/health"] = (503, {})
    with pytest.raises(EngineDied, match="engine of the server"):
        list(RequestPool([server.url], bodies(3), slots=2))


def test_a_server_that_is_gone_is_dead() -> None:
    with pytest.raises(EngineDied, match="the server is gone"):
        list(RequestPool(["http://127.0.0.1:9"], bodies(3), slots=2))
    with pytest.raises(EngineDied, match="is gone"):
        ServerClient("http://127.0.0.1:9", 5.0).message("describe")


def test_closing_takes_back_what_runs(server: Script) -> None:
    server.delay = 1.0
    pool = RequestPool([server.url], bodies(50), slots=2)
    next(iter(pool))
    begin = time.monotonic()
    pool.close()
    assert time.monotonic() < begin + 10 and server.most <= 2


def test_messages_give_the_answers_of_all_workers(server: Script) -> None:
    answers = [{"rank": 0, "error": None, "weights": "x"}, {"rank": 1, "error": None}]
    server.replies["/collective_rpc"] = (200, {"results": answers})
    assert ServerClient(server.url, 5.0).message("describe") == answers


def test_an_error_of_a_worker_names_its_rank(server: Script) -> None:
    answers = [{"rank": 0, "error": None}, {"rank": 1, "error": "tensor 'a' changed"}]
    server.replies["/collective_rpc"] = (200, {"results": answers})
    with pytest.raises(SyncError, match=r"tensor 'a' changed \(engine rank 1 of http"):
        ServerClient(server.url, 5.0).message("receive")


def test_a_server_without_our_routes_is_told_how_to_start(server: Script) -> None:
    client = ServerClient(server.url, 5.0)
    for reply in ((404, {}), (500, {"error": "no attribute 'satori_message'"})):
        server.replies["/collective_rpc"] = reply
        with pytest.raises(ValueError, match=r"python -m satori_fast\.rollout\.vllm_server"):
            client.message("describe")
