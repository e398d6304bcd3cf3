# SPDX-License-Identifier: Apache-2.0
"""Benchmarks inside a run: asked of the engine that serves the policy, each by its protocol.

Greedy, one response a question, judged by the main process; figures only. A model folder with every
response on disk, several samples and pages is `benchmark`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from satori_fast.backbone.parallel import ParallelState
from satori_fast.config import BenchmarkConfig, Config, ConfigError
from satori_fast.data.prompts import PromptRenderer, template_named
from satori_fast.evaluation.benchmark_sets import BenchmarkSet, load_benchmark
from satori_fast.evaluation.benchmarks import benchmarks_named
from satori_fast.evaluation.code_answers import CallRunner
from satori_fast.evaluation.golds import default_cache, unreadable_golds
from satori_fast.evaluation.judges import Judges
from satori_fast.evaluation.protocols import OWN_PROTOCOL, Protocol, group_of, protocol_named
from satori_fast.evaluation.responses import Asked, sample, too_long
from satori_fast.evaluation.results import benchmark_result
from satori_fast.evaluation.sandbox import check_isolation
from satori_fast.grading import GradingPool
from satori_fast.rollout.engine import Engine, SamplingParams, request_seed

logger = logging.getLogger(__name__)

# Of a result, what a run keeps.
_FIGURES = ("accuracy", "strict", "lenient", "truncated", "no_answer", "mean_tokens")
_SEED = 0  # greedy: no choice is drawn


def protocol_of(config: Config, name: str, *, source: str) -> Protocol:
    """The protocol of a name; "config" is the way in which a config trains. ValueError for none.

    source: what the config is called.
    """
    if name != OWN_PROTOCOL:
        return protocol_named(name)
    return Protocol(
        name=OWN_PROTOCOL,
        template=template_named(config.data.template, config.data.system),
        format=config.response_format,
        max_new_tokens=config.evaluation.max_new_tokens or config.rollout.max_new_tokens,
        stop_tokens=config.rollout.stop_tokens,
        source=source,
    )


@dataclass(frozen=True, slots=True)
class _Benchmark:
    """One of them, read and ready to be asked."""

    read: BenchmarkSet
    protocol: Protocol
    asked: tuple[Asked, ...]


class RunBenchmarks:
    """The benchmarks of `evaluation.benchmarks`, read once; no benchmark costs nothing.

    ConfigError for one that is not there or cannot be asked: a run finds out before it trains.
    """

    def __init__(self, config: Config, parallel: ParallelState) -> None:
        self._parallel = parallel
        self._reward = config.reward
        wanted = config.evaluation.benchmarks
        names = [each.name for each in wanted]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"evaluation.benchmarks lists {twice[0]!r} twice: keep one")
        self._benchmarks = [_read(config, each) for each in wanted]
        self._unreadable: dict[str, str] = {}
        if self._benchmarks:
            parallel.on_main(self._check_golds)
        self._renderers: dict[tuple[str, Path], PromptRenderer] = {}

    def check(self, renderer: PromptRenderer, tokenizer: Path) -> None:
        """ConfigError for a protocol that a tokenizer cannot follow, without a chat template."""
        for each in self._benchmarks:
            try:
                self._renderer(each.protocol, renderer, tokenizer)
            except ValueError as error:
                name = each.read.benchmark.name
                raise ConfigError(f"evaluation.benchmarks: {name}: {error}") from None

    def measure(self, engine: Engine, tokenizer: Path) -> dict[str, dict[str, Any]]:
        """Figures by benchmark, the same on every rank: accuracies by three graders, shares of
        responses without an answer and of cut ones, each with its interval; mean tokens.

        tokenizer: folder of the one that the engine's prompts are made with. What the engine has no
        room for is not asked, and is wrong.
        """
        if not self._benchmarks:
            return {}
        reward = self._reward
        with GradingPool(reward.num_workers, reward.timeout_s) as pool:
            sets = [each.read for each in self._benchmarks]
            judges = Judges(sets, pool, self._unreadable, CallRunner())
            try:
                for each in self._benchmarks:
                    self._ask(engine, each, tokenizer, judges)
                return self._parallel.from_main(lambda: self._figures(judges))
            finally:
                judges.close()

    def _ask(self, engine: Engine, each: _Benchmark, tokenizer: Path, judges: Judges) -> None:
        renderer = self._renderer(each.protocol, engine.renderer, tokenizer)
        refused = {one.key for one in too_long(engine, each.asked, renderer)}
        wanted = [one for one in each.asked if one.key not in refused]
        sampling = SamplingParams(temperature=0.0, max_new_tokens=each.protocol.max_new_tokens)
        for response in sample(engine, wanted, sampling, renderer=renderer, seed_of=_seed):
            if self._parallel.is_main:
                judges.add([response])

    def _figures(self, judges: Judges) -> dict[str, dict[str, Any]]:
        judged = judges.result()
        figures: dict[str, dict[str, Any]] = {}
        for each in self._benchmarks:
            name = each.read.benchmark.name
            result = benchmark_result(
                each.read, judged[name], num_samples=1, unreadable=self._unreadable
            )
            figures[name] = {"protocol": each.protocol.name, "partial": result["partial"]}
            figures[name] |= {key: result[key] for key in _FIGURES}
        return figures

    def _renderer(
        self, protocol: Protocol, renderer: PromptRenderer, tokenizer: Path
    ) -> PromptRenderer:
        """Prompts of a protocol; those of "config" are the run's own."""
        if protocol.name == OWN_PROTOCOL:
            return renderer
        key = protocol.name, tokenizer
        if key not in self._renderers:
            self._renderers[key] = protocol.renderer(
                renderer.tokenizer, tokenizer, max_prompt_tokens=_NO_LIMIT
            )
        return self._renderers[key]

    def _check_golds(self) -> None:
        reward = self._reward
        with GradingPool(max(1, reward.num_workers), reward.timeout_s) as pool:
            sets = [each.read for each in self._benchmarks]
            self._unreadable |= unreadable_golds(sets, pool, cache=default_cache())


_NO_LIMIT = 1 << 40  # the engine's length is the limit


def _read(config: Config, wanted: BenchmarkConfig) -> _Benchmark:
    folder = config.evaluation.data_dir
    try:
        (row,) = benchmarks_named([wanted.name])
        if row.kind == "input":
            check_isolation()
        place = None if folder is None else Path(folder).expanduser()
        read = load_benchmark(row, place, limit=wanted.limit)
        protocol = protocol_of(config, wanted.protocol, source=config.name)
    except (ValueError, OSError) as error:
        raise ConfigError(f"evaluation.benchmarks: {error}") from None
    if wanted.max_new_tokens is not None:
        protocol = replace(protocol, max_new_tokens=wanted.max_new_tokens)
    for fault in read.faults:
        logger.warning("benchmark %s: %s", row.name, fault)
    if protocol.max_new_tokens >= config.rollout.max_seqlen:
        logger.warning(
            "benchmark %s: protocol %s lets responses have %d tokens, and rollout.max_seqlen = %d "
            "has no room for them: raise it, or set the benchmark's max_new_tokens",
            row.name,
            protocol.name,
            protocol.max_new_tokens,
            config.rollout.max_seqlen,
        )
    asked = [
        Asked(
            row.name,
            replace(item.problem, question=protocol.question(item.problem.question)),
            0,
            group_of(row, item.problem.problem_id),
        )
        for item in read.items
    ]
    return _Benchmark(read, protocol, tuple(asked))


def _seed(asked: Asked) -> int:
    return request_seed(_SEED, asked.group, asked.sample)
