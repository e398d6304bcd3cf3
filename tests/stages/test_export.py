# SPDX-License-Identifier: Apache-2.0
"""Copies of a trained model: the last one, a named one, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from satori_fast.config import ConfigError
from satori_fast.stages.export import export_stage
from satori_fast.storage import DamagedFile, write_sealed


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run folder with the models of two stages, and one that a kill left half written."""
    folder = tmp_path / "run"
    for stage in ("supervised", "reinforce"):
        (folder / "models" / stage).mkdir(parents=True)
        (folder / "models" / stage / "config.json").write_text(stage)
    (folder / "models" / "torn.partial").mkdir()
    write_sealed(folder / "progress.json", {"models": {"policy": "models/reinforce"}})
    return folder


@pytest.mark.parametrize(("stage", "copied"), [(None, "reinforce"), ("supervised", "supervised")])
def test_a_model_is_copied(
    stage: str | None, copied: str, run_folder: Path, tmp_path: Path
) -> None:
    export_stage(run_folder, tmp_path / "out", stage=stage)
    assert (tmp_path / "out" / "config.json").read_text() == copied


def test_no_folder_is_written_over(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="out exists: choose a new folder"):
        export_stage(run_folder, tmp_path / "out", stage=None)


def test_a_stage_without_a_model_names_those_with_one(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'torn\.partial'; it has reinforce, supervised"):
        export_stage(run_folder, tmp_path / "out", stage="torn.partial")
    with pytest.raises(ConfigError, match="holds no model: give a run folder"):
        export_stage(tmp_path / "nowhere", tmp_path / "out", stage=None)


def test_a_run_that_finished_no_stage_asks_for_its_name(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "progress.json").unlink()
    with pytest.raises(ConfigError, match="no stage is finished; name one with --stage"):
        export_stage(run_folder, tmp_path / "out", stage=None)
    write_sealed(run_folder / "progress.json", {"models": {}})
    with pytest.raises(DamagedFile, match="it names no model; pass --stage"):
        export_stage(run_folder, tmp_path / "out", stage=None)
