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
    Entry,
    Stages,
    from_models,
    parser,
    run,
    run_repeats,
    write_table,
)

CONFIG = "configs/s2r/quickstart.toml"
BEGINNING = ("--stages", '["supervised", "initialise"]')
ARMS = {
    "outcome": ("--reinforce.recipe", "s2r_outcome"),
    "process": (),
    "offline": (),
}
OTHER_SEED = 10  # between the seeds of an imitated model and of the runs that start from it
FIELDS = (
    "accuracy",
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
    return _flat(run(CONFIG, f"{arm}-{seed}-{repeat}", folder, *start, *ARMS[arm])[stage])


def _flat(entry: Entry) -> Entry:
    return entry["verification"] | entry


def main() -> None:
    options = parser(
        str(__doc__).splitlines()[0],
        list(ARMS),
        folder="runs/s2r",
        output="benchmarks/results/s2r.json",
        seeds=(0,),
    )
    options.add_argument("--repeats", type=int, default=5, help="runs of an arm and a seed")
    options = options.parse_args()

    begun, arms = run_repeats(options, imitated, reinforced)
    once = {"base": "supervised", "imitation": "initialise"}
    rows = {row: [stages[stage] for stages in begun] for row, stage in once.items()}
    rows |= arms
    write_table(
        options.output,
        "benchmarks.ablations.s2r",
        rows,
        seeds=options.seeds,
        fields=FIELDS,
        paired_with="process",
        repeats=options.repeats,
    )


if __name__ == "__main__":
    main()
