# SPDX-License-Identifier: Apache-2.0
"""The nouns check that their fields fit, and nothing changes them afterwards."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from satori_fast.types import (
    Credit,
    Experience,
    PackedBatch,
    Prefix,
    Problem,
    RewardBreakdown,
    Segment,
    SegmentKind,
    Trajectory,
    groups_of,
)


def example_trajectory() -> Trajectory:
    """The worked example of the `Trajectory` docstring, one token per word."""
    return Trajectory(
        problem=Problem("sum-1", "2 + 2", "4"),
        group_id=0,
        tokens=np.arange(9, dtype=np.int32),
        prompt_len=3,
        logprobs=np.zeros(6, dtype=np.float32),
        policy_version=0,
        finish="stop",
        segments=(
            Segment(SegmentKind.CONTINUE, 0, 1, "5"),
            Segment(SegmentKind.REFLECT, 1, 3, "<|reflect|> no"),
            Segment(SegmentKind.EXPLORE, 3, 6, "<|explore|> 4"),
        ),
    )


def example_batch() -> PackedBatch:
    """One sequence of two prompt and two response tokens: two predictions count."""
    return PackedBatch(
        tokens=torch.tensor([5, 6, 7, 8]),
        positions=torch.arange(4),
        targets=torch.tensor([6, 7, 8, 0]),
        loss_mask=torch.tensor([False, True, True, False]),
        loss_weights=torch.tensor([0.0, 1.0, 1.0, 0.0]),
        cu_seqlens=torch.tensor([0, 4], dtype=torch.int32),
        max_seqlen=4,
        segment_ids=torch.tensor([-1, 0, 0, -1], dtype=torch.int32),
        credit=torch.zeros(4),
        rollout_logprobs=torch.zeros(4),
        source=torch.zeros(1, dtype=torch.int32),
        minibatch=0,
        num_minibatch_tokens=2,
    )


def test_example_of_the_docstring_holds() -> None:
    trajectory = example_trajectory()
    assert trajectory.num_response_tokens == 6
    assert trajectory.response_tokens.tolist() == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    "broken",
    [
        {"prompt_len": 0},
        {"prompt_len": 9},
        {"logprobs": np.zeros(5, dtype=np.float32)},
        {"segments": ()},
        {"segments": (Segment(SegmentKind.WHOLE, 1, 6, ""),)},
        {"segments": (Segment(SegmentKind.WHOLE, 0, 5, ""),)},
        {
            "segments": (
                Segment(SegmentKind.SOLVE, 0, 2, ""),
                Segment(SegmentKind.VERIFY, 3, 6, ""),
            )
        },
    ],
    ids=["no prompt", "no response", "logprobs", "empty", "late start", "early stop", "gap"],
)
def test_trajectory_whose_fields_do_not_fit_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(AssertionError):
        replace(example_trajectory(), **broken)


def test_reward_gives_a_new_trajectory() -> None:
    trajectory = example_trajectory()
    reward = RewardBreakdown({"rule": -1.0}, correct=False)
    assert trajectory.with_reward(reward).reward is reward
    assert trajectory.reward is None


def test_groups_hold_the_places_of_their_members_in_order() -> None:
    ids = [3, 1, 3, 0, 1]
    assert groups_of([replace(example_trajectory(), group_id=i) for i in ids]) == [
        [0, 2],
        [1, 4],
        [3],
    ]
    assert groups_of([]) == []


@pytest.mark.parametrize(
    ("thing", "field"),
    [
        (Problem("1", "2 + 2", "4"), "answer"),
        (Prefix("5<|reflect|>", "restart", correct=False), "text"),
        (Segment(SegmentKind.STEP, 0, 1, "x"), "stop"),
        (example_trajectory(), "reward"),
        (example_batch(), "values"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_types_are_frozen(thing: object, field: str) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(thing, field, None)


def test_segment_kinds_are_their_names() -> None:
    assert [str(kind) for kind in SegmentKind] == [
        "continue",
        "reflect",
        "explore",
        "solve",
        "verify",
        "think",
        "step",
        "whole",
    ]


def test_missing_annotation_is_named_with_its_remedy() -> None:
    batch = example_batch()
    with pytest.raises(ValueError, match=r"^batch\.old_logprobs is missing: run annotate\(\)"):
        batch.require("old_logprobs")
    old = torch.full((4,), -1.0)
    annotated = batch.annotated(old_logprobs=old)
    assert annotated.require("old_logprobs") is old
    assert batch.old_logprobs is None
    with pytest.raises(ValueError, match=r"batch\.values"):
        annotated.require("values")


def test_moving_a_batch_leaves_its_source_on_the_host() -> None:
    # The meta device is another device on any machine.
    moved = example_batch().annotated(values=torch.zeros(4)).to("meta")
    assert moved.source.device.type == "cpu"
    assert moved.tokens.device.type == moved.require("values").device.type == "meta"
    assert moved.old_logprobs is None
    assert moved.num_tokens == 4
    assert moved.num_minibatch_tokens == 2


def test_experience_is_of_whole_groups_and_says_what_was_sampled() -> None:
    kept = tuple(replace(example_trajectory(), group_id=group) for group in (0, 0))
    dropped = replace(example_trajectory(), group_id=1)
    credit = Credit(np.zeros(3, np.float32), np.zeros(3, np.float32))
    assert Experience(kept).sampled == kept and Experience(kept).credits is None
    experience = Experience(kept, (credit, credit), sampled=(*kept, dropped))
    assert experience.num_tokens == 18 and len(experience.sampled) == 3
    with pytest.raises(AssertionError):
        Experience(kept, (credit,))
    with pytest.raises(AssertionError):
        Experience(kept, sampled=(dropped,))
    with pytest.raises(FrozenInstanceError):
        experience.stats = {}  # type: ignore[misc]
