# SPDX-License-Identifier: Apache-2.0
"""The safetensors files of a Hugging Face folder: which of them count, and what is wrong with one.

The choice is transformers': `model.safetensors`, else the shards of its index. Whatever is wrong
is one line that names the file. What becomes of the tensors is `weights`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_BLOCK = 1024  # rows
_LFS = b"version https://git-lfs"
# Files with weights that are never read: pickles run code, and the others need another library.
_OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")

logger = logging.getLogger(__name__)


class SafetensorsFolder(Mapping[str, Tensor]):
    """The tensors of a Hugging Face folder, read one at a time from its safetensors files.

    Those are `model.safetensors` if it is there, else what its index names, else every
    *.safetensors (a folder saved without an index). ValueError, naming the file: none of these, one
    that is damaged, missing or outside the folder, one tensor in two files, an index that names a
    tensor which its file does not hold.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._open = ExitStack()
        self._handle_of: dict[str, Any] = {}
        if not self.folder.is_dir():
            raise ValueError(f"model folder {os.fspath(folder)!r} does not exist")
        try:
            self._read_headers()
        except BaseException:
            self.close()
            raise

    def _read_headers(self) -> None:
        weight_map = _indexed(self.folder)
        file_of: dict[str, str] = {}
        for name in (
            weight_files(self.folder) if weight_map is None else sorted(set(weight_map.values()))
        ):
            handle = self._open.enter_context(_opened(self.folder / name))
            for tensor in handle.keys():  # noqa: SIM118 (not a mapping)
                if tensor in file_of:
                    raise ValueError(
                        f"model folder {str(self.folder)!r} has {tensor} in {file_of[tensor]} and "
                        f"in {name}: remove the file that does not belong to the model"
                    )
                file_of[tensor] = name
                self._handle_of[tensor] = handle
        for tensor, name in (weight_map or {}).items():
            if file_of.get(tensor) != name:
                raise ValueError(
                    f"{self.folder / _INDEX} looks for {tensor} in {name}, which does not hold it: "
                    "the index and its files are not of one model"
                )

    def __getitem__(self, name: str) -> Tensor:
        return self._handle_of[name].get_tensor(name)

    def same(self, first: str, second: str) -> bool:
        """True where two matrices are equal; read a block of rows at a time, up to a difference."""
        a, b = (self._handle_of[name].get_slice(name) for name in (first, second))
        return a.get_shape() == b.get_shape() and all(
            torch.equal(a[start : start + _BLOCK].float(), b[start : start + _BLOCK].float())
            for start in range(0, a.get_shape()[0], _BLOCK)
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._handle_of)

    def __len__(self) -> int:
        return len(self._handle_of)

    def close(self) -> None:
        """Close the files."""
        self._open.close()


def weight_files(folder: Path) -> list[str]:
    """Names of the files that hold the weights where no index counts."""
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if _WHOLE in found:
        ignored = [name for name in found if name != _WHOLE]
        if (folder / _INDEX).is_file():
            ignored.append(_INDEX)
        if ignored:
            say_once(f"model folder {folder}: {_WHOLE} is read, and not {', '.join(ignored)}")
        return [_WHOLE]
    if not found:
        others = sorted(path.name for kind in _OTHER_FORMATS for path in folder.glob(kind))
        raise ValueError(
            f"model folder {str(folder)!r} has no *.safetensors file"
            + (
                f", and {others[0]} is not read: convert it with transformers, "
                "from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
                if others
                else ""
            )
        )
    return found


def _indexed(folder: Path) -> dict[str, str] | None:
    """Tensor to file name, by the folder's index; None where there is no index that counts."""
    path = folder / _INDEX
    if (folder / _WHOLE).is_file() or not path.is_file():
        return None
    content = path.read_bytes()
    refuse_pointer(path, content)
    try:
        weight_map = json.loads(content)["weight_map"]
        pairs = {str(tensor): PurePosixPath(name) for tensor, name in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{path} is damaged: it must be a JSON object whose weight_map says which file holds "
            "which tensor"
        ) from None
    if not pairs:
        raise ValueError(f"{path} is damaged: its weight_map names no tensor")
    for name in set(pairs.values()):
        # By its text: on a cache of the hub the files of a folder are links that lead out of it.
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{path} names {name}, a file outside of the model folder")
        if not (folder / name).is_file():
            raise ValueError(f"model folder {str(folder)!r} lacks {name} of its index")
    return {tensor: str(name) for tensor, name in pairs.items()}


def _opened(path: Path) -> Any:
    """A safetensors file; ValueError says what it is instead."""
    with path.open("rb") as file:
        refuse_pointer(path, file.read(len(_LFS)))
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} is damaged or cut short ({reason}): fetch it again") from None


def refuse_pointer(path: Path, begin: bytes) -> None:
    """Raise ValueError where a file that begins so is empty, or stands for one not fetched."""
    if not begin:
        raise ValueError(f"{path} is empty: fetch it again")
    if begin.startswith(_LFS):
        raise ValueError(f"{path} is a git-lfs pointer, not the file: run `git lfs pull` there")


@cache
def say_once(message: str, level: int = logging.WARNING) -> None:
    """Log a message that further loads of the same folder would repeat."""
    logger.log(level, message)
