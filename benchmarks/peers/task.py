# SPDX-License-Identifier: Apache-2.0
"""A real training for both sides: a model folder, questions with answers, and settings.

Beside it a `Workload` is a race of speed alone, with random text and lengths that are set.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from satori_fast.config import Config, load_config
from satori_fast.data.domains import DOMAINS
from satori_fast.data.prompts import ChatTemplate, template_named

# Both sides: no weight decay, Adam's usual betas, gradients clipped at 1, a constant rate.
ADAM_BETAS = (0.9, 0.999)
# Of TRL's passes: a larger one holds more logits and is no faster.
ROWS_A_PASS = 8


@dataclass(frozen=True)
class Task:
    """What both sides train.

    config:      file that says how (its RL is plain GRPO here: no restarts, no reflection bonus).
    model:       folder of the model that both start from.
    questions:   (question, answer), `num_prompts` of them a step, in order.
    penalty:     whether long answers are punished (DAPO's eq. 13, the last fifth of `max_tokens`).
    kl:          coefficient of the k3 estimate of the KL to `model`; 0 for none.
    leg:         steps after which both save and begin anew; a race that was ended goes on there.
    first:       step that a leg begins with.
    """

    title: str
    config: str
    model: str
    questions: tuple[tuple[str, str], ...]
    system: str | None
    num_prompts: int
    num_samples: int
    max_tokens: int
    learning_rate: float
    steps: int
    penalty: bool
    kl: float = 0.0
    seed: int = 0
    threads: int = 1
    leg: int = 5
    first: int = 0
    device: str = "cpu"
    minibatches: int = 1
    targets: tuple[float | None, float | None] = (1.4, 0.7)

    @property
    def num_rows(self) -> int:
        return self.num_prompts * self.num_samples

    def problems(self, step: int) -> tuple[tuple[str, str], ...]:
        """The questions of a step."""
        return self.questions[step * self.num_prompts : (step + 1) * self.num_prompts]

    def lengthens(self, other: Task) -> bool:
        """Whether this is the training of `other`, or begins as that does."""
        mine = self.questions[: len(other.questions)]
        return replace(self, steps=other.steps, questions=mine, first=other.first) == other

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Task:
        values = json.loads(path.read_text())
        questions = tuple((question, answer) for question, answer in values["questions"])
        return cls(**{**values, "questions": questions, "targets": tuple(values["targets"])})


def task_of(
    config_file: str, model: str, *overrides: str, steps: int, seed: int, title: str
) -> Task:
    """The task of a config of a built-in domain that is asked by chat template: its training
    problems, its sizes, its learning rate, its KL, and its penalty for long answers."""
    config = task_config(config_file, model, *overrides)
    template = template_named(config.data.template, config.data.system)
    if config.data.source not in DOMAINS or not isinstance(template, ChatTemplate):
        raise SystemExit(
            f"{config_file}: name a config of a built-in domain asked by chat template"
        )
    sizes = config.reinforce
    if sizes.truncated == "mask":
        raise SystemExit(f'{config_file}: here reinforce.truncated is "wrong" or "penalty"')
    drawn = DOMAINS[config.data.source].problems(
        steps * sizes.problems_per_step, levels=config.data.levels, split="train", seed=seed
    )
    questions = [(problem.question, problem.answer or "") for problem in drawn]
    return Task(
        title=title,
        config=config_file,
        model=str(Path(model).resolve()),
        questions=tuple(questions),
        system=template.system,
        num_prompts=sizes.problems_per_step,
        num_samples=sizes.samples_per_problem,
        max_tokens=config.rollout.max_new_tokens,
        learning_rate=sizes.optimizer.learning_rate,
        steps=steps,
        penalty=sizes.truncated == "penalty",
        kl=sizes.kl_coefficient or 0.0,
        seed=seed,
    )


def task_config(config_file: str, model: str, *overrides: str) -> Config:
    """The config with plain GRPO from `model`, as TRL does it."""
    plain: dict[str, Any] = {
        "stages": '["reinforce"]',
        "model.path": f"'{model}'",
        "tokenizer.kind": "model",
        "reinforce.restarts.enabled": "false",
        "reinforce.recipe": "grpo",
        "reinforce.weighting": "token",
        "reinforce.num_minibatches": "1",
        "reinforce.kl_estimator": "'k3'",
        "reinforce.optimizer.schedule": "constant",
        "reinforce.optimizer.warmup_fraction": "0.0",
        "reinforce.optimizer.weight_decay": "0.0",
        "reinforce.optimizer.beta1": str(ADAM_BETAS[0]),
        "reinforce.optimizer.beta2": str(ADAM_BETAS[1]),
        "reward.right": "1.0",
        "reward.wrong": "0.0",
        "reward.reflection_bonus": "0.0",
    }
    given = [word for key, value in plain.items() for word in (f"--{key}", value)]
    return load_config(config_file, [*given, *overrides])
