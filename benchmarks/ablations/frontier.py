# SPDX-License-Identifier: Apache-2.0
"""What restarts are worth where whole problems do not reach: accuracy by number of attempts.

    python -m benchmarks.ablations.frontier --seeds 0 1 2 --repeats 3

For each seed one format-tuned model of configs/satori/frontier.toml, which has seen three attempts
at most, and from it every arm, `repeats` times with other seeds of its own: `refreshed` is the
config, `once` never cuts a second restart buffer, `no_restart` has whole problems alone, and
`whole_long` has them with rollouts of twenty attempts: what restarts save in tokens. Tokens are
those sampled to learn from, the solutions of the buffers among them. `accuracy_restart_incorrect`
is of D- restarts in the last steps: near 0 they are answered by giving up. The predictions are in
benchmarks/README.md. The command can be run again until it is done.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablations.runs import Arm, Entry
from benchmarks.ablations.study import Study
from satori_fast.storage import read_sealed, sealed_records

CONFIG = "configs/satori/frontier.toml"
NO_RESTART = ("--reinforce.restarts.enabled", "false")
# Predictions were written before the runs; benchmarks/README.md has them in full.
ARMS = {
    "no_restart": Arm(NO_RESTART, "gains less than 5 points from its sixth attempt on"),
    "once": Arm(
        ("--reinforce.restarts.refresh_every", "0"),
        "between no_restart and refreshed at 20 attempts",
        against="no_restart",
    ),
    "refreshed": Arm(prediction="20 points over no_restart at 20 attempts", against="no_restart"),
    "whole_long": Arm(
        (*NO_RESTART, "--rollout.max_new_tokens", "440"),
        "within 10 points of refreshed at 20 attempts, for twice the tokens",
        against="refreshed",
    ),
}
ATTEMPTS = (3, 6, 9, 12, 20)
LAST_STEPS = 10
FIELDS = (
    "accuracy",
    *(f"accuracy_{number}" for number in ATTEMPTS),
    "accuracy_restart_incorrect",
    "generated_tokens",
    "wall_s",
)


def figures(run_folder: Path, entry: Entry) -> Entry:
    """An entry with the accuracy by attempts, and what arms sampled."""
    more = sampled(run_folder) if entry["stage"] == "reinforce" else {}
    return {**entry, **by_attempts(run_folder, entry["stage"]), **more}


def by_attempts(run_folder: Path, stage: str) -> dict[str, float]:
    """Accuracy of a stage after so many attempts, from its one greedy answer to each problem."""
    entries = read_sealed(run_folder / "analysis.json")["stages"]
    (rows,) = [entry["by_attempts"] for entry in entries if entry["stage"] == stage]
    reached = [rows[min(number, len(rows)) - 1]["accuracy"] if rows else 0.0 for number in ATTEMPTS]
    return {f"accuracy_{number}": value for number, value in zip(ATTEMPTS, reached, strict=True)}


def sampled(run_folder: Path) -> dict[str, Any]:
    """Tokens that a run sampled to learn from, and how many D- restarts it solved in the end."""
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").open()]
    steps = [line for line in lines if line["stage"] == "reinforce"]
    solved = [line.get("rollout/accuracy_restart_incorrect") for line in steps[-LAST_STEPS:]]
    known = [share for share in solved if share is not None]
    buffers = (run_folder / "solutions").glob("*.jsonl")
    rows = (row for path in buffers for row in sealed_records(path))
    num_rollout = sum(line["rollout/completion_tokens"] for line in steps)
    return {
        "accuracy_restart_incorrect": float(np.mean(known)) if known else None,
        "generated_tokens": num_rollout + sum(len(row["response_ids"]) for row in rows),
    }


STUDY = Study("frontier", str(__doc__), CONFIG, ARMS, fields=FIELDS, figures=figures)


if __name__ == "__main__":
    STUDY.main()
