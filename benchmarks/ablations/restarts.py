# SPDX-License-Identifier: Apache-2.0
"""What restarts and the critic do on the built-in domain, rule reward only.

    python -m benchmarks.ablations.restarts --seeds 0 1 2 --repeats 3

For each seed one format-tuned model is made, and every arm trains from it, `repeats` times with
other seeds of its own, the same ones for every arm. Arms are the configs in configs/debug/ and the
quickstart itself. There is no arm without the reflection bonus: it cancels under a group baseline
with the standard deviation, so that arm would be the quickstart once more, which the repeats are.
The command can be run again until it is done.
"""

from __future__ import annotations

from benchmarks.ablations.runs import EVALUATED, Arm
from benchmarks.ablations.study import Study

QUICKSTART = "configs/quickstart.toml"
CONFIGS = {"no_restart": "configs/debug/no_restart.toml", "ppo": "configs/debug/ppo.toml"}
ARMS = {
    "grpo": Arm((), "20 points or more over format tuning", "format_tuning"),
    "no_restart": Arm(
        (),
        "5 to 15 points over grpo: restarts take the place of two thirds of the whole problems",
        "grpo",
    ),
    "ppo": Arm((), "within 10 points of grpo", "grpo"),
}
STUDY = Study("restarts", str(__doc__), QUICKSTART, ARMS, configs=CONFIGS, overrides=EVALUATED)


if __name__ == "__main__":
    STUDY.main()
