# SPDX-License-Identifier: Apache-2.0
"""The worked example of CONTRIBUTING: a format, a reward and a credit rule, added to a copy of the
package as the text says, train. No file of the loop changes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import satori_fast
from satori_fast.profiling.metrics import read_metrics

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

CONFIG = """
schema_version = 1
name = "method"
stages = ["supervised", "reinforce"]
model = { hidden_size = 32, num_layers = 2, intermediate_size = 64, num_attention_heads = 2 }
tokenizer = { kind = "bpe", vocab_size = 301 }
packing.max_tokens_per_microbatch = 512
rollout = { max_seqlen = 96, max_new_tokens = 40, max_slots = 16 }
reward.num_workers = 0
evaluation.num_problems = 4
data.source = "sums.jsonl"
data.template = "plain"
data.mapping = "coat"
data.max_prompt_tokens = 32
supervised = { num_epochs = 12.0, batch_size = 16, optimizer = { learning_rate = 1e-2 } }
reinforce.num_steps = 2
reinforce.problems_per_step = 4
reinforce.samples_per_problem = 4
reinforce.optimizer.learning_rate = 1e-3
"""
# Runs the copy, whatever finds an editable installation first.
PROGRAM = """
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in type(f).__module__]
sys.path[:0] = [sys.argv.pop(1)]
import satori_fast
assert satori_fast.__file__.startswith(sys.path[0]), satori_fast.__file__
from satori_fast.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def files() -> Iterator[tuple[str, str]]:
    """(path, code) of the blocks whose first line names one."""
    for code in blocks("python"):
        if named := re.match(r'"""[^\n]*: ([\w/]+\.py)[ .]', code):
            yield named[1], code


def rows() -> Iterator[tuple[str, str, str]]:
    """(file, line that is there, lines in its place) of the rows that the text shows."""
    (text,) = [block for block in blocks("text") if "\n+ " in block]
    for file, lines in re.findall(r"^(\S[^\n]*)\n((?:[ +-] [^\n]*\n)+)", text, re.M):
        (there,) = [line for line in lines.splitlines() if line[0] in " -"]
        added = [line[2:] for line in lines.splitlines() if line[0] == "+"]
        kept = [there[2:]] if there[0] == " " else []
        yield file, there[2:], "\n".join([*kept, *added])


def change(path: Path, there: str, instead: str) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines.count(there) == 1, f"{path}: {there!r}"
    lines[lines.index(there)] = instead
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package, its compiled part included."""
    for place in map(Path, satori_fast.__path__):
        shutil.copytree(
            place,
            tmp_path / "satori_fast",
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
    return tmp_path


def test_the_worked_example_trains(copy: Path) -> None:
    (copy / "method.toml").write_text(CONFIG)
    rows_of_data = [
        {
            "question": f"{i} or {i + 1}",
            "answer": f"{i % 2}",
            "response": f"it is \\boxed{{{(i + wrong) % 2}}}.\n\nWait, it is \\boxed{{{i % 2}}}"
            if wrong
            else f"it is \\boxed{{{i % 2}}}",
        }
        for i in range(30)
        for wrong in (0, 1)
    ]
    (copy / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of_data))
    before = {path: path.read_bytes() for path in (copy / "satori_fast").rglob("*.py")}
    written = dict(files())
    assert set(written) == {
        "satori_fast/data/formats/waits.py",
        "satori_fast/algorithms/median.py",
        "rewards.py",
    }
    for name, code in written.items():
        (copy / name).write_text(code, encoding="utf-8")
    for file, there, instead in rows():
        change(copy / ("method.toml" if file == "the config" else file), there, instead)
    changed = {path.name for path, old in before.items() if path.read_bytes() != old}
    assert changed == {"__init__.py", "recipe.py"}  # the two tables

    command = [sys.executable, "-c", PROGRAM, str(copy), "run", "method.toml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=copy)
    assert done.returncode == 0, done.stderr[-3000:]

    folder = copy / "runs" / "method"
    lines = [m for m in read_metrics(folder / "metrics.jsonl") if m["stage"] == "reinforce"]
    assert len(lines) == 2
    for line in lines:
        assert -0.1 <= line["reward/fewer_attempts"] <= 0
        both = line["reward/rule"] + line["reward/fewer_attempts"]
        assert line["reward/total"] == pytest.approx(both)
    samples = read_metrics(folder / "samples.jsonl")
    kinds = {segment["kind"] for sample in samples for segment in sample["segments"]}
    assert kinds == {"solve"}
    assert max(len(sample["segments"]) for sample in samples) > 1
    shown = subprocess.run(
        [*command[:4], "show", "method.toml", "--recipe"], capture_output=True, text=True, cwd=copy
    )
    assert json.loads(shown.stdout)["credit"] == {"rule": "MedianOfGroup"}
