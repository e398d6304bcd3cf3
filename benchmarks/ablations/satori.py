# SPDX-License-Identifier: Apache-2.0
"""The ablation table of Satori (arXiv 2502.02508, table 3 and section 5) on the built-in domain.

    python -m benchmarks.ablations.satori --seeds 0 1 2 --repeats 2

For each seed one run of configs/satori/quickstart.toml gives three rows: no RL (its format tuning),
full (its PPO) and round 2. Every other arm repeats its PPO from the same format-tuned model, reward
model and critic, with one thing changed. PPO alone is repeated with other seeds from the same
models, the same ones for every arm: chance moves it more than the arms differ. `more_whole` is not
in the paper: as many whole problems in a step as without restarts, and the restarts on top. The
command can be run again until it is done.
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

CONFIG = "configs/satori/quickstart.toml"
ARMS = {
    "full": (),
    "no_restart": ("--reinforce.restarts.enabled", "false"),
    "no_bonus": ("--reward.reflection_bonus", "0.0"),
    "no_preference": ("--reward.preference_weight", "0.0"),
    "more_whole": ("--reinforce.problems_per_step", "96"),
}
OTHER_SEED = 10  # between the seeds of a PPO and its repetition


def whole_run(seed: int, folder: Path) -> Stages:
    """All stages of the config."""
    return run(CONFIG, f"full-{seed}", folder, "--seed", str(seed))


def reinforced(arm: str, seed: int, repeat: int, folder: Path) -> Entry:
    """The summary entry of an arm's PPO from the models of the whole run of `seed`."""
    if arm == "full" and repeat == 0:
        return whole_run(seed, folder)["reinforce"]
    models = folder / f"full-{seed}" / "models"
    start = from_models(models / "supervised", seed=seed + OTHER_SEED * repeat)
    reward = ("--reward.model", f"'{models / 'preference'}'")
    name = f"{arm}-{seed}-{repeat}" if repeat else f"{arm}-{seed}"
    return run(CONFIG, name, folder, *start, *reward, *ARMS[arm])["reinforce"]


def main() -> None:
    options = parser(
        str(__doc__).splitlines()[0],
        list(ARMS),
        folder="runs/satori",
        output="benchmarks/results/satori.json",
    )
    options.add_argument("--repeats", type=int, default=2, help="PPO runs of an arm and a seed")
    options = options.parse_args()

    whole, arms = run_repeats(options, whole_run, reinforced)
    once = {"no_rl": "supervised", "round_2": "reinforce_2"}
    rows = {row: [stages[stage] for stages in whole] for row, stage in once.items()}
    rows |= arms
    write_table(
        options.output,
        "benchmarks.ablations.satori",
        rows,
        seeds=options.seeds,
        paired_with="full",
    )


if __name__ == "__main__":
    main()
