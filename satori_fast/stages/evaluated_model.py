# SPDX-License-Identifier: Apache-2.0
"""The model that a user means: a Hugging Face folder, a hub name, a run folder, or a checkpoint.

A checkpoint of a run is written as a Hugging Face folder first: that is what engines read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from satori_fast.backbone.checkpoint import load_checkpoint
from satori_fast.config import ConfigError, load_config
from satori_fast.stages.export import stage_folder
from satori_fast.stages.models import ModelFolders, initial_model_folder, model_folder
from satori_fast.stages.setup import build_renderer, join_ranks, tokenizer_folder
from satori_fast.storage import read_sealed

_ROLE = "policy"  # of the learner in a checkpoint
# The run may have been laid out over many devices; here one has to do.
_ONE_DEVICE = tuple(f"--parallel.{size}=1" for size in ("tensor", "pipeline", "context"))


@contextmanager
def evaluated_model(model: str) -> Iterator[tuple[Path, Path]]:
    """The Hugging Face folder that is meant, while the block runs, and where it comes from.

    model: a folder, a run folder (its last stage), a checkpoint of a run or a name on the hub.
    ConfigError for what holds no model.
    """
    place = Path(model).expanduser()
    if is_checkpoint(place):
        with tempfile.TemporaryDirectory() as own_folder:
            yield export_checkpoint(place, Path(own_folder) / "model"), place
        return
    folder = stage_folder(place, stage=None) if _is_run(place) else model_folder(model)
    if not (folder / "config.json").exists():
        raise ConfigError(
            f"{model} holds no model: name a Hugging Face folder, a run folder, one of its "
            "models/STAGE, or one of its checkpoints/STAGE/STEP"
        )
    yield folder, folder


def output_folder(place: Path, name: str) -> Path:
    """evaluations/MODEL-NAME, in the run folder where the model is of one."""
    place = place.resolve()
    run = next((parent for parent in place.parents if _is_run(parent)), Path())
    own = f"{place.parent.name}-{place.name}" if is_checkpoint(place) else place.name
    return run / "evaluations" / f"{own}-{name}"


def is_checkpoint(place: Path) -> bool:
    """Whether a folder is a checkpoint of a stage with a policy."""
    return (place / _ROLE).is_dir() and (place / "manifest.json").exists()


def export_checkpoint(place: Path, destination: Path) -> Path:
    """Write the policy of a checkpoint as a Hugging Face folder. Every rank must call it.

    place: RUN/checkpoints/STAGE/step-N. ConfigError where it lies in no run folder, whose config
    and tokenizer are needed; ValueError for a damaged checkpoint.
    """
    place = place.resolve()
    run, stage = place.parents[2], place.parent.name
    if not _is_run(run):
        raise ConfigError(f"{place} is in no run folder: name RUN/checkpoints/STAGE/STEP")
    config = load_config(run / "config.toml", _ONE_DEVICE)
    join_ranks(config)
    progress = read_sealed(run / "progress.json")
    # A stage that is at work goes on from what the stages before it left.
    known = progress.get("before", {}).get(stage, progress["models"])
    role = "base" if stage.startswith("distill") else _ROLE
    begun = run / known[role] if role in known else initial_model_folder(config, run)
    tokenizer = run / known["tokenizer"] if "tokenizer" in known else tokenizer_folder(run)
    models = ModelFolders(
        build_renderer(config, tokenizer),
        tokenizer,
        dtype=config.model.dtype,
        recompute="none",
        max_seqlen=config.rollout.max_seqlen,
    )
    learner = models.policy(begun)
    load_checkpoint(place, {_ROLE: learner})
    models.export(learner, destination)
    return destination


def _is_run(place: Path) -> bool:
    return (place / "progress.json").exists()
