# SPDX-License-Identifier: Apache-2.0
"""Questions found in training files: against brute force, over chunks, and in real data."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from satori_fast.evaluation import contamination
from satori_fast.evaluation.contamination import NUM_WORDS, find_overlaps, words_of

WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
]
QUESTION = " ".join(WORDS)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_copied_question_is_found_with_its_text(tmp_path: Path) -> None:
    copied = QUESTION.upper().replace(" ", ", ")
    rows = [{"text": "nothing"}, {"messages": [{"content": f"He asked: {copied}?"}]}, {"n": 3}]
    file = write(tmp_path / "train.jsonl", rows)
    found = find_overlaps({"a": QUESTION, "b": "only three words"}, [file])
    (overlap,) = found.overlaps
    assert (overlap.problem_id, overlap.file, overlap.row) == ("a", str(file), 2)
    assert overlap.text == QUESTION
    assert (found.too_short, found.num_rows) == (("b",), 3)
    assert found.problem_ids == {"a"}


@pytest.mark.parametrize(
    "text",
    [
        " ".join(WORDS[:12]),
        " ".join([*WORDS[:12], "other", *WORDS[12:]]),
        " ".join(reversed(WORDS)),
    ],
)
def test_twelve_words_are_no_copy(tmp_path: Path, text: str) -> None:
    assert not find_overlaps({"a": QUESTION}, [write(tmp_path / "t.jsonl", [{"t": text}])]).overlaps


def test_words_of_two_rows_are_no_run(tmp_path: Path) -> None:
    rows = [{"t": " ".join(WORDS[:7])}, {"t": " ".join(WORDS[7:])}]
    assert not find_overlaps({"a": QUESTION}, [write(tmp_path / "t.jsonl", rows)]).overlaps


def test_brute_force_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contamination, "_CHUNK_BYTES", 300)
    rng = random.Random(7)

    def text(length: int) -> str:
        return " ".join(rng.choices("abc", k=length))

    questions = {f"q{n}": text(rng.randint(10, 30)) for n in range(40)}
    rows = [{"t": text(rng.randint(0, 60))} for _ in range(60)]
    rows[17]["t"] += " " + questions["q3"]
    rows[40]["t"] = questions["q9"] + " " + rows[40]["t"]
    found = find_overlaps(questions, [write(tmp_path / "t.jsonl", rows)])
    runs = {
        name: {tuple(w[i : i + NUM_WORDS]) for i in range(len(w) - NUM_WORDS + 1)}
        for name, w in ((name, words_of(q)) for name, q in questions.items())
    }
    train = [words_of(row["t"]) for row in rows]
    held = {tuple(w[i : i + NUM_WORDS]) for w in train for i in range(len(w) - NUM_WORDS + 1)}
    assert found.problem_ids == {name for name, own in runs.items() if own & held}
    for overlap in found.overlaps:
        assert overlap.text in " ".join(w.decode() for w in train[overlap.row - 1])
        assert overlap.text in questions[overlap.problem_id]


def test_real_training_text(data_dir: Path) -> None:
    rows = (data_dir / "benchmarks" / "gsm8k.jsonl").read_text(encoding="utf-8").splitlines()
    questions = {f"gsm8k/{n}": json.loads(row)["question"] for n, row in enumerate(rows, 1)}
    training = find_overlaps(questions, [data_dir / "train" / "gsm8k_train.jsonl"])
    assert training.num_rows == 7473
    # Its own file holds every question that is long enough.
    own = find_overlaps(questions, [data_dir / "benchmarks" / "gsm8k.jsonl"])
    assert own.problem_ids == set(questions) - set(own.too_short)
    assert len(training.problem_ids) < 30
