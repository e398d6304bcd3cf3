# SPDX-License-Identifier: Apache-2.0
"""A run: what outlives its stages, opened once and closed once.

Its folder says where it stands (`run_folder`), its books measure it (`books`), and each stage gets
a frozen `Context`. Setting up is here; the loops are not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from satori_fast import __version__, failures
from satori_fast.backbone import host_memory
from satori_fast.backbone.parallel import ParallelState
from satori_fast.config import Config
from satori_fast.data.prompts import PromptRenderer
from satori_fast.grading import GradingPool, answer_finder
from satori_fast.profiling.device import describe_device
from satori_fast.profiling.metrics import MetricsWriter
from satori_fast.profiling.report import write_report_html
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.profiling.summary import build_summary, print_summary_table, write_summary
from satori_fast.profiling.trace_file import merge_trace
from satori_fast.rewards.worker import FunctionWorker
from satori_fast.stages import setup
from satori_fast.stages.books import Books
from satori_fast.stages.context import Context
from satori_fast.stages.engines import EngineProvider, check_engine
from satori_fast.stages.grader import SharedGrader
from satori_fast.stages.iterate import StagePlan, plan_stages
from satori_fast.stages.models import initial_model_folder, make_fresh_model
from satori_fast.stages.outcome import StageOutcome, stage_entry
from satori_fast.stages.rewards import build_worker, check_functions
from satori_fast.stages.run_benchmarks import RunBenchmarks
from satori_fast.stages.run_folder import RunFolder, open_writer, record_analysis
from satori_fast.types import Problem


@dataclass
class Run:
    """The parts that outlive a stage. Made by `build_run`; use it as a context manager.

    functions: process of the user's reward functions; it starts when it is first needed.
    models:    folders by role, as `Context.models`; a finished stage adds its own.
    tokenizer: folder of the tokenizer that `renderer` and the problems are for.
    """

    config: Config
    folder: RunFolder
    books: Books
    parallel: ParallelState
    grader: SharedGrader
    functions: FunctionWorker
    engines: EngineProvider
    models: dict[str, Path]
    tokenizer: Path
    renderer: PromptRenderer
    problems: Sequence[Problem]
    heldout: Sequence[Problem]
    benchmarks: RunBenchmarks
    earlier_wall_s: float = 0.0
    begin: float = field(default_factory=time.perf_counter)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.engines.close()
        self.grader.pool.close()
        self.functions.close()
        self.books.close()
        self.folder.close()

    def context(self, plan: StagePlan) -> Context:
        """The surroundings of a stage, with the models and the tokenizer of the stages before."""
        context = Context(
            config=plan.config,
            stage=plan.name,
            parallel=self.parallel,
            renderer=self.renderer,
            problems=self.problems,
            heldout=self.heldout,
            models=dict(self.models),
            grader=self.grader,
            functions=self.functions,
            engines=self.engines,
            benchmarks=self.benchmarks,
        )
        if plan.kind != "curate":
            context = context.curated(self.folder)
        if self.models["tokenizer"] != self.tokenizer:
            context = context.with_tokenizer(self.models["tokenizer"], folder=self.folder)
        return context

    def finish_stage(self, stage: str, outcome: StageOutcome) -> None:
        """Remember that a stage is done, with its entry of the summary."""
        host_memory.give_back()  # that of its models, which are gone
        self.models |= outcome.models
        entry = stage_entry(stage, outcome, self.books.setup_times)
        records = self.books.digests()
        if records is None:
            self.finished.append(entry)
            return
        if outcome.evaluation is not None:
            analysis = record_analysis(self.folder.path, stage, outcome.evaluation)
            if analysis["verification"] is not None:
                entry["verification"] = analysis["verification"]
        self.folder.finish_stage(entry, self.models, wall_s=self.wall_s, records=records)
        self._tidy()

    def _tidy(self) -> None:
        if self.config.delete_checkpoints and self.parallel.is_main:
            self.folder.delete_checkpoints()

    @property
    def finished(self) -> list[dict[str, Any]]:
        """Entries of the summary, of the stages that are done."""
        return self.folder.progress["finished"]

    @property
    def wall_s(self) -> float:
        """Seconds this run has taken, earlier sessions included as far as stages were finished."""
        return self.earlier_wall_s + time.perf_counter() - self.begin

    def finalize(self) -> dict[str, Any]:
        """Write summary.json, trace.json and report.html; print the final table."""
        folder = self.folder.path
        self._tidy()  # a finished run may be resumed for that
        device = describe_device(self.parallel.device)
        summary = build_summary(
            self.config.name, __version__, device=device, wall_s=self.wall_s, stages=self.finished
        )
        parts = setup.trace_parts(folder)
        self.books.monitor.write_trace(parts)
        self.parallel.gather_figures([0.0])  # every rank has left its parts
        if self.parallel.is_main:
            write_summary(summary, folder / "summary.json")
            merge_trace(parts, folder / "trace.json")
            write_report_html(folder)
            print_summary_table(summary, Console())
        return summary


def build_run(config: Config, *, resume: bool = False) -> Run:
    """Set up everything that stages share. Nothing trains yet.

    resume continues the run folder of this config's name. Raises ConfigError when the folder holds
    a run and resume is False, or when it holds one of a different config, and when the rollout
    engine is not installed.
    """
    check_engine(config.rollout)
    if any(plan.kind == "reinforce" for plan in plan_stages(config)):
        check_functions(config.reward)
    parallel = setup.join_ranks(config)
    if config.parallel.num_threads is not None:
        torch.set_num_threads(config.parallel.num_threads)
    folder = RunFolder(
        Path(config.output_dir) / config.name,
        parallel,
        saves_in_background=config.save_in_background,
        checkpoints_kept=config.checkpoints_kept,
    )
    with ExitStack() as on_error:
        on_error.callback(folder.close)
        parallel.on_main(lambda: folder.open(config, resume=resume))
        failures.log_to(folder.path)
        run = _set_up(config, folder, parallel, resume=resume)
        on_error.pop_all()
    return run


def _set_up(config: Config, folder: RunFolder, parallel: ParallelState, *, resume: bool) -> Run:
    """The parts of a run whose folder is open."""
    parallel.on_main(lambda: setup.check_sources(config))
    parallel.on_main(lambda: setup.make_tokenizer(config, folder))
    folder.share_progress()
    models = {"tokenizer": setup.tokenizer_folder(folder.path)} | folder.models()
    tokenizer = models["tokenizer"]
    renderer = setup.build_renderer(config, tokenizer)
    problems, heldout = setup.build_problems(
        config, renderer, folder=folder.path, tokenizer=tokenizer, parallel=parallel
    )
    benchmarks = RunBenchmarks(config, parallel)
    benchmarks.check(renderer, tokenizer)
    base = initial_model_folder(config, folder.path)
    if config.model.path is None:
        parallel.on_main(lambda: make_fresh_model(config, renderer.tokenizer, folder))
        folder.share_progress()
    writers: list[MetricsWriter] = []
    parallel.on_main(lambda: writers.append(open_writer(folder, config, resume=resume)))
    spans = SpanRecorder(device=parallel.device, rank=parallel.rank)
    monitor = setup.build_monitor(config, folder.path, parallel, spans)
    finder = answer_finder(config.reward.answer)
    pool = GradingPool(config.reward.num_workers, config.reward.timeout_s, finder=finder)
    return Run(
        config=config,
        folder=folder,
        books=Books(spans, monitor, writers[0] if writers else None, format_of=renderer.format_of),
        parallel=parallel,
        grader=SharedGrader(pool, parallel.copies()),
        functions=build_worker(config.reward),
        engines=EngineProvider(
            config.rollout,
            run_name=config.name,
            dtype=config.model.dtype,
            folder=folder.path,
            parallel=parallel,
            spans=spans,
        ),
        models={"base": base, "policy": base} | models,
        tokenizer=tokenizer,
        renderer=renderer,
        problems=problems,
        heldout=heldout,
        benchmarks=benchmarks,
        earlier_wall_s=float(folder.progress["wall_s"]),
    )
