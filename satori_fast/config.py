# SPDX-License-Identifier: Apache-2.0
"""Configuration: frozen sections, TOML files, command-line overrides. Importable without torch.

One config describes a whole run: the model, the data, and one section for each stage in `stages`
(`config_sections` and `config_stages` hold the keys). It is checked once, here, before anything
heavy loads: an unknown or ill-typed key is one line that names the key, the file and the nearest
valid key.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

from pydantic import Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from satori_fast.config_sections import (
    DataConfig,
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
from satori_fast.config_stages import (
    AgentConfig,
    DistillConfig,
    ImitationConfig,
    IterateConfig,
    PreferenceConfig,
    ReinforceConfig,
    RestartConfig,
    RoundConfig,
    SolutionsConfig,
    SupervisedConfig,
    SynthesizeConfig,
)
from satori_fast.redaction import redacted

__all__ = [
    "SCHEMA_VERSION",
    "AgentConfig",
    "Config",
    "ConfigError",
    "DistillConfig",
    "ImitationConfig",
    "LoggingConfig",
    "OptimizerConfig",
    "PreferenceConfig",
    "ProfilingConfig",
    "ReinforceConfig",
    "RestartConfig",
    "RewardConfig",
    "RolloutConfig",
    "RoundConfig",
    "SolutionsConfig",
    "StageName",
    "describe",
    "load_config",
    "parse_overrides",
    "stage_names",
    "to_toml",
]

SCHEMA_VERSION = 1

StageName = Literal["synthesize", "supervised", "preference", "reinforce", "distill", "iterate"]
Values = Mapping[str, Any]


class Config(Section):
    schema_version: int = SCHEMA_VERSION
    """version of this file's format"""
    name: str = "run"
    """the run folder is output_dir/name"""
    output_dir: str = "runs"
    """where run folders are made"""
    seed: int = Field(default=0, ge=0)
    """every random choice derives from it and a counter"""
    stages: tuple[StageName, ...] = Field(default=("supervised", "reinforce"), strict=False)
    """what to do, in order"""
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    parallel: ParallelConfig = ParallelConfig()
    packing: PackingConfig = PackingConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    synthesize: SynthesizeConfig = SynthesizeConfig()
    supervised: SupervisedConfig = SupervisedConfig()
    solutions: SolutionsConfig = SolutionsConfig()
    preference: PreferenceConfig = PreferenceConfig()
    reinforce: ReinforceConfig = ReinforceConfig()
    distill: DistillConfig = DistillConfig()
    iterate: IterateConfig = IterateConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    profiling: ProfilingConfig = ProfilingConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if not self.stages or len(set(self.stages)) < len(self.stages):
            raise ValueError(
                f"stages = {list(self.stages)}: list each of {stage_names()} at most once, "
                "and at least one"
            )
        if self.rollout.max_seqlen > self.packing.max_tokens_per_microbatch:
            raise ValueError(
                f"packing.max_tokens_per_microbatch = {self.packing.max_tokens_per_microbatch} is "
                f"below rollout.max_seqlen = {self.rollout.max_seqlen}: a full sequence must fit"
            )
        longest_pair = 2 * self.rollout.max_seqlen
        if "preference" in self.stages and (longest_pair > self.packing.max_tokens_per_microbatch):
            raise ValueError(
                f"packing.max_tokens_per_microbatch = {self.packing.max_tokens_per_microbatch} is "
                f"below {longest_pair}: two sequences of rollout.max_seqlen must fit, a preference "
                "pair"
            )
        if self.data.max_prompt_tokens >= self.rollout.max_seqlen:
            raise ValueError(
                f"data.max_prompt_tokens = {self.data.max_prompt_tokens} leaves no room for a "
                f"response in rollout.max_seqlen = {self.rollout.max_seqlen}"
            )
        if self.model.path is None and self.tokenizer.kind == "model":
            raise ValueError(
                'tokenizer.kind = "model" needs model.path: set it, or choose "words" or "bpe"'
            )
        if self.reinforce.recipe != "ppo" and self.reinforce.samples_per_problem < 2:
            raise ValueError(
                f"reinforce.samples_per_problem = 1 leaves recipe {self.reinforce.recipe!r} "
                "nothing to compare: take at least 2"
            )
        if self.data.source == "arithmetic" and self.data.num_train is None:
            raise ValueError("data.num_train is missing: the built-in domain has no end")
        return self

    @classmethod
    def example(cls) -> Config:
        """The defaults, for the built-in domain: what `satori-fast show` prints without a file."""
        return cls(data=DataConfig(num_train=1000), tokenizer=TokenizerConfig(kind="words"))


def stage_names() -> tuple[str, ...]:
    return get_args(StageName)


class ConfigError(ValueError):
    """A configuration that cannot run; the message is one line for the user."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, apply ``--section.key value`` overrides, check everything.

    A file may start from another one: ``base = "../quickstart.toml"``, relative to itself.
    Raises ConfigError with one line that names the key and the file (or the command line).
    """
    path = Path(path)
    values = _read(path, seen=())
    for key, value in parse_overrides(overrides).items():
        _assign(values, key.split("."), value)
        _check_keys(values, Config, source="command line")
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
    if base is None:
        return values
    return _merged(_read(path.parent / str(base), seen=(*seen, path.resolve())), values)


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
    values: dict[str, Any] = {}
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
        try:
            values[key] = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            values[key] = text
    return values


def to_toml(config: Config) -> str:
    """The resolved config as TOML that `load_config` reads back to an equal one."""
    lines: list[str] = []
    _write_section(lines, config.model_dump(mode="json"), [])
    return "\n".join(lines).strip() + "\n"


def describe(config: Config) -> list[tuple[str, str, str]]:
    """Rows (key, value, meaning) of the resolved tree, for `satori-fast show`."""
    return _describe(config, "")


def _describe(section: Section, prefix: str) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            rows += _describe(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, _toml_value(value), info.description or ""))
    return rows


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
            tables = cast(Sequence[Any], value) if _is_list(fields[key]) else [value]
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
    message = detail["msg"].removeprefix("Value error, ")
    return redacted(f"{key} = {detail['input']!r}: {message}" if key else message)


def _write_section(lines: list[str], values: Mapping[str, Any], path: list[str]) -> None:
    inner: dict[str, Values] = {k: v for k, v in values.items() if isinstance(v, Mapping)}
    if path:
        lines += ["", f"[{'.'.join(path)}]"]
    for key, value in values.items():
        # TOML has no null: a key that is absent takes its default, which is None for all of ours.
        if key not in inner and value is not None:
            lines.append(f"{key} = {_toml_value(value)}")
    for key, value in inner.items():
        _write_section(lines, value, [*path, key])


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A TOML string escapes what a JSON string does, and DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Section):
        value = value.model_dump(mode="json")
    if isinstance(value, Mapping):
        fields = cast(Values, value).items()
        return (
            "{ " + ", ".join(f"{k} = {_toml_value(v)}" for k, v in fields if v is not None) + " }"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml_value, cast(Sequence[Any], value))) + "]"
    return "none" if value is None else repr(value)
