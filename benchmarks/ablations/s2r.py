# SPDX-License-Identifier: Apache-2.0
"""The tables of S2R (arXiv 2502.12853, tables 2 and 3) on the built-in domain of chains.

    python -m benchmarks.ablations.s2r --seeds 0 --repeats 5

For each seed one run of configs/s2r/quickstart.toml gives two rows: base, which has imitated plain
solutions, and imitation, which has learnt trials from its own. Every other arm starts from that one
imitated model, `repeats` times with other seeds of its own: what those runs of an arm differ by is
the noise of a run. The command can be run again until it is done.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.ablations.runs import Arm, Entry
from benchmarks.ablations.study import Study

CONFIG = "configs/s2r/quickstart.toml"
ARMS = {
    "outcome": Arm(
        ("--reinforce.recipe", "s2r_outcome"),
        "accuracy as process, within the noise of a run, and verification below it",
        "process",
    ),
    "process": Arm(
        (),
        "verification up by 5 points or more over imitation, of right and wrong answers apart; "
        "accuracy by less than 5",
        "imitation",
    ),
    "offline": Arm(
        (), "accuracy and verification move by less than the noise of a run", "imitation"
    ),
}
IMITATION = Arm((), "5 to 15 points over base, most of it from practice in solving", "base")
FIELDS = (
    "accuracy",
    "late_accuracy",
    "late_evaluations",
    "verification_accuracy",
    "accuracy_on_right",
    "error_recall",
    "correct_precision",
    "wrong_to_right",
    "right_to_wrong",
    "trials",
    "mean_response_tokens",
    "wall_s",
)


def figures(run_folder: Path, entry: Entry) -> Entry:
    """An entry with what verifications come to."""
    return entry["verification"] | entry


STUDY = Study(
    "s2r",
    str(__doc__),
    CONFIG,
    ARMS,
    rows={"base": "supervised", "imitation": "initialise"},
    others={"imitation": IMITATION},
    fields=FIELDS,
    stages={"offline": "offline"},
    figures=figures,
    untuned=(),
    seeds=(0,),
    repeats=5,
)


if __name__ == "__main__":
    STUDY.main()
