# SPDX-License-Identifier: Apache-2.0
"""Trajectories of trials for behaviour initialisation (S2R, section 3.2 and appendix C.1).

A model's own graded samples of a problem become one trajectory: solutions with different wrong
answers, then a right one, each with a verification that says so. The more samples are wrong, the
more trials; with w wrong of five samples the paper's data has

    w       trials                                                        kept
    0       1                                                             0.239
    1       2                                                             0.5
    2, 3    3, or 2 where no second wrong answer has a true verification  0.5, 1
    4       4, or 3, or 2                                                 0.5, 1, 1

A verification whose verdict is not the truth is dropped, and so is one that was to confirm an
answer and solves the problem again instead; both are counted, with an example, and the next sample
is tried. Who verifies and who judges is `trial_agents`; where samples come from is the stage's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass

from satori_fast.data.formats.trials import Dialect, Trial
from satori_fast.grading import extract_answer
from satori_fast.synthesis.agents import Unusable
from satori_fast.synthesis.filters import normalised
from satori_fast.synthesis.outcomes import Outcome, outcomes_in_order, problem_stream
from satori_fast.synthesis.trial_agents import TrialAgents, VerificationKind
from satori_fast.types import Demonstration, Problem, SegmentKind, Trajectory

TRIAL_TYPES = ("1", "2", "3", "4")


@dataclass(frozen=True, slots=True)
class GradedSamples:
    """Samples of a model for a problem, and whether each is right."""

    problem: Problem
    samples: Sequence[tuple[Trajectory, bool]]


@dataclass(frozen=True, slots=True)
class TrialOptions:
    """Amounts of data.

    max_trials: of a trajectory, 1 to 4. keep: share of problems kept of those that give as many
    trials as their wrong samples ask for, by that number, 1 to 4; what falls short is kept.
    confirming_share: verifications that confirm the answer; the others solve the problem again.
    """

    dialect: Dialect
    max_trials: int = 4
    keep: tuple[float, ...] = (0.239, 0.5, 0.5, 0.5)
    confirming_share: float = 1.0
    seed: int = 0


def make_trials(
    problems: Iterable[GradedSamples],
    agents: TrialAgents,
    options: TrialOptions,
    *,
    num_concurrent: int = 1,
) -> AsyncGenerator[Outcome, None]:
    """Yield the outcome of each problem, in their order, `num_concurrent` at work at once: at most
    one demonstration, whose type is its number of trials.

    Every problem has a random stream of its own, so a killed run can go on from any problem and
    make the same demonstrations.
    """

    async def work(graded: GradedSamples) -> Outcome:
        return await _ProblemWork(graded, agents, options).run()

    return outcomes_in_order(work, problems, num_concurrent=num_concurrent)


def trials_asked_for(num_wrong: int, max_trials: int) -> int:
    """Return the number of trials for a problem with so many wrong samples.

    >>> [trials_asked_for(wrong, max_trials=4) for wrong in range(6)]
    [1, 2, 3, 3, 4, 4]
    """
    trials = 1 if num_wrong == 0 else 2 if num_wrong == 1 else 3 if num_wrong <= 3 else 4
    return min(trials, max_trials)


@dataclass(frozen=True, slots=True)
class _Solution:
    """A sample that can be a trial. number: its place among the samples of its problem."""

    number: int
    text: str
    answer: str
    right: bool


class _ProblemWork:
    """One problem, from its graded samples to a trajectory of trials."""

    def __init__(self, graded: GradedSamples, agents: TrialAgents, options: TrialOptions) -> None:
        self._problem, self._samples = graded.problem, graded.samples
        self._agents, self._options = agents, options
        self._rng = problem_stream(options.seed, graded.problem.problem_id)
        self._outcome = Outcome(graded.problem)

    async def run(self) -> Outcome:
        try:
            trials = await self._trials()
        except Unusable as fault:
            self._outcome.drop(fault)
        else:
            response = self._options.dialect.join_trials(trials)
            made = Demonstration(self._problem, response, str(len(trials)))
            self._outcome.demonstrations.append(made)
            self._outcome.counts[f"trajectories/{made.trajectory_type}"] += 1
        return self._outcome

    async def _trials(self) -> list[Trial]:
        """The trials of a trajectory. Raises Unusable for a problem that gives none."""
        draw = self._rng.random()
        solutions = self._solutions()
        num_right = sum(right for _, right in self._samples)
        num_wrong = len(self._samples) - num_right
        self._outcome.counts["samples/right"] += num_right
        self._outcome.counts["samples/wrong"] += num_wrong
        if not any(solution.right for solution in solutions):
            raise Unusable("problem_unsolved", self._problem.question)
        asked_for = trials_asked_for(num_wrong, self._options.max_trials)
        is_kept = draw < self._options.keep[asked_for - 1]
        if not is_kept and asked_for <= 2:  # fewer trials would be none: nobody has to be asked
            raise Unusable("problem_not_kept", self._problem.question)
        last = await self._verified((s for s in solutions if s.right), at_most=1)
        wrong = (s for s in solutions if not s.right)
        failed = await self._verified(wrong, at_most=asked_for - 1) if last else []
        if not last or (asked_for > 1 and not failed):
            raise Unusable("problem_unverified", self._problem.question)
        if not is_kept and len(failed) == asked_for - 1:
            raise Unusable("problem_not_kept", self._problem.question)
        return [*failed, *last]

    def _solutions(self) -> list[_Solution]:
        """The samples that can be trials, in random order."""
        found: list[_Solution] = []
        for number in self._rng.permutation(len(self._samples)):
            trajectory, right = self._samples[number]
            try:
                text, answer = _solution_of(trajectory)
                found.append(_Solution(int(number), text, answer, right))
            except Unusable as fault:
                self._outcome.drop(fault)
        return found

    async def _verified(self, solutions: Iterable[_Solution], *, at_most: int) -> list[Trial]:
        """The first solutions, with different answers, that get a verification of use."""
        found: dict[str, Trial] = {}
        for solution in solutions:
            if len(found) == at_most:
                break
            if solution.answer in found:
                continue
            try:
                found[solution.answer] = await self._verify(solution)
            except Unusable as fault:
                self._outcome.drop(fault)
        return list(found.values())

    async def _verify(self, solution: _Solution) -> Trial:
        """A solution with a true verification. Raises Unusable."""
        options, agents = self._options, self._agents
        is_confirming = self._rng.random() < options.confirming_share
        kind: VerificationKind = "confirming" if is_confirming else "resolving"
        text = await agents.verifier.verify(
            self._problem, solution.text, kind, rng=self._rng, sample=solution.number
        )
        said = options.dialect.verdict(text)
        if said is None:
            raise Unusable("verification_undecided", text)
        if said is not solution.right:
            raise Unusable("verification_false", text)
        trial = Trial(solution.text, text)
        if options.dialect.split_trials(options.dialect.join_trials([trial])) != [trial]:
            raise Unusable("verification_with_separator", text)
        if is_confirming and not await agents.judge.confirms(self._problem, solution.text, text):
            raise Unusable("verification_solves_again", text)
        return trial


def _solution_of(trajectory: Trajectory) -> tuple[str, str]:
    """The text of a sample and its answer, to compare. Raises Unusable for one that is no trial."""
    text = "".join(segment.text for segment in trajectory.segments).strip()
    if trajectory.finish == "length":
        raise Unusable("sample_cut_off", text)
    if [segment.kind for segment in trajectory.segments] != [SegmentKind.SOLVE]:
        raise Unusable("sample_with_separator", text)
    answer = extract_answer(text)
    if answer is None:
        raise Unusable("sample_without_answer", text)
    return text, normalised(answer)
