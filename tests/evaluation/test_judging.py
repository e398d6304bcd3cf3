# SPDX-License-Identifier: Apache-2.0
"""Three verdicts on responses of every kind of answer, worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from satori_fast.evaluation.benchmark_sets import BenchmarkSet, Item, load_benchmark
from satori_fast.evaluation.benchmarks import BENCHMARKS
from satori_fast.evaluation.code_answers import CallRunner
from satori_fast.evaluation.judging import Judge, Judgement, cells_of, chosen_letter
from satori_fast.evaluation.sandbox import isolation_fault
from satori_fast.grading import GradingPool
from satori_fast.types import Problem

POOL = GradingPool(num_workers=0)


def item(gold: str | None, **fields) -> Item:
    return Item(Problem("set/1", "?", gold), row=1, **fields)


def judge(name: str, asked: Item, text: str, unreadable: dict[str, str] | None = None) -> Judgement:
    read = BenchmarkSet(BENCHMARKS[name], (asked,), "file", "", "", ())
    return Judge(read, POOL, unreadable or {}, CallRunner()).judge([(asked, text)])[0]


def who(judgement: Judgement) -> str:
    """Letters of the graders that call it right."""
    return "S" * judgement.strict + "H" * judgement.house + "L" * judgement.lenient


@pytest.mark.parametrize(
    ("text", "gold", "right", "reason"),
    [
        (r"so \boxed{\frac{1}{2}}", r"\frac{1}{2}", "SHL", "match"),
        (r"so \boxed{0.5}", r"\frac{1}{2}", "HL", "match"),
        (r"so \boxed{50}", "0.5", "L", "mismatch"),
        ("so it is 0.5", "0.5", "L", "no_answer"),
        ("The answer is $0.5$.", "0.5", "L", "no_answer"),
        (r"\boxed{7}", "0.5", "", "mismatch"),
        ("", "0.5", "", "no_answer"),
        (r"\boxed{5}", None, "", "no_gold"),
    ],
)
def test_values(text: str, gold: str | None, right: str, reason: str) -> None:
    found = judge("math500", item(gold), text)
    assert (who(found), found.reason) == (right, reason)
    assert found.agrees == (len(right) in (0, 3))


def test_an_unreadable_gold_is_compared_as_text() -> None:
    asked, unreadable = item("no [x; y"), {"set/1": "cannot be read as an expression"}
    found = judge("college_math", asked, r"\boxed{no [x; y}", unreadable)
    assert (who(found), found.reason) == ("SHL", "text")
    found = judge("college_math", asked, r"\boxed{no (x; y}", unreadable)
    assert (found.house, found.strict, found.reason) == (False, False, "text")


@pytest.mark.parametrize(
    ("gold", "unit", "answer", "right"),
    [
        ("$166$", "$cm^2$", "166", "SHL"),
        ("$166$", "$cm^2$", r"166\text{ cm}^2", "HL"),
        ("$166$", "$cm^2$", r"166\text{ m}^2", ""),
        (r"$\frac{600}{7}$", "km/h", r"\frac{600}{7}\text{ km/h}", "HL"),
        (r"$\frac{600}{7}$", "km/h", r"\frac{600}{7}\text{ m/h}", ""),
        ("8", "min", r"8\text{ minutes}", "HL"),
        ("8", "min", r"8\text{ hours}", ""),
        ("4.2", "%", r"4.2\%", "HL"),
    ],
)
def test_the_unit_of_a_row_may_be_missing_and_must_not_be_another(
    gold: str, unit: str, answer: str, right: str
) -> None:
    found = judge("olympiadbench", item(gold, unit=unit), rf"\boxed{{{answer}}}")
    assert ("S" * found.strict + "HL" * found.house) == right


def test_an_answer_may_be_off_by_the_error_of_its_row() -> None:
    asked = item("4.2", tolerance=0.1)
    verdicts = [judge("olympiadbench", asked, rf"\boxed{{{x}}}").house for x in (4.3, 4.1, 4.31)]
    assert verdicts == [True, True, False]
    assert not judge("olympiadbench", item("4.2"), r"\boxed{4.21}").house


CHOICES = ("reduce the capacity", "opt for zero", "5 cm", "5 cm")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (r"\boxed{B}", "SHL"),
        (r"\boxed{\text{B}}", "SHL"),
        (r"\boxed{(B)}", "SHL"),
        (r"\boxed{B. opt for zero}", "HL"),
        (r"\boxed{Opt for zero}", "HL"),
        (r"\boxed{A}", ""),
        (r"\boxed{5 cm}", ""),
        ("I choose B", "L"),
        ("it is B or C", ""),
    ],
)
def test_choices(text: str, right: str) -> None:
    assert who(judge("mmlu_stem", item("B", choices=CHOICES), text)) == right


def test_a_text_that_two_choices_share_names_none() -> None:
    assert chosen_letter("5 cm", CHOICES) is None
    assert chosen_letter("reduce the capacity", CHOICES) == "A"


@pytest.mark.parametrize(
    ("name", "gold", "text", "right"),
    [
        ("folio", "Uncertain", r"\boxed{\text{Uncertain}}", "SHL"),
        ("folio", "Uncertain", r"\boxed{unknown}", "HL"),
        ("folio", "Uncertain", r"\boxed{False}", ""),
        ("folio", "False", "The conclusion is true? No, it is false.", "L"),
        ("strategyqa", "Yes", r"\boxed{yes}", "HL"),
        ("strategyqa", "Yes", r"\boxed{True}", "HL"),
        ("strategyqa", "No", r"\boxed{Not sure}", ""),
        ("boardgameqa", "disproved", r"\boxed{disproved}", "SHL"),
        ("boardgameqa", "disproved", r"\boxed{proved}", ""),
    ],
)
def test_labels(name: str, gold: str, text: str, right: str) -> None:
    assert who(judge(name, item(gold), text)) == right


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("1,300, Red Bull", r"\boxed{1300, red bull}", "HL"),
        ("1,300, Red Bull", r"\boxed{\text{1,300, Red Bull}}", "SHL"),
        ("3, 4", r"\boxed{4, 3}", ""),
        ("3.14159", r"\boxed{3.1416}", "L"),
        ("3", "there were 3", "L"),
    ],
)
def test_cells(gold: str, text: str, right: str) -> None:
    assert who(judge("tablebench", item(gold), text)) == right


def test_commas_in_numbers_separate_nothing() -> None:
    assert cells_of("1,300, 2,000,000, x") == ["1,300", "2,000,000", "x"]
    assert cells_of("3,4") == ["3", "4"]


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("['a', 'b']", r"\boxed{['a', 'b']}", "SHL"),
        ("['a', 'b']", r'\boxed{["a","b"]}', "HL"),
        ("{'a': 1}", r"\boxed{\texttt{\{'a': 1\}}}", "SHL"),
        ("['a', 'b']", r"\boxed{a, b}", ""),
        ("'x'", "It returns\n`'x'`", "L"),
    ],
)
def test_outputs(gold: str, text: str, right: str) -> None:
    assert who(judge("cruxeval_output", item(gold), text)) == right


@pytest.mark.skipif(isolation_fault() is not None, reason="no unprivileged namespaces here")
def test_inputs_are_run() -> None:
    asked = item("[1, 2]", code="def f(x):\n    return sorted(x)")
    found = judge("cruxeval_input", asked, r"\boxed{f([2, 1])}")
    assert (who(found), found.reason) == ("HL", "match")
    found = judge("cruxeval_input", asked, r"\boxed{f([2, 2])}")
    assert (who(found), found.reason) == ("", "another value")
    assert judge("cruxeval_input", asked, r"\boxed{f(eval('[1, 2]'))}").reason == (
        "not a call of f with literals"
    )


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 3000,
        r"\boxed{1}" * 5000,
        "\\boxed{" + "(" * 50_000 + "}",
        "\\boxed{" + "1," * 50_000 + "}",
        "he answer is " * 8000,
        "1," * 50_000,
        "\\" * 100_000,
        "\u0000\ud800"[:1] + r"\boxed{\x}",
    ],
)
def test_degenerate_responses_are_wrong(text: str) -> None:
    names = ("math500", "mmlu_stem", "folio", "tablebench", "cruxeval_output", "cruxeval_input")
    golds = dict(zip(names, ("7", "B", "True", "7", "7", "7"), strict=True))
    for name in names:
        assert not judge(name, item(golds[name], code="def f(x): return x"), text).house


NOT_HERE = {"boardgameqa", "tablebench", "mmlu_pro_stem"}


@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - NOT_HERE - {"cruxeval_input"}))
def test_real_golds_are_right_themselves(data_dir: Path, name: str) -> None:
    read = load_benchmark(BENCHMARKS[name], data_dir / "benchmarks")
    # Every eighth of College Math: the others are compared where golds are checked.
    items = read.items[:: 8 if name == "college_math" else 1]
    judged = Judge(replace(read, items=items), POOL, {}, CallRunner()).judge(
        [(each, rf"\boxed{{{each.problem.answer}}}") for each in items]
    )
    wrong = [
        (each.problem.problem_id, each.problem.answer, found)
        for each, found in zip(items, judged, strict=True)
        if each.problem.answer is not None and not (found.house and found.strict and found.lenient)
    ]
    assert wrong == []


_ALPHABET = r"""
\boxed{ \boxed{5} \frac \frac{1}{2} \sqrt{ \left( \right) \begin{pmatrix} & \end{pmatrix} \cup
\infty \pi \text{ \\ \ { } ( ) [ ] | , ; : . - + = < > ^ _ $ % ! ? # ~ 0 1 2.5 1,000
50% x y A B C f(x) True No unknown None 'a' [1, {'a': (((((((((( 1e999 \int_0^1
é 🙂
"""
# Each of them keeps a computer algebra system busy until it is killed.
_ENDLESS = ("9^{9^{9^{9}}}", "10!!!", "x^{9^{9^{9}}}")
_PIECES = (*_ALPHABET.split(), " ", "\n", "the answer is ")


@pytest.mark.slow
def test_a_hundred_thousand_adversarial_responses_neither_raise_nor_outlive_the_limit() -> None:
    rng = np.random.default_rng([20])
    names = ("math500", "mmlu_stem", "folio", "tablebench", "cruxeval_output", "cruxeval_input")
    golds = {
        "math500": (r"\frac{1}{2}", r"(3, \frac{\pi}{2})", "x^2+1", r"\{1,2\}", "[0,1)", "7"),
        "mmlu_stem": ("B",),
        "folio": ("True",),
        "tablebench": ("1,300, Red",),
        "cruxeval_output": ("[1, 2]",),
        "cruxeval_input": ("[1, 2]",),
    }
    share = dict(zip(names, (15_000, 30_000, 30_000, 5_000, 15_000, 5_000), strict=True))
    with GradingPool(num_workers=2, timeout_s=1.0) as pool:
        for name in names:
            read = BenchmarkSet(BENCHMARKS[name], (), "file", "", "", ())
            judge_of = Judge(read, pool, {}, CallRunner())
            responses: list[tuple[Item, str]] = []
            for number in range(share[name]):
                text = "".join(rng.choice(_PIECES, size=rng.integers(1, 14)))
                if number % 1000 == 0:
                    text += rng.choice(_ENDLESS)
                text = rf"\boxed{{{text}}}" if number % 3 else text
                gold = golds[name][number % len(golds[name])]
                code = "def f(x): return x" if name == "cruxeval_input" else ""
                responses.append((item(gold, code=code, choices=CHOICES), text))
            judged = judge_of.judge(responses)
            assert len(judged) == share[name]
            assert sum(each.house for each in judged) < 0.2 * share[name]
        assert pool.crashes + pool.timeouts < 1_000
