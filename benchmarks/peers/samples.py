# SPDX-License-Identifier: Apache-2.0
"""What TRL sampled in a training, in files, and an engine that gives the same again.

Two trainings that sample for themselves part by chance after the first step. On the same samples
they do the same updates, or one of them is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from satori_fast.rollout.distributed import WrappedEngine
from satori_fast.rollout.engine import Completion, Engine, Request, SamplingParams

FOLDER = "samples"


def keep(
    folder: Path, step: int, prompts: Sequence[list[int]], responses: Sequence[list[int]]
) -> None:
    """Write a step's samples. Responses end with their end token, or were cut."""
    folder.mkdir(exist_ok=True)
    (folder / f"{step}.json").write_text(json.dumps([prompts, responses]))


class Replay(WrappedEngine):
    """An engine whose completions are those of a folder, a step at each call, from `first` on.

    Their log-probs are unknown, and 0 here: train without importance weights.
    """

    def __init__(self, inner: Engine, folder: Path, first: int) -> None:
        super().__init__(inner)
        self._folder, self._step = folder, first

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        path = self._folder / f"{self._step}.json"
        self._step += 1
        prompts, responses = json.loads(path.read_text())
        if prompts != [list(request.prompt_ids) for request in requests]:
            raise SystemExit(f"{path}: other prompts than this training's")
        for index, (request, response) in enumerate(zip(requests, responses, strict=True)):
            tokens = np.array(response, dtype=np.int32)
            ended = response[-1] in request.stop_ids
            yield (
                index,
                Completion(
                    tokens=tokens,
                    logprobs=np.zeros(len(tokens), dtype=np.float32),
                    finish="stop" if ended else "length",
                ),
            )
