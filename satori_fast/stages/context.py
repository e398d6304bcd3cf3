# SPDX-License-Identifier: Apache-2.0
"""The frozen surroundings of a stage: its config, its name, its data, and who works on it.

A stage gets `(context, folder, books)`: what does not change, where things are kept, what is
measured. What it calls gets the parts that it uses, never the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from rich.console import Console

from satori_fast.backbone.parallel import ParallelState
from satori_fast.backbone.step import Learner
from satori_fast.config import Config
from satori_fast.data.domains import DOMAINS
from satori_fast.data.packing import PackingSpec
from satori_fast.data.prompts import PromptRenderer
from satori_fast.rewards.worker import FunctionWorker
from satori_fast.rollout.engine import SamplingParams
from satori_fast.rollout.restarting import Restarting
from satori_fast.stages.books import Books
from satori_fast.stages.engines import EngineProvider
from satori_fast.stages.evaluator import Evaluator
from satori_fast.stages.grader import SharedGrader
from satori_fast.stages.models import ModelFolders
from satori_fast.stages.run_benchmarks import RunBenchmarks
from satori_fast.stages.run_folder import CURATED, RunFolder
from satori_fast.stages.seeds import Seeds
from satori_fast.stages.setup import build_problems, build_renderer
from satori_fast.stages.solutions import Solver
from satori_fast.storage import sealed_records, wait_for_file
from satori_fast.types import Problem


@dataclass(frozen=True)
class Context:
    """All that a stage starts from. Made by `Run.context`.

    config: of this stage; rounds of self-improvement change a few keys of the run's.
    stage:  its name, of its checkpoints, its model, its seeds and its metrics.
    models: folders by role: "base" (what rounds distil into), "policy" (the current one),
            "tokenizer" (the policy's), and "reward" once there is a reward model.
    functions: the process of the user's reward functions.
    """

    config: Config
    stage: str
    parallel: ParallelState
    renderer: PromptRenderer
    problems: Sequence[Problem]
    heldout: Sequence[Problem]
    models: Mapping[str, Path]
    grader: SharedGrader
    functions: FunctionWorker
    engines: EngineProvider
    benchmarks: RunBenchmarks

    @cached_property
    def seeds(self) -> Seeds:
        """Random streams of the run."""
        return Seeds(self.config.seed)

    @cached_property
    def model_folders(self) -> ModelFolders:
        """The way from model folders to learners and back."""
        model = self.config.model
        return ModelFolders(
            self.renderer,
            self.models["tokenizer"],
            dtype=model.dtype,
            recompute=model.recompute,
            max_seqlen=self.config.rollout.max_seqlen,
        )

    @property
    def policy_folder(self) -> Path:
        """Folder of the current policy."""
        return self.models["policy"]

    @property
    def console(self) -> Console:
        """Console for progress and tables; only the main process writes to it."""
        return Console(quiet=not self.parallel.is_main)

    def with_tokenizer(self, tokenizer: Path, *, folder: RunFolder) -> Context:
        """The same with the tokenizer of another folder: prompts and problems follow it.

        folder: of the run, where the problems of each tokenizer are kept.
        """
        renderer = build_renderer(self.config, tokenizer)
        problems, heldout = build_problems(
            self.config, renderer, folder=folder.path, tokenizer=tokenizer, parallel=self.parallel
        )
        models = {**self.models, "tokenizer": tokenizer}
        context = replace(
            self, renderer=renderer, problems=problems, heldout=heldout, models=models
        )
        return context.curated(folder)

    def curated(self, folder: RunFolder) -> Context:
        """The same with those of the training problems that the stage curate kept, where it has
        run. Another tokenizer may leave some of them out, and adds none."""
        if not folder.has(CURATED):
            return self
        rows = sealed_records(wait_for_file(folder.path / CURATED))
        kept = {row["problem_id"] for row in rows}
        problems = [problem for problem in self.problems if problem.problem_id in kept]
        return replace(self, problems=problems)

    def engine(self, policy: Learner, *, version: int = 0) -> Restarting:
        """An engine that samples from `policy`'s weights of now."""
        return self.engines.serve(policy, self.renderer, version=version)

    def solver(self, folder: RunFolder, books: Books) -> Solver:
        """The way to graded samples of this run."""
        return Solver(
            self.problems,
            self.sampling(),
            self.seeds,
            self.grader,
            folder,
            books.spans,
            self.config.solutions,
        )

    def evaluator(self, books: Books) -> Evaluator:
        """The evaluation of this run."""
        config = self.config
        domain = DOMAINS.get(config.data.source)
        return Evaluator(
            self.heldout,
            config.evaluation,
            config.rollout.max_new_tokens,
            self.grader,
            books,
            config.reward,
            domain.counts.get(config.data.format) if domain else None,
            partial(self.benchmarks.measure, tokenizer=self.models["tokenizer"]),
        )

    def sampling(self, *, num_samples: int = 1, seed: int = 0) -> SamplingParams:
        """Sampling by the settings of the section `rollout`."""
        rollout = self.config.rollout
        return SamplingParams(
            temperature=rollout.temperature,
            top_k=rollout.top_k,
            top_p=rollout.top_p,
            max_new_tokens=rollout.max_new_tokens,
            num_samples=num_samples,
            seed=seed,
        )

    def packing(self, num_minibatches: int = 1, *, seed: int = 0) -> PackingSpec:
        """The packing of a step on this rank."""
        config, parallel = self.config, self.parallel
        return PackingSpec(
            max_tokens_per_microbatch=config.packing.max_tokens_per_microbatch,
            num_minibatches=num_minibatches,
            data_parallel_size=parallel.data_size,
            data_parallel_rank=parallel.data_rank,
            pad_to_multiple=parallel.token_multiple,
            max_seqlen=config.rollout.max_seqlen,
            seed=seed,
            fixed_length=config.reinforce.fixed_length or config.rollout.max_new_tokens,
            share_prefixes=config.packing.share_prefixes and parallel.context_size == 1,
        )
