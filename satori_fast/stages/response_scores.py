# SPDX-License-Identifier: Apache-2.0
"""Scores that an outcome reward model gives to responses of an evaluation, for best-of-n.

Their texts are scored, as they lie on disk. Training such a model is `preference`, and what a run
does with scores is `scoring`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from satori_fast.backbone.parallel import ParallelState
from satori_fast.data.packing import PackingSpec
from satori_fast.data.prompts import build_trajectory
from satori_fast.evaluation.responses import Asked, Key, Response
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.stages.models import ModelFolders
from satori_fast.stages.scoring import ScoringModel, reward_model_folder
from satori_fast.types import Trajectory


def score_responses(
    reward_model: str,
    answered: Sequence[tuple[Asked, Response]],
    models: ModelFolders,
    parallel: ParallelState,
    *,
    max_tokens_per_microbatch: int,
) -> dict[Key, float]:
    """The score of each response by its key, on every rank, which must all call it.

    models: of the evaluated model; the reward model has its tokenizer (ConfigError for another).
    """
    folder = reward_model_folder(reward_model, models.renderer)
    assert folder is not None
    trajectories = [_trajectory(asked, response, models) for asked, response in answered]
    longest = max((len(each.tokens) for each in trajectories), default=1)
    packing = PackingSpec(
        max_tokens_per_microbatch=max(max_tokens_per_microbatch, longest),
        num_minibatches=1,
        data_parallel_size=parallel.data_size,
        data_parallel_rank=parallel.data_rank,
        pad_to_multiple=parallel.token_multiple,
        max_seqlen=longest,
    )
    model = ScoringModel(
        models.scalar(folder),
        f"reward model {folder}",
        models.renderer.eos_id,
        packing,
        parallel,
        SpanRecorder(device=parallel.device, rank=parallel.rank),
    )
    scores = model(trajectories) if trajectories else np.zeros(0, dtype=np.float32)
    keys = [response.key for _, response in answered]
    return dict(zip(keys, map(float, scores), strict=True))


def _trajectory(asked: Asked, response: Response, models: ModelFolders) -> Trajectory:
    renderer = models.renderer
    ids = renderer.encode(response.text)
    if response.finish == "stop":
        ids = [*ids, renderer.eos_id]
    return build_trajectory(
        asked.problem,
        np.asarray(ids, dtype=np.int32),
        renderer=renderer,
        group_id=asked.group,
        finish="stop" if response.finish == "stop" else "length",
    )
