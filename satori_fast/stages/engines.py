# SPDX-License-Identifier: Apache-2.0
"""Which rollout engine a run samples with, and how it gets a policy's weights.

The embedded engine is made anew for each policy and costs nothing; vLLM is started once per run
and synced. Not for what an engine does (`rollout`).
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satori_fast.backbone.architecture import hf_architecture
from satori_fast.backbone.step import Learner
from satori_fast.config import ConfigError
from satori_fast.data.coat import PromptRenderer
from satori_fast.rollout.embedded_engine import EmbeddedEngine
from satori_fast.rollout.engine import Engine
from satori_fast.rollout.weight_sync import push_weights

if TYPE_CHECKING:
    from satori_fast.stages.run import Run


class EngineRoom:
    """The engine of a run, started when it is first needed."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._architecture: str | None = None

    def serve(self, run: Run, policy: Learner, *, version: int) -> Engine:
        """An engine that samples from `policy`'s weights of now, under `version`."""
        if run.config.rollout.engine == "embedded":
            engine: Engine = embedded_engine(run, policy)
            engine.policy_version = version
            return engine
        architecture = _architecture(policy.hf_config)
        if self._engine is not None and architecture != self._architecture:
            self.close()
        if self._engine is None:
            self._engine = external_engine(run, policy)
            self._architecture = architecture
        push_weights(policy.hf_weights(), self._engine, version=version)
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def _architecture(hf_config: Any) -> str:
    """What an engine is built for; where the checkpoint lay and who wrote it do not matter."""
    ignored = {"_name_or_path", "transformers_version"}
    fields = {name: value for name, value in hf_config.to_dict().items() if name not in ignored}
    return json.dumps(fields, sort_keys=True, default=str)


def embedded_engine(run: Run, policy: Learner) -> EmbeddedEngine:
    rollout = run.config.rollout
    return EmbeddedEngine.of_policy(
        policy, renderer=run.renderer, max_seqlen=rollout.max_seqlen, max_slots=rollout.max_slots
    )


def external_engine(run: Run, policy: Learner) -> Engine:
    """vLLM, with random weights until the first sync."""
    rollout, parallel = run.config.rollout, run.parallel
    if parallel.pipeline_size > 1:
        raise ConfigError(
            f'rollout.engine = "{rollout.engine}" needs parallel.pipeline = 1: it serves each '
            "tensor-parallel group in place"
        )
    folder, dtype = run.folder / "engine", run.config.model.dtype
    parallel.on_main(
        lambda: write_engine_folder(folder, policy.hf_config, run.renderer, dtype=dtype)
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
