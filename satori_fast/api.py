# SPDX-License-Identifier: Apache-2.0
"""The verbs of the command line from Python: load_config, run, evaluate, generate, explain.

`satori_fast` itself hands them out, and imports this when the first one is asked for. Each does
what the verb does, with the same config and the same errors (`ConfigError` for what a user can set
right); nothing else of the package is meant for users.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satori_fast.config import Config, ConfigError, load_config

if TYPE_CHECKING:
    from satori_fast.evaluation.evaluate import EvaluationResult
    from satori_fast.stages.explanation import Explanation

__all__ = ["Config", "ConfigError", "evaluate", "explain", "generate", "load_config", "run"]


def run(config: Config, *, resume: bool = False) -> dict[str, Any]:
    """Run the stages of a config in order; the content of summary.json.

    The run folder is `output_dir`/`name`; resume continues it. "stages" of the summary has an entry
    for each, with its "accuracy" on the held-out problems.
    """
    from satori_fast.stages import run_stages

    return run_stages(config, resume=resume)


def evaluate(config: Config, *, model: str | Path | None = None) -> EvaluationResult:
    """Greedy answers of a model folder to the held-out problems; `satori-fast eval`, as it prints.

    model: None: the config's. Of the result, `accuracy` and `standard_error` are shares, and
    `metrics()` has everything by its name.
    """
    from satori_fast.stages.evaluate import evaluate_model

    return evaluate_model(_with_model(config, model))


def generate(
    config: Config,
    questions: Sequence[str],
    *,
    model: str | Path | None = None,
    num_samples: int = 1,
    temperature: float | None = None,
    seed: int = 0,
) -> list[list[str]]:
    """Responses to questions, `num_samples` to each, asked as the config's template asks.

    model: None: the config's. temperature: None: 0, greedy, for one sample, else the rollout's.
    seed: of the samples; the same ones come again, whatever else is asked with them.
    """
    from satori_fast.stages.generate import generate_texts

    if temperature is None:
        temperature = 0.0 if num_samples == 1 else config.rollout.temperature
    return generate_texts(
        _with_model(config, model),
        questions,
        num_samples=num_samples,
        temperature=temperature,
        seed=seed,
    )


def explain(config: Config, rollouts: str | Path) -> Explanation:
    """Explain why the tokens of given responses get the signal that they get.

    rollouts: JSON lines with question, answer and response, or a run's samples.jsonl. Of the result
    `rows` has each response, segment by segment, `summary` the means, and `show` prints both.
    """
    from satori_fast.stages.explain import explain as explain_rollouts

    return explain_rollouts(config, Path(rollouts))


def _with_model(config: Config, model: str | Path | None) -> Config:
    """The config with another model, and its own tokenizer."""
    if model is None:
        return config
    values = config.model_dump()
    values["model"]["path"] = str(model)
    values["tokenizer"]["kind"] = "model"
    return Config.model_validate(values)
