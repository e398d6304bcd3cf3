# SPDX-License-Identifier: Apache-2.0
"""A run: its folder, its data, its models, and where it stands. What every stage starts from.

Each stage reads a model folder and leaves one, in Hugging Face form, so every stage's result opens
in plain transformers and a stage can start from any other's. `progress.json` says which stages are
done; inside a stage the sharded checkpoints say which step is. Setting up is here; the loops are
not.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from satori_fast import __version__, failures
from satori_fast.backbone import checkpoint
from satori_fast.backbone.export import export_hf
from satori_fast.backbone.parallel import ParallelState
from satori_fast.backbone.step import Learner
from satori_fast.config import Config
from satori_fast.data.coat import PromptRenderer
from satori_fast.data.packing import PackingSpec
from satori_fast.data.stop_tokens import exported_generation
from satori_fast.evaluation.evaluate import EvaluationResult, evaluate
from satori_fast.grading import GradingPool
from satori_fast.profiling.device import describe_device
from satori_fast.profiling.metrics import MetricsWriter, sample_record
from satori_fast.profiling.monitor import StepMonitor
from satori_fast.profiling.report import write_report_html
from satori_fast.profiling.spans import SpanRecorder, StepTimes, token_rates
from satori_fast.profiling.summary import build_summary, print_summary_table, write_summary
from satori_fast.profiling.trace_file import merge_trace
from satori_fast.rollout.engine import Completion, Engine, Request, SamplingParams
from satori_fast.rollout.partial import PartialRollouts
from satori_fast.stages import setup
from satori_fast.stages.engines import EngineRoom, check_engine
from satori_fast.stages.iterate import StagePlan
from satori_fast.stages.run_folder import (
    NUM_CHECKPOINTS_KEPT,
    RunFolder,
    open_writer,
    record_analysis,
)
from satori_fast.stages.sharing import SharedGrader, collect_shared, generate_shared
from satori_fast.types import Problem, RolloutResult, StepReport, Trajectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """What a stage leaves.

    models:     folders of the models it made, by role: "policy" (what the next stage goes on with),
                "reward" (an outcome reward model). Empty for a stage that trains none.
    evaluation: of its policy, None without one.
    figures:    further scalars of its entry in summary.json.
    """

    models: Mapping[str, Path]
    evaluation: EvaluationResult | None
    times: StepTimes
    figures: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class StageProgress:
    """Where a stage stands: steps done, their times, and the position of its data cursor."""

    step: int = 0
    times: StepTimes = field(default_factory=StepTimes)
    data: dict[str, Any] | None = None


@dataclass
class Run:
    """Everything that outlives a stage. Made by `build_run`; use it as a context manager.

    config: of the stage at work; rounds of self-improvement change a few keys of the run's.
    stage:  name of the stage at work: of its checkpoints, its model, its seeds and its metrics.
    models: folders by role: "base" (what rounds distil into), "policy" (the current one),
            "tokenizer" (the policy's), and "reward" once there is a reward model.
    """

    config: Config
    place: RunFolder
    parallel: ParallelState
    renderer: PromptRenderer
    problems: Sequence[Problem]
    heldout: Sequence[Problem]
    grader: SharedGrader
    spans: SpanRecorder
    monitor: StepMonitor
    writer: MetricsWriter | None  # the main process writes
    models: dict[str, Path]
    stage: str = ""
    setup_times: StepTimes = field(default_factory=StepTimes)
    earlier_wall_s: float = 0.0
    engines: EngineRoom = field(default_factory=EngineRoom)
    begin: float = field(default_factory=time.perf_counter)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.engines.close()
        self.grader.pool.close()
        self.monitor.close()
        if self.writer is not None:
            self.writer.close()
        self.place.close()

    # -- stages -------------------------------------------------------------------------------

    def begin_stage(self, plan: StagePlan) -> None:
        """Go to a stage. What comes before its `start_steps` is its set-up."""
        self.stage, self.config = plan.name, plan.config
        self.setup_times = StepTimes()
        self.spans.start_step()

    def start_steps(self, num_steps: int) -> None:
        """Set-up (models, buffers) is over: its time is the stage's, but no step's."""
        self.setup_times = StepTimes() + self.spans.end_step(f"{self.stage} set-up")
        self.monitor.start_steps(num_steps)

    def use_tokenizer(self, folder: Path) -> None:
        """Go on with the tokenizer of `folder`: prompts, limits and engines follow it."""
        self.models["tokenizer"] = folder
        self.renderer = setup.build_renderer(self.config, folder)
        self.problems, self.heldout = setup.build_problems(
            self.config,
            self.renderer,
            folder=self.folder,
            tokenizer=folder,
            parallel=self.parallel,
        )

    # -- places -------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        return self.place.path

    @property
    def finished(self) -> list[dict[str, Any]]:
        """Entries of the summary, of the stages that are done."""
        return self.place.progress["finished"]

    @property
    def model_folder(self) -> Path:
        """Of the current policy."""
        return self.models["policy"]

    @property
    def exported_model(self) -> Path:
        return self.folder / "models" / self.stage

    # -- randomness ---------------------------------------------------------------------------

    def seed(self, *names: str | int) -> int:
        """A 31-bit seed for a named purpose: randomness comes from names, not from order."""
        text = "/".join(str(name) for name in (self.config.seed, *names))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

    def rng(self, *names: str | int) -> np.random.Generator:
        return np.random.default_rng(self.seed(*names))

    # -- sampling and evaluation --------------------------------------------------------------

    def engine(self, policy: Learner, *, version: int = 0) -> Engine:
        """An engine that samples from `policy`'s weights of now."""
        return self.engines.serve(self, policy, version=version)

    def sampling(self, *, num_samples: int, seed: int) -> SamplingParams:
        rollout = self.config.rollout
        return SamplingParams(
            temperature=rollout.temperature,
            top_k=rollout.top_k,
            top_p=rollout.top_p,
            max_new_tokens=rollout.max_new_tokens,
            num_samples=num_samples,
            seed=seed,
        )

    def packing(self, num_minibatches: int, seed: int) -> PackingSpec:
        """How this rank packs a step."""
        return PackingSpec(
            max_tokens_per_microbatch=self.config.packing.max_tokens_per_microbatch,
            num_minibatches=num_minibatches,
            data_parallel_size=self.parallel.data_size,
            data_parallel_rank=self.parallel.data_rank,
            pad_to_multiple=self.parallel.tensor_size,
            max_seqlen=self.config.rollout.max_seqlen,
            seed=seed,
            fixed_length=self.config.reinforce.fixed_length or self.config.rollout.max_new_tokens,
        )

    def collect(
        self,
        engine: Engine,
        problems: Sequence[Problem],
        sampling: SamplingParams,
        *,
        partial: PartialRollouts | None = None,
    ) -> RolloutResult:
        """Samples of `problems`, shared out over the data-parallel ranks and gathered again; with
        `partial`, finished groups of this step and of earlier ones. Repeated if the engine dies."""
        if partial is None:
            return self.engines.keep_trying(
                self,
                lambda: collect_shared(
                    engine, problems, sampling, parallel=self.parallel, spans=self.spans
                ),
            )
        return partial.collect(engine, problems, sampling, generate=self._generate)

    def _generate(
        self, engine: Engine, requests: Sequence[Request], sampling: SamplingParams
    ) -> list[Completion]:
        return self.engines.keep_trying(
            self, lambda: generate_shared(engine, requests, sampling, parallel=self.parallel)
        )

    def evaluate(self, engine: Engine) -> EvaluationResult:
        """Greedy accuracy of what `engine` serves on the held-out problems; span "evaluate"."""
        limit = self.config.evaluation.max_new_tokens or self.config.rollout.max_new_tokens
        with self.spans.span("evaluate"):
            result = evaluate(
                engine,
                self.heldout,
                max_new_tokens=limit,
                pool=self.grader,
                sample=self.collect,
            )
        self.spans.count("evaluate", result.rollout.num_generated_tokens)
        return result

    @property
    def console(self) -> Console:
        """Where progress and tables go; only the main process speaks."""
        return Console(quiet=not self.parallel.is_main)

    # -- records ------------------------------------------------------------------------------

    def record(self, step: int, metrics: Mapping[str, float]) -> StepTimes:
        """End the step: one line of metrics.jsonl with its rates. Returns the step's times."""
        times, measured = self.monitor.end_step(f"{self.stage} step {step}")
        report = StepReport(self.stage, step, {**metrics, **measured}, times.spans_s)
        if self.writer is not None:
            self.writer.write(report)
        return times

    def resume_stage(self, learners: Mapping[str, Learner]) -> StageProgress:
        """Load the stage's latest checkpoint into `learners`; step 0 where there is none."""
        latest = self.parallel.from_main(lambda: self.place.checkpoint_of(self.stage))
        if latest is None:
            return StageProgress()
        extra = checkpoint.load_checkpoint(latest, learners, verified=True)
        return StageProgress(extra["step"], StepTimes(**extra["times"]), extra["data"])

    def save_stage(self, learners: Mapping[str, Learner], progress: StageProgress) -> None:
        """Checkpoint the stage, keep the newest two, and let no step pay for the time it took."""
        folder = self.place.checkpoints(self.stage)
        extra = {"step": progress.step, "times": asdict(progress.times), "data": progress.data}
        if self.writer is not None:
            self.writer.sync()
            extra["records"] = self.writer.digests()
        checkpoint.save_checkpoint(folder / f"step-{progress.step}", learners, extra)
        self.parallel.on_main(
            lambda: checkpoint.prune_checkpoints(folder, num_kept=NUM_CHECKPOINTS_KEPT)
        )
        self.monitor.restart_step()

    def export(self, learner: Learner, folder: Path) -> None:
        """Leave a learner as a Hugging Face folder with the run's tokenizer and stop tokens."""
        generation = exported_generation(self.models["tokenizer"], self.renderer)
        export_hf(learner, folder, self.renderer.tokenizer, generation=generation)

    def keep_model(self, policy: Learner, num_steps: int) -> None:
        """Leave the policy of now as a Hugging Face folder; no step pays for the time."""
        folder = self.exported_model.with_name(f"{self.stage}-step-{num_steps}")
        self.export(policy, folder)
        self.monitor.restart_step()

    def record_samples(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        if self.writer is not None:
            for trajectory in trajectories:
                self.writer.write_sample(sample_record(self.stage, step, trajectory=trajectory))

    def record_evaluation(self, step: int, result: EvaluationResult) -> dict[str, float]:
        """Write sample answers; returns the metrics of the result."""
        num_samples = self.config.evaluation.num_logged_samples
        self.record_samples(step, result.samples(num_samples))
        return result.metrics()

    def finish_stage(self, outcome: StageOutcome) -> None:
        """Remember that the stage at work is done, with its entry of the summary."""
        self.models.update(outcome.models)
        entry = _stage_entry(self.stage, outcome, self.setup_times)
        if self.writer is None:
            self.finished.append(entry)
            return
        if outcome.evaluation is not None:
            record_analysis(self.folder, self.stage, outcome.evaluation)
        self.writer.sync()
        records = self.writer.digests()
        self.place.finish_stage(entry, self.models, wall_s=self.wall_s, records=records)

    def keep(self, path: Path) -> None:
        """Remember the digests of a file or folder of the run folder that is complete now."""
        name = str(path.relative_to(self.folder))
        if not self.place.has(name):
            self.parallel.on_main(lambda: self.place.keep(path))
            self.place.progress = self.parallel.from_main(lambda: self.place.progress)

    @property
    def wall_s(self) -> float:
        """Seconds this run has taken, earlier sessions included as far as stages were finished."""
        return self.earlier_wall_s + time.perf_counter() - self.begin

    def close_books(self) -> dict[str, Any]:
        """Write summary.json, trace.json and report.html; print the final table."""
        device = describe_device(self.parallel.device)
        summary = build_summary(
            self.config.name, __version__, device=device, wall_s=self.wall_s, stages=self.finished
        )
        parts = setup.trace_parts(self.folder)
        self.monitor.write_trace(parts)
        self.parallel.gather_figures([0.0])  # every rank has left its parts
        if self.parallel.is_main:
            write_summary(summary, self.folder / "summary.json")
            merge_trace(parts, self.folder / "trace.json")
            write_report_html(self.folder)
            print_summary_table(summary, self.console)
        return summary


def build_run(config: Config, *, resume: bool = False) -> Run:
    """Set up everything that stages share. Nothing trains yet.

    resume continues the run folder of this config's name. Raises ConfigError when the folder holds
    a run and resume is False, or when it holds one of a different config, and when the rollout
    engine is not installed.
    """
    check_engine(config.rollout)
    parallel = setup.join_ranks(config)
    if config.parallel.num_threads is not None:
        torch.set_num_threads(config.parallel.num_threads)
    place = RunFolder(Path(config.output_dir) / config.name)
    with ExitStack() as on_error:
        on_error.callback(place.close)
        parallel.on_main(lambda: place.open(config, resume=resume))
        failures.log_to(place.path)
        run = _set_up(config, place, parallel, resume=resume)
        on_error.pop_all()
    return run


def _set_up(config: Config, place: RunFolder, parallel: ParallelState, *, resume: bool) -> Run:
    """The parts of a run whose folder is open."""
    parallel.on_main(lambda: setup.make_tokenizer(config, place))
    models = {"tokenizer": setup.tokenizer_folder(place.path)}
    # One process looks: a network file system may show the others what is no longer so.
    place.progress = parallel.from_main(lambda: place.progress)
    models |= place.models()
    renderer = setup.build_renderer(config, models["tokenizer"])
    problems, heldout = setup.build_problems(
        config, renderer, folder=place.path, tokenizer=models["tokenizer"], parallel=parallel
    )
    base = setup.initial_model_folder(config, place.path)
    if config.model.path is None:
        parallel.on_main(lambda: setup.make_fresh_model(config, renderer.tokenizer, place))
        place.progress = parallel.from_main(lambda: place.progress)
    writers: list[MetricsWriter] = []
    parallel.on_main(lambda: writers.append(open_writer(place, config, resume=resume)))
    spans = SpanRecorder(device=parallel.device, rank=parallel.rank)
    pool = GradingPool(config.reward.num_workers, config.reward.timeout_s)
    return Run(
        config=config,
        place=place,
        parallel=parallel,
        renderer=renderer,
        problems=problems,
        heldout=heldout,
        grader=SharedGrader(pool, parallel),
        spans=spans,
        monitor=setup.build_monitor(config, place.path, parallel, spans),
        writer=writers[0] if writers else None,
        models={"base": base, "policy": base} | models,
        earlier_wall_s=float(place.progress["wall_s"]),
    )


def _stage_entry(stage: str, outcome: StageOutcome, setup_times: StepTimes) -> dict[str, Any]:
    total = setup_times + outcome.times
    entry: dict[str, Any] = {
        "stage": stage,
        "wall_s": total.wall_s,
        "tokens_per_s": token_rates(setup_times) | token_rates(outcome.times),
        "seconds": total.spans_s,
        **outcome.figures,
    }
    result = outcome.evaluation
    if result is None:
        return entry
    changed = result.self_correction
    return entry | {
        "accuracy": result.accuracy,
        "accuracy_standard_error": result.standard_error,
        "num_problems": result.num_problems,
        "wrong_to_right": changed.wrong_to_right / result.num_problems,
        "right_to_wrong": changed.right_to_wrong / result.num_problems,
        "wrong_to_wrong": changed.wrong_to_wrong / result.num_problems,
        "error_recall": result.verdict_quality.error_recall,
        "right_kept": result.verdict_quality.right_kept,
        "reflections_per_answer": result.reflections_per_answer,
        "mean_response_tokens": result.mean_response_tokens,
        "truncated": result.truncated,
    }
