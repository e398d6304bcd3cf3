# SPDX-License-Identifier: Apache-2.0
"""The comparison of SRL (arXiv 2510.25992, tables 1 and 2) on the built-in domain of chains.

    python -m benchmarks.ablations.srl --seeds 0 1 2 3 4

For each seed the first stage of configs/srl/quickstart.toml gives the warm-up, from which every arm
starts: `imitation` goes on with whole solutions of the experts that SRL learns from, thoughts
included, `imitation_outline` with the bare calculations of those, and `imitation_steps` with single
steps; `rlvr` is rewarded by final answers alone, `one_step` by the likeness of a whole solution,
`no_filter` is SRL without dynamic sampling, `srl_again` SRL with other random numbers, which is the
noise of a run, and `srl_rlvr` goes on from `srl`. Every model is then asked the same held-out
problems, whole and step by step, by `satori-fast eval`. The command can be run again until it is
done.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from threading import Lock

from benchmarks.ablations.runs import (
    OTHER_SEED,
    Arm,
    Entry,
    from_models,
    model_of,
    parser,
    run,
    run_arms,
)
from benchmarks.ablations.tables import write_table

CONFIG = "configs/srl/quickstart.toml"
NUM_VALIDATION = 1024
# A section of its own: the warm-up's pupil is careless, and the experts are not.
IMITATION = (
    "{ num_demonstrations = 1000, num_epochs = 3.0, batch_size = 8, %s, optimizer = "
    "{ learning_rate = 1e-3, schedule = 'cosine', warmup_fraction = 0.04, weight_decay = 0.01 } }"
)
# Stage and overrides of each arm. The experts are the same everywhere: the first 1,000 problems.
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "imitation": ("supervised", ("--supervised", IMITATION % "step_share = 0.0")),
    "imitation_outline": ("supervised", ("--supervised", IMITATION % "loss = 'all'")),
    "imitation_steps": ("supervised", ("--supervised", IMITATION % "step_share = 1.0")),
    "rlvr": ("reinforce", ()),
    "one_step": ("srl", ("--srl.unit", "solution")),
    "no_filter": ("srl", ("--srl.max_sampling_rounds", "1", "--srl.min_group_std", "-1.0")),
    "srl": ("srl", ()),
    "srl_again": ("srl", ()),
    "srl_rlvr": ("reinforce", ()),
}
# Written before the runs; benchmarks/README.md has them in full.
PREDICTIONS = {
    "warm_up": "at most 1 % of whole problems, under 10 % of single steps",
    "imitation": "over srl in whole problems: the domain is deterministic, and thoughts are told",
    "imitation_outline": "below srl in whole problems",
    "imitation_steps": "at least srl in single steps, below it in whole problems",
    "rlvr": "within 2 points of the warm-up in four seeds of five",
    "one_step": "over rlvr, below srl in single steps by more than the errors",
    "no_filter": "below srl in both, by less than twice the error",
    "srl": "above 75 % of single steps and above 20 % of whole problems",
    "srl_again": "srl: what it differs by is noise",
    "srl_rlvr": "above 50 % of whole problems, the best that starts from rewards",
}
ROWS = {name: Arm((), text, None if name == "srl" else "srl") for name, text in PREDICTIONS.items()}
_AT_WORK: defaultdict[tuple[str, int], Lock] = defaultdict(Lock)
FIELDS = ("accuracy", "exact", "similarity", "fault", "mean_response_tokens", "wall_s")


def warmed_up(seed: int, folder: Path) -> Entry:
    """The figures of the model that every arm of a seed starts from."""
    name = f"warm-up-{seed}"
    stages = run(CONFIG, name, folder, "--stages", '["supervised"]', "--seed", str(seed))
    return measured(name, folder) | {"wall_s": stages["supervised"]["wall_s"]}


def trained(arm: str, seed: int, folder: Path) -> Entry:
    """The figures of an arm from the warm-up of `seed`; an arm that another waits for is at work
    once."""
    if arm == "srl_rlvr":
        trained("srl", seed, folder)
    with _AT_WORK[arm, seed]:
        return _trained(arm, seed, folder)


def _trained(arm: str, seed: int, folder: Path) -> Entry:
    stage, overrides = ARMS[arm]
    start = model_of(folder / (f"srl-{seed}" if arm == "srl_rlvr" else f"warm-up-{seed}"))
    own_seed = seed + OTHER_SEED * (2 if arm == "srl_again" else 1)
    begin = from_models(start, seed=own_seed, stages=f'["{stage}"]')
    name = f"{arm}-{seed}"
    # Only where steps are read or written.
    words = () if arm in ("imitation_outline", "rlvr", "srl_rlvr") else ("--data.dialect", "words")
    stages = run(CONFIG, name, folder, *begin, *words, *overrides)
    return measured(name, folder) | {"wall_s": stages[stage]["wall_s"]}


def measured(name: str, folder: Path) -> Entry:
    """Accuracy on whole problems and likeness of single steps, greedy; asked once, then kept."""
    kept = folder / name / "measured.json"
    if not kept.exists():
        command = [sys.executable, "-m", "satori_fast", "eval", CONFIG, "--json"]
        command += ["--model", str(model_of(folder / name)), "--stages", '["srl"]']
        command += ["--data.dialect", "words"]
        command += ["--parallel.num_threads", "1", "--srl.num_validation", str(NUM_VALIDATION)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        kept.write_text(done.stdout.splitlines()[-1] + "\n")
    found = json.loads(kept.read_text())
    figures = {name.partition("/")[2]: v for name, v in found.items() if "validation/" in name}
    evaluated = {name.partition("/")[2]: v for name, v in found.items() if "eval/" in name}
    return {**figures, **evaluated, "num_problems": found["num_problems"]}


def main() -> None:
    options = parser(
        str(__doc__).splitlines()[0],
        list(ARMS),
        folder="runs/srl",
        output="benchmarks/results/srl.json",
        seeds=(0, 1, 2, 3, 4),
    ).parse_args()
    begun, arms = run_arms(options, warmed_up, trained)
    write_table(
        options.output,
        "benchmarks.ablations.srl",
        {"warm_up": [[entry] for entry in begun], **arms},
        arms=ROWS,
        seeds=options.seeds,
        extend=options.extend,
        fields=FIELDS,
        again={"srl_again": "srl"},
    )


if __name__ == "__main__":
    main()
