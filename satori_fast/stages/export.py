# SPDX-License-Identifier: Apache-2.0
"""Copy a trained model out of a run folder. It is a Hugging Face folder already (`stages.run`)."""

from __future__ import annotations

import shutil
from pathlib import Path

from satori_fast.config import ConfigError
from satori_fast.storage import DamagedFile, read_json


def export_stage(folder: Path, destination: Path, *, stage: str | None) -> None:
    """Copy the model of a stage (None: the last finished one) out of a run folder."""
    source = stage_folder(folder, stage=stage)
    check_new(destination)
    shutil.copytree(source, destination)


def check_new(destination: Path) -> None:
    """ConfigError for a folder that exists: nothing is written over."""
    if destination.exists():
        raise ConfigError(f"{destination} exists: choose a new folder")


def stage_folder(folder: Path, *, stage: str | None) -> Path:
    """The model of a stage (None: the last finished one) in a run folder."""
    models = folder / "models"
    trained = sorted(path.name for path in models.glob("*") if (path / "config.json").exists())
    if not trained:
        raise ConfigError(f"{folder} holds no model: give a run folder with a finished stage")
    if stage is None:
        stage = _last_stage(folder / "progress.json")
    if stage not in trained:
        raise ConfigError(f"{folder} has no model of stage {stage!r}; it has {', '.join(trained)}")
    return models / stage


def _last_stage(path: Path) -> str:
    """Name of the newest policy's stage in progress.json."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist: no stage is finished; name one with --stage")
    try:
        return Path(read_json(path)["models"]["policy"]).name
    except (KeyError, TypeError):
        raise DamagedFile(f"{path} is damaged: it names no model; pass --stage") from None
