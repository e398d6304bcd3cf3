# SPDX-License-Identifier: Apache-2.0
"""What happens to runs: kills, damaged files, a full disk, two starts in one folder, signals.

Each drill yields an `Outcome` for each try. small: a few tries of each kind, for `make test-all`.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.drill.scene import Outcome, Scene, num_lines
from tests.drill.victim import Ending, run

# File kinds of a run that was killed in its last stage, each with the ways it is damaged.
ALL = ("flip", "cut", "empty", "remove")
DAMAGES: dict[str, tuple[str, ...]] = {
    "config.toml": ALL,
    "progress.json": ALL,
    "analysis.json": ("flip", "cut"),
    "metrics.jsonl": ("flip", "cut", "remove"),
    "samples.jsonl": ("flip", "cut", "remove"),
    "demonstrations.jsonl": ("flip", "remove"),
    "solutions/supervised.jsonl": ALL,
    "restarts/reinforce-0.jsonl": ALL,
    "tokenizer/tokenizer.json": ("flip", "cut", "remove"),
    "tokenizer/tokenizer_config.json": ("flip", "remove"),
    "models/initial/model.safetensors": ("flip", "remove"),
    "models/supervised/model.safetensors": ALL,
    "models/supervised/config.json": ("flip", "remove"),
    "models/preference/model.safetensors": ("flip", "cut"),
    "models/preference/config.json": ("flip", "empty"),
    "checkpoints/reinforce/step-4/manifest.json": ALL,
    "checkpoints/reinforce/step-4/extra.json": ("flip", "empty", "remove"),
    "checkpoints/reinforce/step-4/policy/__0_0.distcp": ALL,
    "checkpoints/reinforce/step-4/policy/.metadata": ("flip", "cut", "remove"),
    "checkpoints/reinforce/step-4/critic/__0_0.distcp": ("flip", "cut"),
}


def kills(scene: Scene, *, small: bool) -> Iterator[Outcome]:
    """SIGKILL before a file event or at a random moment, again and again, resumed to the end."""
    wanted = 4 if small else 20
    rng = np.random.default_rng(0)
    num_kills = 0
    for chain in itertools.count():
        if num_kills >= wanted:
            return
        with scene.place(f"kills-{chain}") as place:
            cues: list[str] = []
            while len(cues) < 4:
                more = ["--resume"] if cues else []
                cue, ending = killed(scene, place, more, rng=rng)
                if ending.code != -signal.SIGKILL:  # it was done before
                    break
                cues.append(cue)
                scene.plant_foreign_files(place)
            num_kills += len(cues)
            judgement, detail = scene.judge(place, scene.resume(place))
            yield Outcome("killed and resumed", ", ".join(cues), judgement, detail)


def killed(
    scene: Scene, place: Path, more: list[str], *, rng: np.random.Generator
) -> tuple[str, Ending]:
    """A run that is killed before a random file event, or at a random moment."""
    if rng.random() < 0.5:
        at = int(rng.integers(1, 90))
        return f"event {at}", run(scene.arguments(place, *more), place / "drill", at=at)
    moment = float(rng.uniform(0.1, 0.7)) * scene.seconds
    return f"{moment:.1f} s", scene.start(place, *more).kill_after(moment)


def killed_in_last_stage(scene: Scene, place: Path) -> None:
    """A run in `place` as a kill left it: in its last stage, two checkpoints old."""
    last = "checkpoints/reinforce/step-4"
    run(scene.arguments(place), place / "drill", at=1, after=last)
    assert (place / "drill" / last).exists()
    assert not (place / "drill" / "models" / "reinforce").exists()


def damages(scene: Scene, *, small: bool) -> Iterator[Outcome]:
    """One file of a killed run is damaged, then the run is resumed."""
    rng = np.random.default_rng(1)
    with scene.place("killed") as killed:
        killed_in_last_stage(scene, killed)
        lines = num_lines(killed / "drill")
        for number, (name, ways) in enumerate(DAMAGES.items()):
            for way in ways[number % len(ways) :][:1] if small else ways:
                with scene.place("damaged") as place:
                    shutil.copytree(killed / "drill", place / "drill")
                    scene.plant_foreign_files(place)
                    damage(place / "drill" / name, way, rng)
                    ending = scene.resume(place)
                    judgement, detail = scene.judge(place, ending, damaged=name)
                    if name != "metrics.jsonl" and num_lines(place / "drill") < lines:
                        judgement = "LINES LOST"
                    yield Outcome("a file damaged", f"{way} {name}", judgement, detail)


def damage(path: Path, way: str, rng: np.random.Generator) -> None:
    """Damage a file: flip a bit, cut it in half, empty it, remove it."""
    content = bytearray(path.read_bytes())
    if way == "remove":
        path.unlink()
        return
    if way == "flip":
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content if way == "flip" else content[: len(content) // 2 * (way == "cut")])


def full_disk(scene: Scene, *, small: bool) -> Iterator[Outcome]:
    """Nothing can be written any more from a file event on; then there is room again."""
    for at in (40,) if small else (2, 6, 12, 20, 40, 60, 80, 100):
        with scene.place(f"full-{at}") as place:
            first = run(scene.arguments(place), place / "drill", cue="full", at=at)
            judgement, detail = scene.judge(place, first) if first.code else ("NOT FULL", "")
            if judgement == "told in one line" and "space" not in detail:
                judgement = "FULL DISK NOT NAMED"
            if judgement == "told in one line":
                judgement, detail = scene.judge(place, scene.resume(place))
            yield Outcome("disk full, then resumed", f"event {at}", judgement, detail)


def two_starts(scene: Scene, *, small: bool) -> Iterator[Outcome]:
    """A second start and a second --resume in the folder of a run at work."""
    with scene.place("crowded") as place:
        first = scene.start(place)
        while not (place / "drill" / "metrics.jsonl").exists():
            time.sleep(0.005)
        for more in ([], ["--resume"]):
            second = run(scene.arguments(place, *more), place / "drill")
            case = " ".join(["second start", *more])
            told = second.code == 2 and f"in use by process {first.pid} on" in second.last_line
            judgement = "told in one line" if told else "NOT TOLD"
            yield Outcome("two in one folder", case, judgement, second.last_line)
        judgement, detail = scene.judge(place, first.wait())
        yield Outcome("two in one folder", "the first one", judgement, detail)


def signals(scene: Scene, *, small: bool) -> Iterator[Outcome]:
    """SIGINT and SIGTERM in the middle of training, then --resume."""
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with scene.place(f"signal-{number}") as place:
            cue = {"at": 1, "after": "checkpoints/reinforce/step-2", "number": number}
            ending = run(scene.arguments(place), place / "drill", **cue)
            judgement, detail = scene.judge(place, ending) if ending.code else ("IGNORED", "")
            if judgement == "told in one line" and ending.code != code:
                judgement, detail = "WRONG EXIT CODE", f"{ending.code}: {detail}"
            if judgement == "told in one line":
                judgement, detail = scene.judge(place, scene.resume(place))
            yield Outcome("signalled and resumed", number.name, judgement, detail)
