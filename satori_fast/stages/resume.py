# SPDX-License-Identifier: Apache-2.0
"""Differences allowed between a run and its resumption: settings, and the files that they name.

A stage that has begun goes on with every setting that it reads, and with the same files behind
them. What no begun stage reads may be corrected: a wrong reward model must not cost the format
tuning before it. Not for what a run folder holds (`run_folder`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from satori_fast.config import (
    AgentConfig,
    Config,
    ConfigError,
    ReinforceConfig,
    load_config,
    to_toml,
)
from satori_fast.rewards.user import source_file
from satori_fast.stages.iterate import plan_stages
from satori_fast.storage import DamagedFile, digests

EVERY_STAGE = frozenset(
    {
        *("start", "curate", "synthesize", "supervised", "initialise", "preference"),
        *("reinforce", "offline", "srl", "distill"),
    }
)
_MOST_SHOWN = 5  # differences in a message
# Graded samples on disk, and restarts cut from them: made by the stage that needs them first.
SOLUTIONS = "solutions"
_SAMPLING = frozenset({SOLUTIONS, "initialise", "reinforce", "offline", "srl", "distill"})
_OF_AGENTS = frozenset({"curate", "synthesize"})  # no model of the run's own
_TRAINING = EVERY_STAGE - _OF_AGENTS | {SOLUTIONS}

# Kinds of stages that read a key; the longest key counts. What is not here is read by all.
READ_BY: dict[str, frozenset[str]] = {
    # Where a run lies and how it is watched.
    "name": frozenset(),
    "output_dir": frozenset(),
    "profiling": frozenset(),
    "logging": frozenset(),
    "delete_checkpoints": frozenset(),
    "save_in_background": frozenset(),
    "checkpoints_kept": frozenset(),
    # How work is spread over time and machines, and when it gives up; not what is computed.
    "parallel.offload": frozenset(),
    "parallel.timeout_s": frozenset(),
    "parallel.main_timeout_s": frozenset(),
    "parallel.grace_s": frozenset(),
    "reinforce.max_uninformative_steps": frozenset(),
    "srl.max_uninformative_steps": frozenset(),
    **{
        f"{stage}.max_skipped_updates": frozenset()
        for stage in (
            "supervised.optimizer",
            "initialise.optimizer",
            "preference.optimizer",
            "reinforce.optimizer",
            "reinforce.critic_optimizer",
            "offline.optimizer",
            "srl.optimizer",
            "srl.critic_optimizer",
            "distill.optimizer",
        )
    },
    "rollout.server_lease_s": frozenset(),
    "rollout.server_url": frozenset(),
    "rollout.server_args": frozenset(),
    "rollout.server_devices": frozenset(),
    "rollout.server_allow_public": frozenset(),
    "rollout.server_start_timeout_s": frozenset(),
    "rollout.max_engine_restarts": frozenset(),
    "rollout.gpu_memory_share": frozenset(),
    "rollout.sleep": frozenset(),
    "rollout.sync_route": frozenset(),
    "rollout.sync_folder": frozenset(),
    "rollout.sync_bucket_mib": frozenset(),
    "rollout.sync_timeout_s": frozenset(),
    "reward.num_workers": frozenset(),
    "reward.function_timeout_s": frozenset(),
    "curate.num_concurrent": frozenset(),
    "synthesize.num_concurrent": frozenset(),
    "initialise.num_concurrent": frozenset(),
    "srl.num_concurrent": frozenset(),
    **{
        f"{role}.{key}": frozenset()
        for role in (
            "curate.labeller",
            "synthesize.generator",
            "synthesize.critic",
            "synthesize.reward_model",
            "initialise.verifier",
            "initialise.judge",
            "srl.rewriter",
        )
        for key in (
            "url",
            "api_key_variable",
            "max_concurrency",
            "requests_per_minute",
            "tokens_per_minute",
            "timeout_s",
            "max_retries",
            "prompt_price",
            "completion_price",
            "gpu_memory_share",
        )
    },
    # Settings of single stages.
    "stages": frozenset(),  # compared by name: the stages that have begun stay where they are
    "iterate": frozenset({"iterate"}),
    "curate": frozenset({"curate"}),
    "synthesize": frozenset({"synthesize"}),
    "supervised": frozenset({"supervised"}),
    "initialise": frozenset({"initialise"}),
    "solutions": frozenset({SOLUTIONS, "preference", "reinforce"}),
    "preference": frozenset({"preference"}),
    "reinforce": frozenset({"reinforce"}),
    "reinforce.restarts": frozenset({"reinforce", SOLUTIONS}),
    "offline": frozenset({"offline"}),
    "srl": frozenset({"srl"}),
    # How a step is asked for: format tuning imitates steps too.
    "srl.tell_title": frozenset({"srl", "supervised"}),
    "srl.template": frozenset({"srl", "supervised"}),
    "srl.system": frozenset({"srl", "supervised"}),
    "distill": frozenset({"distill"}),
    "reward.model": frozenset({"reinforce"}),
    "reward.rule_weight": frozenset({"reinforce"}),
    "reward.reflection_bonus": frozenset({"reinforce"}),
    "reward.preference_weight": frozenset({"reinforce"}),
    "reward.normalize_preference": frozenset({"reinforce"}),
    "reward.functions": frozenset({"reinforce"}),
    "rollout.temperature": _SAMPLING,
    "rollout.top_k": _SAMPLING,
    "rollout.top_p": _SAMPLING,
    "rollout.request_seeds": _SAMPLING,
    "rollout.max_step_tokens": frozenset({"reinforce", "srl"}),
    "rollout.max_logprob_diff": frozenset({"reinforce", "offline", "srl"}),
    "rollout": _TRAINING,
    "packing": EVERY_STAGE - _OF_AGENTS,
    "evaluation.at_start": frozenset(),  # it is a stage of its own
    "evaluation": EVERY_STAGE - _OF_AGENTS,
}


def read_config(path: Path) -> Config:
    """The config.toml of a run folder; ConfigError, naming it, when it is damaged."""
    if not path.exists():
        raise ConfigError(f"{path} is missing: {REMEDY}")
    try:
        return load_config(path)
    except ConfigError as error:
        raise ConfigError(f"{path} is damaged or of another version ({error}): {REMEDY}") from None


def readers(key: str) -> frozenset[str]:
    """Kinds of stages that read a key of the config, in dots."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        found = READ_BY.get(".".join(parts[:length]))
        if found is not None:
            return found
    return EVERY_STAGE | {SOLUTIONS, "iterate"}


def check_settings(earlier: Config, now: Config, begun: Collection[str]) -> list[str]:
    """Settings that differ, for the log; ConfigError for one that a begun stage has read.

    earlier: of the run folder. begun: names of the stages that have begun, `SOLUTIONS` among them
    when there are samples of a stage that has not.
    """
    kinds = begun_kinds(earlier, begun)
    names = [[plan.name for plan in plan_stages(config)] for config in (earlier, now)]
    old, new = names[0], names[1]
    if begun and ("start" in old) != ("start" in new):
        raise ConfigError(
            f"evaluation.at_start = {str(now.evaluation.at_start).lower()}: this run has begun with"
            " another value; resume with the same one, or choose another --name"
        )
    for place, stage in enumerate(old):
        if stage in begun and new[place : place + 1] != [stage]:
            raise ConfigError(
                f"stages = {list(now.stages)}: this run has begun with {list(earlier.stages)}; "
                f"keep {stage} in its place, or choose another --name"
            )
    if now.tokenizer.kind == "words" and now.step_format and not earlier.step_format:
        raise ConfigError(
            f"stages = {list(now.stages)}: step problems have words that the tokenizer of this run "
            f"was made without, with {list(earlier.stages)}; choose another --name"
        )
    differences: list[str] = []
    refused: list[str] = []
    relying: set[str] = set()
    before, after = dict(_flat(earlier)), dict(_flat(now))
    for key in sorted({*before, *after}):
        if before.get(key) == after.get(key):
            continue
        difference = f"{key}: {_shown(before.get(key))} there, {_shown(after.get(key))} here"
        relied = readers(key) & kinds
        if relied and not _adds_steps(key, earlier, now, begun):
            refused.append(difference)
            relying |= relied
        differences.append(difference)
    if refused:
        more = f" and {len(refused) - _MOST_SHOWN} more" if len(refused) > _MOST_SHOWN else ""
        value = "value" if len(refused) == 1 else "values"
        raise ConfigError(
            f"the run folder differs from this config in {'; '.join(refused[:_MOST_SHOWN])}{more}; "
            f"{' and '.join(sorted(relying))} went by it: resume with the same {value}, or choose "
            "another --name"
        )
    return differences


def _adds_steps(key: str, earlier: Config, now: Config, begun: Collection[str]) -> bool:
    """Whether a key that differs only makes the last stage that has begun longer: nothing that was
    computed depends on it, unless a learning rate was laid out over all steps."""
    stage, _, name = key.partition(".")
    if name != "num_steps" or stage not in begun or stage not in ("reinforce", "srl"):
        return False
    names = [plan.name for plan in plan_stages(earlier)]
    is_last = not set(names[names.index(stage) + 1 :]) & set(begun)
    old: ReinforceConfig = getattr(earlier, stage)
    rates = (old.optimizer, old.critic_optimizer)
    is_constant = all(rate.schedule == "constant" for rate in rates)
    return is_last and is_constant and getattr(now, stage).num_steps > old.num_steps


def lengthened(earlier: Config, now: Config, finished: Sequence[str]) -> str | None:
    """The last of the finished stages, where it is to take more steps than it did."""
    stage = finished[-1] if finished else ""
    if stage not in ("reinforce", "srl"):
        return None
    more: int = getattr(now, stage).num_steps - getattr(earlier, stage).num_steps
    return stage if more > 0 else None


def input_digests(config: Config) -> dict[str, dict[str, Any]]:
    """Digests of each key that names a local file or model folder: path, SHA-256 by file name."""
    found: dict[str, dict[str, Any]] = {}
    for key, path in _inputs(config):
        if path.is_file():
            found[key] = {"path": str(path), "files": digests(path)}
        elif path.is_dir():
            names = sorted(
                p.name
                for p in path.iterdir()
                if p.is_file() and p.suffix in (".safetensors", ".json", ".txt", ".jinja", ".model")
            )
            found[key] = {"path": str(path), "files": digests(path, names)}
    return found


def check_inputs(
    earlier: Mapping[str, Any], now: Mapping[str, Any], kinds: Collection[str]
) -> None:
    """ConfigError, naming the file, when what a begun stage reads has another content than before.

    earlier, now: of `input_digests`; a key whose path differs is the settings' affair.
    """
    for key, known in earlier.items():
        found = now.get(key)
        if not readers(key) & set(kinds) or (found and found["path"] != known["path"]):
            continue
        if found is None:
            raise ConfigError(f"{key}: {known['path']} is gone since the run began: bring it back")
        if found["files"] == known["files"]:
            continue
        names = sorted({*found["files"], *known["files"]})
        name = next(n for n in names if found["files"].get(n) != known["files"].get(n))
        raise ConfigError(
            f"{key}: {Path(known['path']) / name} is not what it was when the run began: bring "
            "the old content back, or start a new run under another --name"
        )


def check_artefacts(folder: Path, known: Mapping[str, Mapping[str, str]]) -> None:
    """ConfigError, naming the file, when something that the run made is not as it was written.

    known: SHA-256 by file name, by path in the run folder.
    """
    for name, files in known.items():
        place = folder / name
        try:
            found = digests(place, list(files))
        except DamagedFile as error:
            raise ConfigError(f"{error}: {REMEDY}") from None
        for file_name, recorded in files.items():
            if found[file_name] != recorded:
                raise ConfigError(f"{place / file_name} is not what this run wrote: {REMEDY}")


REMEDY = "restore it from a copy, or start a new run under another --name"


def begun_kinds(config: Config, begun: Collection[str]) -> set[str]:
    """Kinds of the stages that have begun, as `readers` names them; rounds are "iterate" too."""
    kinds = {SOLUTIONS} & set(begun)
    for plan in plan_stages(config):
        if plan.name in begun:
            kinds |= {plan.kind} | ({"iterate"} if plan.name != plan.kind else set())
    return kinds


def _flat(config: Config) -> Iterator[tuple[str, Any]]:
    yield from _flattened(tomllib.loads(to_toml(config)), "")


def _flattened(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flattened(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shown(value: Any) -> str:
    return "none" if value is None else repr(value)


def _inputs(config: Config) -> Iterator[tuple[str, Path]]:
    """Keys that name files or folders, with the path that they name; a reward function's file is
    under "reward.functions.NAME"."""
    named = {
        "model.path": config.model.path,
        "data.source": config.data.source or None,
        **{f"data.sources.{n}": each.source for n, each in enumerate(config.data.sources)},
        "data.eval_source": config.data.eval_source,
        "supervised.source": config.supervised.source,
        "srl.expert": config.srl.expert,
        "reward.model": config.reward.model,
        "distill.student": config.distill.student,
        "reinforce.rollouts": config.reinforce.rollouts,
        "offline.rollouts": config.offline.rollouts,
    }
    synthesize, initialise = config.synthesize, config.initialise
    agents: dict[str, AgentConfig] = {
        "curate.labeller": config.curate.labeller,
        "synthesize.generator": synthesize.generator,
        "synthesize.critic": synthesize.critic,
        "synthesize.reward_model": synthesize.reward_model,
        "initialise.verifier": initialise.verifier,
        "initialise.judge": initialise.judge,
        "srl.rewriter": config.srl.rewriter,
    }
    for role, agent in agents.items():
        if agent.kind in ("embedded", "vllm", "scalar"):
            named[f"{role}.model"] = agent.model
    for function in config.reward.functions:
        file = source_file(function.path)
        named[f"reward.functions.{function.term}"] = None if file is None else str(file)
    for key, path in named.items():
        if path is not None:
            yield key, Path(path).expanduser()
