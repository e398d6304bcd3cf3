# SPDX-License-Identifier: Apache-2.0
"""Memory seen by two processes: what one writes the other reads, and nothing stays behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from satori_fast.processes import place
from satori_fast.rollout.shared_memory import (
    SharedBlock,
    map_block,
    num_bytes_of,
    remove_orphans,
    views,
)
from satori_fast.rollout.weight_sync import TensorRecord, check_bucket, describe, rows_of

READER = """
import json, sys
from satori_fast.rollout.shared_memory import map_block, views
from satori_fast.rollout.weight_sync import fingerprints, records_of
block = None
for line in sys.stdin:
    message = json.loads(line)
    if block is None:
        block = map_block(message["handle"])
    held = views(block, records_of(message["records"]))
    print(json.dumps(fingerprints(held)), flush=True)
"""


def bucket(seed: int) -> list[tuple[str, Tensor]]:
    torch.manual_seed(seed)
    whole = torch.randn(6, 5)
    halves = whole.bfloat16()[:, :3]
    return [
        ("a", whole[:2]),
        ("t", whole.T),
        ("h", halves),
        ("one", torch.tensor(3.0)),
        ("b", whole),
    ]


def message(handle: dict[str, Any], records: list[TensorRecord]) -> str:
    return json.dumps({"handle": handle, "records": rows_of(records)}) + "\n"


def test_another_process_reads_what_was_written_last() -> None:
    command = [sys.executable, "-c", READER]
    block = SharedBlock(num_bytes_of(describe(bucket(0))))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdin is not None and reader.stdout is not None
        for seed in (0, 1, 2):
            named = bucket(seed)
            records = describe(named)
            block.write(records, [tensor for _, tensor in named])
            reader.stdin.write(message(block.handle, records))
            reader.stdin.flush()
            assert json.loads(reader.stdout.readline()) == [r.fingerprint for r in records]
        reader.stdin.close()
    block.close()


def test_views_have_the_types_and_shapes_of_the_records() -> None:
    named = bucket(0)
    records = describe(named)
    block = SharedBlock(num_bytes_of(records))
    block.write(records, [tensor for _, tensor in named])
    seen = views(map_block(block.handle), records)
    check_bucket(records, seen, where="here")
    assert all(torch.equal(a, b) for a, (_, b) in zip(seen, named, strict=True))
    block.close()


def test_a_mapped_block_outlives_its_folder_and_the_folder_is_private() -> None:
    block = SharedBlock(64)
    folder = Path(block.handle["path"]).parent
    assert folder.stat().st_mode & 0o077 == 0
    mapped = map_block(block.handle)
    mapped[3] = 7
    assert block.data[3] == 7
    block.close()
    assert not folder.exists() and mapped[3] == 7


LEAVER = """
import os, sys
from satori_fast.rollout.shared_memory import SharedBlock
block = SharedBlock(4096)
print(block.handle["path"], flush=True)
sys.stdin.readline()
os.kill(os.getpid(), 9)
"""


def test_the_next_one_removes_what_a_killed_trainer_left() -> None:
    killed = subprocess.Popen(
        [sys.executable, "-c", LEAVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout is not None
    theirs = Path(killed.stdout.readline().strip())
    assert theirs.exists()
    remove_orphans(theirs.parent.parent)
    assert theirs.exists()  # its owner lives
    killed.communicate("\n")
    assert theirs.exists() and killed.returncode == -9
    block = SharedBlock(64)
    own = Path(block.handle["path"])
    assert not theirs.parent.exists() and own.exists()
    block.close()
    assert not own.parent.exists()


def test_folders_of_other_machines_and_of_other_makers_stay(tmp_path: Path) -> None:
    names = ["satori-00000000-1-1-x", "satori-old", "other", f"satori-{place()}-4194305-1-x"]
    for name in names:
        (tmp_path / name).mkdir()
    remove_orphans(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[:3])
