# SPDX-License-Identifier: Apache-2.0
"""Learners to disk and back: sharded checkpoints to resume from. Publishing is `export`.

A checkpoint holds one folder per learner (weights, Adam moments, step counts, schedule) and
`extra.json` for the caller. It is written under a temporary name and renamed when complete, so a
kill leaves the previous one or none, never half of one. A checkpoint may be loaded under other
parallel sizes. Random states, data cursors and engines belong to the caller's `extra`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_torch_checkpoint

from satori_fast.backbone.parallel import parallel_state
from satori_fast.backbone.step import Learner

_EXTRA = "extra.json"


class _InProcessSave(TorchDistSaveShardedStrategy):
    """Megatron's format, written by this process.

    Megatron's own writer forks workers and spawns a manager that imports the main script again:
    seconds for a tiny model, and a hang when psutil is missing.
    """

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> None:
        flat, _, _ = _replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        save_torch_checkpoint(
            mcore_to_pyt_state_dict(flat, False),
            storage_writer=FileSystemWriter(checkpoint_dir),
            planner=MCoreSavePlanner(
                dedup_replicated_tensors=not self.keep_only_main_replica, flatten_state_dict=False
            ),
        )


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
            state = _sharded_state(learner, is_loading=False)
            with _without_deprecations():
                dist_checkpointing.save(state, str(part), _InProcessSave("torch_dist", 1))
        _on_main(lambda: (partial_folder / _EXTRA).write_text(json.dumps(extra)))


def load_checkpoint(
    folder: str | os.PathLike[str], learners: Mapping[str, Learner]
) -> dict[str, Any]:
    """Load all `learners` in place and return `extra`; ValueError when something is missing.

    A learner built with an optimizer needs a checkpoint written with one.
    """
    source = Path(folder)
    if not (source / _EXTRA).is_file():
        raise ValueError(f"checkpoint {os.fspath(folder)!r} does not exist or is not complete")
    for name, learner in learners.items():
        if not (source / name).is_dir():
            raise ValueError(f"checkpoint {os.fspath(folder)!r} holds no {name!r}")
        expected = _sharded_state(learner, is_loading=True)
        with _without_deprecations():
            state: Any = dist_checkpointing.load(expected, str(source / name))
        learner.module.load_state_dict(state["model"])
        if learner.optimizer is not None:
            learner.optimizer.load_state(state["optimizer"])
    return json.loads((source / _EXTRA).read_text())


def latest_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The complete checkpoint in `folder` whose name ends in the highest number, or None."""
    numbered = [
        (int(match.group()), path)
        for path in Path(folder).glob("*")
        if (match := re.search(r"\d+$", path.name)) and (path / _EXTRA).is_file()
    ]
    return max(numbered)[1] if numbered else None


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Megatron 0.16.1 calls what torch 2.13 deprecates; the pins keep the two together."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _sharded_state(learner: Learner, *, is_loading: bool) -> dict[str, Any]:
    state: dict[str, Any] = {"model": learner.module.sharded_state_dict()}
    if learner.optimizer is not None:
        state["optimizer"] = learner.optimizer.sharded_state(state["model"], is_loading=is_loading)
    return state


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A fresh folder to fill; it takes the place of `target` only when the block ends well."""
    partial_folder = target.with_name(target.name + ".partial")
    replaced = target.with_name(target.name + ".replaced")

    def start() -> None:
        shutil.rmtree(partial_folder, ignore_errors=True)
        partial_folder.mkdir(parents=True)

    def finish() -> None:
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)
        partial_folder.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)

    _on_main(start)
    yield partial_folder
    _on_main(finish)


def _on_main(action: Callable[[], Any]) -> None:
    parallel_state().on_main(action)
