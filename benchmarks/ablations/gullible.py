# SPDX-License-Identifier: Apache-2.0
"""What the two restart buffers are for: verdicts of a model whose checks show no sum.

    python -m benchmarks.ablations.gullible --seeds 0 1 2 --repeats 3

For each seed one format-tuned model of configs/satori/gullible.toml, which has learnt to say
verdicts and not how to come by true ones, and from it every arm, `repeats` times with other seeds
of its own: `both` is the config, which trains on restarts alone, `right_only` has those from right
solutions (D+), `wrong_only` those from wrong ones (D-), and `none` whole problems instead. Error
recall is the share of wrong answers that a reflection changed, right kept that of right ones left
alone; whoever says the same always has a sum of 1. The predictions are in benchmarks/README.md. The
command can be run again until it is done.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.ablations.runs import (
    Entry,
    from_models,
    parser,
    run,
    run_repeats,
    write_table,
)

CONFIG = "configs/satori/gullible.toml"
TUNING = ("--stages", '["synthesize", "supervised"]')
ARMS = {
    "none": ("--reinforce.restarts.enabled", "false"),
    "right_only": ("--reinforce.restarts.incorrect_weight", "0.0"),
    "wrong_only": ("--reinforce.restarts.correct_weight", "0.0"),
    "both": (),
}
OTHER_SEED = 10  # between the seeds of a tuned model and of the runs that start from it
FIELDS = (
    "error_recall",
    "right_kept",
    "accuracy",
    "wrong_to_right",
    "right_to_wrong",
    "reflections_per_answer",
)


def format_tuned(seed: int, folder: Path) -> Entry:
    """The summary entry of the model that every arm of a seed starts from."""
    return run(CONFIG, f"tuned-{seed}", folder, *TUNING, "--seed", str(seed))["supervised"]


def reinforced(arm: str, seed: int, repeat: int, folder: Path) -> Entry:
    """The summary entry of one run of an arm from the tuned model of `seed`."""
    model = folder / f"tuned-{seed}" / "models" / "supervised"
    start = from_models(model, seed=seed + OTHER_SEED * (repeat + 1))
    return run(CONFIG, f"{arm}-{seed}-{repeat}", folder, *start, *ARMS[arm])["reinforce"]


def main() -> None:
    options = parser(
        str(__doc__).splitlines()[0],
        list(ARMS),
        folder="runs/gullible",
        output="benchmarks/results/gullible.json",
    )
    options.add_argument("--repeats", type=int, default=3, help="runs of an arm and a seed")
    options = options.parse_args()
    tuned, arms = run_repeats(options, format_tuned, reinforced)
    write_table(
        options.output,
        "benchmarks.ablations.gullible",
        {"format tuning": tuned, **arms},
        seeds=options.seeds,
        fields=FIELDS,
        paired_with="none",
        repeats=options.repeats,
    )


if __name__ == "__main__":
    main()
