# SPDX-License-Identifier: Apache-2.0
"""A run folder: whose it is, where the run in it stands, and what has been made there.

`run.lock` marks the folder as ours and is locked by the run that works in it. `config.toml` is the
resolved config. `progress.json` has the finished stages with their entries of the summary, the
models by role, the seconds so far, and digests: of what the run was given, and of what it made.
`problems.jsonl` has the training problems that curation kept.
`analysis.json` has what the evaluation of each stage says beyond the scalars of its entry, and
`similarity_STAGE.json` how the reward of a stage of step problems behaves on its targets. Which
settings a resumed run may change is `resume`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from satori_fast import __version__
from satori_fast.backbone import checkpoint
from satori_fast.backbone.parallel import ParallelState
from satori_fast.backbone.step import Learner
from satori_fast.config import Config, ConfigError, to_toml
from satori_fast.evaluation.evaluate import EvaluationResult
from satori_fast.profiling.metrics import MetricsWriter
from satori_fast.profiling.sinks import PrometheusSink, Sink, WandbSink
from satori_fast.profiling.spans import StepTimes
from satori_fast.rewards.behaviour import SimilarityBehaviour
from satori_fast.stages import resume as rules
from satori_fast.stages.iterate import plan_stages
from satori_fast.storage import (
    DamagedFile,
    clear_leftovers,
    digests,
    read_sealed,
    write_atomically,
    write_sealed,
)

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

# The training problems that the stage curate keeps.
CURATED = "problems.jsonl"
_MARK = "satori_fast_run"
# The one stage of a folder that the verb eval leaves.
EVALUATION = "eval"
_HOLD_ON = "wait for it to end, or choose another --name"
# What work leaves: none of these has content in a folder whose run failed before it did anything.
_WORK = (
    *("metrics.jsonl", "demonstrations*.jsonl", "solutions/*.jsonl", "synthesis/*.jsonl"),
    *("initialise/*.jsonl", "srl/*.jsonl", "curate/*.jsonl", "problems.jsonl"),
)
# Files and folders of ours, as far as a kill can leave them half written.
_WRITTEN = (
    *("config.toml", "progress.json", "analysis.json", "metrics.jsonl", "samples.jsonl"),
    *("similarity_*.json", "problems.jsonl", "curation.json", "questions/*.json"),
    *("demonstrations*.jsonl", "summary.json", "trace.json", "report.html", "tokenizer*", "engine"),
    *("models/*", "restarts/*.jsonl", "checkpoints/*/step-*"),
)


@dataclass(frozen=True, slots=True)
class StageProgress:
    """Progress of a stage: steps done, their times, and the position of its data."""

    step: int = 0
    times: StepTimes = field(default_factory=StepTimes)
    data: dict[str, Any] | None = None


class RunFolder:
    """The folder of a run. The main process opens it and writes; every rank may read.

    path:     where it lies; it may be moved and renamed between sessions.
    parallel: the ranks of the run; None for a single process.
    progress: content of progress.json.
    """

    def __init__(
        self,
        path: Path,
        parallel: ParallelState | None = None,
        *,
        saves_in_background: bool = True,
        checkpoints_kept: int = 2,
    ) -> None:
        self.path = path
        self.parallel = parallel
        self._saves_in_background = saves_in_background
        self._checkpoints_kept = checkpoints_kept
        self.progress: dict[str, Any] = _nothing_yet()
        self._lock: IO[str] | None = None
        self._checkpoints: dict[str, Path | None] = {}
        self._saver = checkpoint.Saver()

    # -- opening ------------------------------------------------------------------------------

    def open(self, config: Config, *, resume: bool) -> None:
        """Make the folder, or take the one there; nobody else may have it until `close`.

        A folder where an earlier run failed before it did anything is used again: of its content
        only what that run is known to have made is removed. ConfigError: a folder of somebody
        else's or of another process, a run where none is to be resumed, one that went by other
        settings or files, and files that are not what the run wrote.
        """
        is_ours = self._claim()
        began = is_ours and any(
            path.stat().st_size for name in _WORK for path in self.path.glob(name)
        )
        if resume and (began or (self.path / "config.toml").exists()):
            self._go_on(config)
            return
        if began:
            raise ConfigError(
                f"{self.path} holds a run: pass --resume to continue it, or choose another --name"
            )
        if resume:
            logger.warning("%s holds no run yet: this one starts at its first stage", self.path)
        self._start(config)

    def close(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _claim(self) -> bool:
        """Make sure that the folder is ours and that no other process works in it; was it before?

        A new run may be given samples of another: a folder with `solutions` alone is taken.
        """
        lock = self.path / "run.lock"
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file: choose another --name or --output_dir")
        is_ours = lock.exists()
        found = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set[str]()
        if not is_ours and found - {"solutions"}:
            raise ConfigError(
                f"{self.path} is not empty and no run folder of this version (it has no "
                f"{lock.name}): choose another --name or --output_dir"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                # Some network file systems know no locks.
                logger.warning("%s cannot be locked (%s): start no second run there", lock, error)
            else:
                file.close()
                raise ConfigError(f"{self.path} is in use by {_holder(lock)}: {_HOLD_ON}") from None
        self._lock = file
        file.truncate(0)
        json.dump(
            {
                _MARK: __version__,
                "host": socket.gethostname(),
                "process": os.getpid(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            },
            file,
        )
        file.flush()
        return is_ours

    def _start(self, config: Config) -> None:
        with contextlib.suppress(DamagedFile):
            for name, files in read_sealed(self.path / "progress.json")["artefacts"].items():
                _remove(self.path / name, files)
        self._clear_leftovers()
        self.progress = _nothing_yet() | {"inputs": rules.input_digests(config)}
        self._write_progress()
        write_atomically(self.path / "config.toml", to_toml(config))

    def _go_on(self, config: Config) -> None:
        earlier = rules.read_config(self.path / "config.toml")
        try:
            self.progress = read_sealed(self.path / "progress.json")
        except DamagedFile as error:
            raise ConfigError(f"{error}: {rules.REMEDY}") from None
        self._clear_leftovers()
        self._check_is_a_run()
        begun = self._begun(earlier)
        changes = rules.check_settings(earlier, config, begun)
        inputs = rules.input_digests(config)
        kinds = rules.begun_kinds(earlier, begun)
        rules.check_inputs(self.progress["inputs"], inputs, kinds)
        rules.check_artefacts(self.path, self.progress["artefacts"])
        for change in changes:
            logger.info("resumed with another setting: %s", change)
        finished = [entry["stage"] for entry in self.progress["finished"]]
        if (stage := rules.lengthened(earlier, config, finished)) is not None:
            self._reopen(stage)
        self.progress["inputs"] = inputs
        self._write_progress()
        write_atomically(self.path / "config.toml", to_toml(config))

    def _check_is_a_run(self) -> None:
        if any(entry["stage"] == EVALUATION for entry in self.progress["finished"]):
            raise ConfigError(
                f"{self.path} holds an evaluation, which has no stages to go on with: choose "
                "another --name"
            )

    def _reopen(self, stage: str) -> None:
        """Let the last finished stage go on from its last checkpoint."""
        if stage not in self.progress.get("before", {}) or self.checkpoint_of(stage) is None:
            raise ConfigError(
                f"{stage}.num_steps: {stage} has finished and its checkpoint is gone "
                "(delete_checkpoints): start a new run from its model, with model.path"
            )
        self.progress["finished"].pop()
        self.progress["models"] = self.progress["before"].pop(stage)
        self.progress["artefacts"].pop(f"models/{stage}", None)
        logger.info("%s had finished: it goes on with more steps", stage)

    def _begun(self, config: Config) -> set[str]:
        """Stages that go on with what they have: the finished ones, and one with a checkpoint."""
        begun = {entry["stage"] for entry in self.progress["finished"]}
        names = [plan.name for plan in plan_stages(config)]
        for stage in names[len(begun) : len(begun) + 1]:
            agents = "synthesis" if stage == "synthesize" else stage
            outcomes = self.path / agents / "finished.jsonl"
            if (
                checkpoint.numbered_checkpoints(self.checkpoints(stage))
                or (self.path / f"demonstrations_{stage}.jsonl").exists()
                or (outcomes.exists() and outcomes.stat().st_size)
                or (stage == "curate" and (self.path / CURATED).exists())
                or (stage == "initialise" and (self.path / "solutions/initialise.jsonl").exists())
            ):
                begun.add(stage)
        if any(self.path.glob("solutions/*.jsonl")) or any(self.path.glob("restarts/*.jsonl")):
            begun.add(rules.SOLUTIONS)
        return begun

    def _clear_leftovers(self) -> None:
        """Remove what a kill left half written, and checkpoints beyond those that are kept."""
        clear_leftovers(self.path, _WRITTEN)
        for stage in self.path.glob("checkpoints/*"):
            checkpoint.prune_checkpoints(stage, num_kept=self._checkpoints_kept)

    # -- what has been made -------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether `name`, a path in the folder, was made by this run and is complete."""
        return name in self.progress["artefacts"]

    def keep(self, path: Path) -> None:
        """Remember that a file or folder in this one is complete. Every rank must call it."""
        if not self.has(str(path.relative_to(self.path))):
            self.on_main(lambda: self.note(path))
            self.share_progress()

    def note(self, *places: Path) -> None:
        """Remember that files or folders in this one are complete, with their digests; main process
        alone."""
        self._note(places)
        self._write_progress()

    def share_progress(self) -> None:
        """Give every rank the main process's progress: a network file system may show the others
        what is no longer so."""
        self.progress = self.from_main(lambda: self.progress)

    def from_main(self, action: Callable[[], Item]) -> Item:
        """The result of `action` in the main process, for every rank."""
        return action() if self.parallel is None else self.parallel.from_main(action)

    def on_main(self, action: Callable[[], object]) -> None:
        """Run `action` in the main process alone; all ranks leave together."""
        if self.parallel is None:
            action()
        else:
            self.parallel.on_main(action)

    def _note(self, places: Sequence[Path]) -> None:
        for place in places:
            if place.is_relative_to(self.path):
                name = str(place.relative_to(self.path))
                self.progress["artefacts"][name] = digests(place)

    def finish_stage(
        self,
        entry: Mapping[str, Any],
        models: Mapping[str, Path],
        *,
        wall_s: float,
        records: Mapping[str, str],
    ) -> None:
        """Remember that a stage is done: its entry of the summary, and every model by role.

        records: digests of the growing files, as `MetricsWriter.digests` gives them. The models
        before are kept too, in case that it gets more steps.
        """
        self.progress["finished"].append(dict(entry))
        self.progress.setdefault("before", {})[entry["stage"]] = self.progress["models"]
        self.progress["models"] = {role: self._portable(path) for role, path in models.items()}
        self.progress |= {"wall_s": wall_s, "records": dict(records)}
        self._note(list(models.values()))
        self._write_progress()

    def models(self) -> dict[str, Path]:
        """Folders by role, as the last finished stage left them."""
        return {role: self.path / path for role, path in self.progress["models"].items()}

    def _portable(self, path: Path) -> str:
        inside = path.is_relative_to(self.path)
        return str(path.relative_to(self.path)) if inside else str(path.absolute())

    def _write_progress(self) -> None:
        write_sealed(self.path / "progress.json", self.progress)

    # -- checkpoints --------------------------------------------------------------------------

    def checkpoints(self, stage: str) -> Path:
        """Folder of a stage's checkpoints."""
        return self.path / "checkpoints" / stage

    def checkpoint_of(self, stage: str) -> Path | None:
        """The checkpoint that a stage goes on from, checked once: files, digests, names."""
        if stage not in self._checkpoints:
            self._checkpoints[stage] = checkpoint.latest_checkpoint(self.checkpoints(stage))
        return self._checkpoints[stage]

    def resume(self, stage: str, learners: Mapping[str, Learner]) -> StageProgress:
        """Load a stage's newest checkpoint into `learners`; step 0 where there is none."""
        newest = self.from_main(lambda: self.checkpoint_of(stage))
        if newest is None:
            return StageProgress()
        extra = checkpoint.load_checkpoint(newest, learners, verified=True)
        return StageProgress(extra["step"], StepTimes(**extra["times"]), extra["data"])

    def save(
        self,
        stage: str,
        learners: Mapping[str, Learner],
        progress: StageProgress,
        *,
        records: Mapping[str, str] | None,
    ) -> None:
        """Begin to checkpoint a stage, in the background; `settle` ends it. Every rank must call
        it.

        records: digests of the growing files as they stand, in the process that writes them.
        """
        folder = self.checkpoints(stage)
        times = asdict(progress.times)
        extra: dict[str, Any] = {"step": progress.step, "times": times, "data": progress.data}
        if records is not None:
            extra["records"] = dict(records)
        place = folder / f"step-{progress.step}"
        self._saver.begin(place, learners, extra, in_background=self._saves_in_background)

    def settle(self, stage: str, *, wait: bool) -> None:
        """Complete the checkpoint that was begun, and keep the newest ones. Every rank must call
        it, after each step; wait: also for one that is still being written."""
        if self._saver.finish() if wait else self._saver.finish_if_written():
            folder = self.checkpoints(stage)
            kept = self._checkpoints_kept
            self.on_main(lambda: checkpoint.prune_checkpoints(folder, num_kept=kept))

    def delete_checkpoints(self) -> None:
        """Delete the checkpoints of the finished stages; main process alone."""
        for entry in self.progress["finished"]:
            folder = self.checkpoints(entry["stage"])
            self._checkpoints.pop(entry["stage"], None)
            if folder.is_dir():
                shutil.rmtree(folder)

    def exported(self, stage: str) -> Path:
        """Folder of the model that a stage leaves."""
        return self.path / "models" / stage


def _nothing_yet() -> dict[str, Any]:
    return {
        "finished": [],
        "models": {},
        "before": {},
        "wall_s": 0.0,
        "artefacts": {},
        "inputs": {},
        "records": {},
    }


def _holder(lock: Path) -> str:
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
        return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError):  # it is just being written
        return "another process"


def _remove(place: Path, files: Mapping[str, str]) -> None:
    """Remove files that a run made in `place`, and folders that are empty then."""
    for name in files:
        (place / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds something else, or was a file
        place.rmdir()


def open_writer(folder: RunFolder, config: Config, *, resume: bool) -> MetricsWriter:
    """The metrics files, cut back to the last checkpoint when the run is resumed, and what else
    `config.logging` sends metrics to."""
    sinks, tensorboard = open_sinks(folder.path, config), config.logging.tensorboard
    if not resume:
        return MetricsWriter(folder.path, tensorboard=tensorboard, sinks=sinks)
    stages = [plan.name for plan in plan_stages(config)]
    done = len(folder.progress["finished"])
    stage, step, records = stages[min(done, len(stages) - 1)], -1, folder.progress["records"]
    if done == len(stages):
        step = int(np.iinfo(np.int64).max)
    elif (latest := folder.checkpoint_of(stage)) is not None:
        extra = checkpoint.read_extra(latest)
        step, records = extra["step"] - 1, extra["records"]
    writer = MetricsWriter(folder.path, step, stage=stage, tensorboard=tensorboard, sinks=sinks)
    for name, found in writer.digests().items():
        if found != records.get(name, found):
            logger.warning(
                "%s is not what this run wrote: lines were lost, changed or added since",
                folder.path / name,
            )
    return writer


def open_sinks(folder: Path, config: Config) -> list[Sink]:
    """Weights & Biases and Prometheus, where asked for; ConfigError when one cannot be had."""
    logging, sinks = config.logging, list[Sink]()
    try:
        if logging.prometheus_port:
            sinks.append(
                PrometheusSink(
                    config.name, port=logging.prometheus_port, address=logging.prometheus_address
                )
            )
        if logging.wandb:
            values = config.model_dump(mode="json")
            project = logging.wandb_project
            sinks.append(WandbSink(folder, project=project, name=config.name, config=values))
    except ValueError as error:
        for sink in sinks:
            sink.close()
        raise ConfigError(str(error)) from None
    return sinks


def record_analysis(folder: Path, stage: str, result: EvaluationResult) -> dict[str, Any]:
    """Add a stage's entry to analysis.json: `evaluation.analysis.analyse` under the stage's name.
    Returns it without the name.

    A stage that was killed before progress.json named it as finished replaces its own entry.
    """
    path = folder / "analysis.json"
    known = read_sealed(path)["stages"] if path.exists() else []
    entries = [entry for entry in known if entry["stage"] != stage]
    analysis = result.analysis(earlier=[entry["correct"] for entry in entries])
    entries.append({"stage": stage, **analysis})
    write_sealed(path, {"stages": entries}, indent=None)
    return analysis


def record_similarity(folder: Path, stage: str, behaviour: SimilarityBehaviour) -> None:
    """Write similarity_STAGE.json for the report."""
    content = {"stage": stage, "rows": behaviour.as_rows()}
    write_sealed(folder / f"similarity_{stage}.json", content)
