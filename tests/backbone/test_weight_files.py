# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder count, as transformers has it, and one line for each that is damaged."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from satori_fast.backbone.model import build_model
from satori_fast.backbone.weight_files import SafetensorsFolder
from tests.tiny_models import random_batch, reference_logits, tiny_model

INDEX = "model.safetensors.index.json"


def tensors(start: int, *names: str) -> dict[str, torch.Tensor]:
    return {name: torch.full((2, 3), float(start + i)) for i, name in enumerate(names)}


def read(folder: Path) -> dict[str, float]:
    files = SafetensorsFolder(folder)
    found = {name: tensor[0, 0].item() for name, tensor in files.items()}
    files.close()
    return found


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    content = {"metadata": {}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(content), encoding="utf-8")


def sharded(folder: Path) -> dict[str, str]:
    save_file(tensors(1, "a", "b"), folder / "model-00001-of-00002.safetensors")
    save_file(tensors(3, "c"), folder / "model-00002-of-00002.safetensors")
    weight_map = dict.fromkeys("ab", "model-00001-of-00002.safetensors")
    weight_map["c"] = "model-00002-of-00002.safetensors"
    write_index(folder, weight_map)
    return weight_map


def test_the_whole_file_counts_beside_strays_and_an_old_index(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(tensors(1, "a"), tmp_path / "model.safetensors")
    save_file(tensors(5, "a"), tmp_path / "zz_old_backup.safetensors")
    save_file(tensors(7, "a"), tmp_path / "model-00001-of-00001.safetensors")
    write_index(tmp_path, {"a": "model-00001-of-00001.safetensors"})
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path) == read(tmp_path) == {"a": 1.0}
    (said,) = caplog.messages
    assert "model.safetensors is read, and not" in said and "zz_old_backup.safetensors" in said


def test_the_index_counts_where_there_is_no_whole_file(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file(tensors(9, "a"), tmp_path / "zz_old_backup.safetensors")
    assert read(tmp_path) == {"a": 1.0, "b": 2.0, "c": 3.0}


def test_transformers_reads_the_same(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    model.save_pretrained(tmp_path, max_shard_size="100KB")  # the old shards and their index
    other = tiny_model("qwen2", initializer_range=0.03)
    other.save_pretrained(tmp_path / "new")
    shutil.copy(tmp_path / "new" / "model.safetensors", tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    save_file({n: t + 1 for n, t in whole.items()}, tmp_path / "zz_old_backup.safetensors")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours = build_model(expected.config, weights=tmp_path)
    batch = random_batch([9, 4])
    with torch.no_grad():
        assert (ours(batch) - reference_logits(expected, batch)).abs().max() <= 1e-5
        assert (ours(batch) - reference_logits(model, batch)).abs().max() > 1e-2


def test_one_file_of_another_name_and_shards_without_an_index(tmp_path: Path) -> None:
    save_file(tensors(1, "a"), tmp_path / "weights.safetensors")
    assert read(tmp_path) == {"a": 1.0}
    save_file(tensors(2, "b"), tmp_path / "more.safetensors")
    assert read(tmp_path) == {"a": 1.0, "b": 2.0}
    save_file(tensors(3, "b"), tmp_path / "old.safetensors")
    with pytest.raises(ValueError, match=r"has b in more\.safetensors and in old\.safetensors"):
        read(tmp_path)


def test_a_pickle_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(tensors(1, "a"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is not read: .*save_pretrained"):
        read(tmp_path)


def half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (half, "is damaged or cut short"),
        (pointer, "is a git-lfs pointer"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"\x05"), "is damaged or cut short"),
        (lambda path: path.write_bytes(b"PK\x03\x04" * 50), "is damaged or cut short"),
    ],
)
@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_damaged_file_is_named_in_one_line(
    tmp_path: Path, damage: Callable[[Path], object], said: str, is_sharded: bool
) -> None:
    if is_sharded:
        path = tmp_path / sharded(tmp_path)["c"]
    else:
        path = tmp_path / "model.safetensors"
        save_file(tensors(1, "a"), path)
    damage(path)
    with pytest.raises(ValueError) as refused:
        read(tmp_path)
    text = str(refused.value)
    assert text.startswith(f"{path} {said}") and "\n" not in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
        ("{", "is damaged: it must be a JSON object"),
        ("[]", "is damaged: it must be a JSON object"),
        ('{"metadata": {}}', "is damaged: it must be a JSON object"),
        ('{"weight_map": 3}', "is damaged: it must be a JSON object"),
        ('{"weight_map": {"a": 3}}', "is damaged: it must be a JSON object"),
        ('{"weight_map": {}}', "names no tensor"),
        ('{"weight_map": {"a": "../../other/x.safetensors"}}', "outside of the model folder"),
        ('{"weight_map": {"a": "/other/x.safetensors"}}', "outside of the model folder"),
    ],
)
def test_a_damaged_index_is_named_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    sharded(tmp_path)
    (tmp_path / INDEX).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError) as refused:
        read(tmp_path)
    text = str(refused.value)
    assert text.startswith(f"{tmp_path / INDEX} ") and said in text and "\n" not in text


def test_an_index_and_its_files_must_be_of_one_model(tmp_path: Path) -> None:
    weight_map = sharded(tmp_path)
    write_index(tmp_path, weight_map | {"d": weight_map["a"]})
    with pytest.raises(ValueError, match=r"index\.json looks for d in model-00001-of-00002"):
        read(tmp_path)
    write_index(tmp_path, weight_map)
    (tmp_path / weight_map["c"]).unlink()
    with pytest.raises(ValueError, match="lacks model-00002-of-00002"):
        read(tmp_path)


def test_links_into_a_cache_are_followed(tmp_path: Path) -> None:
    """A snapshot of the hub is a folder of links to blobs elsewhere."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "one"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    sharded(blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert read(snapshot) == {"a": 1.0, "b": 2.0, "c": 3.0}
