# SPDX-License-Identifier: Apache-2.0
"""The section `data` of a configuration: which problems, read from where, asked in which form.

Not for how a data set is read (`data.sources`) nor for settings that contradict other sections
(`config_checks`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from pydantic import Field, field_validator, model_validator

from satori_fast.config_sections import Section

if TYPE_CHECKING:
    from satori_fast.data.field_mappings import FieldMapping


class FieldsConfig(Section):
    question: str | None = None
    """field of the question, or the path to it in a nested one, such as "prompt[0].content" or
    "prompt[-1].content" """
    answer: str | None = None
    """field or path of the answer: the answer itself, or a text with it in a box or after ####"""
    response: str | None = None
    """field or path of a worked solution, for demonstrations; None: there is none"""

    @field_validator("question", "answer", "response")
    @classmethod
    def _are_paths(cls, name: str | None) -> str | None:
        from satori_fast.data.field_paths import steps_of  # needs numpy

        if name is not None:
            steps_of(name)
        return name

    @model_validator(mode="after")
    def _are_whole(self) -> Self:
        if (self.question is None) != (self.answer is None) or (self.response and not self.answer):
            raise ValueError("name both the question and the answer of a data set, or neither")
        return self

    @property
    def mapping(self) -> FieldMapping | None:
        """The field mapping that the keys say, None where they say none."""
        from satori_fast.data.field_mappings import FieldMapping

        if self.question is None or self.answer is None:
            return None
        return FieldMapping(self.question, self.answer, "any", response=self.response)


class SourceConfig(Section):
    source: str
    """data set of a pool: a .jsonl, .json or .csv (or .gz) or .parquet file, or a hub name"""
    mapping: str | None = None
    """field mapping of the data set (see data.sources.FIELD_MAPPINGS); None: by its name, or by
    columns such as question and answer"""
    fields: FieldsConfig = FieldsConfig()
    """fields of the data set, in place of a mapping"""
    weight: float = Field(default=1.0, gt=0)
    """share of the pool, relative: probability with which its next problem comes from this data
    set, among those that have one left"""

    @model_validator(mode="after")
    def _is_read_one_way(self) -> Self:
        _check_one_mapping("mapping", self.mapping, "fields", self.fields)
        return self

    @property
    def read_as(self) -> FieldMapping | str | None:
        """The fields to read, the name of a mapping, or None: found from the data set itself."""
        return self.fields.mapping or self.mapping


class DataConfig(Section):
    source: str = "arithmetic"
    """data set: arithmetic, chains or word_problems (built in), a .jsonl, .json or .csv (or .gz) or
    .parquet file, or a hub name; empty with sources"""
    sources: tuple[SourceConfig, ...] = Field(default=(), strict=False)
    """several data sets, mixed into one pool, in place of source and mapping"""
    mapping: str | None = None
    """field mapping of the data set (see data.sources.FIELD_MAPPINGS); None: by its name, or by
    columns such as question and answer"""
    fields: FieldsConfig = FieldsConfig()
    levels: tuple[int, ...] = Field(default=(3,), strict=False)  # TOML lists
    """levels of difficulty of the built-in domain (arithmetic: 1 to 5, chains: 4 to 16 operations,
    word_problems: 1 to 3 steps, 4 and 5 with a number too many, 6 to 8 as 1 to 3 with numbers up to
    20, 9 to 11 up to 10), mixed evenly"""
    num_train: int | None = Field(default=None, gt=0)
    """training problems to use; None: all (built-in domain: needed)"""
    eval_source: str | None = None
    """file with held-out problems; None: the built-in domain's held-out half, or a hash split"""
    eval_mapping: str | None = None
    """field mapping of the file with held-out problems; None: data.fields where set, else by its
    name, or by columns such as question and answer"""
    eval_fields: FieldsConfig = FieldsConfig()
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)
    """share of the data set that is held out, by hash, when there is no eval_source"""
    template: Literal["satori", "plain", "chat"] = "satori"
    """prompt template: satori (the paper's Template 3), plain (the question and a line break), or
    chat (the tokenizer's own chat template)"""
    system: str | None = None
    """system message before the question, for template = "chat"; None: none"""
    format: str = "coat"
    """format of responses: coat (Satori's meta actions), trials (S2R's solutions and verifications)
    or plain (a response is one segment)"""
    dialect: Literal["paper", "words"] | None = None
    """format = "trials": separators and verdicts: paper (S2R's sentences) or words (wait, again,
    right, wrong); None: words for tokenizer.kind = "words", else paper"""
    max_prompt_tokens: int = Field(default=1024, gt=0)
    """length limit of prompts, tokens; longer ones are filtered out, never cut"""

    @model_validator(mode="before")
    @classmethod
    def _sources_replace_the_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("sources"):
            return {"source": "", **values}
        return values

    @model_validator(mode="after")
    def _has_one_kind_of_source(self) -> Self:
        if not self.sources and not self.source:
            raise ValueError("data.source is empty: name a data set, or list some in data.sources")
        if self.sources and (self.source or self.mapping or self.fields.question):
            given = f"source = {self.source!r}" if self.source else f"mapping = {self.mapping!r}"
            given = given if self.source or self.mapping else "fields"
            raise ValueError(
                f"data.{given} beside data.sources, which have their own: take one of the two out"
            )
        _check_one_mapping("mapping", self.mapping, "fields", self.fields)
        _check_one_mapping("eval_mapping", self.eval_mapping, "eval_fields", self.eval_fields)
        if self.eval_source is None and self.eval_fields.question is not None:
            raise ValueError("data.eval_fields need data.eval_source: set it, or take them out")
        names = [each.source for each in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"data.sources lists {name!r} twice: give it one entry, a weight")
        return self

    @property
    def pool(self) -> tuple[SourceConfig, ...]:
        """The data sets of the training problems, one or several."""
        one = SourceConfig(source=self.source, mapping=self.mapping, fields=self.fields)
        return self.sources or (one,)

    @property
    def benchmark(self) -> SourceConfig | None:
        """The data set of held-out problems, None where they are held out of the pool."""
        if self.eval_source is None:
            return None
        mapping, fields = self.eval_mapping, self.eval_fields
        if mapping is None and fields.question is None:
            fields = self.fields
        return SourceConfig(source=self.eval_source, mapping=mapping, fields=fields)

    @property
    def named(self) -> str:
        """The names of the data sets, for messages."""
        return " + ".join(each.source for each in self.pool)


def _check_one_mapping(key: str, mapping: str | None, other: str, fields: FieldsConfig) -> None:
    if mapping is not None and fields.question is not None:
        raise ValueError(
            f'data.{key} = "{mapping}" beside data.{other}, which name the fields themselves: take '
            "one of the two out"
        )


def drop_replaced_sources(data: dict[str, Any], given: Collection[str]) -> None:
    """Take out of the section `data` of a base the data sets that the keys `given` on top of it
    replace: one in place of several, or the other way round."""
    if "source" in given and "sources" not in given:
        data.pop("sources", None)
    if "sources" in given and "source" not in given:
        for key in {"source", "mapping", "fields"}.difference(given):
            data.pop(key, None)


def with_tokenizer_kind(values: Any) -> Any:
    """The values of a whole config with `tokenizer.kind` set, where they leave it out: the model's
    with `model.path`, else words for a built-in domain and bpe for other data."""
    if not isinstance(values, Mapping):
        return values
    given = cast("Mapping[str, Any]", values)
    tokenizer = given.get("tokenizer", {})
    if not isinstance(tokenizer, Mapping) or "kind" in tokenizer:
        return values
    from satori_fast.data.domains import DOMAINS  # problems need torch, and the config must not

    kind = "bpe"
    if _value_of(given.get("model"), "path") is not None:
        kind = "model"
    elif _value_of(given.get("data"), "sources"):
        kind = "bpe"
    elif (_value_of(given.get("data"), "source") or DataConfig().source) in DOMAINS:
        kind = "words"
    return {**given, "tokenizer": {**cast("Mapping[str, Any]", tokenizer), "kind": kind}}


def _value_of(section: Any, key: str) -> Any:
    """A key of a section, which may not be checked yet; None where it is not set."""
    if isinstance(section, Mapping):
        return cast("Mapping[str, Any]", section).get(key)
    return getattr(section, key, None)
