# SPDX-License-Identifier: Apache-2.0
"""HTTP client of a vLLM server: requests for completions, and messages to its workers.

Messages carry the server's secret and the owner's token (`server_owner`); requests for completions
carry VLLM_API_KEY, where the environment has one.

Errors have three kinds. `EngineDied`: the server is gone, and a fresh one can be asked again.
`SyncError`: a worker refused weights. ValueError: a server that was not started for training.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from satori_fast.redaction import redacted
from satori_fast.rollout.engine import EngineDied
from satori_fast.rollout.server_owner import SECRET_VARIABLE, Owner, claim
from satori_fast.rollout.server_process import is_healthy
from satori_fast.rollout.weight_sync import SyncError

# Idle connections are dropped sooner than the server does (5 s), so that none is used that the
# server is about to close.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0)
_CONNECT_TIMEOUT_S = 30.0
# Silence after which the server's health is asked for.
_SILENCE_S = 15.0
_HEALTH_TIMEOUT_S = 60.0
_RELEASE_TIMEOUT_S = 5.0
_HINT = "start it with `python -m satori_fast.rollout.vllm_server`"

Answer = dict[str, Any]


class ServerClient:
    """One server. timeout_s: longest wait for an answer to a message.

    secret: of a server that was started with it; None: what the environment says.
    """

    def __init__(self, url: str, timeout_s: float, *, secret: str | None = None) -> None:
        self.url = url
        self._secret = secret or os.environ.get(SECRET_VARIABLE, "")
        self._token = ""
        self.host = httpx.URL(url).host
        self._http = httpx.Client(
            base_url=url,
            limits=_LIMITS,
            timeout=httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S),
            trust_env=False,  # a proxy has no business between a trainer and its engine
            headers=api_headers(),
        )

    def message(self, do: str, *, within_s: float | None = None, **fields: Any) -> list[Answer]:
        """Have every worker do something (`server_worker`); their answers in rank order.

        within_s: longest wait for the answer, where it is not the client's.
        """
        sent = {"do": do, "secret": self._secret, "token": self._token, **fields}
        body = {"method": "satori_message", "args": [json.dumps(sent)]}
        answers: list[Answer] = self._post("/collective_rpc", body, within_s)["results"]
        for answer in answers:
            if answer["error"] is not None:
                raise SyncError(f"{answer['error']} (engine rank {answer['rank']} of {self.url})")
        return answers

    def claim(self, owner: Owner, *, lease_s: float) -> None:
        """See `server_owner.claim`; messages are the owner's from now on."""
        claim(self.message, self.url, owner, lease_s=lease_s)
        self._token = owner.token

    def release(self) -> None:
        """Let others use the server, as far as it can still be told."""
        if self._token:
            with contextlib.suppress(EngineDied, SyncError, ValueError, RuntimeError):
                self.message("release", within_s=_RELEASE_TIMEOUT_S)
            self._token = ""

    def reset_prefix_cache(self) -> bool:
        """False while requests run: the server then keeps its cache."""
        return self._post("/reset_prefix_cache", None)["success"]

    def drain(self) -> None:
        """Abort what still runs, and wait until nothing does: a request that was taken back may run
        for a moment longer, and one that meets half-loaded weights kills the engine."""
        self._post("/pause?mode=abort&clear_cache=false", None)
        self._post("/resume", None)

    def _post(self, path: str, body: Any, within_s: float | None = None) -> Any:
        timeout = self._http.timeout if within_s is None else httpx.Timeout(within_s)
        try:
            response = self._http.post(path, json=body, timeout=timeout)
        except httpx.ReadTimeout as error:
            raise SyncError(
                f"weight sync: {self.url}{path} did not answer within rollout.sync_timeout_s"
            ) from error
        except httpx.TransportError as error:
            raise EngineDied(f"the server at {self.url} is gone: {described(error)}") from error
        if response.status_code == 200:
            return response.json()
        if response.status_code == 404 or "satori_message" in response.text:
            raise ValueError(f"the server at {self.url} cannot be synced: {_HINT}")
        raise server_error(self.url, f"{path} answered {response.status_code}: {response.text}")

    def close(self) -> None:
        self._http.close()


def api_headers() -> dict[str, str]:
    """Headers that vLLM asks for where it was started with a key (VLLM_API_KEY)."""
    key = os.environ.get("VLLM_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def server_error(url: str, text: str) -> Exception:
    """Exception for an answer that is no success: a dead engine, or an error in a living one."""
    text = redacted(text)
    if not is_healthy(url, _HEALTH_TIMEOUT_S):
        return EngineDied(f"the engine of the server at {url} is gone: {text}")
    return RuntimeError(f"the server at {url} failed: {text}")


def described(error: BaseException) -> str:
    return f"{type(error).__name__} {error}".strip()


class RequestPool:
    """Requests on their way to servers, `slots` at a time for each, from a thread of its own.

    Iterate for (index of the body, answer) as they come. `close` takes back what still runs: vLLM
    aborts a request whose connection ends.
    """

    def __init__(self, urls: Sequence[str], bodies: Sequence[Answer], slots: int) -> None:
        self._urls = urls
        self._bodies = bodies
        self._slots = slots
        self._answers: queue.SimpleQueue[tuple[int, Answer] | Exception] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] = self._loop.create_task(self._send_all())
        self._thread = threading.Thread(target=self._run, name="server requests", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[int, Answer]]:
        for _ in self._bodies:
            yield self._next()

    def _next(self) -> tuple[int, Answer]:
        while True:
            try:
                answer = self._answers.get(timeout=_SILENCE_S)
            except queue.Empty:
                for url in self._urls:
                    if not is_healthy(url, _HEALTH_TIMEOUT_S):
                        raise EngineDied(f"the server at {url} fell silent") from None
                continue
            if isinstance(answer, Exception):
                raise answer
            return answer

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except ExceptionGroup as group:
            error = group.exceptions[0]
            self._answers.put(error)
        finally:
            self._loop.close()

    async def _send_all(self) -> None:
        waiting = iter(enumerate(self._bodies))
        timeout = httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S)
        slots = min(self._slots, len(self._bodies))
        async with (
            httpx.AsyncClient(
                limits=_LIMITS, timeout=timeout, trust_env=False, headers=api_headers()
            ) as http,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(slots):
                for url in self._urls:
                    group.create_task(self._work(http, url, waiting))

    async def _work(
        self, http: httpx.AsyncClient, url: str, waiting: Iterator[tuple[int, Answer]]
    ) -> None:
        for index, body in waiting:
            response = await self._ask(http, f"{url}/v1/completions", body)
            if response.status_code != 200:
                text = f"a request answered {response.status_code}: {response.text}"
                raise await asyncio.to_thread(server_error, url, text)
            self._answers.put((index, response.json()))

    async def _ask(self, http: httpx.AsyncClient, url: str, body: Answer) -> httpx.Response:
        # Once more after a lost connection: a request and its seed give the same answer again.
        with contextlib.suppress(httpx.TransportError):
            return await http.post(url, json=body)
        try:
            return await http.post(url, json=body)
        except httpx.TransportError as error:
            raise EngineDied(f"the server is gone: {described(error)} at {url}") from error
