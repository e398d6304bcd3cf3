# SPDX-License-Identifier: Apache-2.0
"""The section data: fields of a data set, and the tokenizer that model and data ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from satori_fast.config import Config, ConfigError, load_config, to_toml
from satori_fast.data.field_mappings import FieldMapping

START = "schema_version = 1\n"
NESTED = '[data.fields]\nquestion = "prompt[0].content"\nanswer = "reward_model.ground_truth"\n'
VERL = FieldMapping("prompt[0].content", "reward_model.ground_truth", "any")


def config_of(folder: Path, text: str, *overrides: str) -> Config:
    path = folder / "a.toml"
    path.write_text(START + text)
    return load_config(path, overrides)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("data.num_train = 5\n", "words"),
        ('data.source = "chains"\ndata.num_train = 5\n', "words"),
        ('data.source = "mine.jsonl"\n', "bpe"),
        ('[[data.sources]]\nsource = "mine.jsonl"\n', "bpe"),
        ('model.path = "m"\ndata.num_train = 5\n', "model"),
        ('model.path = "m"\ndata.source = "mine.jsonl"\n', "model"),
        ('model.path = "m"\ntokenizer.kind = "bpe"\ndata.source = "mine.jsonl"\n', "bpe"),
    ],
)
def test_the_tokenizer_is_that_of_the_model_or_fits_the_data(
    tmp_path: Path, text: str, kind: str
) -> None:
    config = config_of(tmp_path, text)
    assert config.tokenizer.kind == kind
    (tmp_path / "again.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "again.toml") == config


def test_a_model_on_the_command_line_brings_its_tokenizer(tmp_path: Path) -> None:
    text = 'data.source = "mine.jsonl"\ntokenizer.vocab_size = 512\n'
    assert config_of(tmp_path, text).tokenizer.kind == "bpe"
    assert config_of(tmp_path, text, "--model.path", "m").tokenizer.kind == "model"


def test_fields_stand_in_place_of_a_mapping_and_read_back(tmp_path: Path) -> None:
    config = config_of(tmp_path, 'data.source = "a.parquet"\n' + NESTED)
    assert [each.read_as for each in config.data.pool] == [VERL]
    assert config.data.benchmark is None
    (tmp_path / "again.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "again.toml") == config


def test_held_out_problems_are_read_as_the_others_unless_they_have_their_own(
    tmp_path: Path,
) -> None:
    text = 'data.source = "a.parquet"\ndata.eval_source = "b.parquet"\n' + NESTED
    for more, wanted in (
        ([], VERL),
        (["--data.eval_mapping", "math500"], "math500"),
        (["--data.eval_fields.question", "q", "--data.eval_fields.answer", "a"], ("q", "a")),
    ):
        benchmark = config_of(tmp_path, text, *more).data.benchmark
        assert benchmark is not None
        found = benchmark.read_as
        if isinstance(wanted, tuple):
            assert isinstance(found, FieldMapping) and (found.question, found.answer) == wanted
        else:
            assert found == wanted


def test_each_data_set_of_a_pool_has_its_own_fields(tmp_path: Path) -> None:
    fields = "fields = { question = 'q', answer = 'a', response = 'r' }"
    first, second = f"{{ source = 'a.csv', {fields} }}", "{ source = 'b.csv', mapping = 'gsm8k' }"
    pool = config_of(tmp_path, f"data.sources = [{first}, {second}]\n").data.pool
    assert pool[0].read_as == FieldMapping("q", "a", "any", response="r")
    assert pool[1].read_as == "gsm8k"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (NESTED.replace("prompt[0]", "prompt[x]"), "'prompt[x].content' is no field and no path"),
        ('[data.fields]\nquestion = "q"\n', "name both the question and the answer"),
        ('[data.fields]\nresponse = "r"\n', "name both the question and the answer"),
        (NESTED.replace("fields", "eval_fields"), "data.eval_fields need data.eval_source"),
        ('data.mapping = "math"\n' + NESTED, 'data.mapping = "math" beside data.fields'),
        ("[[data.sources]]\nsource = 'b.csv'\n" + NESTED, "fields beside data.sources"),
    ],
)
def test_fields_that_say_too_little_or_too_much(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, text, "--tokenizer.kind", "bpe")
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_a_built_in_domain_has_no_fields(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='= "arithmetic" is built in: take them out'):
        config_of(tmp_path, "data.num_train = 5\n" + NESTED)
