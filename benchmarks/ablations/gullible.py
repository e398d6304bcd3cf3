# SPDX-License-Identifier: Apache-2.0
"""What the two restart buffers are for: verdicts of a model that can check, and mostly guesses.

    python -m benchmarks.ablations.gullible --seeds 0 1 2 --repeats 3

For each seed one format-tuned model of configs/satori/gullible.toml, most of whose checks are bare
verdicts that it cannot come by, and from it every arm, `repeats` times with other seeds of its own:
`both` is the config, which trains on restarts and few whole problems, `right_only` has those from
right solutions (D+), `wrong_only` those from wrong ones (D-), and `none` whole problems instead.
Error recall is the share of wrong answers that a reflection changed, right kept that of right ones
left alone; whoever says the same always has a sum of 1. The predictions are in
benchmarks/README.md. The command can be run again until it is done.
"""

from __future__ import annotations

from benchmarks.ablations.runs import Arm
from benchmarks.ablations.study import Study

CONFIG = "configs/satori/gullible.toml"
# Predictions were written before the runs; benchmarks/README.md has them in full.
ARMS = {
    "none": Arm(("--reinforce.restarts.enabled", "false"), "as both, or later"),
    "right_only": Arm(
        ("--reinforce.restarts.incorrect_weight", "0.0"),
        "accepts always: right kept above 0.9, error recall below 0.3",
        against="none",
    ),
    "wrong_only": Arm(
        ("--reinforce.restarts.correct_weight", "0.0"),
        "revises always: error recall above 0.9, right kept below 0.3",
        against="none",
    ),
    "both": Arm(prediction="shows the sum: a sum of the two above 1.6", against="none"),
}
FIELDS = (
    "error_recall",
    "right_kept",
    "accuracy",
    "wrong_to_right",
    "right_to_wrong",
    "reflections_per_answer",
)
STUDY = Study("gullible", str(__doc__), CONFIG, ARMS, fields=FIELDS)


if __name__ == "__main__":
    STUDY.main()
