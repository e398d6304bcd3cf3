# SPDX-License-Identifier: Apache-2.0
"""Similarity of 4,096 pairs of real text of 300 to 2,000 characters, as the reward takes them: from
strings on, one thread. Half of the actions are their target with pieces of other text in it, half
are other text altogether. Values are compared with difflib's first, on the first pairs. The target
is of one core's time, so it goes by CPU time: wall time says how busy a shared machine is.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satori_fast.rewards.similarity import Granularity, SimilarityReward

NUM_PAIRS, SHORTEST, LONGEST = 4096, 300, 2000
NUM_CHECKED = 64
MOST_MS = 3000.0
ROOT = Path(__file__).parents[1]
DOCUMENTS = ("*.md", "docs/*.md", "benchmarks/*.md", "csrc/*.md", "satori_fast/*.md")


def real_text(data_dir: Path | None) -> str:
    """The solutions of GSM8K, or else the documents of this repository."""
    if data_dir is not None:
        with (data_dir / "train" / "gsm8k_train.jsonl").open(encoding="utf-8") as file:
            return "\n".join(json.loads(line)["answer"] for line in file)
    found = sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern))
    return "\n".join(path.read_text(encoding="utf-8") for path in found)


def pairs_of(text: str) -> tuple[list[str], list[str]]:
    """(actions, targets): pieces of the text, drawn at random."""
    rng = np.random.default_rng(2)

    def piece(size: int) -> str:
        at = int(rng.integers(len(text) - size))
        return text[at : at + size]

    lengths = rng.integers(SHORTEST, LONGEST + 1, NUM_PAIRS).tolist()
    targets = [piece(size) for size in lengths]
    actions = [piece(int(rng.integers(SHORTEST, LONGEST + 1))) for _ in targets]
    for number in range(0, NUM_PAIRS, 2):
        kept = targets[number]
        for start in range(0, len(kept), 100):
            kept = kept[:start] + piece(20) + kept[start + 20 :]
        actions[number] = kept[:LONGEST]
    return actions, targets


@pytest.mark.parametrize("granularity", ["characters", "words"])
def test_step_similarity(
    race: Any, one_thread: None, data_dir: Path | None, granularity: Granularity
) -> None:
    actions, targets = pairs_of(real_text(data_dir))
    reward = SimilarityReward(granularity)
    spell = str.split if granularity == "words" else list
    first = [(spell(a), spell(b)) for a, b in zip(actions, targets, strict=True)][:NUM_CHECKED]

    def by_difflib() -> list[float]:
        return [difflib.SequenceMatcher(None, a, b, False).ratio() for a, b in first]

    values = reward.similarities(actions, targets)
    assert values[:NUM_CHECKED] == by_difflib()
    source = "documents" if data_dir is None else "gsm8k"
    race(
        f"{granularity}, {source}",
        {
            "ours": lambda: reward.similarities(actions, targets),
            f"difflib on {NUM_CHECKED} pairs": by_difflib,
        },
        targets={},
        repeats=5,
        warmup=0,
        judged_by="cpu",
        most_ms=MOST_MS,
        extra={"pairs": NUM_PAIRS, "mean_similarity": round(float(np.mean(values)), 3)},
    )
