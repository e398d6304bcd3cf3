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

from benchmarks.ablations.runs import (
    OTHER_SEED,
    Arm,
    Entry,
    Stages,
    from_models,
    parser,
    run,
    run_repeats,
)
from benchmarks.ablations.tables import write_table

CONFIG = "configs/s2r/quickstart.toml"
BEGINNING = ("--stages", '["supervised", "initialise"]')
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
ROWS = {
    "imitation": Arm((), "5 to 15 points over base, most of it from practice in solving", "base"),
    **ARMS,
}
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


def imitated(seed: int, folder: Path) -> Stages:
    """The entries of the model that every arm of a seed starts from, and of the one before it."""
    stages = run(CONFIG, f"imitated-{seed}", folder, *BEGINNING, "--seed", str(seed))
    return {name: _flat(entry) for name, entry in stages.items()}


def reinforced(arm: str, seed: int, repeat: int, folder: Path) -> Entry:
    """The summary entry of one run of an arm from the imitated model of `seed`."""
    stage = "offline" if arm == "offline" else "reinforce"
    model = folder / f"imitated-{seed}" / "models" / "initialise"
    own_seed = seed + OTHER_SEED * (repeat + 1)
    start = from_models(model, seed=own_seed, stages=f'["{stage}"]')
    overrides = ARMS[arm].overrides
    return _flat(run(CONFIG, f"{arm}-{seed}-{repeat}", folder, *start, *overrides)[stage])


def _flat(entry: Entry) -> Entry:
    return entry["verification"] | entry


def main() -> None:
    options = parser(
        str(__doc__).splitlines()[0],
        list(ARMS),
        folder="runs/s2r",
        output="benchmarks/results/s2r.json",
        seeds=(0,),
        repeats=5,
    ).parse_args()
    begun, arms = run_repeats(options, imitated, reinforced)
    once = {"base": "supervised", "imitation": "initialise"}
    rows = {row: [[stages[stage]] for stages in begun] for row, stage in once.items()}
    write_table(
        options.output,
        "benchmarks.ablations.s2r",
        rows | arms,
        arms=ROWS,
        seeds=options.seeds,
        fields=FIELDS,
    )


if __name__ == "__main__":
    main()
