# SPDX-License-Identifier: Apache-2.0
"""TRL's side: GRPOTrainer as its users start it, with the settings that the race shares.

Its defaults are not neutral (bfloat16, gradient checkpointing, another loss, dropout of groups by
importance); those that matter are set, and `README.md` lists them with the reason.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from transformers import LogitsProcessor, LogitsProcessorList, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.extras import profiling

from benchmarks.peers.contestant import Line, StepRecord, arguments, settle
from benchmarks.peers.satori_side import hash_of
from benchmarks.peers.task import Task
from benchmarks.peers.workload import Workload, reward_of
from satori_fast.data.tokenizer import load_tokenizer

MAX_STEPS = 1000


class StageClock:
    """CPU seconds (wall on a GPU) of TRL's own profiling contexts, which it tells trackers only.

    seconds: by path of nested contexts, as "_prepare_inputs/transformers.generate".
    """

    def __init__(self, on_gpu: bool) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        now = time.perf_counter if on_gpu else time.process_time
        context: Any = profiling.ProfilingContext
        enter, leave = context.__enter__, context.__exit__

        def start(self_: Any) -> Any:
            self._open.append(self_.name.split(".", 1)[-1])
            self_.began = now()
            return enter(self_)

        def stop(self_: Any, *error: Any) -> Any:
            if on_gpu:
                torch.cuda.synchronize()
            self.seconds["/".join(self._open)] += now() - self_.began
            self._open.pop()
            return leave(self_, *error)

        context.__enter__, context.__exit__ = start, stop

    def total(self, first: str, last: str = "") -> float:
        """Of the paths that begin with `first` and end with `last`."""
        return sum(
            s for path, s in self.seconds.items() if path.startswith(first) and path.endswith(last)
        )


class EndAt(LogitsProcessor):
    """End of text at the length of each row, and nowhere else."""

    def __init__(self, lengths: torch.Tensor, prompt_tokens: int, end: int) -> None:
        self._last, self._end = lengths + prompt_tokens - 1, end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ends = input_ids.shape[1] == self._last
        scores[:, self._end] = torch.where(ends, 1e9, -torch.inf)
        return scores


class Meter(TrainerCallback):
    """Waits before each rollout until the race says go, and reports after its last update."""

    def __init__(self, line: Line, clock: StageClock, workload: Workload | Task) -> None:
        self.line, self.clock, self.workload = line, clock, workload
        self.leave: Callable[[], None] = lambda: None  # called at the end
        self.step, self.tokens, self.completion_tokens, self.prompts = 0, 0, 0, ""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step % self.workload.minibatches == 0:
            if self.step == 0:
                self.line.ready(
                    name="trl", version=trl.__version__, transformers=transformers.__version__
                )
            if not self.line.wait():
                self.leave()
                raise SystemExit(0)
            self.clock.seconds.clear()
            self.tokens = state.num_input_tokens_seen
        return control

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step % self.workload.minibatches:
            return control
        wall_s, cpu_s = self.line.elapsed()
        whole = wall_s if self.workload.device == "cuda" else cpu_s
        prepare = "_prepare_inputs"
        stages = {
            "rollout": self.clock.total(prepare, "transformers.generate"),
            "logprob": self.clock.total(prepare, "_get_per_token_logps_and_entropies"),
            "update": whole - self.clock.seconds[prepare],
        }
        seen = state.num_input_tokens_seen - self.tokens
        self.line.report(
            StepRecord(
                wall_s=wall_s,
                cpu_s=cpu_s,
                stages=stages,
                completion_tokens=self.completion_tokens,
                tokens=seen,
                optimizer_steps=self.workload.minibatches,
                prompts=self.prompts,
                scored_tokens=seen if stages["logprob"] else 0,
            )
        )
        self.step += 1
        return control


def settings(workload: Workload, folder: Any) -> GRPOConfig:
    on_gpu = workload.device == "cuda"
    rows = workload.num_rows // workload.minibatches
    return GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=not on_gpu,
        bf16=on_gpu,
        fp16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=1,
        steps_per_generation=workload.minibatches,
        num_generations=workload.num_samples,
        num_iterations=1,
        max_completion_length=workload.max_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        epsilon=0.2,
        loss_type="grpo",
        scale_rewards="group",
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        optim="adamw_torch",
        max_steps=MAX_STEPS,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        seed=workload.seed,
        use_vllm=False,
        shuffle_dataset=False,
        model_init_kwargs={"dtype": workload.dtype, "attn_implementation": "sdpa"},
    )


def rewards(completions: Iterable[str], **_: Any) -> list[float]:
    return [float(reward_of(text)) - 1.0 for text in completions]


def give_lengths(model: Any, meter: Meter, workload: Workload, end: int) -> None:
    """Make `model.generate` stop each row at the workload's length."""
    generate = model.generate

    def bounded(*inputs: Any, **options: Any) -> Any:
        ids = options["input_ids"]
        lengths = workload.lengths(meter.step)
        meter.prompts = hash_of(ids.tolist())
        meter.completion_tokens = int(lengths.sum())
        ends = EndAt(torch.tensor(lengths, device=ids.device), ids.shape[1], end)
        return generate(*inputs, **options, logits_processor=LogitsProcessorList([ends]))

    model.generate = bounded


def main() -> None:
    line = Line()
    folder, core = arguments()
    settle(core)
    workload = Workload.read(folder / "workload.json")
    clock = StageClock(workload.device == "cuda")
    rows = [
        {"prompt": text}
        for step in range(MAX_STEPS // workload.minibatches)
        for text in workload.prompts(step)
    ]
    meter = Meter(line, clock, workload)
    trainer = GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=rewards,
        args=settings(workload, folder),
        train_dataset=Dataset.from_list(rows),
        # Beside a qwen2 config AutoTokenizer would split the words of this tokenizer its own way.
        processing_class=load_tokenizer(folder / "model"),
    )
    trainer.add_callback(meter)
    end = trainer.processing_class.eos_token_id  # pyright: ignore
    give_lengths(trainer.model, meter, workload, end)
    trainer.train()


if __name__ == "__main__":
    main()
