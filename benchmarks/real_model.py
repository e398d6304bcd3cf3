# SPDX-License-Identifier: Apache-2.0
"""The same training of a real model by us and by TRL's GRPOTrainer, step by step in turn.

    make real-model
    satori-fast run configs/real/smollm2_words.toml
    python -m benchmarks.real_model --model runs/smollm2-words/models/supervised

Both start from the format-tuned model, with the same questions, rewards, sizes and optimizer, and
sample for themselves; then each trained model is evaluated on the held-out problems of the config.
The record says tokens per CPU-second of each stage, peak memory, and accuracy before and after.
It takes hours: both save every few steps, and the same command, or one with more --steps, goes on
from there. pip install trl first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.peers.race import OURS, THEIRS, check_equal_work, in_turn, ratios, summarise
from benchmarks.peers.task import Task, task_of
from satori_fast.storage import write_atomically

CONFIG = "configs/real/smollm2_words.toml"
RECORD = "real_model"


def accuracy_of(task: Task, model: Path) -> dict[str, Any]:
    """Greedy accuracy of a model folder on the config's held-out problems, with its error."""
    command = [sys.executable, "-m", "satori_fast", "eval", task.config, "--model", str(model)]
    command += ["--json", "--tokenizer.kind", "model"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    values = json.loads(found.splitlines()[-1])
    kept = ("eval/accuracy", "standard_error", "num_problems", "eval/mean_response_tokens")
    return {name.removeprefix("eval/"): values[name] for name in kept}


def train(
    task: Task, folder: Path, *, core: str
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Train by both, in turn, in legs; facts of each side, and the records of its steps.

    It goes on after the last leg of which the folder has both.
    """
    modules, kept = [f"{side}_training" for side in (OURS, THEIRS)], folder / "steps.json"
    given = folder / "task.json"
    if given.exists() and not task.lengthens(Task.read(given)):
        raise SystemExit(f"{folder} has a race with other settings: name another --folder")
    if task.steps % task.leg:
        raise SystemExit(f"--steps is {task.steps}: both save every {task.leg}, take a multiple")
    facts, records = json.loads(kept.read_text()) if kept.exists() else ({}, {})
    while (first := len(records.get(OURS, ()))) < task.steps:
        replace(task, first=first).write(given)
        found, more = in_turn(modules, folder, steps=task.leg, first=first, core=core)
        facts = facts or found
        records = {side: [*records.get(side, ()), *more[side]] for side in found}
        write_atomically(kept, json.dumps([facts, records]))
    return facts, records


def compare(task: Task, folder: Path, *, core: str) -> dict[str, Any]:
    """Train by both, in turn; speed, memory and accuracy."""
    facts, records = train(task, folder, core=core)
    # They sample for themselves, so their tokens differ.
    check_equal_work(list(records.values()), ("prompts", "optimizer_steps"))
    sides = {side: summarise(facts[side], records[side], task) for side in (OURS, THEIRS)}
    accuracy = {"before": accuracy_of(task, Path(task.model))}
    accuracy |= {side: accuracy_of(task, folder / f"trained-{side}") for side in sides}
    shown = {name: value for name, value in vars(task).items() if name != "questions"}
    return {
        "task": shown | {"model": Path(task.model).name},
        "core": core,
        "sides": sides,
        "ratios": ratios(sides, task),
        "accuracy": accuracy,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("--config", default=CONFIG)
    options.add_argument("--model", required=True, help="folder that both start from")
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--core", default="any", help='processor core of both sides, or "any"')
    options.add_argument("--threads", type=int, default=2, help="of the side whose turn it is")
    options.add_argument("--folder", type=Path, default=Path("runs/real_model"), help="of the race")
    options.add_argument("--record", default=RECORD, help="of benchmarks/results")
    chosen = options.parse_args()
    task = task_of(
        chosen.config, chosen.model, steps=chosen.steps, seed=chosen.seed, title=chosen.config
    )
    task = replace(task, threads=chosen.threads)
    folder = chosen.folder / f"seed-{chosen.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    result = compare(task, folder, core=chosen.core)
    command = " ".join(["python -m benchmarks.real_model", *sys.argv[1:]])
    measure.record(chosen.record, {f"seed {chosen.seed}": {"command": command, **result}})
    for side, figures in result["accuracy"].items():
        print(f"{side:8s} {figures['accuracy']:.1%} +- {figures['standard_error']:.1%}")
    print(json.dumps(result["ratios"], indent=2))


if __name__ == "__main__":
    main()
