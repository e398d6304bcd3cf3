# SPDX-License-Identifier: Apache-2.0
"""What restarts are worth where reflection is rare: how soon each arm takes to reflecting.

    python -m benchmarks.ablations.rare --seeds 0 1 2 --repeats 3

For each seed one format-tuned model of configs/satori/rare.toml, which then imitates answers
without reflection for a while: it reflects in one answer of a hundred. From it every arm,
`repeats` times with other seeds of its own: `on_top` is the config, 32 whole problems a step and
64 restarts; `whole` has the 32 alone, `whole_96` as many whole problems as `on_top` has of both,
and `in_place` 32 of both. `takes_off` is the first step whose evaluation is above one half; a run
that never is counts as one step more than there are. The predictions are in benchmarks/README.md.
The command can be run again until it is done.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.ablations.runs import EVALUATED, Arm, Entry
from benchmarks.ablations.study import Study
from benchmarks.ablations.tables import FIELDS
from satori_fast.profiling.metrics import read_metrics

CONFIG = "configs/satori/rare.toml"
# What the tuned model imitates then: right first answers, as they are.
FORGETTING = (
    *("--synthesize.critic_share", "0.0", "--synthesize.num_problems", "3000"),
    *("--supervised.num_epochs", "1.0", "--supervised.optimizer.learning_rate", "3e-5"),
)
NO_RESTART = ("--reinforce.restarts.enabled", "false")
FEW = ("--reinforce.problems_per_step", "32")
# Predictions were written before the runs; benchmarks/README.md has them in full.
ARMS = {
    "whole": Arm((*NO_RESTART, *FEW), "takes off 5 steps or more after on_top", "on_top"),
    "whole_96": Arm(NO_RESTART, "takes off before whole, and ends below on_top", "on_top"),
    "in_place": Arm(FEW, "takes off last: a third of the whole problems", "on_top"),
    "on_top": Arm(),
}


def figures(run_folder: Path, entry: Entry) -> Entry:
    """An entry with the step that its run took off in."""
    if entry["stage"] != "reinforce":
        return entry
    evaluated = [
        (line["step"], line["eval/accuracy"])
        for line in read_metrics(run_folder / "metrics.jsonl")
        if line["stage"] == "reinforce" and "eval/accuracy" in line
    ]
    never = evaluated[-1][0] + 1
    return {**entry, "takes_off": next((s for s, share in evaluated if share > 0.5), never)}


STUDY = Study(
    "rare",
    str(__doc__),
    CONFIG,
    ARMS,
    fields=("takes_off", *FIELDS),
    overrides=EVALUATED,
    figures=figures,
    then=FORGETTING,
)


if __name__ == "__main__":
    STUDY.main()
