# SPDX-License-Identifier: Apache-2.0
"""The bubble of a pipeline against its formula, two processes on the host.

    python -m benchmarks.pipeline

An update of M microbatches by one process, and by two that each hold half of the layers, whole or
in V parts that take turns. The first one waits for the last one's gradients: with p stages such an
update takes (1 + (p - 1) / (M V)) / p of the time of one process, if stages are equal and sending
is free. Each process has one thread, and what is measured are medians of updates in turn.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoConfig

from benchmarks import measure
from satori_fast.algorithms.losses import imitation_loss
from satori_fast.backbone.optimizer import OptimizerSettings
from satori_fast.backbone.parallel import ParallelOptions, initialize_parallel, shutdown_parallel
from satori_fast.backbone.step import build_learner, update_one
from satori_fast.types import PackedBatch

NUM_STAGES = 2
MICROBATCHES = (2, 4, 8)
CHUNKS = (1, 2)
NUM_TOKENS = 512  # of a microbatch
WARMUP, ROUNDS = 2, 7
# So deep that the output head, on the last stage alone, weighs little.
SIZES = {
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def microbatches(number: int) -> list[PackedBatch]:
    """Random sequences of equal lengths; every token counts."""
    generator = torch.Generator().manual_seed(number)
    made = []
    for _ in range(number):
        tokens = torch.randint(0, SIZES["vocab_size"], (NUM_TOKENS,), generator=generator)
        zeros = torch.zeros(NUM_TOKENS)
        made.append(
            PackedBatch(
                tokens=tokens,
                positions=torch.arange(NUM_TOKENS),
                targets=tokens.roll(-1),
                loss_mask=torch.ones(NUM_TOKENS, dtype=torch.bool),
                loss_weights=torch.ones(NUM_TOKENS),
                cu_seqlens=torch.tensor([0, NUM_TOKENS], dtype=torch.int32),
                max_seqlen=NUM_TOKENS,
                segment_ids=torch.zeros(NUM_TOKENS, dtype=torch.int32),
                credit=zeros,
                rollout_logprobs=zeros,
                source=torch.zeros(1, dtype=torch.int32),
                minibatch=0,
                num_minibatch_tokens=number * NUM_TOKENS,
            )
        )
    return made


def worker(pipeline: int, chunks: int) -> dict[int, float]:
    """Median seconds of an update, by its microbatches; on each rank."""
    torch.set_num_threads(1)
    state = initialize_parallel(1, pipeline, 0, options=ParallelOptions(chunks=chunks))
    config = AutoConfig.for_model("qwen2", **SIZES)
    learner = build_learner(config, optimizer=OptimizerSettings(1e-4))
    found = {}
    for number in MICROBATCHES:
        batches = microbatches(number)
        seconds = []
        for _ in range(WARMUP + ROUNDS):
            if state.world_size > 1:
                dist.barrier()
            begin = time.perf_counter()
            update_one(learner, batches, imitation_loss)
            seconds.append(time.perf_counter() - begin)
        found[number] = sorted(seconds[WARMUP:])[ROUNDS // 2]
    shutdown_parallel()
    return found


def measured(pipeline: int, chunks: int = 1) -> dict[str, float]:
    """The seconds of rank 0 of a launch of its own."""
    module = ["-m", "benchmarks.pipeline", "--worker", str(pipeline), str(chunks)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(pipeline)]
    command = [sys.executable, *(launcher if pipeline > 1 else []), *module]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("SECONDS ")]
    if done.returncode or not lines:
        raise RuntimeError(f"a launch of {pipeline} processes failed:\n{done.stderr[-2000:]}")
    return json.loads(lines[0].removeprefix("SECONDS "))


def row(alone: float, together: float, number: int, chunks: int) -> dict[str, Any]:
    """One update: seconds of both, and the stretch of a stage's share against the formula's."""
    return {
        "microbatches": number,
        "chunks": chunks,
        "alone_s": measure.significant(alone),
        "together_s": measure.significant(together),
        "stretch": measure.significant(together / (alone / NUM_STAGES), 3),
        "formula": measure.significant(1 + (NUM_STAGES - 1) / (number * chunks), 3),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--worker", type=int, nargs=2, metavar=("PIPELINE", "CHUNKS"))
    parser.add_argument("--record", default="pipeline", help="benchmarks/results/NAME.json")
    options = parser.parse_args(arguments)
    if options.worker:
        found = worker(*options.worker)
        print("SECONDS " + json.dumps(found))
        return
    alone = measured(1)
    rows = []
    for chunks in CHUNKS:
        together = measured(NUM_STAGES, chunks)
        rows += [row(alone[key], seconds, int(key), chunks) for key, seconds in together.items()]
    for each in rows:
        print(each)
    table = {"command": "python -m benchmarks.pipeline", "tokens": NUM_TOKENS, "rows": rows}
    measure.record(options.record, {"bubble": table})


if __name__ == "__main__":
    main()
