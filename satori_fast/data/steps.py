# SPDX-License-Identifier: Apache-2.0
"""Expert solutions as steps, and the step problems that they become (SRL, arXiv 2510.25992,
section 3.1 and appendix B.3).

A solution y_1 .. y_N of a question x gives instances (x, y_1 .. y_{k-1}) -> y_k: the partial
solution stands in the prompt, the next step is the target. How a step is written and asked for is
the format's (`data.formats.steps`).

    numbered    `N. **Title** text`, under a heading "Solution" where there is one
    paragraphs  blocks between empty lines
    sentences   at full stops, question and exclamation marks
    marked      at the mark that ends a step of the built-in domain, `;`
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

import numpy as np

from satori_fast.data.formats.steps import END_THINK, THINK, StepDialect
from satori_fast.data.prefixes import LastStep, expert_step_prefixes
from satori_fast.types import Demonstration, Prefix, Problem

Parser = Literal["numbered", "paragraphs", "sentences", "marked"]
Unit = Literal["step", "solution"]
_HEADING = re.compile(r"^[#*\s]*solution[*:\s]*$", re.IGNORECASE | re.MULTILINE)
_NUMBERED = re.compile(r"^[ \t]*(?P<number>[0-9]+)\.[ \t]+(?P<rest>.*)$", re.MULTILINE)
_TITLE = re.compile(r"\*\*(?P<title>.+?)\*\*[ \t]*:?[ \t]*(?P<text>.*)", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)")


@dataclass(frozen=True, slots=True)
class ExpertStep:
    """One step of a solution.

    title:   a short imperative, "" where the form has none.
    thought: what an expert thinks before it, where one is known: for a warm-up of the format, never
             a target.
    """

    title: str
    text: str
    thought: str = ""


class NoSteps(ValueError):
    """A solution that is no list of steps. reason: its kind, which is counted. text: what was read,
    where that is not the solution itself."""

    def __init__(self, reason: str, text: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.text = reason, text


def parse_steps(solution: str, parser: Parser) -> tuple[ExpertStep, ...]:
    """Cut a solution into steps. NoSteps where it is of another form.

    >>> parse_steps("1. **Add** 37 + 25 = 62\\n2. **Answer** 62", "numbered")
    (ExpertStep(title='Add', text='37 + 25 = 62'), ExpertStep(title='Answer', text='62'))
    """
    steps = _PARSERS[parser](solution)
    if not steps:
        raise NoSteps("no_steps")
    if not all(step.text for step in steps):
        raise NoSteps("title_without_text")
    return tuple(steps)


def _numbered(solution: str) -> list[ExpertStep]:
    headings = list(_HEADING.finditer(solution))
    body = solution[headings[-1].end() :] if headings else solution
    found = list(_NUMBERED.finditer(body))
    # A list inside a step starts again at 1: steps are the numbers with a title.
    starts = [match for match in found if match["rest"].startswith("**")]
    if not starts:
        return []
    numbers = [int(match["number"]) for match in starts]
    if numbers != list(range(1, len(numbers) + 1)):
        raise NoSteps("out_of_order")
    stops = [*(match.start() for match in starts[1:]), len(body)]
    steps: list[ExpertStep] = []
    for match, stop in zip(starts, stops, strict=True):
        parts = _TITLE.match(body[match.start("rest") : stop].strip())
        if parts is None:
            raise NoSteps("untitled_step")
        title = parts["title"].strip().rstrip(":")
        if not title:
            raise NoSteps("untitled_step")
        steps.append(ExpertStep(title, parts["text"].strip()))
    return steps


def _split_at(pattern: str | re.Pattern[str]) -> Callable[[str], list[ExpertStep]]:
    def split(solution: str) -> list[ExpertStep]:
        pieces = (piece.strip() for piece in re.split(pattern, solution))
        return [ExpertStep("", piece) for piece in pieces if piece]

    return split


_PARSERS: Mapping[Parser, Callable[[str], list[ExpertStep]]] = MappingProxyType(
    {
        "numbered": _numbered,
        "paragraphs": _split_at(r"\n[ \t]*\n"),
        "sentences": _split_at(_SENTENCE),
        "marked": _split_at(r"\s;(?:\s|$)"),
    }
)


@dataclass(frozen=True, slots=True)
class Asked:
    """The problems that a solution of N steps becomes.

    unit:       "solution" makes one problem whose target is the whole solution; the rest is for
                "step".
    last_step:  "skip" leaves out the one that asks for the last step, which states the answer (the
                paper: N - 1 problems); "ask" keeps it (N).
    tell_title: the prompt says the title of the next step, and the target is its text alone: a
                title that is copied would be rewarded. Else the target is the step as written.
    """

    unit: Unit = "step"
    last_step: LastStep = "skip"
    tell_title: bool = False


def step_problems(
    problem: Problem,
    steps: Sequence[ExpertStep],
    dialect: StepDialect,
    *,
    asked: Asked = Asked(),
) -> list[Problem]:
    """The step problems of a solution, without an answer: nothing grades them."""
    if asked.unit == "solution":
        target = dialect.whole((step.title, step.text) for step in steps)
        name = f"{problem.problem_id}/solution"
        prefix = Prefix("", "solution", target=target)
        return [replace(problem, problem_id=name, answer=None, prefix=prefix)]
    written = [dialect.written(k, s.title, s.text) for k, s in enumerate(steps, start=1)]
    cut = expert_step_prefixes(problem, written, end=dialect.end, last_step=asked.last_step)
    made: list[Problem] = []
    for k, (step, asking) in enumerate(zip(steps, cut, strict=False), start=1):
        prefix = asking.prefix
        assert prefix is not None
        if asked.tell_title and step.title:
            prefix = replace(prefix, target=step.text, title=step.title)
        name = f"{problem.problem_id}/step-{k}"
        made.append(replace(asking, problem_id=name, answer=None, prefix=prefix))
    return made


def whole_demonstrations(
    solutions: Iterable[tuple[Problem, Sequence[ExpertStep]]], dialect: StepDialect
) -> list[Demonstration]:
    """Whole solutions to imitate: the steps one after the other, each after its thought, so that
    what is learnt about single steps serves here too."""
    return [
        Demonstration(
            problem,
            dialect.end.join(
                thoughtful(step, dialect.written(number, step.title, step.text))
                for number, step in enumerate(steps, start=1)
            ),
        )
        for problem, steps in solutions
    ]


def thoughtful(step: ExpertStep, written: str) -> str:
    """A written step after the expert's thought, where there is one."""
    return f"{THINK} {step.thought} {END_THINK} {written}" if step.thought else written


def step_demonstrations(
    solutions: Iterable[tuple[Problem, Sequence[ExpertStep]]],
    dialect: StepDialect,
    *,
    seed: int,
    tell_title: bool = False,
) -> list[Demonstration]:
    """One step of each solution to imitate, a random one, with the expert's thought as monologue:
    what teaches the format before anything earns a reward."""
    rng = np.random.default_rng(seed)
    made: list[Demonstration] = []
    for problem, steps in solutions:
        problems = step_problems(problem, steps, dialect, asked=Asked("step", "ask", tell_title))
        place = int(rng.integers(len(problems)))
        prefix = problems[place].prefix
        assert prefix is not None and prefix.target is not None
        response = f"{THINK} {steps[place].thought} {END_THINK} {prefix.target}"
        made.append(Demonstration(problems[place], response))
    return made


@dataclass(slots=True)
class StepReport:
    """Counts of expert solutions. discarded: by reason; first: the first solution of each."""

    num_solutions: int = 0
    num_used: int = 0
    num_problems: int = 0
    discarded: Counter[str] = field(default_factory=Counter[str])
    first: dict[str, str] = field(default_factory=dict[str, str])

    def discard(
        self, reason: str, demonstration: Demonstration, *, text: str | None = None
    ) -> None:
        """Count a solution that cannot be used. text: what was read instead of it."""
        self.discarded[reason] += 1
        shown = demonstration.response if text is None else text
        self.first.setdefault(reason, f"{demonstration.problem.problem_id}: {shown}")

    def in_words(self) -> str:
        """The discarded solutions on one line, by reason."""
        return ", ".join(
            f"{number} x {reason} (the first: {_shortened(self.first[reason])})"
            for reason, number in self.discarded.most_common()
        )


def expert_problems(
    demonstrations: Iterable[Demonstration],
    dialect: StepDialect,
    *,
    read: Callable[[Demonstration], Sequence[ExpertStep]],
    form: str,
    agrees: Callable[[Demonstration], bool],
    asked: Asked = Asked(),
) -> tuple[list[Problem], StepReport]:
    """The step problems of expert solutions, in their order, and what was discarded.

    read:   gives the steps of a solution, as `parse_steps` does. form: its name, for an error.
    agrees: whether a solution ends with the reference answer; one that does not is no expert's.

    Discarded are: wrong_answer, the reasons of the `NoSteps` of `read`, and too_few_steps, of which
    no problem is left. ValueError, with all reasons, where none is left of any.
    """
    report, made = StepReport(), list[Problem]()
    for demonstration in demonstrations:
        report.num_solutions += 1
        if not agrees(demonstration):
            report.discard("wrong_answer", demonstration)
            continue
        try:
            steps = read(demonstration)
        except NoSteps as fault:
            report.discard(fault.reason, demonstration, text=fault.text)
            continue
        problems = step_problems(demonstration.problem, steps, dialect, asked=asked)
        if not problems:
            report.discard("too_few_steps", demonstration)
            continue
        report.num_used += 1
        made += problems
    report.num_problems = len(made)
    if not made:
        raise ValueError(
            f"no step problem is left of {report.num_solutions} expert solutions read as "
            f"{form}: {report.in_words() or 'there is none'}; choose another parser, or rewrite "
            "the solutions into steps"
        )
    return made, report


def _shortened(text: str, limit: int = 80) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else f"{flat[: limit - 3]}..."
