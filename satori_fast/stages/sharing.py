# SPDX-License-Identifier: Apache-2.0
"""Sampling and grading shared out over data-parallel ranks, with the same result on every rank.

Rewards must not differ between processes that then step together, and seeds belong to a problem's
place in the list: so a run of several processes takes the same steps as a run of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from satori_fast.backbone.parallel import ParallelState
from satori_fast.grading import GradingPool, Reason, Verdict
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.rollout.engine import Completion, Engine, Request, SamplingParams, collect
from satori_fast.types import Problem, RolloutResult


class SharedGrader:
    """A `GradingPool` on every data-parallel rank, each with its share of the answers.

    All ranks get the same verdicts, also where a time limit decides: rewards must not differ
    between processes that then step together. reasons: of the verdicts of the last call.
    """

    def __init__(self, pool: GradingPool, parallel: ParallelState) -> None:
        self.pool = pool
        self.reasons: Counter[Reason] = Counter()
        self._parallel = parallel

    def grade_many(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        verdicts = self._grade_many(pairs)
        self.reasons = Counter(verdict.reason for verdict in verdicts)
        return verdicts

    def _grade_many(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        size, rank = self._parallel.data_size, self._parallel.data_rank
        if size == 1:
            return self.pool.grade_many(pairs)
        everything = list(pairs)
        parts = self._parallel.all_gather(self.pool.grade_many(everything[rank::size]))
        return [parts[i % size][i // size] for i in range(len(everything))]


def collect_shared(
    engine: Engine,
    problems: Sequence[Problem],
    sampling: SamplingParams,
    *,
    parallel: ParallelState,
    spans: SpanRecorder,
) -> RolloutResult:
    """`rollout.engine.collect` with a contiguous share of the problems on each rank.

    An engine that all ranks share is asked by the main process alone. Span "sample" is a rank's own
    part: what it leaves of the span around it is waiting for the others.
    """
    if engine.is_shared:
        return parallel.from_main(lambda: collect(engine, problems, sampling))
    size, rank = parallel.data_size, parallel.data_rank
    if size == 1:
        return collect(engine, problems, sampling)
    bounds = [len(problems) * r // size for r in range(size + 1)]
    own = problems[bounds[rank] : bounds[rank + 1]]
    with spans.span("sample"):
        part = collect(engine, own, sampling, first_group=bounds[rank])
    parts = parallel.all_gather(part)
    return RolloutResult(
        trajectories=tuple(t for p in parts for t in p.trajectories),
        num_prompt_tokens=sum(p.num_prompt_tokens for p in parts),
        num_generated_tokens=sum(p.num_generated_tokens for p in parts),
        wall_s=max(p.wall_s for p in parts),
        policy_version=part.policy_version,
    )


def generate_shared(
    engine: Engine,
    requests: Sequence[Request],
    sampling: SamplingParams,
    *,
    parallel: ParallelState,
) -> list[Completion]:
    """A completion of each request, in order, on every rank; each rank samples every n-th one.

    An engine that all ranks share is asked by the main process alone.
    """
    if engine.is_shared:
        done = parallel.from_main(lambda: dict(engine.generate(requests, sampling)))
        return [done[i] for i in range(len(requests))]
    size, rank = parallel.data_size, parallel.data_rank
    own = requests[rank::size]
    done = dict(engine.generate(own, sampling))
    parts = parallel.all_gather([done[i] for i in range(len(own))])
    return [parts[i % size][i // size] for i in range(len(requests))]
