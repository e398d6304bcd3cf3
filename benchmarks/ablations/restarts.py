# SPDX-License-Identifier: Apache-2.0
"""What restarts, the reflection bonus and the critic do on the built-in domain, rule reward only.

    python -m benchmarks.ablations.restarts --seeds 0 1 2 --output benchmarks/results/restarts.json

The arms "grpo" and "no_bonus" are one algorithm, as the bonus cancels under a group baseline with
the standard deviation: their differences are the noise of a run.

For each seed one format-tuned model is made, and every arm trains from it, so arms differ in RL
alone. Arms are the configs in configs/debug/ and the quickstart itself. The command can be run
again until it is done.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.ablations.runs import Entry, from_models, parser, run, run_arms, write_table

ARMS = {
    "grpo": "configs/debug/grpo.toml",  # the quickstart itself
    "no_restart": "configs/debug/no_restart.toml",
    "no_bonus": "configs/debug/no_bonus.toml",
    "ppo": "configs/debug/ppo.toml",
}
TUNING = ("--stages", '["synthesize", "supervised"]')


def format_tuned(seed: int, folder: Path) -> Entry:
    """The summary entry of the model that every arm of a seed starts from."""
    stages = run(ARMS["grpo"], f"tuned-{seed}", folder, *TUNING, "--seed", str(seed))
    return stages["supervised"]


def reinforced(arm: str, seed: int, folder: Path) -> Entry:
    """The summary entry of one arm, trained from the format-tuned model of its seed."""
    model = folder / f"tuned-{seed}" / "models" / "supervised"
    stages = run(ARMS[arm], f"{arm}-{seed}", folder, *from_models(model, seed=seed))
    return stages["reinforce"]


def main() -> None:
    options = parser(
        str(__doc__).splitlines()[0],
        list(ARMS),
        folder="runs/ablations",
        output="benchmarks/results/restarts.json",
    ).parse_args()
    tuned, arms = run_arms(options, format_tuned, reinforced)
    rows = {"format tuning": tuned, **arms}
    write_table(options.output, "benchmarks.ablations.restarts", rows, seeds=options.seeds)


if __name__ == "__main__":
    main()
