# SPDX-License-Identifier: Apache-2.0
"""Restarts cut by hand, filtered by length and never cut on the right; SRL's step-wise problems."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from satori_fast.data.arithmetic import domain_words, expert_steps, parse_puzzle
from satori_fast.data.chains import domain_words as chain_words
from satori_fast.data.formats.coat import REFLECT
from satori_fast.data.prefixes import (
    CutAfter,
    expert_step_prefixes,
    restart_buffer,
    restart_cuts,
    restart_prefixes,
)
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer, build_trajectory, full_response
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.types import Finish, Prefix, Problem, Trajectory

TOKENIZER = build_word_tokenizer([*domain_words(), "a", "b", "c"])
RENDERER = PromptRenderer(TOKENIZER, PLAIN_TEMPLATE, 64)
THREE_ACTIONS = "a<|continue|> b<|reflect|> c"


def solution(
    text: str,
    *,
    prefix: Prefix | None = None,
    problem_id: str = "one",
    group_id: int = 0,
    finish: Finish = "stop",
) -> Trajectory:
    problem = Problem(problem_id, "p 7 q 1 pick 2 sum 8", "p q", prefix)
    ids = np.asarray([*RENDERER.encode(text), RENDERER.eos_id])
    return build_trajectory(problem, ids, renderer=RENDERER, group_id=group_id, finish=finish)


def texts(problems: list[Problem]) -> list[str]:
    return [problem.prefix.text for problem in problems if problem.prefix is not None]


# --- restarts of one solution --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t", "prefix"),
    [
        (0, "a<|continue|> b<|reflect|> c<|reflect|>"),
        (1, "a<|continue|> b<|reflect|>"),
        (2, "a<|reflect|>"),
    ],
)
def test_worked_example(t: int, prefix: str) -> None:
    (problem,) = restart_prefixes(solution(THREE_ACTIONS), correct=True, backtrack=[t])
    assert problem == Problem(
        "one", "p 7 q 1 pick 2 sum 8", "p q", Prefix(prefix, "restart", correct=True)
    )


def test_complete_answer_can_be_restarted_whole() -> None:
    # Satori, section 1.5: t = 0 keeps the boxed answer and asks for a reflection on it.
    text = "p<|continue|> \\boxed{ p q }"
    (problem,) = restart_prefixes(solution(text), correct=False, backtrack=[0])
    assert problem.prefix == Prefix(f"{text}{REFLECT}", "restart", correct=False)


def test_backtracks_that_leave_no_action_give_nothing() -> None:
    assert texts(restart_prefixes(solution("a"), correct=True, backtrack=[0, 1, 2])) == [
        "a<|reflect|>"
    ]
    cuts = restart_prefixes(solution(THREE_ACTIONS), correct=True, backtrack=[3, 2, 5, 0])
    assert texts(cuts) == ["a<|reflect|>", f"{THREE_ACTIONS}<|reflect|>"]


def test_restart_of_a_restart_keeps_the_prefix_it_came_from() -> None:
    first = Prefix("a<|reflect|>", "restart", correct=False)
    again = restart_prefixes(
        solution("b<|explore|> c", prefix=first), correct=True, backtrack=[0, 1, 2]
    )
    assert texts(again) == [
        "a<|reflect|>b<|explore|> c<|reflect|>",
        "a<|reflect|>b<|reflect|>",
        "a<|reflect|>",
    ]
    assert all(problem.prefix and problem.prefix.correct is True for problem in again)


def test_prompt_of_a_restart_ends_with_the_reflection_token() -> None:
    source = solution(THREE_ACTIONS)
    for problem in restart_prefixes(source, correct=True, backtrack=[0, 1, 2]):
        prompt = RENDERER.prompt_ids(problem)
        assert prompt[-1] == TOKENIZER.get_vocab()[REFLECT]
        # What precedes it are the very tokens of the source.
        assert prompt[:-1] == source.tokens[: len(prompt) - 1].tolist()


# --- where a solution may be cut -----------------------------------------------------------------

SEARCH = "a<|continue|> 1<|reflect|> b<|explore|> less<|continue|> 2"


@pytest.mark.parametrize(
    ("text", "max_backtrack", "every", "after_steps"),
    [
        ("a", 2, [0], [0]),
        ("a<|continue|> b", 2, [0, 1], [0, 1]),
        (SEARCH, 2, [0, 1, 2], [0]),
        (SEARCH, 9, [0, 1, 2, 3, 4], [0, 3, 4]),
        (SEARCH, 0, [0], [0]),
        ("a<|reflect|> b", 2, [0, 1], [1]),
        ("a<|reflect|> b<|explore|> less", 1, [0, 1], []),
        ("", 2, [], []),
    ],
)
def test_cuts(text: str, max_backtrack: int, every: list[int], after_steps: list[int]) -> None:
    source = solution(text)
    assert restart_cuts(source, max_backtrack, cut_after="action") == every
    assert restart_cuts(source, max_backtrack, cut_after="step") == after_steps


def test_action_that_the_limit_cut_off_is_dropped_first() -> None:
    cut_off = solution(SEARCH, finish="length")
    assert restart_cuts(cut_off, 2, cut_after="action") == [1, 2, 3]
    assert restart_cuts(cut_off, 2, cut_after="step") == [3]
    assert restart_cuts(solution("a b", finish="length"), 2, cut_after="action") == []


def test_cuts_after_an_answer() -> None:
    text = "a<|continue|> \\boxed{ 1 }<|reflect|> over<|explore|> b<|continue|> \\boxed{ 2 }"
    source = solution(text)
    assert restart_cuts(source, 9, cut_after="answer") == [0, 3]
    assert restart_cuts(source, 2, cut_after="answer") == [0]
    assert restart_cuts(solution("a<|reflect|> b"), 2, cut_after="answer") == []


def test_cuts_that_are_allowed_make_a_restart() -> None:
    source = solution(SEARCH)
    cuts = restart_cuts(source, 9, cut_after="step")
    assert texts(restart_prefixes(source, correct=True, backtrack=cuts)) == [
        f"{SEARCH}<|reflect|>",
        "a<|continue|> 1<|reflect|>",
        "a<|reflect|>",
    ]


def test_chains_can_be_cut_anywhere() -> None:
    text = (
        "37 + 25 = 62<|continue|> 62 - 8 = 70<|reflect|> 62 - 8 = 54 wrong<|explore|> 62 - 8 = 54"
        "<|continue|> swap 54 = 45<|continue|> \\boxed{ 45 }"
    )
    renderer = PromptRenderer(build_word_tokenizer(chain_words()), PLAIN_TEMPLATE, 64)
    problem = Problem("one", "start 37 plus 25 minus 8 swap", "45")
    ids = np.asarray([*renderer.encode(text), renderer.eos_id])
    source = build_trajectory(problem, ids, renderer=renderer, group_id=0, finish="stop")
    assert restart_cuts(source, 7, cut_after="action") == [0, 1, 2, 3, 4, 5]
    assert restart_cuts(source, 7, cut_after="step") == [0, 1, 4, 5]
    assert restart_cuts(source, 7, cut_after="answer") == [0]
    # The label is of the final answer: one of these right sources stands at a slip, one before it.
    at_slip, before = restart_prefixes(source, correct=True, backtrack=[4, 5])
    assert at_slip.prefix == Prefix(
        "37 + 25 = 62<|continue|> 62 - 8 = 70<|reflect|>", "restart", correct=True
    )
    assert before.prefix == Prefix("37 + 25 = 62<|reflect|>", "restart", correct=True)


# --- the buffer ----------------------------------------------------------------------------------


def graded_groups(num_problems: int) -> list[list[tuple[Trajectory, bool]]]:
    """For each problem two right and two wrong solutions of three actions, all different."""
    return [
        [
            (
                solution(f"{n}<|continue|> b<|reflect|> c", problem_id=str(i), group_id=i),
                n % 2 == 0,
            )
            for n in range(4)
        ]
        for i in range(num_problems)
    ]


def buffer(
    groups: list[list[tuple[Trajectory, bool]]],
    *,
    seed: int = 0,
    max_backtrack: int = 2,
    cut_after: CutAfter = "action",
    renderer: PromptRenderer = RENDERER,
) -> list[Problem]:
    made = restart_buffer(
        groups,
        max_backtrack=max_backtrack,
        cut_after=cut_after,
        renderer=renderer,
        rng=np.random.default_rng(seed),
    )
    return list(made)


def test_one_restart_of_either_kind_per_problem() -> None:
    groups = graded_groups(60)
    made = buffer(groups)
    labels = [(p.problem_id, p.prefix.correct) for p in made if p.prefix is not None]
    assert labels == [(str(i), label) for i in range(60) for label in (True, False)]
    for problem in made:
        assert problem.prefix is not None
        # The label is that of the source, which the first word gives away.
        assert problem.prefix.correct is (int(problem.prefix.text[0]) % 2 == 0)
        sources = [full_response(t) for t, _ in groups[int(problem.problem_id)]]
        assert any(s.startswith(problem.prefix.text.removesuffix(REFLECT)) for s in sources)
    # Every source and every t comes up.
    assert len({problem.prefix.text[0] for problem in made if problem.prefix}) == 4
    lengths = Counter(text.count("<|") for text in texts(made))
    assert set(lengths) == {1, 2, 3}
    assert min(lengths.values()) > 20


def test_problem_without_a_wrong_solution_gives_one_restart() -> None:
    (group,) = graded_groups(1)
    only_right = [(t, correct) for t, correct in group if correct]
    assert [p.prefix.correct for p in buffer([only_right]) if p.prefix] == [True]
    assert buffer([[]]) == []


def test_backtrack_stops_at_the_first_action() -> None:
    short = [(solution("a"), True), (solution("b<|continue|> c"), False)]
    seen = {text for seed in range(20) for text in texts(buffer([short], seed=seed))}
    assert seen == {"a<|reflect|>", "b<|reflect|>", "b<|continue|> c<|reflect|>"}
    whole = {t for seed in range(9) for t in texts(buffer([short], seed=seed, max_backtrack=0))}
    assert whole == {"a<|reflect|>", "b<|continue|> c<|reflect|>"}


def test_buffer_after_steps_only_reflects_on_steps() -> None:
    made = texts(buffer(graded_groups(30), cut_after="step"))
    assert len(made) == 60
    assert {text.count("<|") for text in made} == {1, 2}
    assert all(text.count(REFLECT) == 1 for text in made)
    # A source that ends on a hint, two actions back, leaves nothing to restart from.
    hint = [(solution("a<|reflect|> b<|explore|> less"), False)]
    assert buffer([hint], max_backtrack=1, cut_after="step") == []


def test_buffer_is_made_again_from_its_seed() -> None:
    groups = graded_groups(10)
    assert buffer(groups, seed=3) == buffer(groups, seed=3)
    assert buffer(groups, seed=3) != buffer(groups, seed=4)


def test_too_long_restarts_are_left_out_never_cut() -> None:
    groups = graded_groups(60)
    everything = buffer(groups)
    lengths = [len(RENDERER.prompt_ids(problem)) for problem in everything]
    limit = sorted(lengths)[len(lengths) // 2]
    assert min(lengths) <= limit < max(lengths)
    kept = buffer(groups, renderer=PromptRenderer(TOKENIZER, PLAIN_TEMPLATE, limit))
    fitting = [p for p, n in zip(everything, lengths, strict=True) if n <= limit]
    assert kept == fitting
    assert all(text.endswith(REFLECT) for text in texts(kept))


# --- SRL -----------------------------------------------------------------------------------------


def test_expert_steps_become_problems_but_the_last() -> None:
    problem = Problem("one", "q", "4")
    made = expert_step_prefixes(problem, ["first", "second", "the answer is 4"])
    assert [p.prefix for p in made] == [
        Prefix("", "step", target="first"),
        Prefix("first\n", "step", target="second"),
    ]
    assert all((p.problem_id, p.question, p.answer) == ("one", "q", "4") for p in made)


@pytest.mark.parametrize("steps", [[], ["the answer is 4"]])
def test_solution_without_intermediate_steps_gives_no_problem(steps: list[str]) -> None:
    assert expert_step_prefixes(Problem("one", "q", "4"), steps) == []


def test_built_in_experts_have_targets() -> None:
    puzzle = parse_puzzle("p 7 q 1 r 9 pick 2 sum 8")
    problem = Problem("one", puzzle.question, "p q")
    targets = [
        p.prefix.target for p in expert_step_prefixes(problem, expert_steps(puzzle)) if p.prefix
    ]
    assert targets == ["take p 7 left 1", "take q 1 left 0"]
