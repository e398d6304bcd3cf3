# SPDX-License-Identifier: Apache-2.0
"""What MODEL means on the command line; a checkpoint is the model that its step left."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from satori_fast import cli
from satori_fast.config import ConfigError
from satori_fast.stages import run_stages
from satori_fast.stages.evaluated_model import evaluated_model, export_checkpoint, output_folder
from tests.stages.test_run import tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_stages(tiny_config(folder, "--reinforce.export_every", "2"))
    return folder / "tiny"


def checkpoints(run: Path, stage: str) -> list[Path]:
    return sorted((run / "checkpoints" / stage).glob("step-*"), key=lambda path: path.name)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("stage", ["supervised", "reinforce"])
def test_a_checkpoint_is_the_model_that_the_stage_leaves(
    run: Path, tmp_path: Path, stage: str
) -> None:
    last = checkpoints(run, stage)[-1]
    assert cli.main(["export", str(last), str(tmp_path / "model")]) == 0
    left = weights(run / "models" / stage)
    exported = weights(tmp_path / "model")
    assert left.keys() == exported.keys()
    assert all(torch.equal(left[name], exported[name]) for name in left)
    for path in (run / "models" / stage).iterdir():
        if path.suffix == ".json":
            assert (tmp_path / "model" / path.name).read_bytes() == path.read_bytes()


def test_each_name_leads_to_a_folder(run: Path) -> None:
    policy, last = run / "models" / "reinforce", checkpoints(run, "reinforce")[-1]
    for name in (policy, run):
        with evaluated_model(str(name)) as found:
            assert found == (policy, policy)
    with evaluated_model(str(last)) as (folder, place):
        assert place == last and (folder / "config.json").exists()
    assert not folder.exists()
    assert output_folder(policy, "chat") == run / "evaluations" / "reinforce-chat"
    assert output_folder(last, "chat") == run / "evaluations" / f"reinforce-{last.name}-chat"


def test_what_is_no_model_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no model: name a Hugging Face folder"):  # noqa: SIM117
        with evaluated_model(str(tmp_path)):
            pass
    moved = tmp_path / "a" / "b" / "step-4"
    shutil.copytree(checkpoints(run, "reinforce")[-1], moved)
    with pytest.raises(ConfigError, match="is in no run folder"):
        export_checkpoint(moved, tmp_path / "out")
    (tmp_path / "there").mkdir()
    last = str(checkpoints(run, "reinforce")[-1])
    assert cli.main(["export", last, str(tmp_path / "there")]) == 2
    assert cli.main(["export", last, str(tmp_path / "new"), "--stage", "reinforce"]) == 2
    assert not (tmp_path / "new").exists()
