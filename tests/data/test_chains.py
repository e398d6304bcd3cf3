# SPDX-License-Identifier: Apache-2.0
"""Chains of operations: against arithmetic on strings of digits, with true verifications."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satori_fast.data import chains
from satori_fast.data.chains import (
    LEVELS,
    Chain,
    ChainProblems,
    Level,
    Operation,
    check_steps,
    confirming_text,
    domain_words,
    draw_chain,
    expert_steps,
    parse_chain,
    resolving_text,
    solution_text,
    step_titles,
)
from satori_fast.data.tokenizer import build_word_tokenizer, check_known
from satori_fast.grading import check_gold, grade
from satori_fast.types import Problem

QUESTION = "start 37 plus 25 minus 8 swap plus 9"
CHAIN = parse_chain(QUESTION)
OPERATIONS = st.one_of(
    st.builds(Operation, st.sampled_from(["plus", "minus"]), st.integers(0, 99)),
    st.just(Operation("swap")),
)
CHAINS = st.builds(
    Chain, st.integers(0, 99), st.lists(OPERATIONS, min_size=1, max_size=16).map(tuple)
)


def problems(num: int, *, level: int = 6, split: str = "train", seed: int = 0) -> list[Problem]:
    return list(ChainProblems(num, levels=[level], split=split, seed=seed))  # type: ignore[arg-type]


def digits(number: int) -> str:
    """The last two digits, counted up and down one by one: no arithmetic of the package's."""
    return f"{number:02d}"[-2:]


def worked_out(question: str) -> int:
    """The answer, read from the question and counted on strings of two digits."""
    words = question.split()[1:]
    value = digits(int(words.pop(0)))
    while words:
        kind = words.pop(0)
        if kind == "swap":
            value = value[::-1]
        elif kind == "plus":
            value = digits(int(value) + int(words.pop(0)))
        else:
            value = digits(int(value) + 100 - int(words.pop(0)))
    return int(value)


def equations_hold(text: str) -> bool:
    """Every ``a + b = c``, ``a - b = c`` and ``swap a = c`` of a text is true, by congruence."""
    sums = re.findall(r"([0-9]+) ([+-]) ([0-9]+) = ([0-9]+)", text)
    swaps = re.findall(r"swap ([0-9]+) = ([0-9]+)", text)
    assert len(sums) + len(swaps) == text.count("=")
    return all(
        (int(a) + int(sign + b) - int(c)) % 100 == 0 and 0 <= int(c) < 100 for a, sign, b, c in sums
    ) and all(f"{int(a):02d}" == f"{int(c):02d}"[::-1] for a, c in swaps)


# --- problems ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_problems_have_their_level_and_the_answer_of_counting(level: int) -> None:
    for problem in problems(20, level=level):
        chain = parse_chain(problem.question)
        assert len(chain.operations) == level and problem.level == str(level)
        operands = [each.operand for each in chain.operations if each.kind != "swap"]
        assert all(1 <= operand <= LEVELS[level].largest for operand in operands)
        assert problem.answer == str(worked_out(problem.question))


def test_levels_are_four_to_sixteen_operations() -> None:
    assert sorted(LEVELS) == list(range(4, 17))
    with pytest.raises(ValueError, match=r"data\.levels has \[3\]: choose from \[4, 5, .* 16\]"):
        ChainProblems(1, levels=[3], split="train", seed=0)


def test_halves_are_disjoint_whatever_the_seed() -> None:
    train = {p.question for seed in range(3) for p in problems(400, level=4, seed=seed)}
    heldout = {p.question for p in problems(300, level=4, split="heldout")}
    assert len(heldout) == 300 and not train & heldout
    assert all(parse_chain(question).heldout for question in heldout)
    assert not any(parse_chain(question).heldout for question in train)


def test_problems_are_all_different_and_made_again_identically() -> None:
    first = problems(200)
    assert len({p.question for p in first}) == len({p.problem_id for p in first}) == 200
    assert problems(200) == first and problems(50) == first[:50]
    assert problems(200, seed=1) != first
    assert first[7].problem_id == "chains-6/train/7"


def test_levels_alternate() -> None:
    mixed = ChainProblems(6, levels=[4, 16], split="train", seed=0)
    assert [p.level for p in mixed] == ["4", "16"] * 3
    assert [p.question for p in mixed][::2] == [p.question for p in problems(3, level=4)]


def test_draws_are_even() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_chain(Level(num_operations=8, largest=3), rng) for _ in range(1000)]
    each = [operation for chain in drawn for operation in chain.operations]
    counts = {kind: sum(o.kind == kind for o in each) for kind in ("plus", "minus", "swap")}
    # Five standard errors around a third; the same for the operands of two thirds.
    assert all(abs(n - 8000 / 3) < 5 * np.sqrt(8000 * 2 / 9) for n in counts.values())
    for operand in (1, 2, 3):
        found = sum(o.operand == operand for o in each)
        assert abs(found - 8000 * 2 / 9) < 5 * np.sqrt(8000 * 2 / 9 * 7 / 9)
    assert min(c.start for c in drawn) == 0 and max(c.start for c in drawn) == 99


# --- chains and their text -----------------------------------------------------------------------


def test_examples_of_the_docstring() -> None:
    assert CHAIN.question == QUESTION and CHAIN.answer == "54"
    solution = "37 + 25 = 62 ; 62 - 8 = 54 ; swap 54 = 45 ; 45 + 9 = 54 ; \\boxed{ 54 }"
    back = "back 54 - 9 = 45 ; swap 45 = 54 ; 54 + 8 = 62 ; 62 - 25 = 37 ; start 37 right"
    forward = "forward 37 + 25 = 62 ; 62 - 8 = 54 ; swap 54 = 45 ; 45 + 9 = 54 ; box 54 right"
    assert solution_text(CHAIN) == solution
    assert confirming_text(CHAIN, 54) == back
    assert resolving_text(CHAIN, 54) == forward
    assert chains.__doc__ is not None
    for text in (QUESTION, solution, back, forward):
        assert f" {text}\n" in chains.__doc__


@pytest.mark.parametrize(
    ("operation", "before", "step"),
    [
        (Operation("plus", 25), 37, "37 + 25 = 62"),
        (Operation("plus", 25), 90, "90 + 25 = 15"),
        (Operation("plus", 1), 99, "99 + 1 = 0"),
        (Operation("minus", 25), 8, "8 - 25 = 83"),
        (Operation("minus", 8), 8, "8 - 8 = 0"),
        (Operation("swap"), 54, "swap 54 = 45"),
        (Operation("swap"), 7, "swap 7 = 70"),
        (Operation("swap"), 70, "swap 70 = 7"),
        (Operation("swap"), 0, "swap 0 = 0"),
        (Operation("swap"), 33, "swap 33 = 33"),
    ],
)
def test_steps_wrap_around_and_swap_two_digits(
    operation: Operation, before: int, step: str
) -> None:
    assert operation.step(before) == step


@given(OPERATIONS, st.integers(0, 99))
def test_an_inverse_takes_every_operation_back(operation: Operation, value: int) -> None:
    assert operation.inverse.apply(operation.apply(value)) == value
    assert operation.inverse.inverse == operation


@given(CHAINS)
def test_question_reads_back(chain: Chain) -> None:
    assert parse_chain(chain.question) == chain
    assert chain.answer == str(worked_out(chain.question))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "start 37",
        "37 plus 25",
        "start 37 plus",
        "start 37 plus 25 minus",
        "start 37 plus x",
        "start 37 swap 5",
        "start 37 times 5",
        "start 100 plus 5",
        "start 37 plus 100",
        "start 37 plus -5",
        "start 07 plus 5",
        "start 7 plus 05",
        "start 37  plus 25",
        "start 37 plus 25 ",
        "start 37 plus 25\n",
        "start 37 plus ٢",
        "p 7 q 1 r 9 pick 2 sum 8",
    ],
)
def test_other_text_is_no_chain(text: str) -> None:
    with pytest.raises(ValueError, match="not a chain of the built-in domain"):
        parse_chain(text)


@given(CHAINS)
def test_the_expert_does_what_the_titles_say(chain: Chain) -> None:
    steps, titles = expert_steps(chain), step_titles(chain)
    assert " ".join([f"start {chain.start}", *titles]) == f"{chain.question} answer"
    assert len(steps) == len(titles) and steps[-1] == f"\\boxed{{ {worked_out(chain.question)} }}"
    for step, title in zip(steps[:-1], titles[:-1], strict=True):
        sign = {"plus": "+", "minus": "-"}.get(title.split()[0])
        operand = title.split()[-1]
        assert f" {sign} {operand} = " in step if sign else step.startswith("swap ")
    text = solution_text(chain)
    assert equations_hold(text) and text.split(" ; ") == list(steps)
    # Each goes on from where the one before it ended.
    numbers = [re.findall(r"[0-9]+", step) for step in steps]
    assert [n[0] for n in numbers] == [str(chain.start), *(n[-1] for n in numbers[:-1])]


def test_the_grader_accepts_solutions_and_no_slip() -> None:
    for problem in problems(20):
        assert problem.answer is not None
        check_gold(problem.answer)
        text = solution_text(parse_chain(problem.question))
        assert grade(text, problem.answer).correct
        other = f"\\boxed{{ {(int(problem.answer) + 1) % 100} }}"
        assert not grade(other, problem.answer).correct


# --- verifications -------------------------------------------------------------------------------


@given(CHAINS, st.integers(0, 99))
def test_verifications_are_true_of_right_and_wrong_answers(chain: Chain, answer: int) -> None:
    right = worked_out(chain.question) == answer
    for text in (confirming_text(chain, answer), resolving_text(chain, answer)):
        assert equations_hold(text)
        assert text.split()[-1] == ("right" if right else "wrong")
        assert "right" not in text.split()[:-1] and "wrong" not in text.split()[:-1]


@given(CHAINS, st.integers(0, 99))
def test_what_verifications_compare(chain: Chain, answer: int) -> None:
    back = confirming_text(chain, answer).split(" ; ")
    assert back[0].split()[0] == "back" and len(back) == len(chain.operations) + 1
    assert str(answer) in back[0].split()[1:3]
    reached = back[-2].split()[-1]
    assert back[-1] == f"start {chain.start} " + (
        "right" if reached == str(chain.start) else "wrong"
    )
    forward = resolving_text(chain, answer).split(" ; ")
    assert " ; ".join(forward[:-1]) == "forward " + " ; ".join(expert_steps(chain)[:-1])
    assert forward[-1].startswith(f"box {answer} ")


@pytest.mark.parametrize("answer", [-1, 100])
def test_answers_that_no_chain_has(answer: int) -> None:
    for write in (confirming_text, resolving_text):
        with pytest.raises(ValueError, match="it is from 0 to 99"):
            write(CHAIN, answer)


# --- single steps --------------------------------------------------------------------------------

BOX = " ; \\boxed{ 54 }"


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (f"37 + 25 = 62 ; 62 - 8 = 54 ; swap 54 = 45 ; 45 + 9 = 54{BOX}", "1111"),
        (f"37 + 25 = 63 ; 63 - 8 = 55 ; swap 55 = 55 ; 55 + 9 = 64{BOX}", "0111"),  # one slip
        (f"37 + 25 = 62 ; 61 - 8 = 53 ; swap 53 = 35 ; 35 + 9 = 44{BOX}", "1011"),  # copied wrongly
        (
            f"37 + 25 = 62 ; 62 - 9 = 53 ; swap 53 = 35 ; 35 + 9 = 44{BOX}",
            "1011",
        ),  # another operand
        (
            f"37 + 25 = 62 ; 62 + 8 = 70 ; swap 70 = 7 ; 7 + 9 = 16{BOX}",
            "1011",
        ),  # another operation
        (f"37 + 25 = 62 ; swap 62 = 26 ; 26 + 9 = 35{BOX}", "1000"),  # one left out
        (f"37 + 25 = 62 ; 62 - 8 = 54{BOX}", "1100"),
        ("37 + 25 = 62 ; 62 - 8 = 54 ; swap 54 = 45 ; 45 + 9", "1110"),  # cut off
        ("37 + 25 = 62 ; 62 - 8 = 54 ; swap 54 = 45 ; 45 + 9 = 54 ; 54 + 9 = 63", "1111"),
        ("37 + 25 = 62 ; nothing ; swap 54 = 45 ; 45 + 9 = 54", "1001"),
        ("37 + 25 = 62 ; 62 - 8 = 054 ; swap 54 = 45", "1000"),
        ("37 + 25 = 162 ; 162 - 8 = 54", "0000"),
        ("  37 + 25\n= 62; 62 - 8 = 54 ;", "1100"),
        ("\\boxed{ 54 }", "0000"),
        ("", "0000"),
    ],
)
def test_single_steps(text: str, right: str) -> None:
    assert "".join(str(int(ok)) for ok in check_steps(text, CHAIN)) == right


@settings(max_examples=40)
@given(CHAINS)
def test_every_step_of_the_expert_is_right(chain: Chain) -> None:
    assert check_steps(solution_text(chain), chain) == (True,) * len(chain.operations)


# --- words ---------------------------------------------------------------------------------------


def test_words_differ() -> None:
    assert len(set(domain_words())) == len(domain_words())


@settings(max_examples=60, deadline=None)
@given(CHAINS, st.integers(0, 99))
def test_tokenizer_knows_every_word(chain: Chain, answer: int) -> None:
    tokenizer = build_word_tokenizer(domain_words())
    texts = [chain.question, solution_text(chain), *step_titles(chain), *expert_steps(chain)]
    texts += [confirming_text(chain, answer), resolving_text(chain, answer)]
    for text in texts:
        check_known(tokenizer, text)
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
