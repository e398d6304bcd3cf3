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

from pathlib import Path

from benchmarks.ablations.runs import (
    EVALUATED,
    OTHER_SEED,
    Arm,
    Entry,
    from_models,
    parser,
    repeat_name,
    run,
    run_repeats,
)
from benchmarks.ablations.tables import write_table

QUICKSTART = "configs/quickstart.toml"
CONFIGS = {
    "grpo": QUICKSTART,
    "no_restart": "configs/debug/no_restart.toml",
    "ppo": "configs/debug/ppo.toml",
}
ARMS = {
    "format_tuning": Arm(prediction="20 points or more below grpo", against="grpo"),
    "grpo": Arm(),
    "no_restart": Arm(
        prediction="5 to 15 points over grpo: restarts take the place of two thirds of the whole "
        "problems",
        against="grpo",
    ),
    "ppo": Arm(prediction="within 10 points of grpo", against="grpo"),
}
TUNING = ("--stages", '["synthesize", "supervised"]')


def format_tuned(seed: int, folder: Path) -> Entry:
    """The summary entry of the model that every arm of a seed starts from."""
    stages = run(QUICKSTART, f"tuned-{seed}", folder, *TUNING, "--seed", str(seed))
    return stages["supervised"]


def reinforced(arm: str, seed: int, repeat: int, folder: Path) -> Entry:
    """The summary entry of one run of an arm from the format-tuned model of `seed`."""
    model = folder / f"tuned-{seed}" / "models" / "supervised"
    start = from_models(model, seed=seed + OTHER_SEED * repeat)
    stages = run(CONFIGS[arm], repeat_name(arm, seed, repeat), folder, *start, *EVALUATED)
    return stages["reinforce"]


def main() -> None:
    options = parser(
        str(__doc__).splitlines()[0],
        list(CONFIGS),
        folder="runs/ablations",
        output="benchmarks/results/restarts.json",
        repeats=3,
    ).parse_args()
    tuned, arms = run_repeats(options, format_tuned, reinforced)
    write_table(
        options.output,
        "benchmarks.ablations.restarts",
        {"format_tuning": [[entry] for entry in tuned], **arms},
        arms=ARMS,
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main()
