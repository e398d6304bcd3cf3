# SPDX-License-Identifier: Apache-2.0
"""Multi-agent synthesis of COAT demonstrations (Satori, appendix C): up to five per problem.

The generator solves each problem many times; a few right and a few wrong solutions are kept. The
critic verifies a random step of a right one, or names the first wrong step of a wrong one and hints
at another way; the generator goes on from there, for at most `max_rounds` rounds. Of the
trajectories that end right, the reward model picks the best of each type:

    I       no reflection
    II-I    one verification of a right step
    II-II   a verification, later a correction
    III-I   one correction
    III-II  two corrections (or more, where `max_rounds` allows them)

Demonstrations that people wrote hold mistakes too: `unchecked_share` keeps wrong solutions as they
are ("unchecked"), for reinforcement to unlearn.

How many problems are worked on at once is `outcomes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass, replace

import numpy as np

from satori_fast.data.formats.coat import CONTINUE, EXPLORE, REFLECT
from satori_fast.grading import GradingPool, grade
from satori_fast.synthesis.agents import Critic, Generator, RewardModel, Solution, Unusable
from satori_fast.synthesis.filters import normalised
from satori_fast.synthesis.outcomes import (
    DROPPED,
    Outcome,
    outcomes_in_order,
    problem_stream,
)
from satori_fast.types import Demonstration, Problem

TRAJECTORY_TYPES = ("I", "II-I", "II-II", "III-I", "III-II")
UNCHECKED = "unchecked"


@dataclass(frozen=True, slots=True)
class SynthesisAgents:
    """Agents of the roles. pool: grades what language models answer; None: in the caller, without a
    time limit, for agents that are trusted."""

    generator: Generator
    critic: Critic
    reward_model: RewardModel
    pool: GradingPool | None = None


@dataclass(frozen=True, slots=True)
class SynthesisOptions:
    """Amounts of work and of data.

    num_solutions: first attempts per problem (paper: 100). num_kept: right ones and wrong ones kept
    of them (4 and 4). critic_share: problems that the critic works on; the others keep their best
    right solution only, so a model that imitates them reflects less often. confirm_share: corrected
    trajectories that end with a reflection that confirms the answer. The paper's five types have
    none: a model that imitates them alone sees every reflection on a second attempt say "wrong",
    and learns to say so always. unchecked_share: problems of which one wrong solution, if there is
    any, is kept as it is beside the others (the paper: 0).
    """

    num_solutions: int
    num_kept: int = 4
    max_rounds: int = 2
    critic_share: float = 1.0
    confirm_share: float = 0.0
    unchecked_share: float = 0.0
    seed: int = 0


def synthesize(
    problems: Iterable[Problem],
    agents: SynthesisAgents,
    options: SynthesisOptions,
    *,
    num_concurrent: int = 1,
) -> AsyncGenerator[Outcome, None]:
    """Yield the outcome of each problem, in their order, `num_concurrent` at work at once.

    Every problem has a random stream of its own, so a killed run can go on from any problem and
    make the same demonstrations. Raises ValueError for a problem without an answer.
    """

    async def work(problem: Problem) -> Outcome:
        if problem.answer is None:
            raise ValueError(f"problem {problem.problem_id!r} has no answer: synthesis needs one")
        return await _ProblemWork(problem, problem.answer, agents, options).run()

    return outcomes_in_order(work, problems, num_concurrent=num_concurrent)


def distinct_problems(problems: Iterable[Problem]) -> list[Problem]:
    """The problems without those that ask what an earlier one asks, spacing and case apart."""
    distinct: dict[str, Problem] = {}
    for problem in problems:
        distinct.setdefault(normalised(problem.question), problem)
    return list(distinct.values())


@dataclass(frozen=True, slots=True)
class _Draft:
    """A trajectory in the making.

    actions: text of each action with its meta-action token. solution: the steps of the current
    attempt. num_settled: steps of it before a verification, which the critic does not judge again.
    verified, corrected: rounds so far of either kind. confirm: end with a reflection.
    """

    actions: tuple[str, ...]
    solution: Solution
    num_settled: int = 0
    verified: int = 0
    corrected: int = 0
    confirm: bool = False

    @property
    def response(self) -> str:
        return "".join(self.actions)

    @property
    def trajectory_type(self) -> str:
        if self.verified:
            return "II-II" if self.corrected else "II-I"
        return ("I", "III-I", "III-II")[min(self.corrected, 2)]


class _ProblemWork:
    """One problem, from its first attempts to the best trajectory of each type."""

    def __init__(
        self, problem: Problem, answer: str, agents: SynthesisAgents, options: SynthesisOptions
    ) -> None:
        self._problem, self._answer = problem, answer
        self._agents, self._options = agents, options
        self._rng = problem_stream(options.seed, problem.problem_id)
        self._outcome = Outcome(problem)
        self._unchecked: Solution | None = None

    async def run(self) -> Outcome:
        options, rng = self._options, self._rng
        rounds = options.max_rounds if rng.random() < options.critic_share else 0
        drafts: dict[str, list[_Draft]] = {kind: [] for kind in TRAJECTORY_TYPES}
        async for draft in self._trajectories(rounds):
            if draft.corrected and rng.random() < options.confirm_share:
                draft = replace(draft, confirm=True)
            drafts[draft.trajectory_type].append(draft)
        for kind, candidates in drafts.items():
            self._outcome.counts[f"trajectories/{kind}"] += len(candidates)
            if candidates:
                best = await self._best(candidates)
                response = (await self._confirmed(best)).response
                self._add(response, kind)
        if self._unchecked and rng.random() < options.unchecked_share:
            self._outcome.counts[f"trajectories/{UNCHECKED}"] += 1
            self._add("".join(_join(self._unchecked)), UNCHECKED)
        return self._outcome

    def _add(self, response: str, kind: str) -> None:
        self._outcome.demonstrations.append(Demonstration(self._problem, response, kind))

    async def _trajectories(self, max_rounds: int) -> AsyncIterator[_Draft]:
        """Every trajectory of the problem that ends right."""
        right, wrong = await self._first_attempts()
        for solution in self._sample(right):
            draft = _Draft(_join(solution), solution)
            yield draft
            if max_rounds and (finished := await self._finish(draft, max_rounds, verify=True)):
                yield finished
        kept = self._sample(wrong)
        self._unchecked = kept[0] if kept else None
        for solution in kept:
            draft = _Draft(_join(solution), solution)
            if max_rounds and (finished := await self._finish(draft, max_rounds)):
                yield finished

    async def _first_attempts(self) -> tuple[list[Solution], list[Solution]]:
        """Right ones and wrong ones; what has no answer is dropped."""
        right: list[Solution] = []
        wrong: list[Solution] = []
        options, generator = self._options, self._agents.generator
        for solution in await generator.solve(self._problem, options.num_solutions, self._rng):
            try:
                if isinstance(solution, Unusable):
                    raise solution
                (right if await self._is_right(solution) else wrong).append(solution)
            except Unusable as fault:
                self._outcome.drop(fault)
        self._outcome.counts["solutions/right"] += len(right)
        self._outcome.counts["solutions/wrong"] += len(wrong)
        return right, wrong

    async def _finish(
        self, draft: _Draft, max_rounds: int, *, verify: bool = False
    ) -> _Draft | None:
        """Verify a draft if asked to, then correct it until it is right; None when it stays wrong
        for `max_rounds`, or when a reply is of no use."""
        try:
            if verify:
                draft = await self._verify(draft)
            while not await self._is_right(draft.solution):
                if draft.verified + draft.corrected == max_rounds:
                    raise Unusable("still_wrong")
                draft = await self._correct(draft)
        except Unusable as fault:
            self._outcome.drop(fault)
            return None
        return draft

    async def _verify(self, draft: _Draft) -> _Draft:
        """Cut a right draft at a random step, confirm that step, and let the generator go on."""
        kept = int(self._rng.integers(1, len(draft.solution) + 1))
        steps = draft.solution[:kept]
        confirmed = await self._agents.critic.verify(self._problem, steps, rng=self._rng)
        actions = (*draft.actions[:kept], f"{REFLECT} {confirmed}")
        rest = await self._resume(actions, corrected=False)
        return _Draft((*actions, *_continued(rest)), (*steps, *rest), num_settled=kept, verified=1)

    async def _correct(self, draft: _Draft) -> _Draft:
        """Cut a wrong draft at its first wrong step, say what is wrong, and try another way."""
        steps = draft.solution[draft.num_settled :]
        if not steps:  # it had its answer before the verification, and lost it there
            raise Unusable("generator_no_steps")
        before = len(draft.actions) - len(steps)
        critique = await self._agents.critic.criticise(
            self._problem, steps, transcript="".join(draft.actions[:before]), rng=self._rng
        )
        kept = draft.actions[: before + critique.wrong_step + 1]
        actions = (*kept, f"{REFLECT} {critique.mistake}", f"{EXPLORE} {critique.hint}")
        attempt = await self._resume(actions, corrected=True)
        return _Draft(
            (*actions, *_continued(attempt)),
            attempt,
            verified=draft.verified,
            corrected=draft.corrected + 1,
        )

    async def _resume(self, actions: tuple[str, ...], *, corrected: bool) -> Solution:
        return await self._agents.generator.resume(
            self._problem, "".join(actions), corrected=corrected, rng=self._rng
        )

    async def _best(self, candidates: list[_Draft]) -> _Draft:
        """The one that the reward model prefers; the first one among equals."""
        distinct: dict[str, _Draft] = {}
        for draft in candidates:
            distinct.setdefault(normalised(draft.response), draft)
        self._outcome.counts[DROPPED + "same_trajectory"] += len(candidates) - len(distinct)
        drafts = list(distinct.values())
        if len(drafts) == 1:
            return drafts[0]
        scores = [await self._score(draft) for draft in drafts]
        return drafts[int(np.argmax(scores))]

    async def _score(self, draft: _Draft) -> float:
        """Score of a trajectory; without a usable one it comes last."""
        try:
            return await self._agents.reward_model.score(self._problem, draft.response)
        except Unusable as fault:
            self._outcome.drop(fault)
            return -np.inf

    async def _confirmed(self, draft: _Draft) -> _Draft:
        """The draft with the reflection that it is to end with."""
        if not draft.confirm:
            return draft
        try:
            text = await self._agents.critic.verify(self._problem, draft.solution, rng=self._rng)
        except Unusable as fault:
            self._outcome.drop(fault)
            return draft
        return replace(draft, actions=(*draft.actions, f"{REFLECT} {text}"))

    async def _is_right(self, solution: Solution) -> bool:
        """Raises Unusable for a solution that has no answer, or none that can be graded."""
        text, pool = " ".join(solution), self._agents.pool
        if pool is None:
            verdict = grade(text, self._answer)
        else:
            verdict = await asyncio.wrap_future(pool.submit(text, self._answer))
        if verdict.reason not in ("match", "mismatch"):
            raise Unusable(f"generator_{verdict.reason}", solution[-1])
        return verdict.correct

    def _sample(self, solutions: list[Solution]) -> list[Solution]:
        """Sample at most `num_kept` different ones, in random order."""
        distinct = {normalised(" ".join(s)): s for s in sorted(set(solutions), reverse=True)}
        self._outcome.counts[DROPPED + "same_solution"] += len(solutions) - len(distinct)
        ordered = sorted(distinct.values())
        return [ordered[i] for i in self._rng.permutation(len(ordered))[: self._options.num_kept]]


def _join(solution: Solution) -> tuple[str, ...]:
    """Steps to actions: the first step of a response carries no token."""
    return (solution[0], *_continued(solution[1:]))


def _continued(steps: Solution) -> tuple[str, ...]:
    return tuple(f"{CONTINUE} {step}" for step in steps)
