# SPDX-License-Identifier: Apache-2.0
"""The same training of a real model by us and by TRL's GRPOTrainer, step by step in turn.

    make real-model
    satori-fast run configs/real/smollm2_words.toml
    python -m benchmarks.real_model --model runs/smollm2-words/models/supervised

Both start from the format-tuned model, with the same questions, rewards, sizes and optimizer, and
sample for themselves; then each trained model is evaluated on the held-out problems of the config.
The record says tokens per CPU-second of each stage, peak memory, and accuracy before and after.
It takes hours: both save every few steps, and the same command, or one with more --steps, goes on
from there. pip install trl first. How much two trainings differ by chance say several seeds:

    python -m benchmarks.real_model --model runs/smollm2-words/models/supervised --seed 1 --extend

`--sides satori` trains by us alone, which takes minutes; the other side can follow with a folder of
its own. `--sides replayed` trains by us on what TRL sampled in the folder, without the chance of
sampling. `--kl 0` leaves the KL of the config out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.peers.race import OURS, THEIRS, check_equal_work, in_turn, ratios, summarise
from benchmarks.peers.samples import FOLDER
from benchmarks.peers.task import Task, task_of
from benchmarks.real_words import MANNERS, ask, figures
from satori_fast.profiling.statistics import difference, estimate
from satori_fast.storage import write_atomically

CONFIG = "configs/real/smollm2_words.toml"
RECORD = "real_model"
REPLAYED = "replayed"  # ours on the samples of TRL's
SIDES = (OURS, THEIRS)


def accuracy_of(task: Task, model: Path, answers: Path) -> dict[str, Any]:
    """Accuracy of a model folder on the config's held-out problems, greedy and sampled, with the
    error that the problems give it. answers: folder; what it has is not asked again."""
    found = {}
    for manner in MANNERS:
        output = answers / manner
        result = ask(task.config, str(model), 0, output, manner, ("--tokenizer.kind", "model"))
        error = estimate(result["scores"].values()).standard_error
        found[manner] = figures(result) | {"standard_error": error}
    return found


def train(
    task: Task, folder: Path, *, sides: Sequence[str] = SIDES, core: str
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Train by the sides, in turn, in legs; facts of each, and the records of its steps.

    It goes on after the last leg that the folder has of all.
    """
    kept, given = folder / "steps.json", folder / "task.json"
    if given.exists() and not task.lengthens(Task.read(given)):
        raise SystemExit(f"{folder} has a race with other settings: name another --folder")
    if task.steps % task.leg:
        raise SystemExit(f"--steps is {task.steps}: both save every {task.leg}, take a multiple")
    facts, records = json.loads(kept.read_text()) if kept.exists() else ({}, {})
    if facts and set(facts) != set(sides):
        raise SystemExit(f"{folder} is a training by {' and '.join(facts)}: name another --folder")
    while (first := len(records.get(sides[0], ()))) < task.steps:
        replace(task, first=first).write(given)
        modules = [f"{side}_training" for side in sides]
        leg = range(first, first + task.leg)
        found, more = in_turn(modules, folder, steps=leg, core=core)
        facts = facts or found
        records = {side: [*records.get(side, ()), *more[side]] for side in sides}
        write_atomically(kept, json.dumps([facts, records]))
    return facts, records


def compare(task: Task, folder: Path, *, sides: Sequence[str] = SIDES, core: str) -> dict[str, Any]:
    """Train by the sides, in turn; speed, memory and accuracy, of two with their ratios."""
    race = folder
    if REPLAYED in sides:
        race = _folder_of_replay(folder, sides, steps=task.steps)
    facts, records = train(task, race, sides=sides, core=core)
    # They sample for themselves, so their tokens differ.
    check_equal_work(list(records.values()), ("prompts", "optimizer_steps"))
    raced = {side: summarise(facts[side], records[side], task) for side in sides}
    if REPLAYED in raced:  # it samples nothing, so no other rate means anything
        rates = raced[REPLAYED]["tokens_per_s"]
        raced[REPLAYED]["tokens_per_s"] = {"update": rates["update"]}
    models = {"before": Path(task.model)}
    models |= {side: race / f"trained-{side}" for side in sides}
    answers = folder / f"answers-{task.steps}"
    shown = {name: value for name, value in vars(task).items() if name != "questions"}
    result = {
        "task": shown | {"model": Path(task.model).name},
        "core": core,
        "sides": raced,
        "accuracy": {name: accuracy_of(task, models[name], answers / name) for name in models},
    }
    return result | ({"ratios": ratios(raced, task)} if len(raced) == 2 else {})


def _folder_of_replay(folder: Path, sides: Sequence[str], *, steps: int) -> Path:
    """Folder inside that of a race for our training on the samples there."""
    if len(sides) > 1:
        raise SystemExit("--sides replayed stands alone: it follows a training by TRL")
    if not (folder / FOLDER / f"{steps - 1}.json").exists():
        raise SystemExit(
            f"{folder} has no samples of {steps} steps: train there with --sides trl first"
        )
    place = folder / REPLAYED
    place.mkdir(exist_ok=True)
    return place


def earlier(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Seeds that the record has. SystemExit where one is of other settings or another model."""
    path = measure.RESULTS / f"{name}.json"
    found = json.loads(path.read_text())["figures"] if path.exists() else {}
    for seed, own in found.items():
        mine, theirs = (_comparable(each) for each in (result, own))
        if mine != theirs:
            raise SystemExit(f"{path}: {seed} is of other settings or another model: name --record")
    return found


def _comparable(result: dict[str, Any]) -> Any:
    read = json.loads(json.dumps(result["task"]))  # tuples are lists in a record
    task = {name: value for name, value in read.items() if name not in ("seed", "first")}
    task.setdefault("kl", 0.0)  # records from before it was said
    greedy = result["accuracy"]["before"]["greedy"]
    return task, greedy["accuracy"], greedy["mean_tokens"]


def joined(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """A seed's figures, with the other side's where that was trained before. They did not take
    turns, so there are no ratios."""
    if old is None or not set(old["sides"]) - set(new["sides"]):
        return new
    said = {name: f"{old[name]}; {new[name]}" for name in ("command", "commit")}
    return new | said | {name: old[name] | new[name] for name in ("sides", "accuracy")}


def page(seeds: dict[str, Any]) -> str:
    """Accuracy after each training, mean and standard deviation over trainings, and the difference
    of the sides with its standard error and 95 % interval over trainings, in Markdown."""
    lines = ["| | " + " | ".join((*seeds, "mean", "deviation")) + " |"]
    lines.append("|---" + "|--:" * (len(seeds) + 2) + "|")
    ends = [""]
    for manner in MANNERS:
        over: dict[str, list[float | None]] = {}
        for side in ("before", *SIDES, REPLAYED):
            if side == REPLAYED and not any(side in each["accuracy"] for each in seeds.values()):
                continue
            own = [each["accuracy"].get(side, {}).get(manner) for each in seeds.values()]
            over[side] = [found and found["accuracy"] for found in own]
            mean = estimate(over[side])
            cells = [*map(_points, own), _percent(mean.mean), _percent(mean.standard_deviation)]
            lines.append(f"| {side}, {manner} | " + " | ".join(cells) + " |")
        ends.append(_difference(manner, over[OURS], over[THEIRS]))
    return "\n".join(lines + ends).rstrip()


def _difference(manner: str, ours: Sequence[float | None], theirs: Sequence[float | None]) -> str:
    found = difference(theirs, ours)
    if found is None:
        return ""
    low, high = map(_percent, found.interval)
    return (
        f"{THEIRS} less {OURS}, {manner}: {_percent(found.value)} +- "
        f"{_percent(found.standard_error)} (standard error), 95 % {low} to {high}"
    )


def _points(found: dict[str, Any] | None) -> str:
    return (
        ""
        if found is None
        else f"{_percent(found['accuracy'])} +- {_percent(found['standard_error'])}"
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def main() -> None:
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("--config", default=CONFIG)
    options.add_argument("--model", required=True, help="folder that both start from")
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kl", type=float, help="to the model before; else as in the config")
    options.add_argument("--sides", nargs="+", choices=(*SIDES, REPLAYED), default=SIDES)
    options.add_argument("--core", default="any", help='processor core of both sides, or "any"')
    options.add_argument("--threads", type=int, default=2, help="of the side whose turn it is")
    options.add_argument("--folder", type=Path, default=Path("runs/real_model"), help="of the race")
    options.add_argument("--record", default=RECORD, help="of benchmarks/results")
    options.add_argument("--extend", action="store_true", help="keep the seeds of the record")
    chosen = options.parse_args()
    kl = () if chosen.kl is None else ("--reinforce.kl_coefficient", str(chosen.kl))
    task = task_of(
        chosen.config, chosen.model, *kl, steps=chosen.steps, seed=chosen.seed, title=chosen.config
    )
    task = replace(task, threads=chosen.threads)
    folder = chosen.folder / f"seed-{chosen.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    result = compare(task, folder, sides=chosen.sides, core=chosen.core)
    kept = earlier(chosen.record, result) if chosen.extend else {}
    command = " ".join(["python -m benchmarks.real_model", *sys.argv[1:]])
    made = {"command": command, "commit": measure.environment()["commit"], **result}
    seed = f"seed {chosen.seed}"
    seeds = kept | {seed: joined(kept.get(seed), made)}
    measure.record(chosen.record, seeds)
    print(page(seeds))
    print(json.dumps(result.get("ratios"), indent=2))


if __name__ == "__main__":
    main()
