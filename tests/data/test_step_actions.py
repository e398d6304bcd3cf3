# SPDX-License-Identifier: Apache-2.0
"""Steps as actions, in a domain of one letter a step: what stands, and which slips are mended."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from satori_fast.data.step_actions import StepReader, content

# A solution is "a", "b", "c", then the answer "=". A check lists the steps that it goes through.
READER = StepReader(lambda step: step == "=", len)


def is_right(steps: Sequence[str]) -> bool:
    return steps[-1] == "abc"[len(steps) - 1]


def response(actions: str) -> str:
    """``"a b ?x !y"``: "?" opens a reflection, "!" an exploration, nothing a step."""
    opened = {"?": "<|reflect|> ", "!": "<|explore|> "}
    parts = [
        opened.get(word[0], "<|continue|> ") + word.removeprefix(word[0] if word[0] in "?!" else "")
        for word in actions.split()
    ]
    return "".join(parts).removeprefix("<|continue|> ")


@pytest.mark.parametrize(
    ("actions", "standing"),
    [
        ("a b", "ab"),
        ("a x ?b !b c =", "abc="),  # a check of one step, at once
        ("a x c = ?ab !b c =", "abc="),  # a check of all, after the answer: what followed falls
        ("a x c = ?ab !b", "ab"),
        ("a b ?b c", "abc"),  # a check that finds nothing
        ("x ?a !y ?a !a b", "ab"),  # a correction that is wrong itself
        ("x y !b", "xb"),  # nothing was checked: the last step is done again
        ("a ?a x !b c", "abc"),  # nor here, since what was checked is another
        ("a x ?b !y !b", "ab"),
        ("?", ""),
    ],
)
def test_what_stands(actions: str, standing: str) -> None:
    assert "".join(READER.standing_steps(response(actions))) == standing


@pytest.mark.parametrize(
    ("actions", "slips", "mended"),
    [
        ("a b c =", 0, None),
        ("a x ?b !b c =", 1, 1.0),
        ("a x c = ?ab !b c =", 1, 0.0),  # mended, but not at once
        ("x ?a !y b c =", 2, 0.0),  # a wrong correction is a slip too
        ("x ?a !a y c", 2, 0.5),
        ("a b c d =", 0, None),  # more steps than there are
        ("a x ?b c", 1, 0.0),  # seen, not mended
    ],
)
def test_slips(actions: str, slips: int, mended: float | None) -> None:
    counts = READER.slip_counts(response(actions), 3, is_right)
    assert (counts["slips"], counts.get("slips_mended")) == (slips, mended)


@pytest.mark.parametrize(
    ("actions", "mends", "breaks"),
    [
        ("a b c =", 0, 0),
        ("a x ?b !b c =", 1, 0),
        ("a x c = ?ab !b c =", 1, 0),  # behind a check of all
        ("a b ?b !x c", 0, 1),
        ("a b ?b !x ?b !b c", 1, 1),
        ("a b ?b !b c", 0, 0),  # right before and after
        ("x ?a !y b c =", 0, 0),  # wrong before and after
        ("a x ?b c", 0, 0),  # seen, not mended
        ("a b !x c", 0, 1),  # nothing was checked: the last step is done again
        ("a ?a b !b c", 0, 0),  # the first was checked, the second is done again
        ("a b c = ?abc= !=", 0, 0),  # an answer is no step
    ],
)
def test_mends_and_breaks(actions: str, mends: int, breaks: int) -> None:
    counts = READER.slip_counts(response(actions), 3, is_right)
    assert (counts["mends"], counts["breaks"]) == (mends, breaks)


def test_content_is_the_text_without_its_token() -> None:
    assert content("<|explore|> again ") == "again" and content("first") == "first"
