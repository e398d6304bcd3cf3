# SPDX-License-Identifier: Apache-2.0
"""The ablation table of Satori (arXiv 2502.02508, table 3 and section 5) on the built-in domain.

    python -m benchmarks.ablations.satori --seeds 0 1 2 --output benchmarks/results/satori.json

For each seed one run of configs/satori/quickstart.toml gives three rows: no RL (its format tuning),
full (its PPO) and round 2. Every other arm repeats its PPO from the same format-tuned model, reward
model and critic, with one thing changed. `more_whole` is not in the paper: as many whole problems
in a step as without restarts, and the restarts on top. Nor are the arms `_again`: another seed of
the PPO from the same models, which shows how much of a difference is chance. The command can be run
again until it is done.
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

CONFIG = "configs/satori/quickstart.toml"
OF_THE_WHOLE_RUN = {"no_rl": "supervised", "full": "reinforce", "round_2": "reinforce_2"}
ARMS = {
    "no_restart": ("--reinforce.restarts.enabled", "false"),
    "no_bonus": ("--reward.reflection_bonus", "0.0"),
    "no_preference": ("--reward.preference_weight", "0.0"),
    "more_whole": ("--reinforce.problems_per_step", "96"),
    "full_again": (),
    "no_bonus_again": ("--reward.reflection_bonus", "0.0"),
}
AGAIN = 10  # added to the seed of a PPO that is repeated


def whole_run(seed: int, folder: Path) -> Stages:
    """All stages of the config."""
    return run(CONFIG, f"full-{seed}", folder, "--seed", str(seed))


def changed(arm: str, seed: int, folder: Path) -> Entry:
    """The summary entry of one arm, from the models of the whole run of its seed."""
    models = folder / f"full-{seed}" / "models"
    own_seed = seed + AGAIN if arm.endswith("_again") else seed
    start = from_models(models / "supervised", seed=own_seed)
    reward = ("--reward.model", f"'{models / 'preference'}'")
    return run(CONFIG, f"{arm}-{seed}", folder, *start, *reward, *ARMS[arm])["reinforce"]


def main() -> None:
    options = parser(
        str(__doc__).splitlines()[0],
        list(ARMS),
        folder="runs/satori",
        output="benchmarks/results/satori.json",
    ).parse_args()
    whole, arms = run_arms(options, whole_run, changed)
    rows = {arm: [run[stage] for run in whole] for arm, stage in OF_THE_WHOLE_RUN.items()} | arms
    write_table(options.output, "benchmarks.ablations.satori", options.seeds, rows)


if __name__ == "__main__":
    main()
