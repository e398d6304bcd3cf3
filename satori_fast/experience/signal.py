# SPDX-License-Identifier: Apache-2.0
"""Learning signal of each segment, read back from the batches that an update gets.

For people: the verb explain and the samples of a run. Nothing is computed twice: credit, loss
weights and advantages are those that trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from satori_fast.types import Advantages, Credit, PackedBatch, SegmentSignal, Trajectory


def segment_signals(
    trajectories: Sequence[Trajectory],
    credits: Sequence[Credit],
    batches: Sequence[PackedBatch],
    advantages: Sequence[Advantages],
) -> dict[int, SegmentSignal]:
    """The signal of each trajectory that lies in `batches`, by its index in `trajectories`.

    batches: `pack` of the trajectories and credits, on this rank; advantages: one for each.
    """
    signals: dict[int, SegmentSignal] = {}
    for batch, estimate in zip(batches, advantages, strict=True):
        sources = [source for source in batch.source.tolist() if source >= 0]
        parts = zip(
            _per_trajectory(batch, [trajectories[i] for i in sources], estimate.advantages),
            _per_trajectory(batch, [trajectories[i] for i in sources], batch.loss_weights),
            strict=True,
        )
        for source, (advantage, weight) in zip(sources, parts, strict=True):
            credit = credits[source]
            signals[source] = SegmentSignal(
                rewards=credit.scale * credit.values.astype(np.float64),
                baselines=credit.scale * credit.baselines.astype(np.float64),
                advantages=advantage,
                weights=weight,
            )
    return signals


def _per_trajectory(
    batch: PackedBatch, trajectories: Sequence[Trajectory], values: Tensor
) -> Iterator[npt.NDArray[np.float64]]:
    """Means of `values` [T] over the tokens of each segment, [S] for each sequence in order."""
    segments = batch.segment_ids.cpu().numpy()
    is_response = segments >= 0
    own = values.double().cpu().numpy()[is_response]
    sums = np.bincount(segments[is_response], weights=own)
    means = sums / np.bincount(segments[is_response])
    ends = np.cumsum([len(t.segments) for t in trajectories])
    return iter(np.split(means, ends[:-1])) if len(ends) else iter(())
