# SPDX-License-Identifier: Apache-2.0
"""Learners to disk and back: sharded checkpoints to resume from. Publishing is `export`.

A checkpoint holds one folder per learner (weights, Adam moments, step counts, schedule),
`extra.json` for the caller, and `manifest.json` with a digest of every file. It is written under a
temporary name, in the background where the caller wants it, synced and renamed when complete: a
kill leaves the previous one or none, never half of one; a changed bit is found before anything is
loaded. A checkpoint may be loaded under other parallel sizes. Random states, data cursors and
engines belong to the caller's `extra`.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from satori_fast.backbone import host_memory
from satori_fast.backbone.parallel import parallel_state
from satori_fast.backbone.sharded_state import (
    Piece,
    Written,
    load_pieces,
    pieces,
    write_index,
    write_pieces,
)
from satori_fast.backbone.step import Learner
from satori_fast.storage import (
    DamagedFile,
    begin_folder,
    check_digests,
    digests,
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
    saver = Saver()
    saver.begin(folder, learners, extra)
    saver.finish()


class Saver:
    """Writes checkpoints while training goes on, one at a time.

    In the background, a thread copies what is written to host memory first; sampling goes on
    beside it, and the next thing that changes a learner (`Learner.is_copied`) waits for it. A
    checkpoint is there after `finish`, or a `finish_if_written` that found it written: until then
    it has its temporary name, and the one before it is what a killed run goes on from. Every rank
    must call each of them.
    """

    def __init__(self) -> None:
        self._writing: _Writing | None = None

    def begin(
        self,
        folder: str | os.PathLike[str],
        learners: Mapping[str, Learner],
        extra: dict[str, Any],
        *,
        in_background: bool = False,
    ) -> None:
        """Write `learners` and `extra` to `folder`; one that is still being written is finished
        first. in_background: return at once."""
        self.finish()
        self._writing = _Writing(Path(folder), json.dumps(extra))
        self._writing.start(learners, in_background=in_background)

    def finish_if_written(self) -> bool:
        """`finish`, unless a rank is still writing; whether a checkpoint came to be."""
        writing = self._writing
        if writing is None or parallel_state().any_rank(writing.thread.is_alive()):
            return False
        return self.finish()

    def finish(self) -> bool:
        """Wait for what is being written and give it its name; whether there was anything.

        RuntimeError, on every rank and naming the one it happened to, when writing failed.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.publish()
        return writing is not None


class _Writing:
    """One checkpoint from its copies to its name."""

    def __init__(self, target: Path, extra: str) -> None:
        self._target, self._extra = target, extra
        self._folder = parallel_state().from_main(lambda: begin_folder(target))
        self._written: dict[str, Written] = {}
        self._digests: dict[str, str] = {}
        self._error: Exception | None = None
        self.thread = threading.Thread(target=lambda: None)

    def start(self, learners: Mapping[str, Learner], *, in_background: bool) -> None:
        """Write what this rank writes."""
        _on_main(lambda: [(self._folder / name).mkdir() for name in learners])
        own = {name: _own_pieces(learner) for name, learner in learners.items()}
        if not in_background:
            self._write(own, {})
            return
        for learner in learners.values():
            learner.is_copied.clear()
        # Not a daemon's: a process that ends well writes to the end.
        args = (own, learners)
        self.thread = threading.Thread(target=self._write_copies, args=args, name="checkpoint")
        self.thread.start()

    def _write_copies(self, own: dict[str, list[Piece]], training: Mapping[str, Learner]) -> None:
        """`_write`, and no trace of the copies afterwards: they are as large as the learners."""
        self._write(own, training)
        own.clear()
        host_memory.give_back()

    def _write(self, own: dict[str, list[Piece]], training: Mapping[str, Learner]) -> None:
        """Write pieces, those of learners that are `training` from copies."""
        try:
            for name, learner in training.items():
                own[name] = [replace(each, tensor=_copied(each.tensor)) for each in own[name]]
                learner.is_copied.set()
            for name, pieces_of_learner in own.items():
                self._written[name] = write_pieces(self._folder / name, pieces_of_learner)
            rank = parallel_state().rank
            names = [
                str(path.relative_to(self._folder))
                for name in own
                for path in (self._folder / name).glob(f"__{rank}_*")
            ]
            self._digests = digests(self._folder, names)
        except Exception as error:
            self._error = error  # said in the main thread, to all ranks
        finally:
            for learner in training.values():
                learner.is_copied.set()

    def publish(self) -> None:
        """Complete the folder, once all ranks have written, and put it in its place."""
        if self.thread.ident is not None:
            self.thread.join()
        error = self._error
        failure = None if error is None else f"{type(error).__name__}: {error}"
        parts = _on_all((self._written, self._digests, failure))
        failures = [f"rank {rank}: {said}" for rank, (_, _, said) in enumerate(parts) if said]
        if failures:
            message = f"checkpoint {self._target} was not written: {'; '.join(failures)}"
            raise RuntimeError(message) from error
        _on_main(lambda: self._complete(parts))

    def _complete(self, parts: Sequence[tuple[dict[str, Written], dict[str, str], Any]]) -> None:
        for name in self._written:
            write_index(self._folder / name, [written[name] for written, _, _ in parts])
        (self._folder / _EXTRA).write_text(self._extra)
        files = {name: found for _, of_rank, _ in parts for name, found in of_rank.items()}
        own = [_EXTRA, *(f"{name}/{_PICKLE}" for name in self._written)]
        files |= digests(self._folder, own)
        manifest = {"format": _FORMAT, "files": files}
        write_sealed(self._folder / _MANIFEST, manifest)
        finish_folder(self._target)


def _own_pieces(learner: Learner) -> list[Piece]:
    """What this rank writes of a learner."""
    shares = [piece.written() for piece in pieces(learner)]
    return [share for share in shares if share is not None]


def _copied(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


def _on_all(value: Item) -> list[Item]:
    """`value` of every rank, in rank order."""
    parts: list[Any] = [value]
    if (size := parallel_state().world_size) > 1:
        parts = [None] * size
        dist.all_gather_object(parts, value)
    return parts


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


def _on_main(action: Callable[[], Any]) -> None:
    parallel_state().on_main(action)
