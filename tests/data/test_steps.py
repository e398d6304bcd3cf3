# SPDX-License-Identifier: Apache-2.0
"""Step data: parsers with their reasons, instances, and what a prompt holds."""

from __future__ import annotations

import pytest

from satori_fast.data.chains import expert_steps, parse_chain, solution_text, step_titles
from satori_fast.data.formats.steps import PAPER, STEPS, WORDS
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer
from satori_fast.data.steps import (
    Asked,
    ExpertStep,
    NoSteps,
    Parser,
    expert_problems,
    parse_steps,
    step_problems,
)
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.types import Demonstration, Prefix, Problem

PROBLEM = Problem("p", "How much is 2 + 3 + 4?", "9", level="easy")
NUMBERED = """Some thoughts. 1. not a step of it.

## Solution

1. **Add the first two** 2 + 3 = 5, because
   1. two
   2. and three
2. **Add the third:** 5 + 4 = 9
3. **State the answer** \\boxed{9}
"""
FIVE = [ExpertStep(f"Title {k}", f"text {k}") for k in range(1, 6)]


def test_numbered_steps_with_titles() -> None:
    first, second, third = parse_steps(NUMBERED, "numbered")
    assert first.title == "Add the first two"
    assert first.text == "2 + 3 = 5, because\n   1. two\n   2. and three"
    assert second == ExpertStep("Add the third", "5 + 4 = 9")
    assert third == ExpertStep("State the answer", "\\boxed{9}")
    # What was written reads the same again.
    text = "\n".join(
        PAPER.written(k, s.title, s.text) for k, s in enumerate((first, second, third), start=1)
    )
    assert parse_steps(f"SOLUTION:\n{text}", "numbered") == (first, second, third)


@pytest.mark.parametrize(
    ("solution", "parser", "expected"),
    [
        ("a b\n\nc\n d\n \n\ne", "paragraphs", ["a b", "c\n d", "e"]),
        ("It is 2.5. So 5! Is it? Yes.", "sentences", ["It is 2.5.", "So 5!", "Is it?", "Yes."]),
        ("1 + 1 = 2 ; \\boxed{ 2 }", "marked", ["1 + 1 = 2", "\\boxed{ 2 }"]),
    ],
)
def test_steps_without_titles(solution: str, parser: Parser, expected: list[str]) -> None:
    steps = parse_steps(solution, parser)
    assert [step.text for step in steps] == expected
    assert not any(step.title for step in steps)


@pytest.mark.parametrize(
    ("solution", "reason"),
    [
        ("It is 9.", "no_steps"),
        ("", "no_steps"),
        ("1. add\n2. answer", "no_steps"),
        ("2. **Add** a\n1. **Answer** b", "out_of_order"),
        ("1. **Add** a\n3. **Answer** b", "out_of_order"),
        ("1. **Add** a\n1. **Answer** b", "out_of_order"),
        ("1. **Add**\n2. **Answer** b", "title_without_text"),
        ("1. **Add a\n2. **Answer** b", "untitled_step"),
        ("1. **Add** a\n2. **:** b", "untitled_step"),
    ],
)
def test_what_is_no_list_of_steps_has_a_reason(solution: str, reason: str) -> None:
    with pytest.raises(NoSteps) as fault:
        parse_steps(solution, "numbered")
    assert fault.value.reason == reason


def test_the_experts_of_the_chains_are_read_back() -> None:
    chain = parse_chain("start 37 plus 9 minus 8 swap")
    steps = parse_steps(solution_text(chain), "marked")
    assert tuple(step.text for step in steps) == expert_steps(chain)
    assert len(steps) == len(step_titles(chain))


# --- instances -----------------------------------------------------------------------------------


def test_five_steps_give_four_instances_or_five() -> None:
    skipped, asked = (
        step_problems(PROBLEM, FIVE, PAPER, asked=Asked(last_step=last)) for last in ("skip", "ask")
    )
    assert (len(skipped), len(asked)) == (4, 5) and asked[:4] == skipped
    third = skipped[2]
    assert third.problem_id == "p/step-3" and third.answer is None and third.level == "easy"
    assert third.prefix == Prefix(
        "1. **Title 1** text 1\n2. **Title 2** text 2\n", "step", target="3. **Title 3** text 3"
    )
    first = skipped[0].prefix
    assert first is not None and first.text == ""


def test_a_title_that_is_told_is_not_in_the_target() -> None:
    third = step_problems(PROBLEM, FIVE, PAPER, asked=Asked(tell_title=True))[2]
    assert third.prefix is not None
    assert (third.prefix.target, third.prefix.title) == ("text 3", "Title 3")
    assert STEPS.asked(third) == (
        "How much is 2 + 3 + 4?\n\n"
        "Partial solution:\n1. **Title 1** text 1\n2. **Title 2** text 2\n\n"
        "Next step: Title 3"
    )


def test_the_partial_solution_stands_in_the_users_turn() -> None:
    chain = parse_chain("start 37 plus 9 swap")
    steps = [ExpertStep(t, s) for t, s in zip(step_titles(chain), expert_steps(chain), strict=True)]
    format = STEPS.in_dialect("words")
    vocabulary = ["start", "37", "plus", "9", "swap", "+", "=", "46", "64", "answer"]
    tokenizer = build_word_tokenizer([*vocabulary, "\\boxed{", "}", *format.words], ())
    renderer = PromptRenderer(tokenizer, f"ask {PLAIN_TEMPLATE} reply", 64, format=format)
    problem = Problem("c", chain.question, chain.answer)
    first, second = step_problems(problem, steps, WORDS)
    prompts = [renderer.decode(renderer.prompt_ids(each)) for each in (first, second)]
    assert prompts[0] == "<|unknown|> start 37 plus 9 swap so far <|unknown|>"
    assert prompts[1] == (
        "<|unknown|> start 37 plus 9 swap so far plus 9 : 37 + 9 = 46 ; <|unknown|>"
    )
    assert second.prefix is not None and second.prefix.target == "swap : swap 46 = 64"
    told = step_problems(problem, steps, WORDS, asked=Asked(tell_title=True))[1]
    assert renderer.decode(renderer.prompt_ids(told)).endswith(" ; next swap <|unknown|>")


def test_a_step_is_no_part_of_the_response() -> None:
    problem = step_problems(PROBLEM, FIVE, PAPER)[1]
    assert problem.restart is None
    assert Problem("r", "q", "a", Prefix("half", "restart", True)).restart is not None


# --- sets ----------------------------------------------------------------------------------------


def demonstration(response: str, name: str = "p") -> Demonstration:
    return Demonstration(Problem(name, "q", "9"), response)


def test_what_cannot_be_used_is_counted_with_an_example() -> None:
    given = [
        demonstration("1. **A** x\n2. **B** \\boxed{9}", "good"),
        demonstration("1. **A** x\n2. **B** \\boxed{8}", "wrong"),
        demonstration("no steps \\boxed{9}", "plain"),
        demonstration("nothing \\boxed{9}", "plain too"),
        demonstration("1. **A** \\boxed{9}", "short"),
    ]
    made, report = expert_problems(
        given,
        PAPER,
        read=lambda each: parse_steps(each.response, "numbered"),
        form="numbered",
        agrees=lambda d: "boxed{9}" in d.response,
    )
    assert [problem.problem_id for problem in made] == ["good/step-1"]
    assert (report.num_solutions, report.num_used, report.num_problems) == (5, 1, 1)
    assert report.discarded == {"wrong_answer": 1, "no_steps": 2, "too_few_steps": 1}
    assert report.in_words().startswith("2 x no_steps (the first: plain: no steps")


def test_the_example_of_a_reason_is_what_was_read() -> None:
    def read(given: Demonstration) -> tuple[ExpertStep, ...]:
        if given.problem.problem_id == "good":
            return tuple(FIVE)
        raise NoSteps("rewriter_refused", "I will not.")

    given = [demonstration("9", "good"), demonstration("It is 9.", "bad")]
    _, report = expert_problems(given, PAPER, read=read, form="rewrite", agrees=lambda _: True)
    assert report.in_words() == "1 x rewriter_refused (the first: bad: I will not.)"


def test_nothing_left_is_an_error_that_says_why() -> None:
    with pytest.raises(ValueError, match=r"of 1 expert solutions read as numbered: 1 x no_steps"):
        expert_problems(
            [demonstration("x")],
            PAPER,
            read=lambda each: parse_steps(each.response, "numbered"),
            form="numbered",
            agrees=lambda _: True,
        )
    with pytest.raises(ValueError, match="there is none"):
        expert_problems(
            [],
            PAPER,
            read=lambda each: parse_steps(each.response, "sentences"),
            form="sentences",
            agrees=lambda _: True,
        )
