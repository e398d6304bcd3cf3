# SPDX-License-Identifier: Apache-2.0
"""vLLM servers as one rollout engine: in other processes, on this machine or on others.

Samples come over vLLM's OpenAI route as token ids with their log-probs; weights go to the servers'
workers by `server_routes`, checked like everywhere (`weight_sync`). Only the main process of a
trainer talks to servers; `IdleEngine` stands in for them on the others. Not for an engine in the
trainer's process: `vllm_engine`.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from satori_fast.data.prompts import PromptRenderer
from satori_fast.rollout.engine import Completion, Engine, EngineDied, Request, SamplingParams
from satori_fast.rollout.server_client import RequestPool, ServerClient
from satori_fast.rollout.server_owner import Owner
from satori_fast.rollout.server_process import ServerProcess, is_healthy, is_loopback
from satori_fast.rollout.server_routes import (
    BroadcastRoute,
    FileRoute,
    MemoryRoute,
    Route,
)
from satori_fast.rollout.vllm_engine import check_filters
from satori_fast.rollout.weight_sync import (
    DEFAULT_BUCKET_BYTES,
    DEFAULT_TIMEOUT_S,
    SyncError,
    TensorRecord,
    rows_of,
)
from satori_fast.rollout.weight_transfer import Backend, TransferRoute, backend_of

logger = logging.getLogger(__name__)

# An aborted request still holds its cache for a moment.
_CACHE_RESET_PATIENCE_S = 30.0
# A message may take as long as a sync; the workers' own time-outs should speak first.
_MESSAGE_SLACK_S = 30.0

RouteName = Literal["auto", "memory", "file", "broadcast"]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of running servers.

    max_slots:     requests in flight at each server.
    request_seeds: every request has a stream of its own; the server must not cut prompts then.
    route:         way of the weights; auto: "memory" on this machine or GPU, else "broadcast".
    sync_folder:   of the file route, seen by all; None: the memory of this machine.
    device:        where the trainer's weights are.
    has_peers:     the trainer has other processes, and making the weights is collective: an error
                   of a server is raised when all have come through.
    run_name:      what another trainer that wants these servers is told.
    lease_s:       silence of another trainer after which its servers may be taken over.
    """

    max_seqlen: int = 2048
    max_slots: int = 256
    request_seeds: bool = True
    route: RouteName = "auto"
    sync_folder: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    has_peers: bool = False
    bucket_bytes: int = DEFAULT_BUCKET_BYTES
    timeout_s: float = DEFAULT_TIMEOUT_S
    start_timeout_s: float = 600.0
    run_name: str = "without a name"
    lease_s: float = 3600.0


class ServerEngine(Engine):
    """vLLM servers; implements `rollout.weight_sync.WeightSink` too.

    servers: URLs of running ones, which share the requests and hold the same weights; or a process
    to start. Until the first sync `generate` refuses. After `EngineDied`, `restart` and push again.
    """

    is_shared: bool = True
    can_restart: bool = True

    def __init__(
        self,
        servers: Sequence[str] | ServerProcess,
        settings: ServerSettings,
        *,
        renderer: PromptRenderer,
    ) -> None:
        self.renderer = renderer
        self.max_seqlen = settings.max_seqlen
        self.policy_version = -1
        self.bucket_bytes = settings.bucket_bytes
        self.timeout_s = settings.timeout_s
        self._settings = settings
        self._process = servers if isinstance(servers, ServerProcess) else None
        self._urls = () if isinstance(servers, ServerProcess) else tuple(servers)
        self._clients: list[ServerClient] = []
        self._route: Route | None = None
        # Names the weights in the workers, so that a server that came back empty, or that another
        # trainer synced, is found out.
        self._session = secrets.token_hex(8)
        self._owner = Owner(settings.run_name)
        self._weights = ""
        self._syncing = ""
        self._failure: Exception | None = None
        self.restart()

    # -- sampling -----------------------------------------------------------------------------

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index, completion) as requests finish; see `Engine.generate`.

        Closing the iterator early aborts what still runs. EngineDied when a server goes away, or
        turns out to hold other weights than the last sync left there.
        """
        if not self._weights:
            raise SyncError(
                "the servers hold no complete weights (none were pushed yet, or the last sync "
                "failed): push_weights first"
            )
        check_filters(sampling)
        self._check_weights()
        bodies = [self._body(request, sampling) for request in requests]
        pool = RequestPool([c.url for c in self._clients], bodies, self._settings.max_slots)
        try:
            for index, answer in pool:
                yield index, _completion(answer)
        finally:
            pool.close()
        self._check_weights()

    def _body(self, request: Request, sampling: SamplingParams) -> dict[str, Any]:
        seeded = self._settings.request_seeds and sampling.temperature > 0
        return {
            "prompt": request.prompt_ids,
            "max_tokens": request.max_new_tokens,
            "temperature": sampling.temperature,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "seed": request.seed if seeded else None,
            "stop_token_ids": request.stop_ids,
            "ignore_eos": True,  # the stop ids are the whole truth
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,  # no tokenizer is asked
        }

    def _check_weights(self) -> None:
        for client in self._clients:
            for answer in client.message("describe"):
                if answer["weights"] != self._weights:
                    raise EngineDied(
                        f"the server at {client.url} does not hold the weights that were synced: "
                        "it was started again, or another trainer uses it "
                        f"(its owner: {answer['owner'] or 'none'})"
                    )

    # -- weights: the WeightSink protocol -------------------------------------------------------

    def weight_sink(self) -> ServerEngine:
        return self

    def begin(self, version: int) -> None:
        self._weights = ""
        self._syncing = f"{self._session}/{version}"
        self._failure = None

        def act() -> None:
            self._tell_all("greet")  # a server that was taken over is left alone
            for client in self._clients:
                client.drain()
            route = self._open_route()
            if not isinstance(route, FileRoute):
                for client in self._clients:
                    check_same_kind(self._settings.device, client)
            route.open(self._clients)
            self._tell_all("begin")

        self._keep_failure(act)

    def receive(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        self._keep_failure(lambda: self._open_route().send(records, tensors))

    def finish(self, records: Sequence[TensorRecord]) -> None:
        self._keep_failure(lambda: self._tell_all("finish", records=rows_of(records)))
        self._keep_failure(self._reset_caches)
        self._keep_failure(lambda: self._tell_all("name", weights=self._syncing))
        if self._failure is not None:
            raise self._failure
        self._weights = self._syncing

    def abort(self) -> None:
        self._weights = ""
        for client in self._clients:
            with contextlib.suppress(EngineDied, SyncError, RuntimeError):
                client.message("abort")
        self._close_route()

    def _keep_failure(self, act: Callable[[], None]) -> None:
        """Run a part of a sync. With peers an error waits for `finish`: they would hang without
        this process."""
        if self._failure is None:
            try:
                act()
            except (EngineDied, SyncError) as error:
                if not self._settings.has_peers:
                    raise
                logger.error("%s", error)
                self._failure = error

    def _tell_all(self, do: str, **fields: Any) -> None:
        for client in self._clients:
            client.message(do, **fields)

    def _reset_caches(self) -> None:
        """Cached keys and values are of the old weights. vLLM declines while requests run."""
        deadline = time.monotonic() + _CACHE_RESET_PATIENCE_S
        for client in self._clients:
            while not client.reset_prefix_cache():
                if time.monotonic() > deadline:
                    raise SyncError(
                        f"weight sync: {client.url} did not reset its prefix cache, so it would "
                        "continue from old keys and values; end running requests before a sync"
                    )
                time.sleep(0.1)

    def _open_route(self) -> Route:
        if self._route is None:
            self._route = self._choose_route()
        return self._route

    def _choose_route(self) -> Route:
        settings, name = self._settings, self._settings.route
        is_here = all(is_loopback(client.host) for client in self._clients)
        if name == "file":
            if not is_here and settings.sync_folder is None:
                raise ValueError(
                    'rollout.sync_route = "file" to another machine needs rollout.sync_folder, a '
                    "folder that both machines see under the same path"
                )
            return FileRoute(settings.sync_folder)
        if name == "memory" and not is_here:
            raise ValueError(
                'rollout.sync_route = "memory" reaches servers of this machine only: set '
                '"broadcast", or "file" with rollout.sync_folder'
            )
        if settings.device.type != "cpu":
            return self._between_gpus(name)
        if name == "memory" or (name == "auto" and is_here):
            return MemoryRoute()
        return BroadcastRoute(settings.timeout_s)

    def _between_gpus(self, name: RouteName) -> TransferRoute:
        """vLLM's way; "memory" is of one GPU, and of a trainer that is one process."""
        settings = self._settings
        alone = not settings.has_peers
        if name == "memory" and not alone:
            raise ValueError(
                'rollout.sync_route = "memory" between GPUs is for a trainer of one process: set '
                '"broadcast", or rollout.engine = "vllm"'
            )
        backends: dict[RouteName, Backend] = {"memory": "ipc", "broadcast": "nccl"}
        backend = backends.get(name) or backend_of(settings.device, self._clients, alone=alone)
        return TransferRoute(backend, settings.device, settings.timeout_s)

    def _close_route(self) -> None:
        route, self._route = self._route, None
        if route is not None:
            route.close()

    # -- life ---------------------------------------------------------------------------------

    def restart(self) -> None:
        """A fresh server, or a running one that answers again; without weights until the next push.

        EngineDied when none comes up within `start_timeout_s`.
        """
        self._hang_up()
        if self._process is not None:
            self._process.start()
            self._urls = (self._process.url,)
        else:
            self._await_servers()
        timeout_s = self.timeout_s + _MESSAGE_SLACK_S
        secret = None if self._process is None else self._process.secret
        self._clients = [ServerClient(url, timeout_s, secret=secret) for url in self._urls]
        for client in self._clients:
            check_server(client, self._settings)
        # Before anything is changed there: a second trainer would break the engine of the first.
        for client in self._clients:
            client.claim(self._owner, lease_s=self._settings.lease_s)

    def _await_servers(self) -> None:
        deadline = time.monotonic() + self._settings.start_timeout_s
        for url in self._urls:
            while not is_healthy(url):
                if time.monotonic() > deadline:
                    raise EngineDied(
                        f"no server answered at {url} within rollout.server_start_timeout_s = "
                        f"{self._settings.start_timeout_s:g}"
                    )
                time.sleep(0.5)

    def sleep(self) -> None:
        """A server has memory of its own: there is nothing to give back."""

    def wake(self) -> None:
        """See `sleep`."""

    def _hang_up(self) -> None:
        self._weights = ""
        self._close_route()
        for client in self._clients:
            if self._process is None:
                client.release()
            client.close()
        self._clients = []

    def close(self) -> None:
        self._hang_up()
        if self._process is not None:
            self._process.close()


class IdleEngine(Engine):
    """The engine of a trainer process that leaves sampling to the main one.

    Its sink takes part in making the weights and sends nothing.
    """

    is_shared: bool = True
    can_restart: bool = True

    def __init__(self, settings: ServerSettings, *, renderer: PromptRenderer) -> None:
        self.renderer = renderer
        self.max_seqlen = settings.max_seqlen
        self.policy_version = -1
        self.bucket_bytes = settings.bucket_bytes
        self.timeout_s = settings.timeout_s

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        raise RuntimeError(
            "only the main process samples from servers: wrap the engine in rollout.distributed"
        )

    def weight_sink(self) -> IdleEngine:
        return self

    def begin(self, version: int) -> None:
        """The main process does the rest of each of these."""

    def receive(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None: ...

    def finish(self, records: Sequence[TensorRecord]) -> None: ...

    def abort(self) -> None: ...

    def restart(self) -> None: ...

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


def check_same_kind(device: torch.device, client: ServerClient) -> None:
    """ValueError where a server's weights lie on another kind of device than the trainer's."""
    theirs = client.message("describe")[0]["device"]
    if theirs != device.type:
        raise ValueError(
            f"weights are on {device.type} here and on {theirs} at {client.url}, which only files "
            'can bridge: set rollout.sync_route = "file"'
        )


def check_server(client: ServerClient, settings: ServerSettings) -> None:
    """ValueError for a server whose samples a trainer could not use."""
    for answer in client.message("describe"):
        wrong = {
            "--logprobs-mode processed_logprobs": answer["logprobs_mode"] != "processed_logprobs",
            f"--max-model-len {settings.max_seqlen}": answer["max_seqlen"] < settings.max_seqlen,
            "--no-enable-chunked-prefill (or rollout.request_seeds = false)": (
                settings.request_seeds and answer["chunked_prefill"]
            ),
            "--data-parallel-size 1 (and list its replicas in rollout.server_url)": (
                answer["replicas"] != 1
            ),
        }
        flags = [flag for flag, is_wrong in wrong.items() if is_wrong]
        if flags:
            raise ValueError(f"the server at {client.url} must be started with {', '.join(flags)}")


def _completion(answer: dict[str, Any]) -> Completion:
    choice = answer["choices"][0]
    reason = choice["finish_reason"]
    if reason not in ("stop", "length"):
        raise EngineDied(f"the server ended a request by itself ({reason})")
    tokens = np.asarray(choice["token_ids"], dtype=np.int32)
    logprobs = np.asarray(choice["logprobs"]["token_logprobs"], dtype=np.float32)
    return Completion(tokens, logprobs, "stop" if reason == "stop" else "length")
