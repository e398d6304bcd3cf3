# SPDX-License-Identifier: Apache-2.0
"""Guesses of `init` from what it saw: settings for the size of a model, a data set, a machine.

Every setting says why it has its value. Seeing is `init_look`; the text of the config is `init`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from satori_fast.planning.layouts import Layout
from satori_fast.planning.memory import cache_bytes, layer_numbers, parameter_bytes
from satori_fast.planning.sizes import ModelSizes
from satori_fast.profiling.flops import TRAINING_PASSES, forward_flops
from satori_fast.profiling.summary import duration
from satori_fast.stages.init_look import DataLook, Machine, ModelLook

# Shares of the peaks that steps reach: the quickstart on a CPU, and published ones of GPUs.
UTILISATION = {"cpu": 0.45, "cuda": 0.35}
_SAMPLES = 8
_STEPS = 50
_LONGEST_STEP_S, _LONGEST_TUNING_S = 60.0, 300.0  # on a CPU
_LEAST_GAIN = 1.3  # of products in bfloat16 over float32, on a CPU
_SMALL = 20_000_000  # parameters; below, bfloat16 rounds away what they learn
_REFERENCE_SIZE, _REFERENCE_RATE = 135e6, 2e-5  # SmolLM2-135M under GRPO
_BOXED = 0.8
_ROUND = 64  # tokens
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Setting:
    """A key of the config, its value, and why it has it. key: "section.key"; is_guess: nobody
    knows better yet, and a reader may."""

    key: str
    value: Any
    why: str
    is_guess: bool = False


@dataclass(frozen=True, slots=True)
class Guess:
    """All settings, in the order of the config, and what is expected of them.

    step_s, tuning_s: seconds of a step of reinforcement and of the whole format tuning; None where
                      the machine's speed is not known. memory_bytes: at the peak.
    warnings:         what the reader has to look at.
    """

    settings: tuple[Setting, ...]
    step_s: float | None
    tuning_s: float | None
    memory_bytes: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Lengths in tokens, and counts of a step."""

    prompt: int
    response: int
    expected_prompt: float
    expected_response: float
    problems: int
    dtype: str

    @property
    def seqlen(self) -> int:
        return self.prompt + self.response


def guess(model: ModelLook, data: DataLook, machine: Machine) -> Guess:
    """The settings for a model, a data file and a machine."""
    sizes = _sizes(model, data, machine)
    step_s = _step_seconds(model, sizes, machine)
    if machine.kind == "cpu" and step_s is not None and step_s > _LONGEST_STEP_S:
        sizes = replace(sizes, problems=sizes.problems // 2)
        step_s = _step_seconds(model, sizes, machine)
    tunes = data.boxed_share >= _BOXED
    num_tuned, tuning_s = _tuning(model, data, machine, sizes) if tunes else (0, None)
    capacity, recompute, memory = _memory(model, sizes, machine)
    settings = [
        *_of_stages(data, tunes=tunes),
        *_of_model(model, machine, sizes, recompute=recompute),
        *_of_data(model, data, sizes),
        *_of_rollout(model, data, machine, sizes, capacity=capacity),
        *(_of_tuning(model, data, num_tuned) if tunes else ()),
        *(_of_restarts(data) if model.knows_actions else ()),
        *_of_reinforcement(model, sizes),
        *_of_evaluation(data, machine),
    ]
    warnings = _warnings(model, data, machine, memory_bytes=memory, tunes=tunes)
    return Guess(tuple(settings), step_s, tuning_s, memory, tuple(warnings))


def _sizes(model: ModelLook, data: DataLook, machine: Machine) -> _Sizes:
    prompt = min(_rounded(data.prompt_tokens.max() * 1.1), model.context // 2)
    if len(data.solution_tokens):
        expected = float(data.solution_tokens.mean())
        response = _rounded(float(np.quantile(data.solution_tokens, 0.99)) * 1.5)
    else:
        response = 512 if machine.kind == "cpu" else 1024
        expected = response / 2
    response = max(_ROUND, min(response, model.context - prompt))
    return _Sizes(
        prompt=prompt,
        response=response,
        expected_prompt=float(data.prompt_tokens.mean()),
        expected_response=min(expected, response),
        problems=8 if machine.kind == "cpu" else 32,
        dtype=_dtype(model, machine),
    )


def _rounded(tokens: float) -> int:
    return max(_ROUND, int(-(-tokens // _ROUND)) * _ROUND)


def _dtype(model: ModelLook, machine: Machine) -> str:
    if machine.kind == "cuda":
        return "bfloat16"
    gain = _gain(machine)
    return "bfloat16" if gain >= _LEAST_GAIN and model.num_parameters > _SMALL else "float32"


def _gain(machine: Machine) -> float:
    """Speed of products in bfloat16 over those in float32."""
    half, single = (machine.peaks[name].flops_per_s or 1.0 for name in ("bfloat16", "float32"))
    return half / single


# -- time and memory ------------------------------------------------------------------------------


def _step_seconds(model: ModelLook, sizes: _Sizes, machine: Machine) -> float | None:
    """Sampling (every token once, and all weights read for each position), log-probs, update."""
    peaks = machine.peaks[sizes.dtype]
    if not peaks.flops_per_s or not peaks.bytes_per_s:
        return None
    lengths = [round(sizes.expected_prompt + sizes.expected_response)] * sizes.problems * _SAMPLES
    heads = round(sizes.expected_response) * len(lengths)
    forward = forward_flops(model.shape, lengths, num_head_tokens=heads)
    scored = forward_flops(model.shape, lengths)
    flops = forward + scored + TRAINING_PASSES * forward
    read = sizes.response * model.shape.num_weights_read * _bytes_of(sizes.dtype)
    speed = UTILISATION[machine.kind] * peaks.flops_per_s
    return flops / speed + read / peaks.bytes_per_s


def _tuning(
    model: ModelLook, data: DataLook, machine: Machine, sizes: _Sizes
) -> tuple[int, float | None]:
    """Demonstrations to imitate once, and the seconds that takes."""
    most = min(_num_trained(data), 1000)
    peak = machine.peaks[sizes.dtype].flops_per_s
    if not peak:
        return most, None
    length = round(sizes.expected_prompt + sizes.expected_response)
    each = TRAINING_PASSES * forward_flops(
        model.shape, [length], num_head_tokens=round(sizes.expected_response)
    )
    each_s = each / (UTILISATION[machine.kind] * peak)
    if machine.kind == "cpu":
        most = max(16, min(most, int(_LONGEST_TUNING_S / each_s)))
    return most, most * each_s


def _bytes_of(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else 4


def _memory(model: ModelLook, sizes: _Sizes, machine: Machine) -> tuple[int, bool, float]:
    """(tokens of a microbatch, whether activations are recomputed, bytes at the peak): the first
    that fits into four fifths of the memory, else the smallest.

    The parts are those of `planning.memory`; keys and values of the engine come on top.
    """
    shape, size = ModelSizes(model.shape, tied=True), _bytes_of(sizes.dtype)
    trained = model.num_parameters * parameter_bytes(sizes.dtype).total
    slots = sizes.problems * _SAMPLES
    cache = cache_bytes(shape, slots * sizes.seqlen, size=size)
    capacity = max(sizes.seqlen, 4096 if machine.kind == "cpu" else 16384)
    needed = 0.0
    for tokens, recompute in ((capacity, False), (sizes.seqlen, False), (sizes.seqlen, True)):
        layout = Layout(recompute="full" if recompute else "none")
        layer = layer_numbers(shape, layout, on_host=machine.kind == "cpu")
        kept = model.shape.num_layers * layer.kept + layer.again
        needed = trained + cache + tokens * kept * size
        capacity = tokens
        if needed <= 0.8 * machine.memory_bytes:
            return tokens, recompute, needed
    return capacity, True, needed


# -- settings, section by section -----------------------------------------------------------------


def _of_stages(data: DataLook, *, tunes: bool) -> list[Setting]:
    why = "no worked solutions with a boxed answer: reinforcement alone"
    if tunes:
        why = f"{data.boxed_share:.0%} of the solutions end in a box: they are imitated first"
    stages = ["supervised", "reinforce"] if tunes else ["reinforce"]
    return [Setting("stages", stages, why)]


def _of_model(
    model: ModelLook, machine: Machine, sizes: _Sizes, *, recompute: bool
) -> list[Setting]:
    size = f"{model.num_parameters / 1e6:,.1f} M parameters, context {model.context:,}"
    why = "small models learn better in it" if model.num_parameters <= _SMALL else "as fast here"
    if sizes.dtype == "bfloat16":
        why = f"products are {_gain(machine):.1f} times as fast as in float32 here"
    found = [
        Setting("model.path", model.path, f"{model.family}, {size}"),
        Setting("model.dtype", sizes.dtype, why, is_guess=True),
    ]
    if recompute:
        found.append(Setting("model.recompute", True, "activations would not fit", is_guess=True))
    return [*found, Setting("tokenizer.kind", "model", "the model's own")]


def _of_data(model: ModelLook, data: DataLook, sizes: _Sizes) -> list[Setting]:
    fields, prompts = data.fields, data.prompt_tokens
    skipped = f"; skipped: {data.skipped}" if data.skipped else ""
    found = [Setting("data.source", data.path, f"{data.num_problems:,} problems{skipped}")]
    where = {"hashes": "after #### in ", "boxed": "in the last box of "}.get(fields.answer_form, "")
    read = f"question: {fields.question}; answer: {where}{fields.answer}"
    if data.mapping:
        found.append(Setting("data.mapping", data.mapping, read))
    else:
        named = {"question": fields.question, "answer": fields.answer, "response": fields.response}
        found += [
            Setting(f"data.fields.{name}", path, "by its name", is_guess=True)
            for name, path in named.items()
            if path is not None
        ]
    templates = {
        "chat": "the tokenizer's own chat template",
        "satori": "the tokenizer has no chat template, but its markers",
        "plain": "the tokenizer has no chat template: the question and a line break",
    }
    found.append(Setting("data.template", model.template, templates[model.template]))
    if model.system is not None:
        found.append(Setting("data.system", model.system, "the grader reads the box"))
    lacks = "the tokenizer has no meta-action tokens: no reflections, no restarts"
    own = "the tokenizer has Satori's meta-action tokens"
    return [
        *found,
        Setting("data.format", *(("coat", own) if model.knows_actions else ("plain", lacks))),
        Setting(
            "data.max_prompt_tokens",
            sizes.prompt,
            f"prompts have {int(np.median(prompts))} tokens in the middle, {prompts.max()} at most",
        ),
        Setting("data.heldout_fraction", _heldout(data), "by hash of the question", is_guess=True),
    ]


def _num_trained(data: DataLook) -> int:
    """About how many problems the hash leaves to train on."""
    return max(1, int((1 - _heldout(data)) * data.num_problems))


def _heldout(data: DataLook) -> float:
    """A share that leaves about a hundred problems, and most of a small set to train on."""
    return round(min(0.3, max(0.02, 100 / data.num_problems)), 2)


def _of_rollout(
    model: ModelLook, data: DataLook, machine: Machine, sizes: _Sizes, *, capacity: int
) -> list[Setting]:
    solutions = data.solution_tokens
    why = "no solutions to measure: look at rollout/truncated"
    if len(solutions):
        middle, most = int(np.median(solutions)), solutions.max()
        why = f"solutions have {middle} tokens in the middle, {most} at most"
    ends = f"responses end at {', '.join(model.stop_tokens) or 'nothing'}"
    found = [
        Setting("packing.max_tokens_per_microbatch", capacity, "by memory", is_guess=True),
        Setting("rollout.max_seqlen", sizes.seqlen, "prompt and response"),
        Setting("rollout.max_new_tokens", sizes.response, why, is_guess=True),
        Setting("rollout.max_slots", sizes.problems * _SAMPLES, "all samples of a step at once"),
        Setting("rollout.temperature", 1.0, f"samples have to differ; {ends}"),
    ]
    if model.unnamed_ends:
        why = "the chat template ends an answer with it, and the model's files do not say so"
        found.append(Setting("rollout.stop_tokens", list(model.unnamed_ends), why, is_guess=True))
    why = "grpo divides it out" if model.knows_actions else "no reflections, no bonus"
    return [*found, Setting("reward.reflection_bonus", 0.0, why)]


def _of_tuning(model: ModelLook, data: DataLook, number: int) -> list[Setting]:
    batch = 16 if number >= 64 else 4
    rate = _rate(model, 5.0, most=1e-3)
    all_of = f"of about {_num_trained(data):,}: enough to learn the form of an answer"
    return [
        Setting("supervised.num_demonstrations", number, all_of, is_guess=True),
        Setting("supervised.num_epochs", 1.0, "longer tuning copies the solutions", is_guess=True),
        Setting("supervised.batch_size", batch, "many small updates", is_guess=True),
        Setting("supervised.optimizer.learning_rate", rate, "by the model's size", is_guess=True),
        Setting("supervised.optimizer.schedule", "cosine", "down to a tenth"),
    ]


def _of_restarts(data: DataLook) -> list[Setting]:
    number = min(200, _num_trained(data))
    why = "problems that are solved first: restarts are cut from their samples"
    return [
        Setting("solutions.num_problems", number, why, is_guess=True),
        Setting("solutions.num_samples", 4, "of each", is_guess=True),
    ]


def _of_reinforcement(model: ModelLook, sizes: _Sizes) -> list[Setting]:
    rate = _rate(model, 1.0, most=2e-4)
    samples = f"{sizes.problems * _SAMPLES} samples in a step"
    return [
        Setting("reinforce.recipe", "grpo", "no critic; `show --recipe` prints it"),
        Setting("reinforce.num_steps", _STEPS, "accuracy should rise by then", is_guess=True),
        Setting("reinforce.problems_per_step", sizes.problems, samples, is_guess=True),
        Setting("reinforce.samples_per_problem", _SAMPLES, "siblings are compared"),
        Setting("reinforce.num_minibatches", 1, "one update on each batch"),
        Setting("reinforce.evaluate_every", _STEPS // 2, "and after the last step"),
        Setting("reinforce.checkpoint_every", _STEPS // 5, "a killed run goes on from there"),
        Setting("reinforce.optimizer.learning_rate", rate, "by the model's size", is_guess=True),
    ]


def _rate(model: ModelLook, factor: float, *, most: float) -> float:
    """2e-5 for SmolLM2-135M, 1e-6 from 7 B parameters on: to the power -3/4 of the size."""
    rate = _REFERENCE_RATE * (_REFERENCE_SIZE / model.num_parameters) ** 0.75
    return float(f"{factor * min(most / factor, max(1e-6, rate)):.1g}")


def _of_evaluation(data: DataLook, machine: Machine) -> list[Setting]:
    held_out = max(1, round(_heldout(data) * data.num_problems))
    number = min(100 if machine.kind == "cpu" else 400, held_out)
    error = 50 / number**0.5
    why = f"a standard error of at most {error:.0f} points"
    return [Setting("evaluation.num_problems", number, why, is_guess=True)]


def _warnings(
    model: ModelLook, data: DataLook, machine: Machine, *, memory_bytes: float, tunes: bool
) -> list[str]:
    found: list[str] = []
    if memory_bytes > 0.8 * machine.memory_bytes:
        found.append(
            f"memory: about {memory_bytes / _GIB:.1f} GiB are needed, and "
            f"{machine.memory_bytes / _GIB:.1f} GiB are there: docs/layout_and_engine.md says how "
            "to split a model"
        )
    if data.num_problems < 100:
        found.append(
            f"data: {data.num_problems} problems are few: the model may learn them by heart"
        )
    if not tunes and model.template == "plain":
        found.append(
            "answers: a model without a chat template and without tuning may never box an answer, "
            "and then earns nothing: give it worked solutions that end in \\boxed{...}"
        )
    return found


def expectation(made: Guess, machine: Machine) -> list[str]:
    """Lines about time and memory, for people."""
    lines = [
        f"memory: about {made.memory_bytes / _GIB:.1f} GiB of "
        f"{machine.memory_bytes / _GIB:.1f} GiB that are free"
    ]
    if made.step_s is not None:
        whole = _STEPS * made.step_s + (made.tuning_s or 0.0)
        tuning = f"{duration(made.tuning_s)} of format tuning and " if made.tuning_s else ""
        lines.append(
            f"time: about {duration(made.step_s)} a step, so {tuning}"
            f"{duration(_STEPS * made.step_s)} for {_STEPS} steps, {duration(whole)} in all on "
            f"{machine.name}, evaluations not counted"
        )
    if machine.is_busy:
        lines.append("  (with nothing beside it: it is busy now, and a step takes longer)")
    return lines
