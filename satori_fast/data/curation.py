# SPDX-License-Identifier: Apache-2.0
"""Rules for questions that cannot be trained on, and the books about what curation leaves out.

A rule is a row of `RULES`: a name, a reason, an example and a function of question and answer. The
first rule that a problem breaks is its reason to go. Rules are patterns of English text, made to
keep a good question where they are in doubt. Answers that the grader cannot read are left out when
a data set is read (`collection`); repeated questions are `near_duplicates`; whether an answer is
right is asked of an agent (`synthesis.label_agents`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from satori_fast.types import Problem

_MIN_CHARACTERS = 8  # of a question, spaces not counted
_MAX_ANSWER_WORDS = 4
_LONGEST_SHOWN = 400  # characters of an example

_FIGURE = r"(?:figures?|diagrams?|pictures?|images?|drawings?|sketch|illustration|graphs?|charts?)"
_MISSING_FIGURE = re.compile(
    rf"\b(?:in|from|on|see|by|using) (?:the|this) (?:(?:above|following|adjacent|given) )?"
    rf"(?:figure|diagram|picture|image|drawing|sketch|illustration)\b"
    rf"|\b(?:above|following|adjacent|accompanying|attached) {_FIGURE}\b"
    rf"|\b{_FIGURE} (?:\w+ )?(?:above|below|shown|on the right|on the left|to the right)\b"
    rf"|\bas (?:is )?shown\b|\bshown (?:above|below|in (?:the|fig))"
    rf"|\b(?:table|chart) (?:above|below|shown)\b|!\[[^\]]*\]\(",
    re.IGNORECASE,
)
_DRAWN = re.compile(r"\[asy\]|\\begin\{(?:tikz|tabular|array|asy)|^.*\|.*\|", re.MULTILINE)

_ASKS = (
    r"(?i:find|determine|compute|calculate|evaluate|solve|show|prove|express|write|state|give|what|"
    r"how|which|who|why|explain|sketch|for (?:what|which))\b"
)
# "(a)" anywhere, "a." at the start of a line, "2." there or after a sentence, "Part B:"; what is
# asked follows. Capital letters are options.
_PART = re.compile(
    rf"(?:\((?:[a-e1-9]|i{{1,3}}|iv|v)\)|^\s*[a-e1-9][.)]|(?<=[?.!] )[1-9]\."
    rf"|\b[Pp]art [A-Ea-e1-9][:.)])\s*{_ASKS}",
    re.MULTILINE,
)

_PROOF = re.compile(
    r"(?:^|[.:;,?!)\]$\n]|\b(?:and|then|now|please|also))\s*"
    r"(?:(?:prove|show|demonstrate|verify)(?: or disprove)?,? that\b|prove\b(?! wrong))",
    re.IGNORECASE,
)

_OF_THE_FOLLOWING = re.compile(
    r"\bwhich (?:one |ones )?(?:of (?:the following|these|the (?:choices|options))|"
    r"(?:choice|option|answer))\b",
    re.IGNORECASE,
)
_LETTER = re.compile(r"\\?(?:text|mathrm|textbf)?\{?\(?([A-E])\)?[.:]?\}?")
_OPTION = re.compile(r"(?:\(\s*[A-E]\s*\)|(?:^|[\s{$])[A-E][).:](?=\s|\}|\$|~))", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of problem that is left out.

    name:   as it is counted. reason: for people.
    example: (question, answer) that breaks it, and no rule before it.
    breaks: whether a question with an answer ("" for none) does.
    """

    name: str
    reason: str
    example: tuple[str, str]
    breaks: Callable[[str, str], bool]


def _too_short(question: str, answer: str) -> bool:
    return sum(not character.isspace() for character in question) < _MIN_CHARACTERS


def _prose(question: str, answer: str) -> bool:
    plain = re.sub(r"\\[a-zA-Z]+", " ", answer)
    return len(re.findall(r"[^\W\d_]{2,}", plain)) > _MAX_ANSWER_WORDS


def _without_figure(question: str, answer: str) -> bool:
    return _MISSING_FIGURE.search(question) is not None and _DRAWN.search(question) is None


def _several_parts(question: str, answer: str) -> bool:
    return len(_PART.findall(question)) > 1


def _proof(question: str, answer: str) -> bool:
    return _PROOF.search(question) is not None


def _without_options(question: str, answer: str) -> bool:
    asked = _OF_THE_FOLLOWING.search(question)
    if asked is None or len(set(_OPTION.findall(question))) > 1:
        return False
    # Options may stand there without letters, as a list; a letter as the answer needs letters.
    lists = re.search(r"[:,;\n\d]", question[asked.end() :])
    return _LETTER.fullmatch(answer.strip(" $")) is not None or lists is None


RULES: tuple[Rule, ...] = (
    Rule(
        "too_short",
        f"fewer than {_MIN_CHARACTERS} characters: an empty question, or a rest of one",
        ("Find x.", "3"),
        _too_short,
    ),
    Rule(
        "no_answer",
        "there is nothing to grade by",
        ("What is the sum of 2 and 3?", ""),
        lambda question, answer: not answer.strip(),
    ),
    Rule(
        "proof",
        "a proof is asked for, and only final answers are graded",
        ("Let $n$ be odd. Prove that $n^2 - 1$ is divisible by 8.", "8"),
        _proof,
    ),
    Rule(
        "several_questions",
        "several questions with one answer",
        ("Let $f(x) = x^2$. (a) Find $f(3)$. (b) Find the minimum of $f$.", "9, 0"),
        _several_parts,
    ),
    Rule(
        "missing_figure",
        "the question speaks of a figure that is not there",
        ("In the figure below, $AB = 3$ and $BC = 4$. What is the area of $ABC$?", "6"),
        _without_figure,
    ),
    Rule(
        "missing_options",
        "multiple choice, and the options are not in the text",
        ("Which of the following is a root of the polynomial?", "B"),
        _without_options,
    ),
    Rule(
        "prose_answer",
        f"an answer of more than {_MAX_ANSWER_WORDS} words, where a value can be graded",
        ("What can be said about $f(x) = x^3$?", "The function is increasing on the whole line"),
        _prose,
    ),
)


def broken_rule(problem: Problem, rules: Iterable[Rule] = RULES) -> Rule | None:
    """The first rule that a problem breaks; None for a valid one."""
    question, answer = problem.question.strip(), problem.answer or ""
    return next((rule for rule in rules if rule.breaks(question, answer)), None)


@dataclass(slots=True)
class LeftOut:
    """Counts of the problems that were left out, by reason, each with its first example."""

    counts: Counter[str] = field(default_factory=Counter[str])
    examples: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])

    def add(self, reason: str, problem: Problem, *, detail: str = "") -> None:
        """Count a problem. detail: what was seen beside the problem itself."""
        self.counts[reason] += 1
        example = {
            "problem_id": problem.problem_id,
            "question": _shortened(problem.question),
            "answer": _shortened(problem.answer or ""),
        }
        if detail:
            example["detail"] = _shortened(detail)
        self.examples.setdefault(reason, example)

    def by_reason(self) -> dict[str, dict[str, object]]:
        """JSON-able: count and example of each reason, the commonest first."""
        return {
            reason: {"count": count, "example": self.examples[reason]}
            for reason, count in self.counts.most_common()
        }

    def in_words(self) -> str:
        """One line: "3 x proof (math/7: Prove that ...), 1 x near_duplicate (...)"."""
        return ", ".join(
            f"{count} x {reason} ({self._shown(reason)})"
            for reason, count in self.counts.most_common()
        )

    def _shown(self, reason: str) -> str:
        example = self.examples[reason]
        text = example.get("detail") or example["question"]
        return f"{example['problem_id']}: {' '.join(text.split())[:80]}"


def valid_problems(problems: Iterable[Problem], left_out: LeftOut) -> list[Problem]:
    """The problems that break no rule; the others go into the books."""
    kept: list[Problem] = []
    for problem in problems:
        rule = broken_rule(problem)
        if rule is None:
            kept.append(problem)
        else:
            left_out.add(rule.name, problem)
    return kept


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + " ..."
