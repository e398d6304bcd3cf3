# SPDX-License-Identifier: Apache-2.0
"""A config tried out small: every stage for a step or two, before a machine is rented for it.

What is tried: that the stages fit together, and that every term, buffer and round that the config
asks for runs. What is not: the model, the data and the parallel layout, which are replaced by tiny
ones. The tiny model learns its problems by heart, so that buffers and pairs have right solutions.
"""

from __future__ import annotations

import tempfile
from typing import Any

from satori_fast.config import KEYS_OF_ENGINES, Config, RolloutConfig

NUM_STEPS = 2
NUM_PROBLEMS = 16
MAX_SEQLEN = 256
NUM_EPOCHS = 30.0
MODEL = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 128,
}
# Steps of the domain's own expert, whatever those of the config are.
STEPS = {
    "expert": None,
    "mapping": None,
    "parser": "numbered",
    "num_solutions": None,
    "template": None,
    "system": None,
    "num_validation": 8,
    "rewriter": {},
    "agent": {},
}
# What a tiny model samples is all there is, however much of it is right.
OFFLINE = {
    "rollouts": None,
    "min_accuracy": 0.0,
    "max_accuracy": 1.0,
    "balance": False,
    "batch_size": NUM_PROBLEMS,
    "num_epochs": 1.0,
}


def dry_run(config: Config) -> dict[str, Any]:
    """Run `shrunk(config)` in a folder that is deleted afterwards; returns its summary."""
    from satori_fast.stages import run_stages

    with tempfile.TemporaryDirectory() as folder:
        return run_stages(shrunk(config, folder))


def shrunk(config: Config, output_dir: str) -> Config:
    """The config with the built-in domain, a tiny fresh model of the same family, one process, the
    embedded engine, scripted agents, and at most `NUM_STEPS` steps of reinforcement. Where no stage
    teaches the format (the run starts from a tuned checkpoint), those that do come first. Trials
    and steps are on chains, whose experts write them: the format is trials where the config's is,
    and plain (or steps, where the config's is) where steps are asked for or imitated. Else it is
    COAT, which the scripted agents of synthesis write."""
    values, format = config.model_dump(), _format(config)
    is_of_chains = format != "coat"
    if set(config.stages) - {"curate", "synthesize"}:
        # A reward model of the user's is too large, and of another vocabulary: a tiny one is made.
        first = ("supervised", *(("preference",) if config.reward.model else ()))
        if not is_of_chains:  # the experts of the chains have written their solutions
            first = ("synthesize", *first)
        if "curate" in config.stages:
            first = ("curate", *first)
        made = {*first, "synthesize"}
        values["stages"] = (*first, *(stage for stage in config.stages if stage not in made))
    values |= {"output_dir": output_dir, "name": "dry-run"}
    values["model"] |= {"path": None, **MODEL}
    values["tokenizer"]["kind"] = "words"
    values["reward"] |= {"model": None, "answer": "boxed"}
    values["data"] |= {
        "source": "chains" if is_of_chains else "arithmetic",
        "sources": (),
        "mapping": None,
        "fields": {},
        "levels": (4,) if is_of_chains else (1,),
        "num_train": NUM_PROBLEMS,
        "eval_source": None,
        "eval_mapping": None,
        "eval_fields": {},
        "template": "plain",
        "system": None,
        "format": format,
        "dialect": None,
        "max_prompt_tokens": MAX_SEQLEN // 2,
    }
    values["parallel"] |= {"tensor": 1, "pipeline": 1, "context": 1}
    values["packing"]["max_tokens_per_microbatch"] = 4 * MAX_SEQLEN
    values["rollout"] |= {
        "engine": "embedded",
        "max_seqlen": MAX_SEQLEN,
        "max_new_tokens": 128 if is_of_chains else 48,
        "max_slots": 32,
        "stop_tokens": (),
        **{key: RolloutConfig.model_fields[key].default for key in KEYS_OF_ENGINES},
    }
    values["evaluation"] |= {"num_problems": 8, "max_new_tokens": None, "benchmarks": ()}
    values["logging"] |= {"wandb": False, "prometheus_port": 0}
    _shrink_imitation(values, is_of_chains=is_of_chains)
    values["supervised"]["step_share"] = 0.5 if config.step_format else None
    _shrink_reinforcement(values, has_restarts=config.restarts_enabled and not is_of_chains)
    return Config.model_validate(values)


def _format(config: Config) -> str:
    """The format of whole problems that somebody writes for a tiny model."""
    given = config.data.format
    if config.step_format is not None:
        return given if given in ("trials", "steps") else "plain"
    return "trials" if given == "trials" else "coat"


def _shrink_imitation(values: dict[str, Any], *, is_of_chains: bool) -> None:
    """Make the stages small that write demonstrations or learn them."""
    batch_size = NUM_PROBLEMS // 4 if is_of_chains else NUM_PROBLEMS  # a chain is harder to learn
    for stage in ("supervised", "initialise", "distill"):
        values[stage] |= {"num_epochs": NUM_EPOCHS, "batch_size": batch_size}
        values[stage]["optimizer"]["learning_rate"] = 5e-3
    kind = "none" if values["curate"]["labeller"]["kind"] == "none" else "scripted"
    values["curate"]["labeller"] = {"kind": kind}
    values["synthesize"] = {
        **{"num_problems": NUM_PROBLEMS, "num_solutions": 6, "critic_share": 0.5},
        "check": values["synthesize"]["check"],
    }
    values["supervised"] |= {"source": None, "num_demonstrations": None}
    values["initialise"] |= {
        **{"num_problems": NUM_PROBLEMS, "num_samples": 4, "keep": (1.0, 1.0, 1.0, 1.0)},
        # A KL to a model that knows no verification keeps the tiny one from learning any.
        **{"kl_coefficient": min(values["initialise"]["kl_coefficient"], 0.01)},
        **{"verifier": {}, "judge": {}},
    }
    values["distill"] |= {"student": None, "num_kept": NUM_PROBLEMS}
    values["preference"] |= {"heldout_fraction": 0.5, "batch_size": NUM_PROBLEMS}


def _shrink_reinforcement(values: dict[str, Any], *, has_restarts: bool) -> None:
    """Make the stages small that sample and learn from it, online or not, and their rounds."""
    values["offline"] |= OFFLINE
    for section in ("solutions", "offline", "distill"):
        values[section] |= {"num_problems": NUM_PROBLEMS, "num_samples": 4}
    values["solutions"]["max_new_tokens"] = None
    values["srl"] |= STEPS
    for reinforce in (values["reinforce"], values["srl"]):
        reinforce |= {"num_steps": NUM_STEPS, "problems_per_step": 4}
        for key in ("samples_per_problem", "num_minibatches"):
            reinforce[key] = min(reinforce[key], 4)
        reinforce["max_sampling_rounds"] = min(reinforce["max_sampling_rounds"], 2)
        reinforce["critic_warmup_steps"] = min(reinforce["critic_warmup_steps"], 1)
    restarts = values["reinforce"]["restarts"]
    restarts["enabled"] = has_restarts
    restarts["refresh_every"] = min(restarts["refresh_every"], 1)
    values["iterate"]["rounds"] = [
        settings
        | {"num_problems": NUM_PROBLEMS, "num_kept": NUM_PROBLEMS, "num_steps": NUM_STEPS}
        | {"samples_per_problem": min(settings["samples_per_problem"] or 4, 4)}
        for settings in values["iterate"]["rounds"]
    ]
