# SPDX-License-Identifier: Apache-2.0
"""What the tests of the vLLM engine run in processes of their own: vLLM changes global state of the
process it lives in. `python -m tests.rollout.vllm_scenarios SCENARIO FOLDER [options]` prints one
line of JSON, on the first rank.

FOLDER holds the checkpoints `old` and `new` of one architecture, and a tokenizer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from satori_fast.backbone.architecture import load_hf_config
from satori_fast.backbone.model import PolicyModel
from satori_fast.backbone.parallel import initialize_parallel, parallel_state
from satori_fast.backbone.step import Learner, build_learner
from satori_fast.data.prompts import PromptRenderer
from satori_fast.data.tokenizer import load_tokenizer
from satori_fast.rollout import vllm_engine, weight_sync
from satori_fast.rollout.engine import Completion, Request, SamplingParams
from satori_fast.rollout.vllm_engine import VllmEngine, VllmSettings
from satori_fast.rollout.weight_sync import SyncError, push_weights
from satori_fast.rollout.weight_transfer import Backend, TransferRoute
from satori_fast.stages.engines import write_engine_folder
from tests.rollout.cuda_stand_in import cuda_on_the_host
from tests.rollout.held_clock import HeldClock

GREEDY = SamplingParams(temperature=0)
MAX_SEQLEN = 96
SCENARIOS = ("synced", "fresh", "failures", "sampling", "padded", "transferred")


def requests(new_tokens: int = 24) -> list[Request]:
    rng = np.random.default_rng(0)
    lengths = (3, 17, 9, 9, 30, 1, 60, 25)
    return [
        Request(tuple(int(t) for t in rng.integers(5, 120, n)), new_tokens, (7,), seed=i)
        for i, n in enumerate(lengths)
    ]


def sample(engine: VllmEngine, sampling: SamplingParams, wanted: list[Request]) -> list[Completion]:
    done = dict(engine.generate(wanted, sampling))
    return [done[i] for i in range(len(wanted))]


def tokens_of(engine: VllmEngine) -> list[list[int]]:
    return [c.tokens.tolist() for c in sample(engine, GREEDY, requests())]


def start(folder: Path, options: argparse.Namespace) -> tuple[VllmEngine, Learner, Learner]:
    state = initialize_parallel(options.tensor, seed=0)
    torch.set_num_threads(1)
    dtype = getattr(torch, options.dtype)
    old, new = (
        build_learner(load_hf_config(folder / name), weights=folder / name, dtype=dtype)
        for name in ("old", "new")
    )
    renderer = PromptRenderer(load_tokenizer(folder / "tokenizer"), "{question}", 64)
    if options.num_tokens:
        assert isinstance(new.module, PolicyModel)
        new.module.limit_vocabulary(options.num_tokens)
        write_engine_folder(folder / "empty", new.served_config(), renderer, dtype=options.dtype)
    settings = VllmSettings(
        dtype=options.dtype,
        max_seqlen=MAX_SEQLEN,
        max_slots=4,
        tensor_size=state.tensor_size,
        data_size=state.data_size,
        bucket_bytes=2**16,
        timeout_s=120.0,
    )
    return VllmEngine(folder / "empty", settings, renderer=renderer), old, new


def synced(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Old and new weights in turn, new ones last; greedy tokens after it and after a sleep."""
    engine, old, new = start(folder, options)
    for round_ in range(options.num_syncs):
        learner = new if (options.num_syncs - round_) % 2 else old
        push_weights(learner.hf_weights(), engine, version=round_)
        if round_ == 0:  # fill the prefix cache with what must not survive
            sample(engine, GREEDY, requests())
    after = tokens_of(engine)
    engine.sleep()
    engine.wake()
    result = {"tokens": parallel_state().all_gather(after), "awake": tokens_of(engine)}
    result["version"] = engine.policy_version
    engine.close()
    return result


def fresh(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Greedy tokens of a vLLM that loads the checkpoint `new` by itself."""
    from vllm import LLM
    from vllm import SamplingParams as VllmSamplingParams

    llm = LLM(
        str(folder / "new"),
        dtype=options.dtype,
        skip_tokenizer_init=True,
        runner="generate",
        max_model_len=MAX_SEQLEN,
        max_num_seqs=4,
        enforce_eager=True,
        hf_overrides={"head_dtype": "float32"},
        # As our engine schedules: in bfloat16 another batch is another rounding.
        enable_chunked_prefill=False,
        max_num_batched_tokens=8192,
    )
    wanted = requests()
    settings = VllmSamplingParams(
        temperature=0, max_tokens=24, stop_token_ids=[7], ignore_eos=True, detokenize=False
    )
    prompts: Any = [{"prompt_token_ids": list(r.prompt_ids)} for r in wanted]
    outputs = llm.generate(prompts, settings, use_tqdm=False)
    return {"tokens": [list(o.outputs[0].token_ids) for o in outputs]}


def failures(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Syncs that go wrong, the error of each, and greedy tokens after a good one."""
    engine, old, new = start(folder, options)
    result: dict[str, Any] = {}
    result["unsynced"] = error_of(lambda: next(engine.generate(requests(), GREEDY)))
    push_weights(old.hf_weights(), engine, version=1)
    name = "model.layers.1.self_attn.k_proj.weight"

    def without() -> Iterator[tuple[str, Tensor]]:
        return ((n, t) for n, t in new.hf_weights() if n != name)

    result["dropped"] = error_of(lambda: push_weights(without(), engine, version=2))
    receive = engine.receive

    def corrupting(records: Any, tensors: Any) -> None:
        sent = [t.clone() for t in tensors]
        for record, tensor in zip(records, sent, strict=True):
            if record.name == name:
                tensor.view(-1)[3] += 1e-3
        receive(records, sent)

    engine.receive = corrupting  # type: ignore[method-assign]
    result["corrupted"] = error_of(lambda: push_weights(new.hf_weights(), engine, version=3))
    engine.receive = receive  # type: ignore[method-assign]
    clock, real = HeldClock(), weight_sync.time
    weight_sync.time = clock
    slow = clock.delayed(new.hf_weights(), name, engine.timeout_s + 1)
    result["late"] = error_of(lambda: push_weights(slow, engine, version=4))
    weight_sync.time = real
    result["version"] = engine.policy_version
    result["refuses"] = error_of(lambda: next(engine.generate(requests(), GREEDY)))
    push_weights(new.hf_weights(), engine, version=5)
    result["tokens"] = tokens_of(engine)
    engine.close()
    return result


def sampling(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Samples at temperature 0.7 in two orders, their log-probs, and an iterator closed early."""
    engine, _, new = start(folder, options)
    push_weights(new.hf_weights(), engine, version=0)
    wanted, warm = requests(), SamplingParams(temperature=0.7)
    forward = sample(engine, warm, wanted)
    backward = sample(engine, warm, wanted[::-1])[::-1]
    siblings = [Request(wanted[6].prompt_ids, 8, (), seed=i) for i in range(8)]
    result = {
        "tokens": [c.tokens.tolist() for c in forward],
        "reordered": [c.tokens.tolist() for c in backward],
        "logprobs": [c.logprobs.tolist() for c in forward],
        "finish": [c.finish for c in forward],
        "siblings": [c.tokens.tolist() for c in sample(engine, warm, siblings)],
    }
    left = engine.generate(wanted, GREEDY)
    next(left)
    left.close()
    result["unfinished"] = engine._llm.llm_engine.has_unfinished_requests()
    result["again"] = tokens_of(engine)
    filtered = SamplingParams(top_k=5)
    result["top_k"] = error_of(lambda: next(engine.generate(wanted, filtered)))
    engine.close()
    return result


def padded(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Samples of a model whose vocabulary is padded beyond its tokens, with two stop tokens."""
    engine, _, new = start(folder, options)
    push_weights(new.served_weights(), engine, version=0)
    wanted = [replace(request, stop_ids=(7, 11)) for request in requests()]
    completions = sample(engine, SamplingParams(temperature=2.0), wanted)
    batches, scores = [], []
    for request, completion in zip(wanted, completions, strict=True):
        batches.append([*request.prompt_ids, *completion.tokens.tolist()])
        scores.append(completion.logprobs.tolist())
    engine.close()
    return {
        "tokens": batches,
        "logprobs": scores,
        "finish": [c.finish for c in completions],
    }


def transferred(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Syncs by each of vLLM's own engines, through the workers of a server."""
    vllm_engine.EXTENSION = "satori_fast.rollout.server_worker.ServerExtension"
    engine, old, new = start(folder, options)
    nccl = transferred_by("nccl", InProcess(engine, "another GPU"), engine, old, new)
    ipc = transferred_by("ipc", InProcess(engine, ""), engine, old, new)
    engine.close()
    return {"nccl": nccl, "ipc": ipc}


def transferred_by(
    backend: Backend, client: Any, engine: VllmEngine, old: Learner, new: Learner
) -> dict[str, Any]:
    """A good sync, one with a changed tensor, and greedy tokens after another good one."""
    route = TransferRoute(backend, torch.device("cpu"), 60.0)
    changed = "model.layers.1.self_attn.k_proj.weight"

    def receive(records: Any, tensors: Any) -> None:
        route.open([client])
        route.send(records, tensors)

    def corrupting(records: Any, tensors: Any) -> None:
        numbers = [r.fingerprint + (r.name == changed) for r in records]
        wrong = [replace(r, fingerprint=n) for r, n in zip(records, numbers, strict=True)]
        receive(wrong, tensors)

    with cuda_on_the_host():
        engine.receive = receive  # type: ignore[method-assign]
        push_weights(old.hf_weights(), engine, version=1)
        engine.receive = corrupting  # type: ignore[method-assign]
        corrupted = error_of(lambda: push_weights(new.hf_weights(), engine, version=2))
        refuses = error_of(lambda: next(engine.generate(requests(), GREEDY)))
        engine.receive = receive  # type: ignore[method-assign]
        push_weights(new.hf_weights(), engine, version=3)
    route.close()
    return {"corrupted": corrupted, "refuses": refuses, "tokens": tokens_of(engine)}


class InProcess:
    """Stands where a `ServerClient` stands: messages go to the workers of an engine of this
    process. gpu: what they say they are on; "" is the trainer's."""

    url, host = "http://127.0.0.1:1", "127.0.0.1"

    def __init__(self, engine: VllmEngine, gpu: str) -> None:
        self._llm = engine._llm
        self.gpu = gpu

    def message(self, do: str, **fields: Any) -> list[dict[str, Any]]:
        text = json.dumps({"do": do, **fields})
        answers = self._llm.collective_rpc("satori_message", args=(text,))
        for answer in answers:
            if answer["error"] is not None:
                raise SyncError(answer["error"])
            answer["gpu"] = self.gpu
        return answers


def error_of(action: Callable[[], object]) -> str:
    try:
        action()
    except (SyncError, ValueError) as error:
        return str(error)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--num-tokens", type=int, default=0)
    parser.add_argument("--num-syncs", type=int, default=3)
    options = parser.parse_args()
    result = globals()[options.scenario](options.folder, options)
    if options.scenario == "fresh" or parallel_state().is_main:
        print("RESULT " + json.dumps(result), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
