# SPDX-License-Identifier: Apache-2.0
"""One rank of a training that saves after every step in the background, and may be killed;
`test_ranks.py` starts it. Not a test itself.

Arguments: rank, world size, tensor-parallel size, folder, and the step in which the last rank dies,
-1 for none. It goes on from the newest checkpoint of the folder; rank 0 leaves weights.pt.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from satori_fast.backbone.checkpoint import Saver, latest_checkpoint, load_checkpoint
from satori_fast.backbone.optimizer import OptimizerSettings
from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.backbone.step import build_learner, update
from tests.tiny_models import ImitationLoss, ones, random_batch, tiny_model

NUM_STEPS = 5


def main(rank: int, world_size: int, tensor: int, folder: Path, dies_in: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store-{dies_in}"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    state = initialize_parallel(tensor)
    config = tiny_model("qwen2_tied").config
    settings = OptimizerSettings(learning_rate=1e-3, weight_decay=0.1)
    learner = build_learner(config, optimizer=settings)
    newest = state.from_main(lambda: latest_checkpoint(folder))
    begin = 0 if newest is None else load_checkpoint(newest, {"policy": learner})["step"]
    saver = Saver()
    for step in range(begin, NUM_STEPS):
        batches = [random_batch([12, 8, 4 + 4 * state.data_rank], step + 10 * state.data_rank)]
        update(learner, None, batches, ones(batches), ImitationLoss())
        place = folder / f"step-{step + 1}"
        saver.begin(place, {"policy": learner}, {"step": step + 1}, in_background=True)
        if step == dies_in and rank == world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        saver.finish_if_written()
    saver.finish()
    weights = {name: tensor.clone() for name, tensor in learner.hf_weights()}
    if rank == 0:
        torch.save({"begin": begin, **weights}, folder / "weights.pt")
    dist.barrier()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]), int(sys.argv[5]))
