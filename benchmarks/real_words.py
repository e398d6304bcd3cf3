# SPDX-License-Identifier: Apache-2.0
"""A real language model learns word problems on a laptop: before, after format tuning, after RL.

    make real-model
    python -m benchmarks.real_words --seeds 0 1 2

Each seed is a run of `configs/real/smollm2_words.toml` as a user would start it. Then every model
of a run answers the run's held-out problems greedily, and four times each at temperature 0.7. The
untouched model is asked once: it is the same for all seeds. What is there already is not done
again, so the command can be run until it is done; `--extend` keeps the seeds that the record has.
Accuracy, error and self-correction (of answers, and of steps) are in the record, and tokens per
second of each stage, peak memory, and answers of each model to the same problems.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from satori_fast.config import Config, load_config, to_toml
from satori_fast.data.domains import DOMAINS
from satori_fast.profiling.metrics import read_metrics
from satori_fast.profiling.statistics import Estimate, estimate, paired_estimate
from satori_fast.storage import read_sealed

CONFIG = "configs/real/smollm2_words.toml"
RECORD = "real_words"
UNTOUCHED, TUNED, TRAINED = "untouched", "supervised", "reinforce"
# How the models answer: options of the eval verb.
MANNERS = {"greedy": (), "sampled": ("--samples", "4", "--temperature", "0.7")}
CORRECTIONS = ("wrong_to_right", "right_to_wrong")
NUM_SHOWN = 5  # answers of a model


def train(config: str, name: str, seed: int, folder: Path, overrides: Sequence[str]) -> Path:
    """The run of one seed, resumed where it was cut off."""
    run = folder / name
    if not (run / "summary.json").exists():
        command = ["run", config, "--name", name, "--output_dir", str(folder), "--seed", str(seed)]
        command += ["--resume"] if (run / "config.toml").exists() else []
        satori_fast(*command, *overrides)
    return run


def ask(
    config: str, model: str, seed: int, output: Path, manner: str, overrides: Sequence[str]
) -> dict[str, Any]:
    """A model's evaluation on the held-out problems of a seed."""
    if not (output / "evaluation.json").exists():
        command = ["eval", model, "--benchmarks", "heldout", "--protocol", "config"]
        command += ["--config", config, "--output", str(output), *MANNERS[manner]]
        satori_fast(*command, "--seed", str(seed), *overrides)
    return read_sealed(output / "evaluation.json")["benchmarks"]["heldout"]


def satori_fast(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "satori_fast", *arguments], check=True)


def figures(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Figures of an evaluation that the record keeps."""
    kept = {name: evaluation[name]["value"] for name in ("accuracy", "truncated", "no_answer")}
    return kept | {
        "num_problems": evaluation["num_problems"],
        "mean_tokens": evaluation["mean_tokens"],
        "self_correction": {
            name: {key: evaluation["self_correction"][name][key] for key in ("k", "n")}
            for name in CORRECTIONS
            if name in evaluation["self_correction"]
        },
    }


def corrections(output: Path, config: Config) -> dict[str, int]:
    """Wrong steps in all responses of an evaluation, and what explorations mended and broke."""
    questions = questions_of(config)
    count = DOMAINS[config.data.source].counts[config.data.format]
    found = [count(questions[row["problem_id"]], _response(row)) for row in _rows(output)]
    return {name: int(sum(own[name] for own in found)) for name in ("slips", "mends", "breaks")}


def questions_of(config: Config) -> dict[str, str]:
    """Held-out questions, by problem."""
    problems = DOMAINS[config.data.source].problems(
        config.evaluation.num_problems, levels=config.data.levels, split="heldout", seed=0
    )
    return {problem.problem_id: problem.question for problem in problems}


def cost(run: Path) -> dict[str, Any]:
    """Minutes, peak memory and tokens per second of the stages of a run."""
    summary = json.loads((run / "summary.json").read_text())
    peaks = [line.get("host/peak_rss_bytes") or 0 for line in read_metrics(run / "metrics.jsonl")]
    return {
        "minutes": round(summary["wall_s"] / 60, 1),
        "peak_gib": round(max(peaks) / 2**30, 2),
        "tokens_per_s": {
            stage["stage"]: {name: round(rate) for name, rate in stage["tokens_per_s"].items()}
            for stage in summary["stages"]
        },
    }


def answers(output: Path, number: int) -> dict[str, str]:
    """Greedy answers to the first problems of an evaluation, by problem."""
    rows = sorted(_rows(output), key=lambda row: _place(row["problem_id"]))
    return {row["problem_id"]: _response(row) for row in rows[:number]}


def _rows(output: Path) -> list[dict[str, Any]]:
    """Responses of an evaluation."""
    lines = (output / "responses.jsonl").read_text().splitlines()[1:]
    return [json.loads(line) for line in lines]


def _response(row: dict[str, Any]) -> str:
    return "".join(text for _, text in row["segments"])


def _place(problem_id: str) -> int:
    return int(problem_id.rsplit("/", 1)[-1])


def summarise(seeds: dict[int, dict[str, Any]], untouched: dict[str, Any]) -> dict[str, Any]:
    """Mean and standard error of each model's accuracy over seeds, and of what RL adds to format
    tuning, paired by seed."""
    table: dict[str, Any] = {}
    for manner in MANNERS:
        of = {
            model: [own[model][manner]["accuracy"] for own in seeds.values()]
            for model in (TUNED, TRAINED)
        }
        means = {model: estimate(values) for model, values in of.items()}
        added = paired_estimate([[v] for v in of[TRAINED]], [[v] for v in of[TUNED]])
        table[manner] = {
            UNTOUCHED: untouched[manner]["accuracy"],
            **{model: _shown(found) for model, found in means.items()},
            "added": _shown(added),
        }
    return table


def page(table: dict[str, Any], questions: dict[str, str]) -> str:
    """The record in Markdown: accuracy with the standard errors that its seeds give, what
    explorations did to steps, cost, and answers before and after of the first seed."""
    seeds = list(table["seeds"].values())
    lines = ["| | untouched | after format tuning | after RL | RL adds |", "|---|--:|--:|--:|--:|"]
    for manner, row in table["table"].items():
        means = " | ".join(f"{_points(row[model])} %" for model in (TUNED, TRAINED))
        untouched, added = f"{100 * row[UNTOUCHED]:.1f} %", _points(row["added"])
        lines.append(f"| {manner} | {untouched} | {means} | {added} |")
    for manner in table["table"]:
        steps = [_mended(seeds, model, manner) for model in (TUNED, TRAINED)]
        lines.append(f"| steps mended / broken, {manner} | - | {' | '.join(steps)} | |")
    costs = [own["cost"] for own in seeds]
    rates = {
        f"{stage} {name}": statistics.median(own["tokens_per_s"][stage][name] for own in costs)
        for stage in (TUNED, TRAINED)
        for name in costs[0]["tokens_per_s"][stage]
    }
    minutes, peak = (max(own[name] for own in costs) for name in ("minutes", "peak_gib"))
    lines += ["", f"At most {minutes} minutes and {peak} GiB a run. Tokens per second:"]
    lines.append(", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()) + ".")
    for problem, before in seeds[0][TUNED]["answers"].items():
        after = seeds[0][TRAINED]["answers"][problem]
        lines += ["", "```", f"{questions[problem]}\n", f"before: {before}\n", f"after:  {after}"]
        lines.append("```")
    return "\n".join(lines)


def _points(found: dict[str, Any]) -> str:
    """Per cent with the standard error; without one where one seed gives none."""
    mean, error = found["mean"], found["standard_error"]
    return f"{100 * mean:.1f}" + ("" if error is None else f" +- {100 * error:.1f}")


def _mended(seeds: Sequence[dict[str, Any]], model: str, manner: str) -> str:
    steps = [own[model][manner]["steps"] for own in seeds]
    return " / ".join(str(sum(each[name] for each in steps)) for name in ("mends", "breaks"))


def _shown(found: Estimate) -> dict[str, Any]:
    return {"mean": found.mean, "standard_error": found.standard_error, "interval": found.interval}


def _earlier(name: str, settings: str) -> dict[str, Any]:
    """Figures of the record there; empty without one. SystemExit for one of other settings."""
    path = measure.RESULTS / f"{name}.json"
    found = json.loads(path.read_text())["figures"] if path.exists() else {}
    if found and found["settings"] != settings:
        raise SystemExit(
            f"{path} is of other settings: leave --extend out, or name another --record"
        )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, ask, record."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--folder", type=Path, default=Path("runs/real_words"))
    parser.add_argument("--extend", action="store_true", help="keep the seeds of the record")
    parser.add_argument("--record", default=RECORD, help="benchmarks/results/NAME.json")
    options, overrides = parser.parse_known_args(arguments)
    config = load_config(Path(options.config), overrides)
    assert config.model.path is not None

    def asked(model: str, name: str, seed: int) -> dict[str, Any]:
        places = {manner: options.folder / "asked" / f"{name}-{manner}" for manner in MANNERS}
        found = {
            manner: figures(ask(options.config, model, seed, place, manner, overrides))
            | {"steps": corrections(place, config)}
            for manner, place in places.items()
        }
        return found | {"answers": answers(places["greedy"], NUM_SHOWN)}

    # Seeds of one table went by the same settings, wherever a run lies.
    settings = hashlib.sha256(to_toml(config).encode()).hexdigest()[:12]
    earlier = _earlier(options.record, settings) if options.extend else {}
    seeds: dict[int, dict[str, Any]] = {
        int(seed): own for seed, own in earlier.get("seeds", {}).items()
    }
    for seed in options.seeds:
        name = f"{config.name}-{seed}"
        run = train(options.config, name, seed, options.folder, overrides)
        seeds[seed] = {
            model: asked(str(run / "models" / model), f"{name}-{model}", seed)
            for model in (TUNED, TRAINED)
        } | {"cost": cost(run)}
    first = options.seeds[0]
    untouched = earlier.get(UNTOUCHED) or asked(
        config.model.path, f"{config.name}-{UNTOUCHED}-{first}", first
    )
    seeds = dict(sorted(seeds.items()))
    table = {
        "command": " ".join(["python -m benchmarks.real_words --seeds", *map(str, seeds)]),
        "config": options.config,
        "settings": settings,
        "table": summarise(seeds, untouched),
        "seeds": {str(seed): own for seed, own in seeds.items()},
        UNTOUCHED: untouched,
    }
    print(page(table, questions_of(config)))
    print(f"wrote {measure.record(options.record, table)}")


if __name__ == "__main__":
    main()
