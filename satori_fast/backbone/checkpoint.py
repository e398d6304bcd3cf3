# SPDX-License-Identifier: Apache-2.0
"""Learners to disk and back: sharded checkpoints to resume from. Publishing is `export`.

A checkpoint holds one folder per learner (weights, Adam moments, step counts, schedule),
`extra.json` for the caller, and `manifest.json` with a digest of every file. It is written under a
temporary name, synced and renamed when complete, so a kill leaves the previous one or none, never
half of one; a changed bit is found before anything is loaded. A checkpoint may be loaded under
other parallel sizes. Random states, data cursors and engines belong to the caller's `extra`.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from satori_fast.backbone.parallel import parallel_state
from satori_fast.backbone.sharded_state import load_pieces, pieces, write_index, write_pieces
from satori_fast.backbone.step import Learner
from satori_fast.storage import (
    DamagedFile,
    begin_folder,
    check_digests,
    digests,
    file_names,
    finish_folder,
    read_sealed,
    write_sealed,
)

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

# 1 was Megatron's.
_FORMAT = 2
_EXTRA, _MANIFEST, _PICKLE = "extra.json", "manifest.json", ".metadata"
# All that torch's index of a checkpoint is made of. It is a pickle, and a pickle may call whatever
# it names: one that names anything else is not ours.
_PICKLED = {
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},
    "torch": {"Size", "float32", "bfloat16", "float64", "float16", "int64", "int32", "uint8"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
}


def save_checkpoint(
    folder: str | os.PathLike[str], learners: Mapping[str, Learner], extra: dict[str, Any]
) -> None:
    """Write all `learners` and `extra` (JSON values) to `folder`, replacing what it held.

    Every rank must call it, with a folder on a file system that all ranks share.
    """
    target = Path(folder)
    with _replaced(target) as partial_folder:
        for name, learner in learners.items():
            part = partial_folder / name
            _on_main(lambda part=part: part.mkdir())
            own = [share for piece in pieces(learner) if (share := piece.written()) is not None]
            written = _on_all(write_pieces(part, own))
            _on_main(lambda part=part, written=written: write_index(part, written))
        _on_main(lambda: (partial_folder / _EXTRA).write_text(json.dumps(extra)))
        files = _all_digests(partial_folder)
        manifest = {"format": _FORMAT, "files": files}
        _on_main(lambda: write_sealed(partial_folder / _MANIFEST, manifest))


def _all_digests(folder: Path) -> dict[str, str]:
    """The digest of every file in `folder`; each rank reads what it wrote itself."""
    state = parallel_state()
    names = state.from_main(lambda: file_names(folder))
    own = digests(folder, [name for name in names if _writer_of(name) == state.rank])
    return {name: found for part in _on_all(own) for name, found in part.items()}


def _on_all(value: Item) -> list[Item]:
    """`value` of every rank, in rank order."""
    parts: list[Any] = [value]
    if (size := parallel_state().world_size) > 1:
        parts = [None] * size
        dist.all_gather_object(parts, value)
    return parts


def _writer_of(name: str) -> int:
    """The rank that wrote a file of a checkpoint: torch names data files __RANK_NUMBER.distcp."""
    match = re.fullmatch(r"__(\d+)_\d+\.distcp", Path(name).name)
    return int(match[1]) if match else 0


def verify_checkpoint(folder: str | os.PathLike[str]) -> None:
    """Raise DamagedFile, naming the file, unless every file in `folder` is as written. One process
    may call it, for all."""
    source = Path(folder)
    manifest = read_sealed(source / _MANIFEST)
    if (found := manifest.get("format", 1)) != _FORMAT:
        raise DamagedFile(
            f"{source / _MANIFEST}: the checkpoint has format {found} and this version of "
            f"satori-fast reads {_FORMAT}: go on with the version that wrote it"
        )
    check_digests(source, manifest["files"])


def latest_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint in `folder` whose files are all as written; None where there is none.

    What is wrong with newer ones is logged, file by file. DamagedFile when there are checkpoints
    and not one of them can be used. One process may call it, for all.
    """
    found = numbered_checkpoints(folder)
    for path in found:
        try:
            verify_checkpoint(path)
        except DamagedFile as error:
            logger.warning("checkpoint %s cannot be used: %s", path.name, error)
            continue
        if path != found[0]:
            logger.warning("going on from the checkpoint before: %s", path)
        return path
    if found:
        raise DamagedFile(
            f"{folder}: no checkpoint can be used, the newest is {found[0].name}: restore one, or "
            "remove this folder to start the stage again"
        )
    return None


def load_checkpoint(
    folder: str | os.PathLike[str], learners: Mapping[str, Learner], *, verified: bool = False
) -> dict[str, Any]:
    """Load all `learners` in place and return `extra`.

    A learner built with an optimizer needs a checkpoint written with one. verified: the caller has
    just called `verify_checkpoint`. ValueError when something is missing or not what was written,
    or when torch's index is not one that torch wrote; the message names the file.
    """
    source = Path(folder)
    if not source.is_dir():
        raise ValueError(f"checkpoint {os.fspath(folder)!r} does not exist")
    if not verified:
        _on_main(lambda: verify_checkpoint(source))
    for name, learner in learners.items():
        if not (source / name).is_dir():
            raise ValueError(f"checkpoint {os.fspath(folder)!r} holds no {name!r}")
        _refuse_foreign_pickle(source / name / _PICKLE)
        try:
            load_pieces(source / name, learner)
        except ValueError as error:
            raise ValueError(f"checkpoint {source / name}: {error}") from None
    return json.loads((source / _EXTRA).read_text())


def read_extra(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The `extra` of a checkpoint, without its learners."""
    return json.loads((Path(folder) / _EXTRA).read_text())


class _IndexUnpickler(pickle.Unpickler):
    """Reader of torch's index of a checkpoint, and of nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _PICKLED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _refuse_foreign_pickle(path: Path) -> None:
    try:
        with path.open("rb") as file:
            _IndexUnpickler(file).load()
    except FileNotFoundError:
        raise DamagedFile(f"{path} is missing") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise DamagedFile(f"{path} is not an index that torch wrote: {error}") from None


def numbered_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoint folders in `folder`, whole or not, the one with the highest number first."""
    found = [
        (int(match[1]), path)
        for path in Path(folder).glob("*")
        if (match := re.fullmatch(r"step-(\d+)", path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found, reverse=True)]


def prune_checkpoints(folder: str | os.PathLike[str], *, num_kept: int) -> None:
    """Remove what a kill left half written in `folder`, and all but the newest checkpoints."""
    for path in Path(folder).glob("step-*"):
        if path.is_dir() and re.fullmatch(r"step-\d+\.(partial|replaced)", path.name):
            shutil.rmtree(path)
    for path in numbered_checkpoints(folder)[num_kept:]:
        shutil.rmtree(path)


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A fresh folder to fill; it takes the place of `target` only when the block ends well."""
    parallel = parallel_state()
    folder = parallel.from_main(lambda: begin_folder(target))
    yield folder
    _on_main(lambda: finish_folder(target))


def _on_main(action: Callable[[], Any]) -> None:
    parallel_state().on_main(action)
