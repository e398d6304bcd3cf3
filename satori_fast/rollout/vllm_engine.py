# SPDX-License-Identifier: Apache-2.0
"""vLLM as a rollout engine, in the trainer's own process.

Prompts go in as token ids, and the log-probs that come back are of the sampled tokens at the
sampling temperature. Siblings share their prompt through vLLM's prefix cache. Under torchrun each
tensor-parallel group holds one engine through vLLM's external launcher, and data-parallel groups
hold replicas. Not for engines in other processes: `server_engine`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from satori_fast.data.prompts import PromptRenderer
from satori_fast.rollout.engine import Completion, Engine, Request, SamplingParams
from satori_fast.rollout.weight_sync import (
    DEFAULT_BUCKET_BYTES,
    DEFAULT_TIMEOUT_S,
    SyncError,
    TensorRecord,
)

# vLLM reads these when it is imported. In process: weights are then passed by reference. nobind:
# it would pin the trainer's threads to cores.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
_PREFILL_TOKENS = 8192
INSTALL_HINT = (
    'pip install "satori-fast[vllm]" on a machine with a GPU, `make setup-vllm` on one without'
)
EXTENSION = "satori_fast.rollout.vllm_worker.SyncExtension"


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """Settings that vLLM starts with.

    dtype:              "float32" or "bfloat16", the trainer's.
    max_slots:          requests decoded at once.
    tensor_size:        tensor-parallel ranks of this engine; data_size: replicas. Both follow the
                        trainer's layout, one process each.
    gpu_memory_share:   of a GPU that vLLM may take for weights and cache.
    cpu_cache_gib:      key-value cache on a machine without a GPU.
    compile:            let vLLM compile and capture graphs: faster decoding, slower start.
    sleep:              `sleep` will be called: vLLM then allocates in a way that lets go.
    request_seeds:      every request has a stream of its own, so a sample does not depend on its
                        batch. vLLM pays for it with a draw per request and token.
    """

    dtype: str = "bfloat16"
    max_seqlen: int = 2048
    max_slots: int = 256
    tensor_size: int = 1
    data_size: int = 1
    gpu_memory_share: float = 0.4
    cpu_cache_gib: int = 1
    compile: bool = False
    sleep: bool = False
    request_seeds: bool = True
    bucket_bytes: int = DEFAULT_BUCKET_BYTES
    timeout_s: float = DEFAULT_TIMEOUT_S


class VllmEngine(Engine):
    """One vLLM; implements `rollout.weight_sync.WeightSink` too.

    model_folder holds config.json (and tokenizer files if any); its weights are not read. The first
    sync brings them, and until then `generate` refuses.
    """

    def __init__(
        self, model_folder: Path, settings: VllmSettings, *, renderer: PromptRenderer
    ) -> None:
        self.renderer = renderer
        self.max_seqlen = settings.max_seqlen
        self.policy_version = -1
        self.bucket_bytes = settings.bucket_bytes
        self.timeout_s = settings.timeout_s
        self._settings = settings
        self._is_ready = False
        self._is_asleep = False
        self._synced: list[dict[str, int]] = []
        self._num_requests = 0
        self._llm: Any = _start_vllm(model_folder, settings)

    # -- sampling -----------------------------------------------------------------------------

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index, completion) as requests finish; see `Engine.generate`.

        Closing the iterator early aborts what still runs.
        """
        self._check_can_sample()
        check_filters(sampling)
        core = self._llm.llm_engine
        running: dict[str, int] = {}
        try:
            for index, request in enumerate(requests):
                name = str(self._num_requests)
                self._num_requests += 1
                prompt = {"prompt_token_ids": list(request.prompt_ids)}
                core.add_request(name, prompt, self._sampling_params(request, sampling))
                running[name] = index
            while running:
                self.num_passes += 1
                for output in core.step():
                    if output.finished and output.request_id in running:
                        yield running.pop(output.request_id), _completion(output)
        finally:
            if running:
                core.abort_request(list(running))

    def _sampling_params(self, request: Request, sampling: SamplingParams) -> Any:
        from vllm import SamplingParams as VllmSamplingParams  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        return VllmSamplingParams(
            temperature=sampling.temperature,
            max_tokens=request.max_new_tokens,
            seed=request.seed if self._settings.request_seeds and sampling.temperature else None,
            logprobs=0,
            stop_token_ids=list(request.stop_ids),
            ignore_eos=True,  # the stop ids above are the whole truth
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _check_can_sample(self) -> None:
        if self._is_asleep:
            raise RuntimeError("the engine sleeps: wake it first")
        if not self._is_ready:
            raise SyncError(
                "the engine holds no complete weights (none were pushed yet, or the last sync "
                "failed): push_weights first"
            )

    # -- weights: the WeightSink protocol -------------------------------------------------------

    def weight_sink(self) -> VllmEngine:
        return self

    def begin(self, version: int) -> None:
        self._is_ready = False
        self._llm.collective_rpc("satori_begin")

    def receive(self, records: Sequence[TensorRecord], tensors: Sequence[Tensor]) -> None:
        self._llm.collective_rpc("satori_receive", args=(records, tensors))

    def finish(self, records: Sequence[TensorRecord]) -> None:
        self._llm.collective_rpc("satori_finish", args=(records,))
        # Cached keys and values are of the old weights. vLLM declines while requests run.
        if not self._llm.reset_prefix_cache():
            raise SyncError(
                "weight sync: vLLM did not reset its prefix cache, so it would continue from old "
                "keys and values; end running requests before a sync"
            )
        self._is_ready = True

    def abort(self) -> None:
        self._is_ready = False
        self._llm.collective_rpc("satori_abort")

    # -- memory ---------------------------------------------------------------------------------

    def sleep(self) -> None:
        """Give the GPU's memory to the trainer: weights move to the host, the cache is dropped."""
        self._check_can_sample()
        self._synced = self._llm.collective_rpc("satori_fingerprints")
        self._llm.sleep(level=1)
        self._is_asleep = True

    def wake(self) -> None:
        """Take the memory back. SyncError when the weights are not those that were synced last."""
        if not self._is_asleep:
            return
        self._llm.wake_up()
        self._is_asleep = False
        held = self._llm.collective_rpc("satori_fingerprints")
        for rank, (before, now) in enumerate(zip(self._synced, held, strict=True)):
            changed = [name for name, number in before.items() if now.get(name) != number]
            if changed:
                self._is_ready = False
                raise SyncError(
                    f"waking up changed {changed[0]!r} on engine rank {rank} "
                    f"({len(changed)} tensors): push_weights again"
                )

    def close(self) -> None:
        self._is_ready = False
        core, self._llm = self._llm, None
        if core is not None:
            core.llm_engine.engine_core.shutdown()


def prefill_tokens(max_seqlen: int) -> int:
    """Tokens of one prefill where prompts are not cut."""
    return max(max_seqlen, _PREFILL_TOKENS)


def check_filters(sampling: SamplingParams) -> None:
    """vLLM reports log-probs after top-k and top-p; a trainer needs them before."""
    if sampling.top_k or sampling.top_p < 1.0:
        raise ValueError(
            "vLLM reports log-probs after rollout.top_k and rollout.top_p, which no trainer can "
            'recompute: set top_k = 0 and top_p = 1.0, or rollout.engine = "embedded"'
        )


def _completion(output: Any) -> Completion:
    sample = output.outputs[0]
    tokens = np.asarray(sample.token_ids, dtype=np.int32)
    logprobs = [entry[int(t)].logprob for entry, t in zip(sample.logprobs, tokens, strict=True)]
    finish = "stop" if sample.finish_reason == "stop" else "length"
    return Completion(tokens, np.asarray(logprobs, dtype=np.float32), finish)


def _start_vllm(model_folder: Path, settings: VllmSettings) -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(settings.cpu_cache_gib))
    try:
        from vllm import LLM  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f'rollout.engine = "vllm" needs vLLM ({error}): {INSTALL_HINT}') from error
    layout: dict[str, Any] = {}
    if settings.tensor_size * settings.data_size > 1:
        layout = {
            "distributed_executor_backend": "external_launcher",
            "tensor_parallel_size": settings.tensor_size,
            "data_parallel_size": settings.data_size,
        }
    if settings.request_seeds:
        # vLLM 0.32 moves a request's generator back when it prefills a prompt in pieces, which a
        # host generator cannot do: whole prompts only.
        layout["enable_chunked_prefill"] = False
        layout["max_num_batched_tokens"] = prefill_tokens(settings.max_seqlen)
    return LLM(
        str(model_folder),
        dtype=settings.dtype,  # pyright: ignore[reportArgumentType]
        load_format="dummy",
        runner="generate",
        skip_tokenizer_init=True,
        max_model_len=settings.max_seqlen,
        max_num_seqs=settings.max_slots,
        enforce_eager=not settings.compile,
        enable_sleep_mode=settings.sleep,
        gpu_memory_utilization=settings.gpu_memory_share,
        logprobs_mode="processed_logprobs",
        worker_extension_cls=EXTENSION,
        **layout,
    )
