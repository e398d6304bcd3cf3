# SPDX-License-Identifier: Apache-2.0
"""The tables of S2R (arXiv 2502.12853, tables 2 and 3) on the built-in domain of chains.

    python -m benchmarks.ablations.s2r --seeds 0 1 2 3 4

For each seed one run of configs/s2r/quickstart.toml gives two rows: base, which has imitated plain
solutions, and imitation, which has learnt trials from its own. Outcome, process and offline start
from that one imitated model. `process_again` is `process` with another seed of the reinforcement
and nothing else changed: its differences are the noise of a run. The command can be run again until
it is done.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.ablations.runs import (
    Entry,
    Stages,
    from_models,
    parser,
    run,
    run_arms,
    write_table,
)

CONFIG = "configs/s2r/quickstart.toml"
BEGINNING = ("--stages", '["supervised", "initialise"]')
ARMS = {
    "outcome": ("--reinforce.recipe", "s2r_outcome"),
    "process": (),
    "process_again": (),
    "offline": (),
}
OTHER_SEED = 10  # between the seeds of a run and its repetition
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


def reinforced(arm: str, seed: int, folder: Path) -> Entry:
    """The summary entry of one arm, trained from the imitated model of its seed."""
    stage = "offline" if arm == "offline" else "reinforce"
    own_seed = seed + OTHER_SEED * arm.endswith("_again")
    model = folder / f"imitated-{seed}" / "models" / "initialise"
    start = from_models(model, seed=own_seed, stages=f'["{stage}"]')
    return _flat(run(CONFIG, f"{arm}-{seed}", folder, *start, *ARMS[arm])[stage])


def _flat(entry: Entry) -> Entry:
    return entry["verification"] | entry


def main() -> None:
    options = parser(
        str(__doc__).splitlines()[0],
        list(ARMS),
        folder="runs/s2r",
        output="benchmarks/results/s2r.json",
        seeds=(0, 1, 2, 3, 4),
    ).parse_args()
    begun, arms = run_arms(options, imitated, reinforced)
    rows = {
        "base": [stages["supervised"] for stages in begun],
        "imitation": [stages["initialise"] for stages in begun],
        **arms,
    }
    write_table(
        options.output,
        "benchmarks.ablations.s2r",
        rows,
        seeds=options.seeds,
        fields=FIELDS,
        paired_with="process",
        repeated=("process", "process_again"),
    )


if __name__ == "__main__":
    main()
