# SPDX-License-Identifier: Apache-2.0
"""Word problems as actions: checks worked by hand, and slips counted in what models may write."""

from __future__ import annotations

import pytest

from satori_fast.data.stories import parse_story
from satori_fast.data.word_actions import (
    first_slip,
    is_answer,
    read_step,
    slip_counts,
    standing_steps,
    step_again,
    step_check,
    whole_check,
)
from satori_fast.data.word_problems import Equation, expert_steps

QUESTION = (
    "Leo has 14 dollars. He earns 9 dollars for washing cars. Next, he spends 5 dollars on a book. "
    "How many dollars does Leo have now?"
)
STORY = parse_story(QUESTION)
RIGHT = (
    "He earns 9 dollars, so he has 14 + 9 = 23 dollars.",
    "He spends 5 dollars on a book, so he has 23 - 5 = 18 dollars.",
    "The answer is \\boxed{18}.",
)
ADDED = "He spends 5 dollars on a book, so he has 23 + 5 = 28 dollars."
CHECK = "<|reflect|> Let me check this step: he spends 5 dollars on a book, so it is 23 - 5 = 18."
AGAIN = "I do this step again: he spends 5 dollars on a book, so he has 23 - 5 = 18 dollars."


def test_steps_are_read_by_their_equation() -> None:
    assert expert_steps(STORY) == RIGHT
    assert read_step(ADDED) == Equation(23, "add", 5, 28)
    assert read_step("so he has 23+5 =28 dollars.") == read_step(ADDED)  # spaces as they come
    assert [is_answer(step) for step in RIGHT] == [False, False, True]


@pytest.mark.parametrize("text", ["He earns 9 dollars.", "1 + 1 = 2 and 2 + 2 = 4", RIGHT[2], ""])
def test_other_text_is_no_step(text: str) -> None:
    with pytest.raises(ValueError, match="not a step with one equation"):
        read_step(text)


@pytest.mark.parametrize(
    ("step", "verdict"),
    [
        (RIGHT[1], "That is right."),
        (ADDED, "That is wrong, I have to subtract and not to add."),
        ("23 - 9 = 14", "That is wrong, the number is 5 and not 9."),
        ("14 - 5 = 9", "That is wrong, I have to go on from 23."),
        ("23 - 5 = 17", "That is wrong, it is not 17."),
    ],
)
def test_a_check_says_what_is_wrong(step: str, verdict: str) -> None:
    again = "Let me check this step: he spends 5 dollars on a book, so it is 23 - 5 = 18."
    assert step_check(STORY, 1, (RIGHT[0], step)) == f"{again} {verdict}"
    whole = "Let me check all steps: 14 + 9 = 23, 23 - 5 = 18."
    assert whole_check(STORY, (RIGHT[0], step)) == f"{whole} {verdict}"
    assert first_slip(STORY, (RIGHT[0], step)) == (None if step == RIGHT[1] else 1)


def test_a_check_of_all_ends_with_the_first_slip() -> None:
    steps = ("14 + 9 = 24", "24 - 5 = 20")
    assert whole_check(STORY, steps) == (
        "Let me check all steps: 14 + 9 = 23. That is wrong, it is not 24."
    )
    assert first_slip(STORY, steps) == 0
    # From what is written the second would have been 19.
    assert step_check(STORY, 1, steps).endswith(
        "so it is 24 - 5 = 19. That is wrong, it is not 20."
    )


def test_a_step_is_done_again() -> None:
    assert step_again(STORY, 1, 23) == AGAIN


def test_what_cannot_be_the_steps_of_a_solution_is_refused() -> None:
    with pytest.raises(ValueError, match="not a step with one equation"):
        whole_check(STORY, ("Nine more.", RIGHT[1]))
    with pytest.raises(ValueError, match="not the steps of a solution"):
        whole_check(STORY, (*RIGHT[:2], "18 + 1 = 19"))
    with pytest.raises(ValueError, match="not the steps of a solution"):
        step_check(STORY, 1, ("14 - 12 = 2", "2 - 5 = 0"))


@pytest.mark.parametrize(
    ("response", "standing"),
    [
        (f"{RIGHT[0]}<|continue|> {ADDED}{CHECK} That is wrong.<|explore|> {AGAIN}", (1, AGAIN)),
        (
            f"{RIGHT[0]}<|continue|> {ADDED}<|continue|> The answer is \\boxed{{28}}.<|reflect|> "
            f"Let me check all steps: 14 + 9 = 23, 23 - 5 = 18. That is wrong.<|explore|> {AGAIN}",
            (1, AGAIN),
        ),
        (f"{RIGHT[0]}<|continue|> {RIGHT[1]}{CHECK} That is right.", (1, RIGHT[1])),
    ],
)
def test_what_stands(response: str, standing: tuple[int, str]) -> None:
    kept, last = standing
    assert standing_steps(response) == (*RIGHT[:kept], last)


@pytest.mark.parametrize(
    ("response", "slips", "mended"),
    [
        ("<|continue|> ".join(RIGHT), 0, None),
        (f"{RIGHT[0]}<|continue|> {ADDED}<|continue|> The answer is \\boxed{{28}}.", 1, 0.0),
        (f"{RIGHT[0]}<|continue|> {ADDED}{CHECK} Wrong.<|explore|> {AGAIN}", 1, 1.0),
        # In words of its own, a step that goes on rightly from a wrong number is none.
        ("14 + 9 = 24<|continue|> so 24 - 5 = 19 left", 1, 0.0),
        ("First he earns money.<|continue|> 23 - 5 = 18", 2, 0.0),
        ("", 0, None),
    ],
)
def test_slips_are_counted(response: str, slips: int, mended: float | None) -> None:
    counts = slip_counts(QUESTION, response)
    assert counts["slips"] == slips
    assert counts.get("slips_mended") == (None if mended is None else pytest.approx(mended))
