# SPDX-License-Identifier: Apache-2.0
"""The books add up."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path

from satori_fast.synthesis.chat import ChatReply
from satori_fast.synthesis.journal import Journal
from satori_fast.synthesis.outcomes import Outcome
from satori_fast.synthesis.stats import SynthesisStats
from satori_fast.types import Demonstration, Problem

PROBLEM = Problem("p", "1 + 1", "2")


def outcome(*kinds: str, **counts: int) -> Outcome:
    made = [Demonstration(PROBLEM, "r", kind) for kind in kinds]
    named = Counter({name.replace("__", "/"): number for name, number in counts.items()})
    return Outcome(PROBLEM, made, named, {"leak": "first"} if "dropped__leak" in counts else {})


def test_sums() -> None:
    stats = SynthesisStats({}, None)
    stats.add(outcome("I", "II-I", dropped__leak=2, solutions__right=3))
    stats.add(outcome("I", dropped__leak=1, dropped__empty=0))
    assert stats.demonstrations == {"I": 2, "II-I": 1, "II-II": 0, "III-I": 0, "III-II": 0}
    assert stats.dropped() == {"leak": 3} and stats.faults == {"leak": "first"}
    assert stats.headline() == {"made": 3, "dropped": 3} and stats.spent() == {}
    metrics = stats.metrics()
    assert metrics["synthesize/demonstrations"] == 3 and metrics["synthesize/type_III-I"] == 0
    assert metrics["synthesize/dropped/leak"] == metrics["synthesize/solutions/right"] == 3


def test_cost(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "replies.jsonl")) as journal:
        stats = SynthesisStats({"critic": (1.0, 4.0)}, journal)
        for key in ("00" * 16, "01" * 16):
            reply = ChatReply("a", prompt_tokens=1_000_000, completion_tokens=500_000)
            journal.add(key, "critic", reply)
        assert stats.spent()["critic"]["cost"] == 6.0
        assert stats.headline() == {"made": 0, "dropped": 0, "requests": 2, "cost": 6.0}
        assert stats.metrics()["synthesize/critic/prompt_tokens"] == 2e6
