# SPDX-License-Identifier: Apache-2.0
"""Rules of curation: each leaves out its own kind of question, and good ones stay."""

from __future__ import annotations

import pytest

from satori_fast.data.curation import RULES, LeftOut, Rule, broken_rule, valid_problems
from satori_fast.data.domains import DOMAINS
from satori_fast.types import Problem

# What looks like a broken rule and is none.
GOOD = [
    ("Compute $2+3$.", "5"),
    (
        "It is easy to show that $x > 0$ for all roots. Find the largest root of $x^2 - 3x + 2$.",
        "2",
    ),
    ("Find the sum of all proven primes below 10.", "17"),
    ("The graph of $y = x^2$ meets the line $y = 4$ at two points. Find their distance.", "4"),
    (
        "In the figure, $AB = 3$ and $AC = 4$. [asy] draw((0,0)--(3,0)); [/asy] What is the area?",
        "6",
    ),
    ("The table below gives $f$. | x | 1 | 2 |\n| f | 3 | 4 | What is $f(2)$?", "4"),
    ("What is the value of $(1) + (2) + (3)$?", "6"),
    ("Find $f(3)$, where (1) $f(0) = 1$ and (2) $f(x + 1) = 2 f(x)$ for all $x$.", "8"),
    ("The ratio is 4:3. If I add 5 it is 1:1. If I add 3 more? Find the sum.", "7"),
    ("Which trait persists?\nA. what is best\nB. what is first\nC. how it is", "A"),
    ("The rule has two parts: 1. which wins is known; 2. which loses is not. Find $n$.", "2"),
    (
        "Which of the following is prime? $\\textbf{(A)}\\ 4 \\qquad\\textbf{(B)}\\ 5"
        " \\qquad\\textbf{(C)}\\ 6$",
        "B",
    ),
    ("Which of the following is prime?\nA. 4\nB. 5\nC. 6", "B"),
    ("Which of the following numbers is the largest: 0.9, 0.89 or 0.899?", "0.9"),
    ("Vertex $A$ or vertex $B$: which is nearer to the origin?", "A"),
    ("How long is the trip?  He walks for 90 minutes and rests for 15.", "1 hour and 45 minutes"),
    ("For which $x$ is $\\log x$ defined?", "\\text{all } x \\text{ with } x > 0"),
    ("How many real roots has $x^2 + 1$?", "no real roots"),
]
# Further kinds of what a rule is for, beside its example.
BAD = [
    ("several_questions", "1. What is the sum of 2 and 3? 2. What is their product?", "5, 6"),
    ("several_questions", "Given $f$: (i) Determine $f(0)$; (ii) solve $f(x) = 0$.", "0"),
    ("several_questions", "A train is 90 km away. Part A: How long? Part B: How far?", "1"),
    ("several_questions", "For the cube:\na) find its volume\nb) find its area", "8, 24"),
    ("missing_figure", "As shown, $AB$ is a diameter. Find the angle $ACB$.", "90"),
    ("missing_figure", "The following diagram shows a square. What is its area?", "4"),
    ("missing_figure", "What is the slope of the graph shown?", "2"),
    ("missing_figure", "![](image_3.png) What is the area of the triangle?", "2"),
    ("proof", "Show that $\\sqrt 2$ is irrational.", "1"),
    ("proof", "Let $ABC$ be a triangle with $AB = AC$. Prove: the angles are equal.", "1"),
    ("proof", "Find all $n$ and then prove that there are no others.", "2"),
    ("missing_options", "Which of these numbers is prime?", "7"),
    ("missing_options", "Which one of the following has 3 sides, when drawn?", "(C)"),
    ("too_short", " \n", "3"),
    ("no_answer", "What is the sum of 2 and 3?", " "),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_example_of_a_rule_breaks_it_and_none_before_it(rule: Rule) -> None:
    question, answer = rule.example
    assert broken_rule(Problem("1", question, answer)) is rule
    assert rule.reason and rule.name.isidentifier()


@pytest.mark.parametrize(("name", "question", "answer"), BAD)
def test_what_is_left_out(name: str, question: str, answer: str) -> None:
    rule = broken_rule(Problem("1", question, answer))
    assert rule is not None and rule.name == name


@pytest.mark.parametrize(("question", "answer"), GOOD)
def test_what_stays(question: str, answer: str) -> None:
    assert broken_rule(Problem("1", question, answer)) is None


def test_names_are_counted_apart() -> None:
    names = [rule.name for rule in RULES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("name", "levels"), [("arithmetic", (1, 5)), ("chains", (4, 16))])
def test_problems_of_the_built_in_domains_break_no_rule(name: str, levels: tuple[int, ...]) -> None:
    problems = DOMAINS[name].problems(100, levels=levels, split="train", seed=0)
    assert [problem for problem in problems if broken_rule(problem)] == []


def test_the_books_count_by_reason_with_the_first_example() -> None:
    proofs = [Problem(f"a/{i}", f"Prove that ${i}$ is a number.", "1") for i in range(3)]
    good = Problem("a/9", "What is the sum of 2 and 3?", "5")
    left_out = LeftOut()
    assert valid_problems([*proofs, good, Problem("b/1", "Hm", None)], left_out) == [good]
    left_out.add("near_duplicate", good, detail="repeats a/1: ...")
    assert left_out.by_reason() == {
        "proof": {
            "count": 3,
            "example": {
                "problem_id": "a/0",
                "question": "Prove that $0$ is a number.",
                "answer": "1",
            },
        },
        "too_short": {
            "count": 1,
            "example": {"problem_id": "b/1", "question": "Hm", "answer": ""},
        },
        "near_duplicate": {
            "count": 1,
            "example": {
                "problem_id": "a/9",
                "question": good.question,
                "answer": "5",
                "detail": "repeats a/1: ...",
            },
        },
    }
    assert left_out.in_words() == (
        "3 x proof (a/0: Prove that $0$ is a number.), 1 x too_short (b/1: Hm), "
        "1 x near_duplicate (a/9: repeats a/1: ...)"
    )
    left_out.add("long", Problem("c", "x" * 1000, "1"))
    question = left_out.examples["long"]["question"]
    assert len(question) < 500 and question.endswith(" ...")
