# SPDX-License-Identifier: Apache-2.0
"""The run that is drilled, what it leaves when it is left alone, and how an ending is judged.

Right is one of three: the same bits as the undisturbed run; one line that names what is wrong, and
a non-zero exit; or the same bits but for a file of records that somebody damaged, said aloud.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from satori_fast.profiling.metrics import read_metrics
from tests.drill.victim import Ending, Victim, run
from tests.stages.test_run import timeless

CONFIG = """
schema_version = 1
name = "drill"
stages = ["synthesize", "supervised", "preference", "reinforce"]
[model]
hidden_size = 32
num_layers = 2
intermediate_size = 64
num_attention_heads = 1  # of size 32: vLLM on a CPU knows none below
num_key_value_heads = 1
[tokenizer]
kind = "words"
[data]
levels = [1]
num_train = 16
template = "plain"
max_prompt_tokens = 90
[parallel]
num_threads = 1
[packing]
max_tokens_per_microbatch = 512
[rollout]
max_seqlen = 128
max_new_tokens = 32
max_slots = 32
[reward]
num_workers = 0
preference_weight = 1.0
[synthesize]
num_problems = 16
num_solutions = 6
confirm_share = 0.5
[supervised]
num_epochs = 24.0
batch_size = 16
checkpoint_every = 20
optimizer = { learning_rate = 5e-3 }
[solutions]
num_problems = 16
num_samples = 4
[preference]
num_epochs = 4.0
batch_size = 8
heldout_fraction = 0.3
checkpoint_every = 4
optimizer = { learning_rate = 1e-3 }
[reinforce]
recipe = "ppo"
num_steps = 6
problems_per_step = 4
samples_per_problem = 4
checkpoint_every = 2
optimizer = { learning_rate = 1e-3 }
[evaluation]
num_problems = 20
[logging]
tensorboard = false
"""
# What must be equal, byte for byte; metrics.jsonl but for what a clock decides.
_COMPARED = (
    *("models/*/*.safetensors", "models/*/config.json", "samples.jsonl", "analysis.json"),
    *("demonstrations.jsonl", "solutions/*.jsonl", "restarts/*.jsonl", "tokenizer/*"),
)
# Records that nothing is computed from: their damage is said, and the run goes on.
RECORDS = ("metrics.jsonl", "samples.jsonl")
_FOREIGN = {
    "notes.txt": "of the user's",
    "models/mine.safetensors": "of the user's too",
    "checkpoints/README": "and this",
    "mine.partial": "and this",
    "../other/thesis.tex": "nobody's business",
}

Judgement = Literal["same bits", "told in one line", "said aloud"]
JUDGEMENTS: tuple[Judgement, ...] = ("same bits", "told in one line", "said aloud")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One try of one drill. judgement: a `Judgement`, or what was wrong."""

    drill: str
    case: str
    judgement: str
    detail: str = ""

    @property
    def is_right(self) -> bool:
        return self.judgement in JUDGEMENTS


@dataclass(frozen=True)
class Scene:
    """A folder to drill in, with an undisturbed run in `reference`. See `prepare`."""

    root: Path
    config: Path
    reference: Path
    seconds: float  # that the undisturbed run took
    _planted: set[Path] = field(default_factory=set)

    def arguments(self, place: Path, *more: str) -> list[str]:
        """Of a run whose folder is `place`/drill."""
        return ["run", str(self.config), "--output_dir", f"'{place}'", *more]

    def beside(self, reference: Path) -> Scene:
        """The same scene, compared with another undisturbed run."""
        return replace(self, reference=reference, _planted=set())

    @contextmanager
    def place(self, name: str) -> Iterator[Path]:
        """A folder for one try; it is gone afterwards."""
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)
            self._planted.discard(folder)

    def plant_foreign_files(self, place: Path) -> None:
        """Put files of somebody else's into the run folder in `place`, and beside it."""
        if place in self._planted or not (place / "drill" / "run.lock").exists():
            return
        self._planted.add(place)
        for name, text in _FOREIGN.items():
            path = place / "drill" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def start(self, place: Path, *more: str) -> Victim:
        return Victim(self.arguments(place, *more), place / "drill")

    def resume(self, place: Path, *more: str) -> Ending:
        """Resume the run in `place` to its end."""
        return run(self.arguments(place, "--resume", *more), place / "drill")

    def differences(self, place: Path) -> list[str]:
        """Files of the run in `place` that differ from those of the undisturbed one."""
        names = {
            str(path.relative_to(folder))
            for folder in (self.reference, place / "drill")
            for pattern in _COMPARED
            for path in folder.glob(pattern)
            if str(path.relative_to(folder)) not in _FOREIGN
        }
        different = [
            name
            for name in sorted(names)
            if _content(place / "drill" / name) != _content(self.reference / name)
        ]
        metrics = [folder / "metrics.jsonl" for folder in (place / "drill", self.reference)]
        if not metrics[0].exists() or _compared(metrics[0]) != _compared(metrics[1]):
            different.append("metrics.jsonl")
        return different

    def judge(self, place: Path, ending: Ending, *, damaged: str | None = None) -> tuple[str, str]:
        """Judgement and detail of a try in `place`. damaged: the file that was tampered with."""
        if "Traceback (most recent call last)" in ending.stderr:
            return "TRACEBACK", ending.stderr.splitlines()[-1]
        touched = [name for name in _FOREIGN if not _is_untouched(place / "drill", name)]
        if touched and place in self._planted:
            return "FOREIGN FILE TOUCHED", touched[0]
        if ending.code != 0:
            told = [line for line in ending.stderr.splitlines() if line.startswith("satori-fast:")]
            if ending.code < 0 or len(told) != 1:
                return "NOT ONE LINE", f"exit {ending.code}: {ending.stderr[-300:]}"
            if damaged is not None and Path(damaged).name not in told[0]:
                return "FILE NOT NAMED", told[0]
            return "told in one line", told[0]
        different = self.differences(place)
        if not different:
            return "same bits", ""
        said = [line for line in ending.stderr.splitlines() if line.startswith("WARNING")]
        if damaged in RECORDS and set(different) <= {damaged} and any(damaged in s for s in said):
            return "said aloud", said[0]
        return "SILENT DIFFERENCE", ", ".join(different)


def _compared(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics, but for times and for how often a server had to be started."""
    return [
        {name: value for name, value in line.items() if name != "rollout/engine_restarts"}
        for line in timeless(path)
    ]


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _is_untouched(folder: Path, name: str) -> bool:
    path = folder / name
    return path.exists() and path.read_text() == _FOREIGN[name]


def num_lines(folder: Path) -> int:
    """Lines of metrics in a run folder."""
    path = folder / "metrics.jsonl"
    return len(read_metrics(path)) if path.exists() else 0


def prepare(root: Path) -> Scene:
    """Do the undisturbed run. RuntimeError when it fails."""
    # Everything heavy is imported before anything forks.
    import satori_fast.cli
    import satori_fast.stages.distill
    import satori_fast.stages.preference
    import satori_fast.stages.reinforce  # noqa: F401

    config = root / "drill.toml"
    config.write_text(CONFIG)
    begin = time.perf_counter()
    scene = Scene(root, config, root / "reference" / "drill", 0.0)
    (root / "reference").mkdir()
    ending = run(scene.arguments(root / "reference"), scene.reference)
    if ending.code != 0:
        raise RuntimeError(f"the undisturbed run failed:\n{ending.stderr}")
    return Scene(root, config, scene.reference, time.perf_counter() - begin)


def table(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table: a row for each drill, a column for each way to end."""
    names = list(dict.fromkeys(outcome.drill for outcome in outcomes))
    columns = ["drill", "tried", *JUDGEMENTS, "wrong"]
    lines = [f"| {' | '.join(columns)} |", "|---|" + "--:|" * (len(columns) - 1)]
    for name in names:
        of_drill = [outcome for outcome in outcomes if outcome.drill == name]
        counts = [sum(o.judgement == j for o in of_drill) for j in JUDGEMENTS]
        wrong = sum(not o.is_right for o in of_drill)
        cells = [name, *(str(n) for n in (len(of_drill), *counts, wrong))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shortened(text: str, root: Path) -> str:
    """A detail without the folder of this drill, on one line."""
    return re.sub(r"\s+", " ", text.replace(str(root), "ROOT"))[:300]
