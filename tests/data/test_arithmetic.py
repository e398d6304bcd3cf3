# SPDX-License-Identifier: Apache-2.0
"""The built-in domain against brute force: one solution, honest checks, two disjoint halves."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satori_fast.data import arithmetic
from satori_fast.data.arithmetic import (
    LEVELS,
    NAMES,
    ArithmeticProblems,
    Level,
    Puzzle,
    bare_check_text,
    check_text,
    domain_words,
    draw_puzzle,
    expert_steps,
    name_answer,
    parse_answer,
    parse_puzzle,
    verdict,
)
from satori_fast.data.drawn_problems import HELDOUT_FRACTION
from satori_fast.data.tokenizer import build_word_tokenizer, check_known
from satori_fast.grading import check_gold, grade
from satori_fast.types import Problem

PUZZLE = parse_puzzle("p 7 q 1 r 9 s 4 t 8 u 3 pick 3 sum 21")


def problems(num: int, *, level: int = 2, split: str = "train", seed: int = 0) -> list[Problem]:
    return list(ArithmeticProblems(num, levels=[level], split=split, seed=seed))  # type: ignore[arg-type]


def named_numbers(question: str) -> dict[str, int]:
    """The question read apart from the package: names and numbers."""
    words = question.split()
    given_words = words[: words.index("pick")]
    return {name: int(n) for name, n in zip(given_words[::2], given_words[1::2], strict=True)}


# --- problems ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_answer_is_the_only_one_by_brute_force(level: int) -> None:
    for problem in problems(12, level=level):
        numbers = named_numbers(problem.question)
        words = problem.question.split()
        num_picked, total = int(words[words.index("pick") + 1]), int(words[-1])
        assert len(numbers) == LEVELS[level].num_given
        assert num_picked == LEVELS[level].num_picked
        assert len(set(numbers.values())) == len(numbers)
        assert all(1 <= n <= LEVELS[level].largest for n in numbers.values())
        right = [
            names
            for names in combinations(numbers, num_picked)
            if sum(numbers[name] for name in names) == total
        ]
        assert [" ".join(names) for names in right] == [problem.answer]


def test_grader_accepts_the_answer_and_nothing_else() -> None:
    for problem in problems(6):
        assert problem.answer is not None
        check_gold(problem.answer)
        assert grade(f"\\boxed{{ {problem.answer} }}", problem.answer).correct
        names = named_numbers(problem.question)
        for choice in combinations(names, 3):
            answer = " ".join(choice)
            assert grade(f"\\boxed{{ {answer} }}", problem.answer).correct is (
                answer == problem.answer
            )
        assert not grade(problem.answer, problem.answer).correct


def test_halves_are_disjoint_whatever_the_seed() -> None:
    train = {p.question for seed in range(3) for p in problems(400, level=1, seed=seed)}
    heldout = {p.question for p in problems(300, level=1, split="heldout")}
    assert not train & heldout
    assert len(heldout) == 300
    assert all(parse_puzzle(question).heldout for question in heldout)
    assert not any(parse_puzzle(question).heldout for question in train)


def test_held_out_share() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_puzzle(LEVELS[1], rng).heldout for _ in range(2000)]
    # Four standard errors around a fifth.
    assert abs(np.mean(drawn) - HELDOUT_FRACTION) < 4 * np.sqrt(0.2 * 0.8 / 2000)


def test_problems_are_all_different_and_made_again_identically() -> None:
    first = problems(200)
    assert len({p.question for p in first}) == len({p.problem_id for p in first}) == 200
    assert problems(200) == first
    assert problems(50) == first[:50]
    assert problems(200, seed=1) != first
    assert all(p.prefix is None for p in first)


def test_levels_alternate_and_do_not_disturb_each_other() -> None:
    mixed = ArithmeticProblems(9, levels=[1, 2, 1], split="train", seed=0)
    assert len(mixed) == 9
    levels = [p.problem_id.split("/")[0] for p in mixed]
    assert levels == ["arithmetic-1", "arithmetic-2", "arithmetic-1"] * 3
    assert [p.level for p in mixed] == ["1", "2", "1"] * 3
    level_2 = [mixed[i].question for i in (1, 4, 7)]
    assert level_2 == [p.question for p in problems(3)]
    assert [p.question for p in mixed[:2]] == [mixed[0].question, mixed[1].question]


@pytest.mark.parametrize("levels", [[0], [1, 9], []])
def test_unknown_level(levels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"data\.levels has .*choose from \[1, 2, 3, 4, 5\]"):
        ArithmeticProblems(1, levels=levels, split="train", seed=0)


def test_too_many_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two of the numbers 1 to 5: 120 orders, four sums that only one pair makes.
    monkeypatch.setitem(LEVELS, 6, Level(num_given=5, num_picked=2, largest=5))
    held = [p.question for p in every_puzzle(5, 2) if p.heldout]
    assert 0 < len(held) < 480
    assert sorted(p.question for p in problems(len(held), level=6, split="heldout")) == sorted(held)
    with pytest.raises(ValueError, match="level 6 has too few different heldout problems for"):
        problems(len(held) + 1, level=6, split="heldout")
    with pytest.raises(ValueError, match="level 6 has too few different train problems for 480"):
        problems(480, level=6)


def every_puzzle(largest: int, num_picked: int) -> list[Puzzle]:
    orders = permutations(range(1, largest + 1))
    made = {
        Puzzle(numbers, num_picked, sum(choice))
        for numbers in orders
        for choice in combinations(numbers, num_picked)
    }
    return [puzzle for puzzle in made if len(puzzle.solutions) == 1]


# --- puzzles and their text ----------------------------------------------------------------------


@given(
    numbers=st.lists(st.integers(0, 99), min_size=1, max_size=len(NAMES)),
    num_picked=st.integers(1, 8),
    total=st.integers(0, 800),
)
def test_question_reads_back(numbers: list[int], num_picked: int, total: int) -> None:
    puzzle = Puzzle(tuple(numbers), num_picked, total)
    assert parse_puzzle(puzzle.question) == puzzle


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2 + 2",
        "p 7 q 1 pick 2",
        "p 7 q 1 pick 2 sum",
        "p 7 q 1 pick 2 sum eight",
        "p 7 q 1 pick 2 sum 8 now",
        "q 7 p 1 pick 2 sum 8",
        "p 7  q 1 pick 2 sum 8",
        "p 07 q 1 pick 2 sum 8",
        "p 1 q 2 r 3 s 4 t 5 u 6 v 7 w 8 x 9 pick 2 sum 8",
    ],
)
def test_other_text_is_no_puzzle(text: str) -> None:
    with pytest.raises(ValueError, match="not a problem of the built-in domain"):
        parse_puzzle(text)


def test_answers_read_back() -> None:
    for choice in permutations(range(6), 3):
        assert parse_answer(name_answer(choice), PUZZLE) == choice


@pytest.mark.parametrize("answer", ["", "p q", "p q r s", "p q q", "p q v", "p q x", "7 8 9"])
def test_answers_that_name_no_choice(answer: str) -> None:
    assert parse_answer(answer, PUZZLE) is None


# --- checks --------------------------------------------------------------------------------------


def test_examples_of_the_docstring() -> None:
    puzzle = parse_puzzle("p 7 q 1 r 9 s 4 t 8 u 3 pick 3 sum 24")
    assert puzzle.solutions == [(0, 2, 4)]
    assert check_text((0, 2, 4), puzzle) == "7 + 9 = 16 + 8 = 24 right"
    assert check_text((0, 2), puzzle) == "7 + 9 = 16 left 8"


def test_check_of_every_choice_is_true() -> None:
    numbers = named_numbers(PUZZLE.question)
    seen: set[str] = set()
    for choice in permutations(range(6), 3):
        first, second, third = (numbers[name] for name in name_answer(choice).split())
        found = first + second + third
        word = "right" if found == 21 else "over" if found > 21 else "under"
        seen.add(word)
        assert check_text(choice, PUZZLE) == (
            f"{first} + {second} = {first + second} + {third} = {found} {word}"
        )
        right = grade(f"\\boxed{{ {name_answer(sorted(choice))} }}", "r s t").correct
        assert (word == "right") is right
    assert seen == {"right", "over", "under"}


def test_a_bare_check_is_the_last_word_of_the_worked_one() -> None:
    for choice in permutations(range(6), 3):
        *_, word = check_text(choice, PUZZLE).split()
        assert bare_check_text(choice, PUZZLE) == word
    assert bare_check_text((0, 2), PUZZLE) == f"left {21 - PUZZLE.numbers[0] - PUZZLE.numbers[2]}"


def test_check_of_every_part_says_what_is_left() -> None:
    for (i,) in permutations(range(6), 1):
        first = PUZZLE.numbers[i]
        assert check_text((i,), PUZZLE) == f"{first} left {21 - first}"
    for i, j in permutations(range(6), 2):
        first, second = PUZZLE.numbers[i], PUZZLE.numbers[j]
        found = first + second
        assert check_text((i, j), PUZZLE) == f"{first} + {second} = {found} left {21 - found}"


def test_verdict() -> None:
    assert [verdict(n, 8) for n in (7, 8, 9)] == ["under", "right", "over"]


def test_expert_takes_one_number_at_a_time() -> None:
    assert expert_steps(PUZZLE) == (
        "take r 9 left 12",
        "take s 4 left 8",
        "take t 8 left 0",
        "\\boxed{ r s t }",
    )
    for problem in problems(20):
        *steps, answer = expert_steps(parse_puzzle(problem.question))
        assert len(steps) == 3
        assert steps[-1].endswith(" left 0")
        assert problem.answer is not None
        assert grade(answer, problem.answer).correct


# --- words ---------------------------------------------------------------------------------------


def test_words_differ() -> None:
    assert len(set(domain_words())) == len(domain_words())


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_tokenizer_knows_every_word(level: int) -> None:
    tokenizer = build_word_tokenizer(domain_words())
    for problem in problems(4, level=level):
        puzzle = parse_puzzle(problem.question)
        (right,) = puzzle.solutions
        texts = [problem.question, f"\\boxed{{ {problem.answer} }}", *expert_steps(puzzle)]
        for choice in combinations(range(len(puzzle.numbers)), puzzle.num_picked):
            texts += [check_text(choice, puzzle), name_answer(choice)]
        texts += [check_text(right[:n], puzzle) for n in range(1, puzzle.num_picked)]
        texts += arithmetic.HINTS
        for text in texts:
            check_known(tokenizer, text)
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.decode(ids) == text


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), level=st.sampled_from(sorted(LEVELS)))
def test_drawn_puzzles_have_one_solution(seed: int, level: int) -> None:
    puzzle = draw_puzzle(LEVELS[level], np.random.default_rng(seed))
    (choice,) = puzzle.solutions
    assert list(choice) == sorted(set(choice))
    assert puzzle.add(choice) == puzzle.total
