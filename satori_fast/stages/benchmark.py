# SPDX-License-Identifier: Apache-2.0
"""The eval verb on benchmarks: a model folder asked by a protocol, graded, and written down.

No training data is read and no run folder is needed. What is on disk already is not asked for
again: `responses.jsonl` has every response, `judgements.jsonl` the verdicts, `evaluation.json` what
they are worth, and pages show it. The greedy accuracy on the held-out problems of a config is
`evaluate`.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from satori_fast import __version__
from satori_fast.backbone.architecture import load_hf_config
from satori_fast.backbone.parallel import ParallelState
from satori_fast.config import SCHEMA_VERSION, Config, ConfigError, load_config
from satori_fast.data.domains import DOMAINS
from satori_fast.data.prompts import PromptRenderer
from satori_fast.data.tokenizer import load_tokenizer
from satori_fast.evaluation.benchmark_sets import BenchmarkSet, load_benchmark, problem_set
from satori_fast.evaluation.benchmarks import benchmarks_named
from satori_fast.evaluation.code_answers import CallRunner
from satori_fast.evaluation.contamination import find_overlaps
from satori_fast.evaluation.golds import default_cache, unreadable_golds
from satori_fast.evaluation.judges import Judges
from satori_fast.evaluation.pages import (
    COLUMNS,
    EVALUATION,
    JUDGEMENTS,
    RESPONSES,
    result_cells,
    write_evaluation_pages,
)
from satori_fast.evaluation.protocols import OWN_PROTOCOL, Protocol, group_of
from satori_fast.evaluation.responses import Asked, Key, ResponseFile, sample, too_long
from satori_fast.evaluation.results import (
    average,
    benchmark_result,
    contamination_result,
    judgement_record,
)
from satori_fast.evaluation.sandbox import check_isolation, isolation_fault
from satori_fast.grading import GradingPool, grader_version
from satori_fast.profiling.metrics import progress
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.profiling.summary import terminal_table
from satori_fast.rollout.engine import Engine, SamplingParams, request_seed
from satori_fast.stages.engines import EngineProvider, check_engine
from satori_fast.stages.evaluated_model import evaluated_model, output_folder
from satori_fast.stages.models import ModelFolders
from satori_fast.stages.response_scores import score_responses
from satori_fast.stages.run_benchmarks import protocol_of
from satori_fast.stages.setup import checking_processes, join_ranks, keep_tokenizer
from satori_fast.storage import digests, write_sealed, write_sealed_records

logger = logging.getLogger(__name__)

HELDOUT = "heldout"  # the built-in problems of a config, as a benchmark
# Requests that an engine which may die gets at once: it tells of none before all are done.
_ASKED_TOGETHER = 512
_DEFAULTS = f'schema_version = {SCHEMA_VERSION}\nname = "eval"\n[data]\nnum_train = 1\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkOptions:
    """Wishes of the command line.

    model:      folder, run folder (its last stage), checkpoint of a run or name on the hub.
    benchmarks: names of the table, "all", or "heldout" with a config of a built-in domain.
    protocol:   a name of `protocols.PROTOCOLS`, or "config": what the config says.
    config, overrides: sections rollout, model, parallel and reward of it are used.
    data_dir:   folder of the benchmarks' files; None: the hub. output: None: evaluations/NAME.
    num_samples, temperature, seed: 1 and 0.0 are greedy.
    limit:      first questions of each set only. strict: what is not as published is an error.
    contamination: training files that questions are looked for in.
    reward_model: folder of one that chooses the best of several responses.
    trusted:    run functions of benchmarks without isolation where there is none.
    """

    model: str
    benchmarks: tuple[str, ...]
    protocol: str = "satori"
    config: Path | None = None
    overrides: tuple[str, ...] = ()
    data_dir: Path | None = None
    output: Path | None = None
    num_samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int | None = None
    seed: int = 0
    limit: int | None = None
    strict: bool = False
    contamination: tuple[Path, ...] = ()
    reward_model: str | None = None
    trusted: bool = False

    def __post_init__(self) -> None:
        if self.num_samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"--samples {self.num_samples} with --temperature 0 would be {self.num_samples} "
                "times the same response: set --temperature, such as 1.0"
            )
        if self.reward_model is not None and self.num_samples == 1:
            raise ConfigError("--reward-model chooses among several responses: set --samples")


def evaluate_benchmarks(options: BenchmarkOptions) -> dict[str, Any]:
    """Evaluate a model on benchmarks; returns what evaluation.json holds.

    ConfigError for what cannot be asked at all. A benchmark that is not there is named, and the
    others go on.
    """
    with ExitStack() as stack:
        model, place = stack.enter_context(evaluated_model(options.model))
        config = _config(options, model)
        check_engine(config.rollout)
        protocol = _protocol(options, config)
        sets, missing = _load_sets(options, config)
        output = options.output or output_folder(place, protocol.name)
        parallel = join_ranks(config)
        own_folder = stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(parallel.all_gather(own_folder)[0])
        renderer = _renderer(protocol, model, folder, parallel)
        session = _Session(options, config, protocol, model, output, parallel, renderer)
        result = session.run(sets, missing, folder)
    if parallel.is_main:
        _show(result, output, Console())
    return result


@dataclass(frozen=True)
class _Session:
    """One evaluation at work."""

    options: BenchmarkOptions
    config: Config
    protocol: Protocol
    model: Path
    output: Path
    parallel: ParallelState
    renderer: PromptRenderer

    def run(
        self, sets: Sequence[BenchmarkSet], missing: Mapping[str, str], folder: Path
    ) -> dict[str, Any]:
        """Ask for what is not there, judge everything, write evaluation.json."""
        asked = [each for benchmark in sets for each in self._asked(benchmark)]
        identity = self._identity()
        files: list[ResponseFile] = []
        with ExitStack() as stack:
            main_only = self.parallel.on_main
            main_only(lambda: files.append(_opened(self.output / RESPONSES, identity)))
            file = files[0] if files else None
            if file is not None:
                stack.callback(file.close)
            reward = self.config.reward
            pool = stack.enter_context(GradingPool(reward.num_workers, reward.timeout_s))
            unreadable: dict[str, str] = {}
            main_only(lambda: unreadable.update(self._unreadable(sets)))
            judges = Judges(sets, pool, unreadable, CallRunner(trusted=self.options.trusted))
            stack.callback(judges.close)
            models = self._models(asked, folder)
            self._ask(self._engine(models, folder, stack), asked, file, judges)
            rewards = self._rewards(models, asked, file)
            result: dict[str, Any] = {}
            if file is not None:
                result = self._result(
                    sets, missing, identity, judges, unreadable=unreadable, rewards=rewards
                )
        return result

    def _unreadable(self, sets: Sequence[BenchmarkSet]) -> dict[str, str]:
        """Golds that cannot be read; the processes start where the cache does not know them."""
        reward = self.config.reward
        with GradingPool(checking_processes(reward.num_workers), reward.timeout_s) as pool:
            return unreadable_golds(sets, pool, cache=default_cache())

    def _asked(self, benchmark: BenchmarkSet) -> Iterator[Asked]:
        for item in benchmark.items:
            problem = replace(item.problem, question=self.protocol.question(item.problem.question))
            group = group_of(benchmark.benchmark, problem.problem_id)
            for number in range(self.options.num_samples):
                yield Asked(benchmark.benchmark.name, problem, number, group)

    def _identity(self) -> dict[str, Any]:
        """Model and manner that responses must share to stand in one file."""
        return {
            "model": digests(self.model, _model_files(self.model)),
            "protocol": self.protocol.described(),
            "temperature": self.options.temperature,
            "seed": self.options.seed,
            "engine": self.config.rollout.engine,
            "dtype": self.config.model.dtype,
        }

    def _models(self, asked: Sequence[Asked], folder: Path) -> ModelFolders:
        """Models with room for the longest prompt and the protocol's limit, if theirs has."""
        context = int(load_hf_config(self.model).max_position_embeddings)
        longest = max(len(self.renderer.unchecked_prompt_ids(each.problem)) for each in asked)
        wanted = longest + self.protocol.max_new_tokens
        if wanted > context:
            logger.warning(
                "the longest prompt (%d tokens) and the limit of protocol %s (%d) exceed the "
                "model's context of %d: responses to long prompts are cut short",
                longest,
                self.protocol.name,
                self.protocol.max_new_tokens,
                context,
            )
        return ModelFolders(
            self.renderer,
            folder / "tokenizer",
            dtype=self.config.model.dtype,
            recompute="none",
            max_seqlen=min(wanted, context),
        )

    def _engine(self, models: ModelFolders, folder: Path, stack: ExitStack) -> Engine:
        """An engine that serves the model."""
        rollout = self.config.rollout.model_copy(update={"max_seqlen": models.max_seqlen})
        provider = EngineProvider(
            rollout,
            run_name=f"{self.config.name}-eval",
            dtype=self.config.model.dtype,
            folder=folder,
            parallel=self.parallel,
            spans=SpanRecorder(device=self.parallel.device, rank=self.parallel.rank),
        )
        stack.callback(provider.close)
        return provider.serve(models.policy(self.model), self.renderer, version=0)

    def _ask(
        self,
        engine: Engine,
        asked: Sequence[Asked],
        file: ResponseFile | None,
        judges: Judges,
    ) -> None:
        """Have every response on disk, and those that are there judged meanwhile."""
        refused = {each.key for each in too_long(engine, asked, self.renderer)}
        if refused and self.parallel.is_main:
            names = ", ".join(sorted({f"{key[1]}" for key in refused})[:5])
            logger.warning("%d prompts leave no room for a response: %s", len(refused), names)
        wanted = [each for each in asked if each.key not in refused]
        known = {} if file is None else file.responses
        there = self.parallel.from_main(lambda: set(known))
        if file is not None:
            _check_prompts(wanted, file, self.renderer)
            judges.add(known[each.key] for each in wanted if each.key in known)
        missing = [each for each in wanted if each.key not in there]
        sampling = SamplingParams(
            temperature=self.options.temperature, max_new_tokens=self.protocol.max_new_tokens
        )
        size = _ASKED_TOGETHER if engine.can_restart else max(1, len(missing))
        console = Console(stderr=True, quiet=not self.parallel.is_main)
        with progress(
            "eval", len(wanted), completed=len(wanted) - len(missing), console=console
        ) as bar:
            for start in range(0, len(missing), size):
                some = missing[start : start + size]
                for response in sample(
                    engine, some, sampling, renderer=self.renderer, seed_of=self._seed
                ):
                    if file is not None:
                        file.add(response)
                        judges.add([response])
                    bar.advance()

    def _rewards(
        self, models: ModelFolders, asked: Sequence[Asked], file: ResponseFile | None
    ) -> dict[Key, float]:
        """Scores of the reward model, if one was named; every rank must call it."""
        reward_model = self.options.reward_model
        if reward_model is None:
            return {}
        known = self.parallel.from_main(lambda: {} if file is None else dict(file.responses))
        return score_responses(
            reward_model,
            [(each, known[each.key]) for each in asked if each.key in known],
            models,
            self.parallel,
            max_tokens_per_microbatch=self.config.packing.max_tokens_per_microbatch,
        )

    def _seed(self, asked: Asked) -> int:
        return request_seed(self.options.seed, asked.group, asked.sample)

    def _result(
        self,
        sets: Sequence[BenchmarkSet],
        missing: Mapping[str, str],
        identity: Mapping[str, Any],
        judges: Judges,
        *,
        unreadable: Mapping[str, str],
        rewards: Mapping[Key, float],
    ) -> dict[str, Any]:
        judged = judges.result()
        results = {
            each.benchmark.name: benchmark_result(
                each,
                judged[each.benchmark.name],
                num_samples=self.options.num_samples,
                unreadable=unreadable,
                rewards=rewards,
            )
            for each in sets
        }
        if self.options.contamination:
            self._add_contamination(sets, results)
        result = {
            "versions": {"satori_fast": __version__, "grader": grader_version()},
            "model_path": self.options.model,
            **identity,
            "num_samples": self.options.num_samples,
            "reward_model": self.options.reward_model,
            "sandbox": isolation_fault() or "isolated",
            "missing": dict(missing),
            "benchmarks": results,
            "average": average(results),
        }
        records = (record for own in judged.values() for record in map(judgement_record, own))
        write_sealed_records(self.output / JUDGEMENTS, records)
        write_sealed(self.output / EVALUATION, result)
        write_evaluation_pages(self.output)
        return result

    def _add_contamination(
        self, sets: Sequence[BenchmarkSet], results: Mapping[str, dict[str, Any]]
    ) -> None:
        """Say which questions stand in training files."""
        questions = {
            item.problem.problem_id: item.problem.question for each in sets for item in each.items
        }
        report = find_overlaps(questions, self.options.contamination)
        for result in results.values():
            result["contamination"] = contamination_result(result, report)


def _model_files(folder: Path) -> list[str]:
    """Files that decide what a model answers."""
    patterns = ("*.safetensors", "config.json", "generation_config.json", "tokenizer*", "*.jinja")
    return sorted({path.name for pattern in patterns for path in folder.glob(pattern)})


def _config(options: BenchmarkOptions, model: Path) -> Config:
    """The config's settings for this model; the defaults without a config."""
    own = [*options.overrides, "--model.path", f"'{model}'", "--tokenizer.kind", "model"]
    if options.config is not None:
        return load_config(options.config, own)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "eval.toml"
        path.write_text(_DEFAULTS)
        return load_config(path, own)


def _protocol(options: BenchmarkOptions, config: Config) -> Protocol:
    if options.protocol == OWN_PROTOCOL and options.config is None:
        raise ConfigError("--protocol config needs a config: name it with --config")
    try:
        protocol = protocol_of(config, options.protocol, source=str(options.config))
    except ValueError as error:
        raise ConfigError(f"--protocol: {error}") from None
    if options.max_new_tokens is None:
        return protocol
    return replace(protocol, max_new_tokens=options.max_new_tokens)


def _load_sets(
    options: BenchmarkOptions, config: Config
) -> tuple[list[BenchmarkSet], dict[str, str]]:
    """The benchmarks that are there, and why the others are not; a line is said for each fault.

    ConfigError where none is there.
    """
    sets: list[BenchmarkSet] = []
    missing: dict[str, str] = {}
    named = [name for name in options.benchmarks if name != HELDOUT]
    if HELDOUT in options.benchmarks:
        sets.append(_heldout(options, config))
    try:
        rows = benchmarks_named(named) if named or not sets else []
    except ValueError as error:
        raise ConfigError(f"--benchmarks: {error}, {HELDOUT}") from None
    for row in rows:
        try:
            if row.kind == "input" and not options.trusted:
                check_isolation()
            sets.append(
                load_benchmark(row, options.data_dir, limit=options.limit, strict=options.strict)
            )
        except (ValueError, OSError) as error:
            if options.strict:
                raise ConfigError(str(error)) from None
            missing[row.name] = str(error)
            logger.warning("%s", error)
            continue
        for fault in sets[-1].faults:
            logger.warning("benchmark %s: %s", row.name, fault)
    if not sets:
        raise ConfigError(f"no benchmark is there: {next(iter(missing.values()))}")
    return sets, missing


def _heldout(options: BenchmarkOptions, config: Config) -> BenchmarkSet:
    domain = DOMAINS.get(config.data.source)
    if options.config is None or domain is None:
        raise ConfigError(
            f"--benchmarks {HELDOUT} are the held-out problems of a built-in domain: name a config "
            f"of one with --config; `satori-fast eval CONFIG.toml` evaluates those of a data set"
        )
    number = min(config.evaluation.num_problems, options.limit or config.evaluation.num_problems)
    problems = domain.problems(number, levels=config.data.levels, split="heldout", seed=0)
    return problem_set(HELDOUT, list(problems))


def _renderer(
    protocol: Protocol, model: Path, folder: Path, parallel: ParallelState
) -> PromptRenderer:
    """Prompts of the protocol in the model's tokenizer, kept in the folder `tokenizer`."""
    place = folder / "tokenizer"
    parallel.on_main(lambda: keep_tokenizer(model, place, protocol.format.special_tokens))
    context = int(load_hf_config(model).max_position_embeddings)
    try:
        return protocol.renderer(load_tokenizer(place), place, max_prompt_tokens=context - 1)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _opened(path: Path, identity: Mapping[str, Any]) -> ResponseFile:
    try:
        return ResponseFile(path, identity)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _check_prompts(asked: Sequence[Asked], file: ResponseFile, renderer: PromptRenderer) -> None:
    """ConfigError where a response on disk is to another prompt than the one of now."""
    tokenizer: Any = renderer.tokenizer
    for each in asked:
        known = file.responses.get(each.key)
        if known is None:
            continue
        ids = renderer.unchecked_prompt_ids(each.problem)
        if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != known.prompt:
            raise ConfigError(
                f"{each.problem.problem_id} was asked in other words before: the benchmark has "
                "changed since; choose another --output"
            )


def _show(result: Mapping[str, Any], output: Path, console: Console) -> None:
    """The table: accuracy by three graders, and what it is of."""
    rows = map(result_cells, result["benchmarks"].values())
    console.print(terminal_table(f"{result['model_path']}", COLUMNS, rows))
    whole = result["average"]
    low, high = whole["interval"]
    console.print(
        f"average of {len(whole['benchmarks'])}: {whole['accuracy']:.1%} ({low:.1%} to {high:.1%})",
        highlight=False,
    )
    console.print(f"wrote {output / EVALUATION}", markup=False, soft_wrap=True)
