# SPDX-License-Identifier: Apache-2.0
"""Chains as actions: steps read back, checks worked by hand, and what stands after corrections."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from satori_fast.data import chain_actions
from satori_fast.data.chain_actions import (
    WrittenStep,
    check_text,
    is_answer,
    read_step,
    slip_counts,
    standing_steps,
)
from satori_fast.data.chains import Operation, check_steps, expert_steps, parse_chain
from satori_fast.data.formats.coat import CONTINUE, EXPLORE, REFLECT

CHAIN = parse_chain("start 37 plus 25 minus 8 swap plus 9")
LOCAL = (
    "37 + 25 = 62<|continue|> 62 - 8 = 70<|reflect|> 62 - 8 = 54 wrong<|explore|> 62 - 8 = 54"
    "<|continue|> swap 54 = 45<|continue|> 45 + 9 = 54<|continue|> \\boxed{ 54 }"
)
WRONG = (
    "37 + 25 = 62<|continue|> 62 - 8 = 70<|continue|> swap 70 = 7<|continue|> 7 + 9 = 16"
    "<|continue|> \\boxed{ 16 }"
)
WHOLE = f"{WRONG}{REFLECT} 37 + 25 = 62 ; 62 - 8 = 54 wrong{EXPLORE} 62 - 8 = 54"


# --- single steps --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "operand", "value", "result", "corrected"),
    [
        ("37 + 25 = 62", "plus", 25, 37, 62, "37 + 25 = 62"),
        ("62 - 8 = 70", "minus", 8, 62, 70, "62 - 8 = 54"),
        ("3 - 8 = 5", "minus", 8, 3, 5, "3 - 8 = 95"),
        ("swap 7 = 7", "swap", 0, 7, 7, "swap 7 = 70"),
    ],
)
def test_steps_are_read(
    text: str, kind: str, operand: int, value: int, result: int, corrected: str
) -> None:
    written = read_step(text)
    assert (written.operation.kind, written.operation.operand) == (kind, operand)
    assert (written.value, written.result) == (value, result)
    assert written.corrected == corrected
    assert written.is_slip == (corrected != text)


@given(
    st.one_of(
        st.builds(Operation, st.sampled_from(["plus", "minus"]), st.integers(0, 99)),
        st.just(Operation("swap")),
    ),
    st.integers(0, 99),
    st.integers(0, 99),
)
def test_what_is_written_reads_back(operation: Operation, value: int, result: int) -> None:
    assert read_step(operation.step(value, result)) == WrittenStep(operation, value, result)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "37 + 25",
        "37 + 25 =",
        "37 * 25 = 62",
        "swap = 7",
        "\\boxed{ 54 }",
        "137 + 25 = 62",
        "37 + 25 = 62 right",
        "37 + 25 = 62 ; 62 - 8 = 54",
    ],
)
def test_other_text_is_no_step(text: str) -> None:
    with pytest.raises(ValueError, match="not an operation of a chain"):
        read_step(text)


# --- checks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "check"),
    [
        (["62 - 8 = 54"], "62 - 8 = 54 right"),
        (["62 - 8 = 70"], "62 - 8 = 54 wrong"),
        # What follows a slip is not looked at, right or wrong.
        (["37 + 25 = 62", "62 - 8 = 70", "swap 70 = 70"], "37 + 25 = 62 ; 62 - 8 = 54 wrong"),
        # From the written left side, not from where it ought to come.
        (["37 + 25 = 62", "61 - 8 = 53"], "37 + 25 = 62 ; 61 - 8 = 53 right"),
    ],
)
def test_checks_by_hand(steps: list[str], check: str) -> None:
    assert check_text(steps) == check


def test_check_of_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="not an operation"):
        check_text(["37 + 25 = 62", "\\boxed{ 62 }"])
    assert is_answer("\\boxed{ 62 }") and not is_answer("37 + 25 = 62")


# --- what stands ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "standing"),
    [
        ("", ()),
        (LOCAL, expert_steps(CHAIN)),
        (WRONG, ("37 + 25 = 62", "62 - 8 = 70", "swap 70 = 7", "7 + 9 = 16", "\\boxed{ 16 }")),
        # All from the operation that the whole check ended with falls, the answer too.
        (WHOLE, ("37 + 25 = 62", "62 - 8 = 54")),
        (f"{WHOLE}{CONTINUE} swap 54 = 45", ("37 + 25 = 62", "62 - 8 = 54", "swap 54 = 45")),
        # A second correction, again after the answer: the check goes over what stands.
        (
            f"{WHOLE}{CONTINUE} swap 54 = 54{CONTINUE} 54 + 9 = 63{CONTINUE} \\boxed{{ 63 }}"
            f"{REFLECT} 37 + 25 = 62 ; 62 - 8 = 54 ; swap 54 = 45 wrong{EXPLORE} swap 54 = 45",
            ("37 + 25 = 62", "62 - 8 = 54", "swap 54 = 45"),
        ),
        # A verification changes nothing, of a step or of an answer.
        (
            f"37 + 25 = 62{REFLECT} 37 + 25 = 62 right{CONTINUE} 62 - 8 = 54",
            expert_steps(CHAIN)[:2],
        ),
        (f"{LOCAL}{REFLECT} 37 + 25 = 62 right", expert_steps(CHAIN)),
        # What no agent writes is read as well.
        (f"{REFLECT} hm{EXPLORE} 1 + 1 = 2", ("1 + 1 = 2",)),
    ],
)
def test_what_stands(text: str, standing: tuple[str, ...]) -> None:
    assert standing_steps(text) == standing


def test_corrected_solutions_are_right_step_by_step() -> None:
    *steps, answer = standing_steps(LOCAL)
    assert check_steps(" ; ".join(steps), CHAIN) == (True,) * 4
    assert answer == "\\boxed{ 54 }"


# --- slips of an evaluation ----------------------------------------------------------------------

SLIP, LATER = f"37 + 25 = 62{CONTINUE} 62 - 8 = 70", f"{CONTINUE} swap 70 = 7{CONTINUE} 7 + 9 = 16"


@pytest.mark.parametrize(
    ("response", "slips", "mended"),
    [
        (LOCAL, 1, 1.0),
        (CONTINUE.join(expert_steps(CHAIN)), 0, None),
        # What goes on rightly from a slip is none; the check of the answer is no local one.
        (WRONG, 1, 0.0),
        (f"{WHOLE}{CONTINUE} swap 54 = 45", 1, 0.0),
        # Confirmed, left without a correction, corrected wrongly, which is a slip too.
        (f"{SLIP}{REFLECT} 62 - 8 = 70 right{LATER}", 1, 0.0),
        (f"{SLIP}{REFLECT} 62 - 8 = 54 wrong{LATER}", 1, 0.0),
        (f"{SLIP}{REFLECT} 62 - 8 = 53 wrong{EXPLORE} 62 - 8 = 53", 2, 0.0),
        # Left alone; corrected wrongly; and that correction mended.
        (
            f"37 + 25 = 12{CONTINUE} 12 - 8 = 20{REFLECT} 12 - 8 = 5 wrong{EXPLORE} 12 - 8 = 5"
            f"{REFLECT} 12 - 8 = 4 wrong{EXPLORE} 12 - 8 = 4",
            3,
            1 / 3,
        ),
        # True equations that are not what is asked there, or do not go on from the number before.
        (f"37 + 25 = 62{CONTINUE} 62 - 7 = 55", 1, 0.0),
        (f"37 + 25 = 62{CONTINUE} 61 - 8 = 53{CONTINUE} swap 53 = 35", 1, 0.0),
        # After words no number stands; what comes after the last operation is not counted.
        (f"hm{CONTINUE} 62 - 8 = 54{CONTINUE} swap 54 = 45", 2, 0.0),
        (f"{CONTINUE.join(expert_steps(CHAIN)[:-1])}{CONTINUE} 54 + 9 = 1", 0, None),
        ("", 0, None),
    ],
)
def test_slips_are_counted(response: str, slips: int, mended: float | None) -> None:
    counts = slip_counts(CHAIN.question, response)
    assert counts["slips"] == slips
    assert counts.get("slips_mended") == (None if mended is None else pytest.approx(mended))


def test_examples_of_the_docstring() -> None:
    assert chain_actions.__doc__ is not None
    documented = "".join(line.removeprefix("    ") for line in chain_actions.__doc__.split("\n"))
    assert LOCAL in documented
    assert WHOLE.removeprefix(WRONG) in documented
