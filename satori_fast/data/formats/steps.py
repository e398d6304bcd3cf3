# SPDX-License-Identifier: Apache-2.0
"""A response that gives one step of a solution: an inner monologue, then the step (SRL, arXiv
2510.25992, appendix B.2).

    <think> thoughts, drafts </think> the next step, and nothing else

The step may stand between ``<solution>`` and ``</solution>``: a figure of the paper has them, its
template has not. What the step is compared with is `rewards.similarity`; where step problems come
from is `data.steps`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from satori_fast.data.formats.format import ResponseFormat, TokenText, split_at_bytes, tiled
from satori_fast.types import Prefix, Problem, Segment, SegmentKind, Trajectory

# After appendix B.2.1, whose wording is quoted here as far as the paper prints it.
PAPER_SYSTEM = """\
A user will provide a math problem, which may include a partial solution. Your task is to continue \
the solution by providing the very next logical step.

First draft your thinking process (inner monologue). Then, generate the solution. Your response \
format must follow the template below:

<think> Your thoughts or/and draft, like working through an exercise on scratch paper. </think>
Provide only the single, next step to continue the solution. Do not solve the entire problem."""
THINK, END_THINK = "<think>", "</think>"
SOLUTION, END_SOLUTION = "<solution>", "</solution>"
SolutionTags = Literal["accepted", "required"]
Fault = Literal[
    "no_monologue",
    "unclosed_monologue",
    "several_monologues",
    "text_before_monologue",
    "broken_solution_tags",
    "no_solution_tags",
    "empty_action",
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
_TAGS = re.compile(r"</?think>")
_MONOLOGUE = re.compile(r"<think>(.*?)</think>\s*", re.DOTALL)
_SOLUTION_TAGS = re.compile(r"</?solution>")


@dataclass(frozen=True, slots=True)
class StepResponse:
    """The parts of a response. fault: why it is not of the format, None where it is; its action is
    then ""."""

    monologue: str
    action: str
    fault: Fault | None = None


def asks_solution(problem: Problem) -> bool:
    """Whether the expert's whole solution is asked for, in which there may be a monologue before
    every step."""
    return problem.prefix is not None and problem.prefix.kind == "solution"


def split_response(
    text: str, *, tags: SolutionTags = "accepted", whole: bool = False
) -> StepResponse:
    """Read a response: one monologue, first, then an action that is not empty.

    tags:  "required" also asks for ``<solution>`` tags around the action.
    whole: a whole solution, of which every part may have a monologue before it; they are cut out.

    Faults, in the order in which they are looked for:
    no_monologue: no ``<think>``. text_before_monologue: something before it, or ``</think>``.
    unclosed_monologue: it has no end. several_monologues: more tags after its end; in a whole
    solution, tags that are no pairs.
    broken_solution_tags: not one pair around the whole action. no_solution_tags: none, where they
    are required. empty_action: nothing is left.

    >>> split_response("<think> 37 and 25 </think> 37 + 25 = 62")
    StepResponse(monologue='37 and 25', action='37 + 25 = 62', fault=None)
    >>> split_response("37 + 25 = 62").fault
    'no_monologue'
    >>> split_response("<think> plus </think> 2 ; <think> swap </think> 20", whole=True).action
    '2 ; 20'
    """
    fault = _monologue_fault(text, whole=whole)
    if fault is not None:
        return StepResponse("", "", fault)
    monologue = " ".join(found.strip() for found in _MONOLOGUE.findall(text))
    action = _MONOLOGUE.sub("", text).strip()
    found = _SOLUTION_TAGS.findall(action)
    if found:
        inside = action.removeprefix(SOLUTION).removesuffix(END_SOLUTION)
        is_pair = len(action) - len(inside) == len(SOLUTION + END_SOLUTION)
        if found != [SOLUTION, END_SOLUTION] or not is_pair:
            return StepResponse(monologue, "", "broken_solution_tags")
        action = inside.strip()
    elif tags == "required":
        return StepResponse(monologue, "", "no_solution_tags" if action else "empty_action")
    return StepResponse(monologue, action, None if action else "empty_action")


def _monologue_fault(text: str, *, whole: bool = False) -> Fault | None:
    found = _TAGS.findall(text)
    if THINK not in found:
        return "no_monologue"
    if not text.lstrip().startswith(THINK):
        return "text_before_monologue"
    if END_THINK not in found:
        return "unclosed_monologue"
    num_pairs = len(found) // 2 if whole else 1
    return None if found == [THINK, END_THINK] * num_pairs else "several_monologues"


@dataclass(frozen=True)
class StepDialect:
    """The words of step problems: how a step is written, and how the next one is asked for.

    step:     a step of a title, with ``{number}``, ``{title}`` and ``{text}``; untitled: of none.
    end:      stands after each step of a partial solution.
    solved:   introduces the partial solution in the user's turn, with ``{steps}``.
    begun:    stands there instead where no step is solved yet.
    asked:    introduces the title of the step that is asked for, with ``{title}``.
    words:    those of all this that a tokenizer of whole words needs.
    """

    name: str
    step: str
    untitled: str
    end: str
    solved: str
    begun: str
    asked: str
    words: tuple[str, ...] = ()

    def written(self, number: int, title: str, text: str) -> str:
        """Write a step. number: its place in the solution, from 1.

        >>> PAPER.written(2, "Add", "37 + 25 = 62")
        '2. **Add** 37 + 25 = 62'
        """
        return (self.step if title else self.untitled).format(number=number, title=title, text=text)

    def heading(self, step: str) -> str:
        """Read back how a written step begins: its number and title, "" where it has no title.

        >>> PAPER.heading("2. **Add** 37 + 25 = 62")
        '2. **Add**'
        """
        before = re.escape(self.step.partition("{text}")[0])
        for part, form in (("{number}", "[0-9]+"), ("{title}", ".+?")):
            before = before.replace(re.escape(part), form)
        found = re.match(before, step)
        return found.group().strip() if found else ""

    def turn(self, question: str, steps: str, title: str | None) -> str:
        """Write the user's turn of a step problem.

        >>> WORDS.turn("start 90 plus 25 swap", "90 + 25 = 15 ;", "swap")
        'start 90 plus 25 swap so far 90 + 25 = 15 ; next swap'
        """
        solved = self.solved.format(steps=steps.strip()) if steps.strip() else self.begun
        return question + solved + (self.asked.format(title=title) if title else "")

    def whole(self, steps: Iterable[tuple[str, str]]) -> str:
        """Write a whole solution: its (title, text) steps, one after the other.

        >>> WORDS.whole([("plus 25", "90 + 25 = 15"), ("answer", "15")])
        'plus 25 : 90 + 25 = 15 ; answer : 15'
        """
        written = [self.written(number, *step) for number, step in enumerate(steps, start=1)]
        return self.end.join(written)


PAPER = StepDialect(
    "paper",
    step="{number}. **{title}** {text}",
    untitled="{number}. {text}",
    end="\n",
    solved="\n\nPartial solution:\n{steps}",
    begun="",  # the system message says what is asked
    asked="\n\nNext step: {title}",
)
# A tokenizer of whole words drops line breaks: a word ends a step.
WORDS = StepDialect(
    "words",
    step="{title} : {text}",
    untitled="{text}",
    end=" ; ",
    solved=" so far {steps}",
    begun=" so far",  # without it this would be the prompt of the whole problem
    asked=" next {title}",
    words=(":", ";", "so", "far", "next"),
)
DIALECTS: Mapping[str, StepDialect] = MappingProxyType({d.name: d for d in (PAPER, WORDS)})


class Steps(ResponseFormat):
    """SRL's format: an inner monologue and one step of a solution."""

    name = "steps"
    has_dialects = True
    colours = MappingProxyType(
        {SegmentKind.THINK: "#8a94a3", SegmentKind.STEP: "#3f6fb5", SegmentKind.WHOLE: "#b5493f"}
    )

    def __init__(self, dialect: StepDialect = PAPER) -> None:
        self.dialect = dialect

    @property
    def words(self) -> tuple[str, ...]:
        """Words that a tokenizer of whole words needs beside those of its domain."""
        return (THINK, END_THINK, SOLUTION, END_SOLUTION, *self.dialect.words)

    @property
    def full_name(self) -> str:
        """Name of the format and its dialect."""
        return f"{self.name}/{self.dialect.name}"

    def in_dialect(self, name: str) -> Steps:
        """Give the format with other words, a name of `DIALECTS`."""
        return Steps(DIALECTS[name])

    def asked(self, problem: Problem) -> str:
        """Write the question, with the partial solution and, where it is given, the title of the
        step that is asked for."""
        prefix = problem.prefix
        if prefix is None or prefix.kind != "step":
            return problem.question
        return self.dialect.turn(problem.question, prefix.text, prefix.title)

    def segments(
        self, ids: np.ndarray, tokens: TokenText, *, prefix: Prefix | None
    ) -> tuple[Segment, ...]:
        """Cut after the monologue, by bytes: a token that straddles its end belongs to it. A
        response without one monologue, first, is one piece, and so is a whole solution."""
        spelled = b"".join(tokens.token_bytes(ids))
        is_whole = prefix is not None and prefix.kind == "solution"
        if is_whole or _monologue_fault(spelled.decode(errors="replace")) is not None:
            return tiled(ids, tokens, [(0, SegmentKind.WHOLE)])
        end = spelled.index(END_THINK.encode()) + len(END_THINK)
        kinds = [SegmentKind.THINK, *([SegmentKind.STEP] if spelled[end:].strip() else [])]
        places = split_at_bytes(ids, tokens, [0, end][: len(kinds)])
        return tiled(ids, tokens, list(zip(places, kinds, strict=True)))

    def pieces(self, text: str) -> list[tuple[SegmentKind, str]]:
        """Take the text of a prefix as it is: steps, one after the other."""
        return [(SegmentKind.STEP, text)] if text else []

    def metrics(self, trajectory: Trajectory) -> Mapping[str, float]:
        """Share of responses with a fault, and with each kind of them (`split_response`)."""
        text = "".join(segment.text for segment in trajectory.segments)
        found = split_response(text, whole=asks_solution(trajectory.problem)).fault
        shares = {f"fault/{fault}": float(fault == found) for fault in FAULTS}
        return {"fault": float(found is not None), **shares}


STEPS = Steps()
