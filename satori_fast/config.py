# SPDX-License-Identifier: Apache-2.0
"""Configuration: frozen sections, TOML files, command-line overrides. Importable without torch.

One config describes a whole run: the model, the data, and one section for each stage in `stages`
(`config_sections` and `config_stages` hold the keys). It is checked once, here, before anything
heavy loads: an unknown or ill-typed key is one line that names the key, the file and the nearest
valid key.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date, time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args, get_origin

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from satori_fast.config_agents import AgentConfig, CurateConfig, RewriterConfig, SynthesizeConfig
from satori_fast.config_checks import (
    check_actions,
    check_answers,
    check_curation,
    check_distillation,
    check_experience,
    check_format,
    check_imitation,
    check_inputs,
    check_layout,
    check_lengths,
    check_offline,
    check_reinforcement,
    check_restarts,
    check_reward_model,
    check_rewards,
    check_samples,
    dialect_of,
    format_named,
    format_of,
    has_restarts,
    recipe_of,
)
from satori_fast.config_data import (
    DataConfig,
    FieldsConfig,
    SourceConfig,
    drop_replaced_sources,
    with_tokenizer_kind,
)
from satori_fast.config_sections import (
    KEYS_OF_ENGINES,
    BenchmarkConfig,
    EvaluationConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    PackingConfig,
    ParallelConfig,
    ProfilingConfig,
    RewardConfig,
    RolloutConfig,
    Section,
    TokenizerConfig,
)
from satori_fast.config_srl import AgentStepsConfig, SrlConfig
from satori_fast.config_srl_checks import check_steps, check_warm_up
from satori_fast.config_stages import (
    DistillConfig,
    ImitationConfig,
    InitialiseConfig,
    IterateConfig,
    OfflineConfig,
    PreferenceConfig,
    ReinforceConfig,
    RestartConfig,
    RoundConfig,
    SolutionsConfig,
    StageName,
    SupervisedConfig,
    stage_names,
)
from satori_fast.config_text import describe, to_toml, toml_value
from satori_fast.redaction import redacted

if TYPE_CHECKING:
    from satori_fast.data.formats import ResponseFormat

__all__ = [
    "KEYS_OF_ENGINES",
    "SCHEMA_VERSION",
    "AgentConfig",
    "AgentStepsConfig",
    "BenchmarkConfig",
    "Config",
    "ConfigError",
    "CurateConfig",
    "DataConfig",
    "DistillConfig",
    "FieldsConfig",
    "ImitationConfig",
    "InitialiseConfig",
    "LoggingConfig",
    "OfflineConfig",
    "OptimizerConfig",
    "PreferenceConfig",
    "ProfilingConfig",
    "ReinforceConfig",
    "RestartConfig",
    "RewardConfig",
    "RewriterConfig",
    "RolloutConfig",
    "RoundConfig",
    "SolutionsConfig",
    "SourceConfig",
    "SrlConfig",
    "StageName",
    "describe",
    "load_config",
    "parse_overrides",
    "stage_names",
    "to_toml",
]

SCHEMA_VERSION = 1
MAX_NAME_BYTES = 200

Values = Mapping[str, Any]


class Config(Section):
    schema_version: int = SCHEMA_VERSION
    """version of the config's format"""
    name: str = "run"
    """name of the run folder, output_dir/name; at most 200 bytes"""
    output_dir: str = "runs"
    """folder in which run folders are made"""
    seed: int = Field(default=0, ge=0)
    """seed of the run: every random choice derives from it and a counter"""
    delete_checkpoints: bool = False
    """delete the checkpoints of finished stages: their models stay, and get no more steps"""
    save_in_background: bool = True
    """write checkpoints while training goes on; until then their copy takes host memory"""
    checkpoints_kept: int = Field(default=2, gt=0)
    """newest checkpoints of a stage that are kept"""
    stages: tuple[StageName, ...] = Field(default=("supervised", "reinforce"), strict=False)
    """stages of the run, in order"""
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    parallel: ParallelConfig = ParallelConfig()
    packing: PackingConfig = PackingConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    curate: CurateConfig = CurateConfig()
    synthesize: SynthesizeConfig = SynthesizeConfig()
    supervised: SupervisedConfig = SupervisedConfig()
    initialise: InitialiseConfig = InitialiseConfig()
    solutions: SolutionsConfig = SolutionsConfig()
    preference: PreferenceConfig = PreferenceConfig()
    srl: SrlConfig = SrlConfig()
    reinforce: ReinforceConfig = ReinforceConfig()
    offline: OfflineConfig = OfflineConfig()
    distill: DistillConfig = DistillConfig()
    iterate: IterateConfig = IterateConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    profiling: ProfilingConfig = ProfilingConfig()
    logging: LoggingConfig = LoggingConfig()

    @field_validator("name")
    @classmethod
    def _is_one_folder_name(cls, name: str) -> str:
        if (
            name in ("", ".", "..")
            or name != name.strip()
            or "/" in name
            or "\\" in name
            or not name.isprintable()
            or len(name.encode()) > MAX_NAME_BYTES
        ):
            raise ValueError(
                "the run folder is output_dir/name: give one folder name, without / or \\, line "
                f"breaks or spaces around it, of at most {MAX_NAME_BYTES} bytes, not . or .."
            )
        return name

    @model_validator(mode="before")
    @classmethod
    def _has_a_tokenizer(cls, values: Any) -> Any:
        return with_tokenizer_kind(values)

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if not self.stages or len(set(self.stages)) < len(self.stages):
            raise ValueError(
                f"stages = {list(self.stages)}: list each of {stage_names()} at most once, "
                "and at least one"
            )
        if "iterate" in self.stages and not self.iterate.rounds:
            raise ValueError("iterate.rounds is empty: list a round, or take iterate out of stages")
        for settings in (self.reinforce, self.srl):
            recipe_of(settings)  # a name that is in the table, in every config
        check_curation(self.stages)
        check_inputs(self.stages, self.model, self.tokenizer, self.data, supervised=self.supervised)
        has_steps = self.step_format is not None
        check_format(self.stages, self.tokenizer, self.data, has_steps=has_steps)
        check_lengths(self.stages, self.rollout, self.packing, self.data)
        check_layout(self.rollout, self.parallel)
        check_samples(self.stages, self.rollout, self.solutions, self.reinforce)
        check_reward_model(self.stages, self.reward, self.reinforce)
        check_answers(self.reward, self.data)
        check_rewards(self.stages, self.reward)
        rounds = self.iterate.rounds if "iterate" in self.stages else ()
        if "reinforce" in self.stages:
            check_reinforcement(self.reinforce, self.rollout)
            check_experience(self.reinforce, self.rollout)
            check_actions(self.data, self.reinforce)
            check_restarts(self.data, self.reinforce.restarts)
        if "srl" in self.stages:
            check_reinforcement(self.srl, self.rollout)
            check_steps(self.srl, self.data, self.tokenizer)
            check_experience(self.srl, self.rollout)
        check_warm_up(self.stages, self.supervised, self.data)
        if "supervised" in self.stages:
            check_imitation("supervised", self.supervised, self.data)
        if "distill" in self.stages or rounds:
            check_imitation("distill", self.distill, self.data)
        if "offline" in self.stages:
            check_offline(self.offline, self.rollout, self.data)
        if "distill" in self.stages:
            check_distillation(self.distill, self.rollout)
        for number, settings in enumerate(rounds):
            where = f" (iterate.rounds.{number})"
            check_distillation(settings.distillation(self.distill), self.rollout, where=where)
            check_reinforcement(
                settings.reinforcement(self.reinforce),
                settings.sampling(self.rollout),
                where=where,
            )
            check_restarts(self.data, settings.reinforcement(self.reinforce).restarts, where=where)
            check_actions(self.data, settings.reinforcement(self.reinforce), where=where)
        return self

    @property
    def restarts_enabled(self) -> bool:
        """Whether reinforcement mixes restarts in: as set, or else where the format has them; never
        into rollouts that are stored."""
        is_online = self.reinforce.source == "online"
        return is_online and has_restarts(self.data, self.reinforce.restarts)

    @property
    def dialect(self) -> str:
        """Name of the dialect of responses: as set, or else the one that fits the tokenizer."""
        return dialect_of(self.data, self.tokenizer)

    @property
    def response_format(self) -> ResponseFormat:
        """The format of responses that `data.format` names, in the dialect of the tokenizer."""
        return format_of(self.data, self.tokenizer)

    @property
    def step_format(self) -> ResponseFormat | None:
        """The format of responses to step problems, None where no stage asks for steps."""
        imitates = "supervised" in self.stages and self.supervised.step_share is not None
        if "srl" not in self.stages and not imitates:
            return None
        return format_named("steps").in_dialect(self.dialect)

    @classmethod
    def example(cls) -> Config:
        """The defaults, for the built-in domain: what `satori-fast show` prints without a file."""
        return cls(data=DataConfig(num_train=1000))


class ConfigError(ValueError):
    """A configuration that cannot run; the message is one line for the user."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, apply ``--section.key value`` overrides, check everything.

    A file may start from another one: ``base = "../quickstart.toml"``, relative to itself.
    Raises ConfigError with one line that names the key and the file (or the command line).
    """
    path = Path(path)
    values, texts = _read(path, seen=()), _override_texts(overrides)
    drop_replaced_sources(values.get("data", {}), [key.removeprefix("data.") for key in texts])
    for key, text in texts.items():
        value = _override_value(text)
        if not isinstance(value, str) and _takes_text_only(key):
            value = text  # --name 2026-11-28 is a name, not a date
        _assign(values, key.split("."), value)
        _check_keys(values, Config, source="command line")
    values = _with_whole_paths(values, Path.cwd())
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from None


def _read(path: Path, *, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The values of a file on top of those of its base, keys checked file by file."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: base leads back to the file itself")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder: name a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: schema_version is {version!r}, this satori_fast reads {SCHEMA_VERSION}: "
            "set it after checking the keys against `satori-fast show`"
        )
    base = values.pop("base", None)
    _check_keys(values, Config, source=str(path))
    values = _with_whole_paths(values, path.parent)
    if base is None:
        return values
    under = _read(path.parent / str(base), seen=(*seen, path.resolve()))
    drop_replaced_sources(under.get("data", {}), values.get("data", {}))
    return _merged(under, values)


def _with_whole_paths(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Files of reward functions relative to `folder` by their whole path, so that the run folder's
    config.toml finds them. What is no path is left to the checks to come."""
    reward = values.get("reward")
    if not isinstance(reward, Mapping):
        return values
    section = cast(Values, reward)
    functions = section.get("functions")
    if not isinstance(functions, list):
        return values
    found: list[Any] = []
    for function in cast(list[Any], functions):
        keys: Values = cast(Values, function) if isinstance(function, Mapping) else {}
        place, _, name = str(keys.get("path", "")).rpartition(":")
        if place.endswith(".py"):
            file = os.path.normpath((folder / Path(place).expanduser()).absolute())
            found.append({**keys, "path": f"{file}:{name}"})
        else:
            found.append(function)
    return {**values, "reward": {**section, "functions": found}}


def _merged(under: Values, over: Values) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = _merged(cast(Values, below), cast(Values, value))
        merged[key] = value
    return merged


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """``["--a.b", "3", "--c=x"]`` to ``{"a.b": 3, "c": "x"}``; values are TOML, else plain text."""
    return {key: _override_value(text) for key, text in _override_texts(arguments).items()}


def _override_texts(arguments: Sequence[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise ConfigError(f"command line: {word!r} is not of the form --section.key value")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"command line: --{key} has no value")
            text = rest.pop(0)
        texts[key] = text
    return texts


def _override_value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _takes_text_only(key: str) -> bool:
    """Whether a key, in dots, exists and holds a text (or nothing), and nothing else."""
    section: type[Section] | None = Config
    *above, last = key.split(".")
    for name in above:
        info = section.model_fields.get(name)
        section = None if info is None or _is_list(info) else _section_type(info)
        if section is None:
            return False
    info = section.model_fields.get(last)
    kind: Any = None if info is None else info.annotation
    return kind in (str, str | None)


def _check_keys(
    values: Mapping[str, Any], section: type[Section], *, source: str, at: str = ""
) -> None:
    """Unknown keys, with the nearest valid one. pydantic would report them without a suggestion."""
    fields = section.model_fields
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"{source}: unknown key {at}{key}; the nearest valid key is {at}{near}"
            )
        inner = _section_type(fields[key])
        if inner is not None:
            is_list = _is_list(fields[key])
            if is_list and not isinstance(value, list | tuple):
                raise ConfigError(
                    f"{source}: {at}{key} is a list of sections: write [[{at}{key}]] above each"
                )
            tables = cast(Sequence[Any], value) if is_list else cast(Sequence[Any], [value])
            for table in tables:
                if not isinstance(table, Mapping):
                    raise ConfigError(f"{source}: {at}{key} is a section, not a value")
                _check_keys(cast(Values, table), inner, source=source, at=f"{at}{key}.")


def _is_list(info: FieldInfo) -> bool:
    return get_origin(info.annotation) is tuple


def _section_type(info: FieldInfo) -> type[Section] | None:
    """The section that a field holds, one or (`[[section.key]]` in TOML) a list of them."""
    kind = get_args(info.annotation)[0] if _is_list(info) else info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _assign(values: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"command line: {'.'.join(path)}: {name} is not a section")
        values = cast(dict[str, Any], inner)
    values[path[-1]] = value


def _first_line(error: ValidationError) -> str:
    detail = error.errors()[0]
    key = ".".join(str(part) for part in detail["loc"])
    message, value = detail["msg"].removeprefix("Value error, "), detail["input"]
    if detail["type"] == "string_type" and isinstance(value, bool | int | float | date | time):
        text = toml_value(value)
        return f'{key} = {text}: a text is needed; put it in quotes: {key} = "{text}"'
    # What a whole section gets wrong is a message that names its keys.
    names_its_keys = detail["type"] == "value_error" and isinstance(value, Mapping)
    whole = not key or names_its_keys
    return redacted(message if whole else f"{key} = {value!r}: {message}")
