# SPDX-License-Identifier: Apache-2.0
"""TRL's side of a real training: GRPOTrainer with bfloat16 autocast over float32 weights, its way.

Token-level weights over the whole batch are its loss "dapo"; the batch is cut into passes so that
the logits of one fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import get_soft_overlong_punishment

from benchmarks.peers.contestant import Line, arguments, settle
from benchmarks.peers.samples import FOLDER, keep
from benchmarks.peers.satori_side import hash_of
from benchmarks.peers.task import ADAM_BETAS, ROWS_A_PASS, Task, task_config
from benchmarks.peers.trl_side import Meter, StageClock
from satori_fast.data.tokenizer import load_tokenizer
from satori_fast.grading import GradingPool


def settings(task: Task, folder: Any) -> GRPOConfig:
    config = task_config(task.config, task.model)
    passes = task.num_rows // ROWS_A_PASS
    return GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=task.device == "cpu",
        bf16=config.model.dtype == "bfloat16",
        gradient_checkpointing=False,
        per_device_train_batch_size=ROWS_A_PASS,
        gradient_accumulation_steps=passes,
        steps_per_generation=passes,
        num_generations=task.num_samples,
        num_iterations=1,
        max_completion_length=task.max_tokens,
        temperature=config.rollout.temperature,
        top_p=1.0,
        top_k=0,
        beta=task.kl,
        epsilon=0.2,
        loss_type="dapo",
        scale_rewards="group",
        learning_rate=task.learning_rate,
        lr_scheduler_type="constant",
        adam_beta1=ADAM_BETAS[0],
        adam_beta2=ADAM_BETAS[1],
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        max_steps=task.steps + 1,  # the last one is never begun
        logging_steps=1,
        save_strategy="steps",
        save_steps=task.leg,
        save_total_limit=2,  # the other side may not have come so far
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        seed=task.seed,
        use_vllm=False,
        shuffle_dataset=False,
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
    )


class Right:
    """The reward: 1 for a right boxed answer, by our grader."""

    __name__ = "right"

    def __init__(self) -> None:
        self._pool = GradingPool(1)

    def __call__(
        self, completions: Sequence[Sequence[dict[str, str]]], answer: Sequence[str], **_: Any
    ) -> list[float]:
        pairs = [
            (turns[0]["content"], gold) for turns, gold in zip(completions, answer, strict=True)
        ]
        return [float(verdict.correct) for verdict in self._pool.grade_many(pairs)]


def count(model: Any, meter: Meter, task: Task, end_ids: Sequence[int], samples: Path) -> None:
    """Tell the meter which prompts `model.generate` had, and how many tokens came of them; keep
    them in the folder `samples`."""
    generate = model.generate
    ends = torch.tensor(list(end_ids))

    def counted(*inputs: Any, **options: Any) -> Any:
        ids, mask = options["input_ids"], options["attention_mask"]
        rows = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
        meter.prompts = hash_of(rows[:: task.num_samples])
        output = generate(*inputs, **options)
        completions = output[:, ids.shape[1] :]
        before_end = torch.isin(completions, ends.to(completions.device)).int().cumsum(1) == 0
        lengths = before_end.sum(1) + (~before_end.all(1)).int()
        meter.completion_tokens = int(lengths.sum())
        pairs = zip(completions.tolist(), lengths.tolist(), strict=True)
        keep(samples, task.first + meter.step, rows, [ids[:length] for ids, length in pairs])
        return output

    model.generate = counted


def main() -> None:
    line = Line()
    folder, core = arguments()
    task = Task.read(folder / "task.json")
    settle(core, task.threads)
    clock = StageClock(task.device == "cuda")
    turns = [] if task.system is None else [{"role": "system", "content": task.system}]
    rows = [
        {"prompt": [*turns, {"role": "user", "content": question}], "answer": answer}
        for question, answer in task.questions
    ]
    meter = Meter(line, clock, task)
    rewards: list[Any] = [Right()]
    if task.penalty:
        rewards.append(get_soft_overlong_punishment(task.max_tokens, task.max_tokens / 5))
    trainer = GRPOTrainer(
        model=task.model,
        reward_funcs=rewards,
        args=settings(task, folder),
        train_dataset=Dataset.from_list([*rows, *rows[: task.num_prompts]]),
        processing_class=load_tokenizer(task.model),
    )
    trainer.add_callback(meter)
    model: Any = trainer.model
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    count(model, meter, task, ends, folder / FOLDER)

    def leave() -> None:
        model.generate = type(model).generate.__get__(model)
        model.save_pretrained(folder / "trained-trl")
        processing: Any = trainer.processing_class
        processing.save_pretrained(folder / "trained-trl")

    meter.leave = leave
    trainer.train(str(folder / f"trl/checkpoint-{task.first}") if task.first else None)


if __name__ == "__main__":
    main()
