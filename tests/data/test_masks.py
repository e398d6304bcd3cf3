# SPDX-License-Identifier: Apache-2.0
"""Masks of imitation: which segments of a trajectory are trained, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from satori_fast.data.masks import trained_segments
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.types import SegmentKind, Trajectory
from tests.data.formats.test_trials import Y1, trajectory

Y2 = r"\boxed{ p q } wait 7 + 1 = 8 right"


@pytest.mark.parametrize(
    ("text", "trained"),
    [
        (Y1, (False, True, True, True)),
        (Y2, (True, True)),
        (r"\boxed{ p q }", (True,)),
        # What broke off, or is out of turn: the last solution is the last one, wherever it stands.
        (r"\boxed{ p r } wait 16 over again \boxed{ p q }", (False, True, True)),
        (r"\boxed{ p r } again \boxed{ p q } wait 8 wait 8 right", (False, True, True, True)),
    ],
)
def test_verifications_and_the_last_solution_are_trained(
    text: str, trained: tuple[bool, ...]
) -> None:
    made = trajectory(text)
    assert trained_segments(made, "verify_and_last") == trained
    assert trained_segments(made, "all") == (True,) * len(made.segments)


def test_the_worked_masks() -> None:
    """20 of 24 tokens of y1 and all 12 of y2, ends included, and no more in the denominator."""
    made = [trajectory(Y1), trajectory(Y2)]
    trained = [trained_segments(t, "verify_and_last") for t in made]
    (batch,) = pack(made, None, PackingSpec(64, 1), "token", trained=trained)
    starts = batch.cu_seqlens.tolist()
    masks = {
        source: batch.loss_mask[a:b].tolist()
        for source, a, b in zip(batch.source.tolist(), starts[:-1], starts[1:], strict=True)
    }
    prompts = [t.prompt_len for t in made]
    assert masks[0] == [False] * (prompts[0] - 1 + 4) + [True] * 20 + [False]
    assert masks[1] == [False] * (prompts[1] - 1) + [True] * 12 + [False]
    assert batch.num_minibatch_tokens == 32 == batch.loss_weights.sum()


def with_kind(made: Trajectory, kind: SegmentKind) -> Trajectory:
    whole = replace(made.segments[0], stop=made.segments[-1].stop, kind=kind)
    return replace(made, segments=(whole,))


def test_a_response_of_another_format_is_refused() -> None:
    other = with_kind(trajectory(Y2), SegmentKind.WHOLE)
    with pytest.raises(ValueError, match=r"'1' has a segment of kind 'whole'.*data\.format"):
        trained_segments(other, "verify_and_last")
    assert trained_segments(other, "all") == (True,)
    # A verification alone has no solution to train.
    alone = with_kind(trajectory(Y2), SegmentKind.VERIFY)
    assert trained_segments(alone, "verify_and_last") == (True,)
