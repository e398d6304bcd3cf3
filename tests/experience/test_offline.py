# SPDX-License-Identifier: Apache-2.0
"""Offline sets against worked examples, written as strings of actions: R solves, V verifies."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from satori_fast.algorithms.baselines import OfflineBaseline, offline_credits, outcome_credits
from satori_fast.experience.offline import (
    REASONS,
    OfflineSource,
    Selection,
    SelectionRules,
    num_useful,
    select,
    takes_turns,
    without_surplus,
)
from satori_fast.types import Finish, Problem, RewardBreakdown, Segment, SegmentKind, Trajectory
from tests.rollout.test_restarting import NoWeights

KINDS = {"R": SegmentKind.SOLVE, "V": SegmentKind.VERIFY}
# The worked group: one problem, four of eight right.
GROUP = "R-V+R+V+ R+V+R+V+ R-V+R-V+ R-V- R+V-R+V+ R-V+R+V- R-V- R-V+R-V-"
PROMPT, ACTION = 2, 3  # tokens


def response(text: str, group_id: int = 0, finish: Finish = "stop") -> Trajectory:
    """A response with the actions of `text`, three tokens each, all tokens and log-probs apart."""
    actions = [(KINDS[kind], sign == "+") for kind, sign in re.findall("([RV])([+-])", text)]
    num = ACTION * len(actions)
    judged = tuple(right for _, right in actions)
    answers = [right for kind, right in actions if kind is SegmentKind.SOLVE]
    is_right = bool(answers) and answers[-1]
    return Trajectory(
        problem=Problem(f"p{group_id}", "q", "a"),
        group_id=group_id,
        tokens=np.arange(PROMPT + num, dtype=np.int32),
        prompt_len=PROMPT,
        logprobs=-np.arange(1, num + 1, dtype=np.float32),
        policy_version=-1,
        finish=finish,
        segments=tuple(
            Segment(kind, ACTION * i, ACTION * (i + 1), f"{i}")
            for i, (kind, _) in enumerate(actions)
        ),
        reward=RewardBreakdown(
            {"rule": 1.0 if is_right else -1.0},
            segments=np.where(judged, 1, -1).astype(np.float32),
            correct=is_right,
            actions=judged,
        ),
    )


def group(text: str, group_id: int = 0) -> list[Trajectory]:
    return [response(one, group_id) for one in text.split()]


def written(trajectory: Trajectory) -> str:
    assert trajectory.reward is not None and trajectory.reward.actions is not None
    letters = {kind: letter for letter, kind in KINDS.items()}
    pairs = zip(trajectory.segments, trajectory.reward.actions, strict=True)
    return "".join(letters[s.kind] + "-+"[right] for s, right in pairs)


def kept(selection: Selection) -> str:
    return " ".join(map(written, selection.trajectories))


def numbers_of(selection: Selection) -> dict[str, int]:
    return {reason: selection.dropped[reason] for reason in REASONS if selection.dropped[reason]}


@pytest.mark.parametrize(
    ("whole", "cut"),
    [
        ("R+V+R+V+", "R+V+"),
        ("R-V+R+V+", "R-V+R+V+"),
        ("R+V-R-V+R+V-R-V+", "R+V-R-V+R+V-"),
        ("R+V-R+V+R-V-", "R+V-R+V+"),
        ("R-V-R+V-", "R-V-R+V-"),
        ("R+V-R-V-", "R+V-"),
        ("R-V+R-V-", "R-V+R-V-"),
        ("R+V+R-", "R+V+"),
        ("R-V-R+", "R-V-R+"),
    ],
)
def test_what_goes_on_after_a_trusted_answer_is_cut(whole: str, cut: str) -> None:
    trajectory = response(whole)
    result = without_surplus(trajectory)
    assert written(result) == cut
    num = ACTION * len(cut) // 2
    # Ids, not text: nothing is added, and no end of text above all.
    assert result.tokens.tolist() == list(range(PROMPT + num))
    assert result.logprobs.tolist() == [-1.0 - i for i in range(num)]
    assert result.reward is not None and result.reward.segments is not None
    assert result.reward.segments.tolist() == [1.0 if s == "+" else -1.0 for s in cut[1::2]]
    if cut == whole:
        assert result is trajectory
    else:
        assert result.finish == "length" and result.reward.correct is True
        assert result.reward.total == 1.0  # it ends with its last right solution


def test_no_shorter_prefix_is_trusted() -> None:
    """Over all responses of four actions, against the rule in words."""
    for bits in range(16):
        actions = tuple(bool(bits >> i & 1) for i in range(4))
        trusted = [n for n in (2, 4) if actions[n - 2] and actions[n - 1]]
        right = [n for n in (2, 4) if actions[n - 2]]
        assert num_useful(actions) == (min(trusted) if trusted else max(right, default=4))


@pytest.mark.parametrize("text", ["V+R+V+", "R+R+V+", "R-V+V+R+", "V+"])
def test_actions_that_do_not_take_turns(text: str) -> None:
    assert not takes_turns(response(text))
    rules = SelectionRules(0.0, 1.0, balance=False)
    selection = select([group(f"R+V+ {text}")], rules, seed=0)
    assert kept(selection) == "R+V+" and numbers_of(selection) == {"not_alternating": 1}


def test_the_worked_group() -> None:
    selection = select([group(GROUP)], SelectionRules(), seed=0)
    assert kept(selection) == GROUP.replace("R+V+R+V+", "R+V+", 1)
    assert selection.accuracies == (Fraction(1, 2),) * 8
    assert selection.num_cut == 1 and numbers_of(selection) == {}
    credits = offline_credits(
        selection.trajectories, selection.accuracies, baseline="accuracy_position", min_count=1
    )
    for credit in credits:
        positions = [-0.5, 0.25, 0.2, 0.2][: len(credit.values)]
        assert credit.baselines.tolist() == pytest.approx(positions)
    signals = [(credit.values - credit.baselines).tolist() for credit in credits]
    for signal, expected in zip(
        signals,
        [
            [-0.5, 0.75, 0.8, 0.8],
            [1.5, 0.75],
            [-0.5, 0.75, -1.2, 0.8],
            [-0.5, -1.25],
            [1.5, -1.25, 0.8, 0.8],
            [-0.5, 0.75, 0.8, -1.2],
            [-0.5, -1.25],
            [-0.5, 0.75, -1.2, -1.2],
        ],
        strict=True,
    ):
        assert signal == pytest.approx(expected)


BY_CONTEXT = [
    [-0.5, 0.666667, 1, 1],
    [1.5, 1],
    [-0.5, 0.666667, -1, 1],
    [-0.5, -1.333333],
    [1.5, -1, 0, 0],
    [-0.5, 0.666667, 1, -1],
    [-0.5, -1.333333],
    [-0.5, 0.666667, -1, -1],
]


@pytest.mark.parametrize("baseline", ["context", "accuracy_context"])
def test_the_worked_group_by_context(baseline: OfflineBaseline) -> None:
    selection = select([group(GROUP)], SelectionRules(), seed=0)
    credits = offline_credits(
        selection.trajectories, selection.accuracies, baseline=baseline, min_count=1
    )
    for credit, expected in zip(credits, BY_CONTEXT, strict=True):
        assert (credit.values - credit.baselines).tolist() == pytest.approx(expected, abs=1e-6)


def baselines_of(
    trajectories: Sequence[Trajectory],
    accuracies: Sequence[Fraction],
    baseline: OfflineBaseline,
    *,
    min_count: int = 1,
) -> list[list[float]]:
    credits = offline_credits(trajectories, accuracies, baseline=baseline, min_count=min_count)
    return [credit.baselines.tolist() for credit in credits]


def test_bins_are_accuracies_and_contexts_span_them() -> None:
    trajectories = group("R+V+ R+V-") + group("R-V- R-V+", 1)
    accuracies = [Fraction(1, 2)] * 2 + [Fraction(1, 4)] * 2
    position = baselines_of(trajectories, accuracies, "accuracy_position")
    assert position == [[1, 0], [1, 0], [-1, 0], [-1, 0]]
    everywhere = baselines_of(trajectories, accuracies, "context")
    assert everywhere == [[0, 0]] * 4
    assert baselines_of(trajectories, accuracies, "accuracy_context") == position
    # Too few actions: none is expected.
    assert baselines_of(trajectories, accuracies, "accuracy_position", min_count=3) == [[0, 0]] * 4
    assert baselines_of(trajectories, accuracies, "context", min_count=4)[0][0] == 0
    outcome = outcome_credits(trajectories, accuracies, min_count=1)
    assert [c.values.tolist() for c in outcome] == [[1, 1], [1, 1], [-1, -1], [-1, -1]]
    assert [c.baselines.tolist() for c in outcome] == [[1, 1], [1, 1], [-1, -1], [-1, -1]]
    mixed = outcome_credits(trajectories, [Fraction(1, 2)] * 4, min_count=4)
    assert [c.baselines.tolist() for c in mixed] == [[0, 0]] * 4
    few = outcome_credits(trajectories, accuracies, min_count=3)
    assert [c.baselines.tolist() for c in few] == [[0, 0]] * 4


def test_both_ends_of_the_accuracies_belong_to_them() -> None:
    """0.1 and 0.7 are no numbers of a float; ten samples hit them exactly."""
    groups = [
        group(" ".join(["R+V+"] * right + ["R-V+"] * (10 - right)), right) for right in range(11)
    ]
    selection = select(groups, SelectionRules(balance=False), seed=0)
    assert sorted(set(selection.accuracies)) == [Fraction(k, 10) for k in range(1, 8)]
    assert numbers_of(selection) == {"too_hard": 10, "too_easy": 30}
    assert sum(selection.sampled.values()) == 11
    # The bin is that of what was sampled, not of what is left of it.
    left = select([group("R+V+ R+V+ R-V+ R-V+ R-R+")], SelectionRules(), seed=0)
    assert set(left.accuracies) == {Fraction(3, 5)} and len(left.trajectories) == 4


def test_responses_are_dropped_by_reason_and_balanced() -> None:
    texts = "R+V+ R+ R+V-R- R-V+R-V+R-V- V+R- R-V+ R-V- R-R-V+"
    rules = SelectionRules(0.0, 1.0, max_actions=4)
    selection = select([group(texts)], rules, seed=3)
    assert numbers_of(selection) == {
        "not_alternating": 2,
        "unverified": 1,
        "too_long": 1,
    }
    # Two of the four that are left are right: R+V+, and R+V-R- once it is cut.
    assert sorted(kept(selection).split()) == ["R+V+", "R+V-", "R-V+", "R-V-"]
    figures = selection.figures()
    assert figures["num_responses_kept"] == 4 and figures["num_responses_right"] == 2
    assert figures["num_responses_cut"] == 1 and figures["num_dropped_too_long"] == 1


@pytest.mark.parametrize("right", [1, 3, 5])
def test_a_balance_is_even_and_depends_on_seed_and_group_alone(right: int) -> None:
    texts = " ".join(["R+V+"] * right + ["R-V+"] * 4)
    groups = [group(texts, number) for number in range(6)]
    rules = SelectionRules(0.0, 1.0)
    selection = select(groups, rules, seed=1)
    for number in range(6):
        answers = [t.reward.correct for t in selection.trajectories if t.group_id == number]
        assert sum(answers) == len(answers) - sum(answers) == min(right, 4)
    again = select(groups, rules, seed=1)
    assert [id(t) for t in again.trajectories] == [id(t) for t in selection.trajectories]
    # Other groups beside it change nothing.
    first = select(groups[:1], rules, seed=1).trajectories
    assert [id(t) for t in first] == [id(t) for t in selection.trajectories if t.group_id == 0]
    others = {tuple(map(id, select(groups, rules, seed=s).trajectories)) for s in range(8)}
    assert len(others) > 1


def test_nothing_left_says_what_there_was() -> None:
    selection = select([group("R+V+ R+V+"), group("R-V+ R-V+", 1)], SelectionRules(), seed=0)
    assert selection.trajectories == () and selection.accuracies_in_words() == "1 of 0, 1 of 1"
    assert numbers_of(selection) == {"too_hard": 2, "too_easy": 2}


def test_an_ungraded_response_is_named() -> None:
    bare = response("R+V+").with_reward(RewardBreakdown({}))
    with pytest.raises(ValueError, match="problem 'p0' is not graded"):
        select([[bare]], SelectionRules(), seed=0)


def source(texts: str = GROUP) -> OfflineSource:
    trajectories = group(texts)
    accuracies = [Fraction(1, 2)] * len(trajectories)
    credits = offline_credits(trajectories, accuracies, baseline="accuracy_position", min_count=1)
    return OfflineSource(trajectories, credits, batch_size=3, seed=2)


def test_each_comes_once_an_epoch_with_its_credit_and_a_saved_state_goes_on() -> None:
    first, resumed = source(), source()
    seen = list(first.next(0).trajectories)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in (1, 2, 3):
        expected, got = first.next(step), resumed.next(step)
        assert list(map(written, got.trajectories)) == list(map(written, expected.trajectories))
        assert got.credits is not None and expected.credits is not None
        for ours, theirs in zip(got.credits, expected.credits, strict=True):
            assert ours.baselines.tobytes() == theirs.baselines.tobytes()
        seen += expected.trajectories
    assert sorted(map(written, seen[:8])) == sorted(GROUP.split())
    assert first.sync(NoWeights(), version=1) is None


def test_another_set_does_not_go_on() -> None:
    with pytest.raises(ValueError, match=r"cannot resume: .*reward\.timeout_s"):
        source(GROUP.replace("R-V-", "R-V+", 1)).load_state_dict(source().state_dict())
