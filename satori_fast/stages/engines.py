# SPDX-License-Identifier: Apache-2.0
"""The rollout engine of a run: made from its settings, shared out over ranks, restarted.

The embedded engine is made anew for each policy and costs nothing; vLLM is started once per run
and synced. Not for what an engine does (`rollout`).
"""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from satori_fast.backbone.architecture import hf_architecture
from satori_fast.backbone.parallel import ParallelState
from satori_fast.backbone.step import Learner
from satori_fast.config import ConfigError, RolloutConfig
from satori_fast.data.prompts import PromptRenderer
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.rollout.distributed import Distributed
from satori_fast.rollout.embedded_engine import EmbeddedEngine
from satori_fast.rollout.engine import Engine
from satori_fast.rollout.restarting import Restarting
from satori_fast.rollout.server_engine import IdleEngine, ServerEngine, ServerSettings
from satori_fast.rollout.server_process import ServerCommand, ServerProcess, check_address
from satori_fast.rollout.vllm_engine import INSTALL_HINT, prefill_tokens


class EngineProvider:
    """Makes the engines of a run; vLLM is started when it is first needed, and then serves all.

    rollout: its settings; those of single requests (temperature, lengths) do not matter here.
    folder:  of the run, where vLLM finds config and tokenizer, and logs.
    """

    def __init__(
        self,
        rollout: RolloutConfig,
        *,
        run_name: str,
        dtype: str,
        folder: Path,
        parallel: ParallelState,
        spans: SpanRecorder,
    ) -> None:
        self._rollout = rollout
        self._run_name = run_name
        self._dtype = dtype
        self._folder = folder
        self._parallel = parallel
        self._spans = spans
        self._engine: Restarting | None = None
        self._architecture: str | None = None

    def serve(self, policy: Learner, renderer: PromptRenderer, *, version: int) -> Restarting:
        """An engine that samples from `policy`'s weights of now, under `version`."""
        if self._rollout.engine == "embedded":
            engine = self._wrapped(self._embedded(policy, renderer))
        else:
            engine = self._external(policy, renderer)
        engine.sync(policy, version=version)
        return engine

    def close(self) -> None:
        """Stop what was started."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _wrapped(self, engine: Engine) -> Restarting:
        shared = Distributed(engine, self._parallel.copies(), self._spans)
        return Restarting(shared, self._parallel, max_restarts=self._rollout.max_engine_restarts)

    def _embedded(self, policy: Learner, renderer: PromptRenderer) -> EmbeddedEngine:
        """An engine that costs nothing to make: it reads the policy's own parameters."""
        return EmbeddedEngine.of_policy(
            policy,
            renderer=renderer,
            max_seqlen=self._rollout.max_seqlen,
            max_slots=self._rollout.max_slots,
        )

    def _external(self, policy: Learner, renderer: PromptRenderer) -> Restarting:
        architecture = _architecture(policy.served_config())
        if self._engine is not None and architecture != self._architecture:
            self.close()
        if self._engine is None:
            make = self._server if self._rollout.engine == "server" else self._vllm
            self._engine = self._wrapped(make(policy, renderer))
            self._architecture = architecture
        self._engine.renderer = renderer  # another stage may have another tokenizer
        return self._engine

    def _vllm(self, policy: Learner, renderer: PromptRenderer) -> Engine:
        """vLLM in this process, with random weights until the first sync."""
        rollout, parallel = self._rollout, self._parallel
        if parallel.pipeline_size > 1:
            raise ConfigError(
                f'rollout.engine = "{rollout.engine}" needs parallel.pipeline = 1: it serves each '
                "tensor-parallel group in place"
            )
        folder = self._folder / "engine"
        parallel.on_main(
            lambda: write_engine_folder(folder, policy.served_config(), renderer, dtype=self._dtype)
        )
        # Imported here: a run with the embedded engine must not need vLLM.
        from satori_fast.rollout.vllm_engine import VllmEngine, VllmSettings

        settings = VllmSettings(
            dtype=self._dtype,
            max_seqlen=rollout.max_seqlen,
            max_slots=rollout.max_slots,
            tensor_size=parallel.tensor_size,
            data_size=parallel.copies().data_size,
            gpu_memory_share=rollout.gpu_memory_share,
            compile=rollout.compile,
            sleep=rollout.sleep,
            request_seeds=rollout.request_seeds,
            bucket_bytes=rollout.sync_bucket_mib * 2**20,
            timeout_s=rollout.sync_timeout_s,
        )
        return VllmEngine(folder, settings, renderer=renderer)

    def _server(self, policy: Learner, renderer: PromptRenderer) -> Engine:
        """vLLM servers in the main process, a stand-in in the others."""
        rollout, parallel = self._rollout, self._parallel
        folder = self._folder / "engine"
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
            run_name=self._run_name,
            lease_s=rollout.server_lease_s,
        )
        command = ServerCommand(
            folder=folder,
            log=self._folder / "engine.log",
            flags=server_flags(rollout, dtype=self._dtype),
            devices=rollout.server_devices,
            start_timeout_s=rollout.server_start_timeout_s,
        )
        started: list[Engine] = []

        def start() -> None:
            write_engine_folder(folder, policy.served_config(), renderer, dtype=self._dtype)
            servers = rollout.server_url or ServerProcess(command)
            started.append(ServerEngine(servers, settings, renderer=renderer))

        parallel.on_main(start)
        return started[0] if started else IdleEngine(settings, renderer=renderer)


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
    """Whether the port of `url` is a number, or absent."""
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def _architecture(hf_config: Any) -> str:
    """Architecture that an engine is built for.

    Where the checkpoint lay, who wrote it and what ends a response (each request says that) do
    not matter.
    """
    ignored = {"_name_or_path", "transformers_version", "eos_token_id"}
    fields = {name: value for name, value in hf_config.to_dict().items() if name not in ignored}
    return json.dumps(fields, sort_keys=True, default=str)


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
    """Write what an engine starts from: config and tokenizer, no weights."""
    if folder.exists():
        shutil.rmtree(folder)
    config = copy.deepcopy(hf_config)
    # Without a class name vLLM falls back, silently, to a slower model of other roundings.
    config.architectures = [hf_architecture(config, "policy")]
    config.dtype = dtype
    config.save_pretrained(folder)
    renderer.tokenizer.save_pretrained(folder)
