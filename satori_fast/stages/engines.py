# SPDX-License-Identifier: Apache-2.0
"""Which rollout engine a run samples with, and how it gets a policy's weights.

The embedded engine is made anew for each policy and costs nothing; vLLM is started once per run
and synced. An engine in another process may die: what it was asked is then repeated on a fresh one.
Not for what an engine does (`rollout`).
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from satori_fast import termination
from satori_fast.backbone.architecture import hf_architecture
from satori_fast.backbone.step import Learner
from satori_fast.config import ConfigError, RolloutConfig
from satori_fast.data.prompts import PromptRenderer
from satori_fast.rollout.embedded_engine import EmbeddedEngine
from satori_fast.rollout.engine import Engine, EngineDied
from satori_fast.rollout.server_engine import IdleEngine, ServerEngine, ServerSettings
from satori_fast.rollout.server_process import ServerCommand, ServerProcess, check_address
from satori_fast.rollout.vllm_engine import INSTALL_HINT, prefill_tokens
from satori_fast.rollout.weight_sync import SyncError, SyncReport, push_weights

if TYPE_CHECKING:
    from satori_fast.stages.run import Run

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class EngineRoom:
    """The engine of a run, started when it is first needed.

    num_restarts: engines that died and were started again, since the run was opened.
    """

    def __init__(self) -> None:
        self.num_restarts = 0
        self._engine: Engine | None = None
        self._architecture: str | None = None
        self._push: Callable[[], SyncReport] | None = None

    def serve(self, run: Run, policy: Learner, *, version: int) -> Engine:
        """An engine that samples from `policy`'s weights of now, under `version`."""
        if run.config.rollout.engine == "embedded":
            engine: Engine = embedded_engine(run, policy)
            engine.policy_version = version
            return engine
        architecture = _architecture(policy.served_config())
        if self._engine is not None and architecture != self._architecture:
            self.close()
        if self._engine is None:
            self._engine = external_engine(run, policy)
            self._architecture = architecture
        self.push(run, self._engine, policy, version=version)
        return self._engine

    def push(self, run: Run, engine: Engine, policy: Learner, *, version: int) -> SyncReport:
        """`push_weights`, with the same outcome on every rank."""

        def push() -> SyncReport:
            outcome = try_push(policy, engine, version)
            # Only the main process hears of what happened in a server.
            told = run.parallel.from_main(lambda: outcome)
            for heard in (told, outcome):
                if isinstance(heard, Exception):
                    raise heard
            assert isinstance(outcome, SyncReport)
            return outcome

        self._push = push
        return self.keep_trying(run, push)

    def keep_trying(self, run: Run, action: Callable[[], Result]) -> Result:
        """What `action` returns, a thing asked of the engine; asked again of a fresh one, with the
        weights that were pushed last, when the engine dies. Seeds belong to requests, so the
        answers are those that the dead one would have given."""
        limit = run.config.rollout.max_engine_restarts
        num_deaths = 0
        while True:
            try:
                if num_deaths:
                    self._restart(run)
                return action()
            except EngineDied as error:
                num_deaths += 1
                if run.parallel.any_rank(termination.is_asked()):
                    # A scheduler ends the whole job: the engine had the signal too.
                    raise termination.Terminated(
                        f"terminated, and the rollout engine with it ({error}); --resume continues "
                        "from the last checkpoint"
                    ) from error
                if num_deaths > limit:
                    raise EngineDied(
                        f"the rollout engine died {num_deaths} times in a row "
                        f"(rollout.max_engine_restarts = {limit}): {error}"
                    ) from error
                logger.warning("the rollout engine died, and is started again: %s", error)

    def _restart(self, run: Run) -> None:
        engine = self._engine
        assert engine is not None and self._push is not None
        self.num_restarts += 1
        run.parallel.on_main(engine.restart)
        self._push()

    def metrics(self) -> dict[str, float]:
        """How often the engine died, for an engine that can."""
        if self._engine is None or not self._engine.can_restart:
            return {}
        return {"rollout/engine_restarts": float(self.num_restarts)}

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def check_engine(rollout: RolloutConfig) -> None:
    """ConfigError for an engine that is not installed or not safe: before anything is done."""
    starts_vllm = rollout.engine == "vllm" or (
        rollout.engine == "server" and not rollout.server_url
    )
    if starts_vllm and importlib.util.find_spec("vllm") is None:
        raise ConfigError(f'rollout.engine = "{rollout.engine}" needs vLLM: {INSTALL_HINT}')
    if rollout.engine != "server":
        return
    for url in rollout.server_url:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not has_port(url):
            raise ConfigError(f"rollout.server_url: {url!r} is not of the form http://HOST:PORT")
        try:
            check_address(parts.hostname, allowed=rollout.server_allow_public)
        except ValueError as error:
            raise ConfigError(f"rollout.server_url: {error}") from None


def has_port(url: str) -> bool:
    """Is what stands where a port does one, or nothing?"""
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def try_push(policy: Learner, engine: Engine, version: int) -> SyncReport | Exception:
    """`push_weights`, with an error as its result."""
    try:
        return push_weights(policy.served_weights(), engine, version=version)
    except (EngineDied, SyncError) as error:
        return error


def _architecture(hf_config: Any) -> str:
    """What an engine is built for; where the checkpoint lay, who wrote it and what ends a response
    (each request says that) do not matter."""
    ignored = {"_name_or_path", "transformers_version", "eos_token_id"}
    fields = {name: value for name, value in hf_config.to_dict().items() if name not in ignored}
    return json.dumps(fields, sort_keys=True, default=str)


def embedded_engine(run: Run, policy: Learner) -> EmbeddedEngine:
    rollout = run.config.rollout
    return EmbeddedEngine.of_policy(
        policy, renderer=run.renderer, max_seqlen=rollout.max_seqlen, max_slots=rollout.max_slots
    )


def external_engine(run: Run, policy: Learner) -> Engine:
    """vLLM, with random weights until the first sync."""
    if run.config.rollout.engine == "server":
        return server_engine(run, policy)
    rollout, parallel = run.config.rollout, run.parallel
    if parallel.pipeline_size > 1:
        raise ConfigError(
            f'rollout.engine = "{rollout.engine}" needs parallel.pipeline = 1: it serves each '
            "tensor-parallel group in place"
        )
    folder, dtype = run.folder / "engine", run.config.model.dtype
    parallel.on_main(
        lambda: write_engine_folder(folder, policy.served_config(), run.renderer, dtype=dtype)
    )
    # Imported here: a run with the embedded engine must not need vLLM.
    from satori_fast.rollout.vllm_engine import VllmEngine, VllmSettings

    settings = VllmSettings(
        dtype=dtype,
        max_seqlen=rollout.max_seqlen,
        max_slots=rollout.max_slots,
        tensor_size=parallel.tensor_size,
        data_size=parallel.data_size,
        gpu_memory_share=rollout.gpu_memory_share,
        compile=rollout.compile,
        sleep=rollout.sleep,
        request_seeds=rollout.request_seeds,
        bucket_bytes=rollout.sync_bucket_mib * 2**20,
        timeout_s=rollout.sync_timeout_s,
    )
    return VllmEngine(folder, settings, renderer=run.renderer)


def server_engine(run: Run, policy: Learner) -> ServerEngine | IdleEngine:
    """vLLM servers in the main process, a stand-in in the others."""
    rollout, parallel = run.config.rollout, run.parallel
    folder, dtype = run.folder / "engine", run.config.model.dtype
    settings = ServerSettings(
        max_seqlen=rollout.max_seqlen,
        max_slots=rollout.max_slots,
        request_seeds=rollout.request_seeds,
        route=rollout.sync_route,
        sync_folder=Path(rollout.sync_folder) if rollout.sync_folder else None,
        device=parallel.device,
        has_peers=parallel.world_size > 1,
        bucket_bytes=rollout.sync_bucket_mib * 2**20,
        timeout_s=rollout.sync_timeout_s,
        start_timeout_s=rollout.server_start_timeout_s,
        run_name=run.config.name,
        lease_s=rollout.server_lease_s,
    )
    command = ServerCommand(
        folder=folder,
        log=run.folder / "engine.log",
        flags=server_flags(rollout, dtype=dtype),
        devices=rollout.server_devices,
        start_timeout_s=rollout.server_start_timeout_s,
    )
    started: list[ServerEngine] = []

    def start() -> None:
        write_engine_folder(folder, policy.served_config(), run.renderer, dtype=dtype)
        servers = rollout.server_url or ServerProcess(command)
        started.append(ServerEngine(servers, settings, renderer=run.renderer))

    parallel.on_main(start)
    return started[0] if started else IdleEngine(settings, renderer=run.renderer)


def server_flags(rollout: RolloutConfig, *, dtype: str) -> tuple[str, ...]:
    """Flags of vLLM for a server that this run starts."""
    flags = [
        *("--dtype", dtype),
        *("--max-model-len", str(rollout.max_seqlen)),
        *("--max-num-seqs", str(rollout.max_slots)),
        *("--gpu-memory-utilization", str(rollout.gpu_memory_share)),
    ]
    if not rollout.compile:
        flags.append("--enforce-eager")
    if rollout.request_seeds:
        # A request's stream is only its own where prompts are not cut (see `vllm_engine`).
        batch = str(prefill_tokens(rollout.max_seqlen))
        flags += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", batch]
    return (*flags, *rollout.server_args)


def write_engine_folder(
    folder: Path, hf_config: Any, renderer: PromptRenderer, *, dtype: str
) -> None:
    """What an engine starts from: config and tokenizer, no weights."""
    if folder.exists():
        shutil.rmtree(folder)
    config = copy.deepcopy(hf_config)
    # Without a class name vLLM falls back, silently, to a slower model of other roundings.
    config.architectures = [hf_architecture(config, "policy")]
    config.dtype = dtype
    config.save_pretrained(folder)
    renderer.tokenizer.save_pretrained(folder)
