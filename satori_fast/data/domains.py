# SPDX-License-Identifier: Apache-2.0
"""The built-in domains, a row each: `data.source` names one, and nothing else tells them apart.

A row says who draws problems, which words a tokenizer needs, who writes plain solutions to imitate,
if anyone does, and what is counted in responses. Problems and texts themselves are `arithmetic`,
`chains`, `chain_actions`, `word_problems` and `word_actions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from satori_fast.data import arithmetic, chains, word_actions, word_problems
from satori_fast.data.chain_actions import slip_counts
from satori_fast.data.drawn_problems import DrawnProblems
from satori_fast.data.formats.coat import COAT
from satori_fast.data.formats.format import ResponseFormat
from satori_fast.data.steps import ExpertStep
from satori_fast.data.stories import parse_story
from satori_fast.types import Demonstration, Problem

Counts = Callable[[str, str], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Domain:
    """A built-in domain.

    problems: draws its problems, called as `DrawnProblems` is.
    words:    every word of its texts, for a word tokenizer; None where they are plain English.
    answer:   works out the right answer of a question.
    solution: the expert's plain solution of a question; None where plain solutions teach nothing
              (they could only be guessed).
    steps:    the same as titled steps, the last of which states the answer; None where a step is no
              easier than the problem.
    slips:    the steps, and thoughts, of a pupil of whom a share of steps slips.
    counts:   of a question and a response, what evaluations show means of; by format.
    """

    problems: type[DrawnProblems]
    words: Callable[[], list[str]] | None
    answer: Callable[[str], str]
    solution: Callable[[str], str] | None = None
    steps: Callable[[str], tuple[ExpertStep, ...]] | None = None
    slips: Callable[[str, float, np.random.Generator], tuple[ExpertStep, ...]] | None = None
    counts: Mapping[str, Counts] = field(default_factory=lambda: MappingProxyType({}))

    def demonstrations(self, problems: Iterable[Problem]) -> list[Demonstration]:
        """Write the expert's plain solution of each problem."""
        assert self.solution is not None
        return [Demonstration(problem, self.solution(problem.question)) for problem in problems]

    def solved(
        self, problems: Iterable[Problem]
    ) -> Iterator[tuple[Problem, tuple[ExpertStep, ...]]]:
        """Yield each problem with the expert's steps."""
        assert self.steps is not None
        for problem in problems:
            yield problem, self.steps(problem.question)

    def slipped(
        self, problems: Iterable[Problem], share: float, *, seed: int
    ) -> Iterator[tuple[Problem, tuple[ExpertStep, ...]]]:
        """Yield each problem with the steps of a pupil who slips."""
        assert self.slips is not None
        rng = np.random.default_rng(seed)
        for problem in problems:
            yield problem, self.slips(problem.question, share, rng)


def _chain_steps(question: str) -> tuple[ExpertStep, ...]:
    chain = chains.parse_chain(question)
    parts = (chains.step_titles(chain), chains.expert_steps(chain), chains.step_thoughts(chain))
    return tuple(map(ExpertStep, *parts))


def _careless_chain_steps(
    question: str, share: float, rng: np.random.Generator
) -> tuple[ExpertStep, ...]:
    chain = chains.parse_chain(question)
    steps, thoughts = chains.careless_steps(chain, share, rng)
    return tuple(map(ExpertStep, chains.step_titles(chain), steps, thoughts))


def _word_steps(question: str) -> tuple[ExpertStep, ...]:
    story = parse_story(question)
    parts = (
        word_problems.step_titles(story),
        word_problems.expert_steps(story),
        word_problems.step_thoughts(story),
    )
    return tuple(map(ExpertStep, *parts))


def _careless_word_steps(
    question: str, share: float, rng: np.random.Generator
) -> tuple[ExpertStep, ...]:
    story = parse_story(question)
    steps, thoughts = word_problems.careless_steps(story, share, rng)
    return tuple(map(ExpertStep, word_problems.step_titles(story), steps, thoughts))


ARITHMETIC = "arithmetic"
DOMAINS: Mapping[str, Domain] = MappingProxyType(
    {
        ARITHMETIC: Domain(
            arithmetic.ArithmeticProblems,
            arithmetic.domain_words,
            lambda question: arithmetic.parse_puzzle(question).answer,
        ),
        "chains": Domain(
            chains.ChainProblems,
            chains.domain_words,
            lambda question: chains.parse_chain(question).answer,
            lambda question: chains.solution_text(chains.parse_chain(question)),
            _chain_steps,
            _careless_chain_steps,
            MappingProxyType({COAT.name: slip_counts}),
        ),
        "word_problems": Domain(
            word_problems.WordProblems,
            None,
            lambda question: parse_story(question).answer,
            lambda question: word_problems.solution_text(parse_story(question)),
            _word_steps,
            _careless_word_steps,
            MappingProxyType({COAT.name: word_actions.slip_counts}),
        ),
    }
)


def words_of(source: str, formats: Iterable[ResponseFormat | None]) -> list[str]:
    """Each word of a built-in domain (of arithmetic, where `source` is none) and of the formats of
    its responses, once: what a tokenizer of words has to know."""
    domain = DOMAINS.get(source, DOMAINS[ARITHMETIC])
    assert domain.words is not None  # a config with such a tokenizer was refused
    words = [*domain.words(), *(word for each in formats if each for word in each.words)]
    return list(dict.fromkeys(words))
