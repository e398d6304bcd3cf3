# SPDX-License-Identifier: Apache-2.0
"""The ablation table of Satori (arXiv 2502.02508, table 3 and section 5) on the built-in domain.

    python -m benchmarks.ablations.satori --seeds 0 1 2 --repeats 3

For each seed one run of configs/satori/quickstart.toml gives three rows: no RL (its format tuning),
full (its PPO) and round 2. Arms of reinforcement repeat its PPO from the same format-tuned model,
reward model and critic, with one thing changed, `repeats` times with other seeds, the same ones for
every arm: chance moves PPO more than the arms differ. Arms that change the tuning have a tuning of
their own for each seed, on the same problems, and are paired with `full` by seed; `cot` repeats its
PPO as well. `more_whole` is not in the paper: as many whole problems in a step as without restarts,
and the restarts on top. The command can be run again until it is done.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.ablations.runs import (
    EVALUATED,
    OTHER_SEED,
    Arm,
    Entry,
    Stages,
    from_models,
    model_of,
    parser,
    repeat_name,
    run,
    run_repeats,
)
from benchmarks.ablations.tables import write_table

CONFIG = "configs/satori/quickstart.toml"
SMALL = ("--model.hidden_size", "64", "--model.num_layers", "2", "--model.intermediate_size", "192")
TUNING = ("--stages", '["synthesize", "supervised"]')
ONE_ROUND = ("--stages", '["synthesize", "supervised", "preference", "reinforce"]')
SAME = "within 8 points of full"

# From the models of the full run.
REINFORCED = {
    "full": Arm((), "20 points or more over no_rl", "no_rl"),
    "no_restart": Arm(
        ("--reinforce.restarts.enabled", "false"),
        f"{SAME}: the domain leaves restarts nothing to do",
        "full",
    ),
    "no_bonus": Arm(
        ("--reward.reflection_bonus", "0.0"),
        f"{SAME}: with a critic the bonus is a weight on restarts",
        "full",
    ),
    "no_preference": Arm(("--reward.preference_weight", "0.0"), SAME, "full"),
    "more_whole": Arm(
        ("--reinforce.problems_per_step", "96"),
        "0 to 8 points over full: restarts no longer take the place of whole problems",
        "full",
    ),
    "online": Arm(
        ("--reinforce.restarts.refresh_every", "10"),
        f"{SAME}: the buffer is refreshed twice, and restarts have little to do",
        "full",
    ),
}
# From tunings of their own.
TUNED = {
    "cot": Arm(
        ("--synthesize.critic_share", "0.0", "--reinforce.restarts.enabled", "false"),
        "50 points or more below full: no reflection to find, and a first try is near chance",
        "full",
    ),
    "more_tuning": Arm(
        ("--synthesize.critic_share", "1.0"),
        "within 10 points of full, without RL: twice the demonstrations, most of which reflect",
        "full",
    ),
    "tuned_small": Arm(SMALL, "below 30 %", "no_rl"),
    "distilled_small": Arm((), "10 points or more over tuned_small", "tuned_small"),
}
ONCE = ("more_tuning", "tuned_small", "distilled_small")
ARMS = REINFORCED | TUNED
ROWS = {
    "no_rl": Arm(),
    "round_2": Arm((), "0 to 15 points over full, from the distillation", "full"),
    **ARMS,
}


def whole_run(seed: int, folder: Path) -> Stages:
    """All stages of the config."""
    return run(CONFIG, f"full-{seed}", folder, "--seed", str(seed), *EVALUATED)


def trained(arm: str, seed: int, repeat: int, folder: Path) -> Entry:
    """The summary entry of one run of an arm; `repeat` counts those from the same models."""
    if arm == "more_tuning":
        return tuned(arm, seed, folder)
    if arm in ("tuned_small", "distilled_small"):
        entry = tuned("tuned_small", seed, folder)
        return entry if arm == "tuned_small" else distilled_small(seed, folder)
    if arm == "cot":
        own = (*ARMS[arm].overrides, *EVALUATED, "--seed", str(seed))
        stages = run(CONFIG, f"cot-{seed}", folder, *ONE_ROUND, *own)
        return reinforced(arm, seed, repeat, folder) if repeat else stages["reinforce"]
    if arm == "full" and repeat == 0:
        return whole_run(seed, folder)["reinforce"]
    return reinforced(arm, seed, repeat, folder)


def reinforced(arm: str, seed: int, repeat: int, folder: Path) -> Entry:
    """An arm's PPO from the models of the whole run of `seed`, or of its own first run."""
    models = folder / f"{arm if arm in TUNED else 'full'}-{seed}" / "models"
    start = from_models(models / "supervised", seed=seed + OTHER_SEED * repeat)
    reward = ("--reward.model", f"'{models / 'preference'}'", *EVALUATED)
    name = repeat_name(arm, seed, repeat)
    return run(CONFIG, name, folder, *start, *reward, *ARMS[arm].overrides)["reinforce"]


def tuned(arm: str, seed: int, folder: Path) -> Entry:
    """A format tuning of its own, and nothing after it."""
    own = (*TUNING, *ARMS[arm].overrides, "--seed", str(seed))
    return run(CONFIG, f"{arm}-{seed}", folder, *own)["supervised"]


def distilled_small(seed: int, folder: Path) -> Entry:
    """The untrained small model, taught by what the PPO of the whole run of `seed` solves."""
    teacher = folder / f"full-{seed}" / "models" / "reinforce"
    student = model_of(folder / f"tuned_small-{seed}", "base")
    own = (*from_models(teacher, seed=seed, stages='["distill"]'), "--distill.student")
    return run(CONFIG, f"distilled_small-{seed}", folder, *own, f"'{student}'")["distill"]


def main() -> None:
    options = parser(
        str(__doc__).splitlines()[0],
        list(ARMS),
        folder="runs/satori",
        output="benchmarks/results/satori.json",
        repeats=3,
    ).parse_args()
    whole, arms = run_repeats(options, whole_run, trained, once=ONCE)
    once = {"no_rl": "supervised", "round_2": "reinforce_2"}
    rows = {row: [[stages[stage]] for stages in whole] for row, stage in once.items()}
    write_table(
        options.output,
        "benchmarks.ablations.satori",
        rows | arms,
        arms=ROWS,
        seeds=options.seeds,
        extend=options.extend,
    )


if __name__ == "__main__":
    main()
