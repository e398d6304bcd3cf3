# SPDX-License-Identifier: Apache-2.0
"""What restarts from the middle are worth on long calculations, where a slip is local.

    python -m benchmarks.ablations.chains --seeds 0 1 2 --repeats 3

For each seed one format-tuned model of configs/satori/chains.toml, which forgets to carry and
seldom looks before its answer, and from it every arm, `repeats` times with other seeds of its own:
`middle` is the config, whose restarts begin after any action, `answer` cuts solutions after their
answers only, and `no_restart` has whole problems alone. `slips_mended` is the share of slips that a
reflection finds and mends at once. The predictions are in benchmarks/README.md. The command can be
run again until it is done.
"""

from __future__ import annotations

from benchmarks.ablations.runs import EVALUATED, Arm
from benchmarks.ablations.study import Study
from benchmarks.ablations.tables import FIELDS

CONFIG = "configs/satori/chains.toml"
# Predictions were written before the runs; benchmarks/README.md has them in full.
ARMS = {
    "no_restart": Arm(("--reinforce.restarts.enabled", "false")),
    "answer": Arm(
        ("--reinforce.restarts.cut_after", "answer"),
        "within 10 points of no_restart",
        "no_restart",
    ),
    "middle": Arm((), "10 points or more over no_restart", "no_restart"),
}
STUDY = Study(
    "chains",
    str(__doc__),
    CONFIG,
    ARMS,
    fields=(*FIELDS, "slips", "slips_mended"),
    overrides=EVALUATED,
)


if __name__ == "__main__":
    STUDY.main()
