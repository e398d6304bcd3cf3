# SPDX-License-Identifier: Apache-2.0
"""One line for every mistake, and a resolved config that reads back as itself."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from satori_fast.config import (
    SCHEMA_VERSION,
    Config,
    ConfigError,
    DataConfig,
    describe,
    load_config,
    parse_overrides,
    stage_names,
    to_toml,
)
from satori_fast.config_sections import (
    ModelConfig,
    Section,
    TokenizerConfig,
)

SMALLEST = 'schema_version = 1\ntokenizer.kind = "words"\ndata.num_train = 5\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def error_line(path: Path, overrides: list[str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides or [])
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_smallest_file_takes_every_default(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, SMALLEST))
    expected = Config(data=DataConfig(num_train=5), tokenizer=TokenizerConfig(kind="words"))
    assert config == expected
    assert config.stages == ("supervised", "reinforce")


def test_repository_configs_load() -> None:
    folder = Path(__file__).parents[1] / "configs"
    paths = sorted(folder.rglob("*.toml"))
    assert paths
    for path in paths:
        config = load_config(path)
        assert set(config.stages) <= set(stage_names())


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("[reinforce]\nnum_step = 3\n", "reinforce.num_step", "reinforce.num_steps"),
        ("[reinforce.restarts]\nmax_back = 1\n", "max_back", "reinforce.restarts.max_backtrack"),
        ("[rolout]\n", "rolout", "rollout"),
        (
            "[supervised]\noptimizer = { learning_rat = 1.0 }\n",
            "supervised.optimizer.learning_rat",
            "supervised.optimizer.learning_rate",
        ),
    ],
)
def test_unknown_key_names_file_key_and_nearest(
    tmp_path: Path, text: str, key: str, nearest: str
) -> None:
    path = written(tmp_path, SMALLEST + text)
    line = error_line(path)
    assert line.startswith(f"{path}: unknown key ")
    assert f"{key};" in line
    assert line.endswith(f"the nearest valid key is {nearest}")


def test_unknown_override_names_the_command_line(tmp_path: Path) -> None:
    line = error_line(written(tmp_path, SMALLEST), ["--rollout.temprature", "0.5"])
    assert line == (
        "command line: unknown key rollout.temprature; the nearest valid key is rollout.temperature"
    )


# --- names, and texts that look like something else -----------------------------------------------


@pytest.mark.parametrize(
    "name", ["run", "my run", "2026-11-28", ".hidden", "\u00e9t\u00e9", "x" * 200]
)
def test_names_that_are_one_folder(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, SMALLEST)
    assert load_config(path, ["--name", f"'{name}'"]).name == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../escaped", "/absolute", "a/b", "a\\b", " a", "a ", "a\nb", "a\x00b"),
        *("a\tb", "\u2028", "\x7f", "x" * 201, "\u00e9" * 101),
    ],
)
def test_names_that_are_not(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, to_toml(Config.example().model_copy(update={"name": name})))
    line = error_line(path)
    assert line.startswith(f"{path}: name = ") and "give one folder name" in line


@pytest.mark.parametrize(
    "text", ["2026-11-28", "7", "true", "1.5", "07:30:00", "2026-11-28T07:30:00"]
)
def test_a_text_on_the_command_line_needs_no_quotes(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, SMALLEST)
    config = load_config(
        path, ["--name", text, f"--model.path={text}", "--synthesize.critic.model", text]
    )
    assert (config.name, config.model.path, config.synthesize.critic.model) == (text, text, text)
    line = error_line(written(tmp_path, f"name = {text}\n" + SMALLEST))
    assert line == f'{path}: name = {text}: a text is needed; put it in quotes: name = "{text}"'
    # Other kinds of keys take what TOML makes of it.
    assert "seed = " in error_line(written(tmp_path, SMALLEST), ["--seed", "2026-11-28"])


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_numbers_are_finite(tmp_path: Path, number: str) -> None:
    path = written(tmp_path, SMALLEST)
    for key in ("reinforce.optimizer.learning_rate", "rollout.temperature", "reward.rule_weight"):
        assert f"{key} = {number}" in error_line(path, [f"--{key}", number])
    assert load_config(path, ["--reinforce.clip_dual", "inf"]).reinforce.clip_dual == math.inf


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('[reinforce]\nnum_steps = "many"\n', "reinforce.num_steps = 'many'"),
        ('[reinforce]\nnum_steps = "3"\n', "reinforce.num_steps = '3'"),
        ("[reinforce]\nnum_steps = true\n", "reinforce.num_steps = True"),
        ("[reinforce]\nnum_steps = 0\n", "reinforce.num_steps = 0"),
        ("[rollout]\ntop_p = 1.5\n", "rollout.top_p = 1.5"),
        ('[reinforce]\nrecipe = "reinforce"\n', "reinforce.recipe = 'reinforce'"),
        ("[model]\ntie_word_embeddings = 1\n", "model.tie_word_embeddings = 1"),
        ("[optimizer]\n", "unknown key optimizer"),
        ("seed = -1\n", "seed = -1"),
        ('stages = ["supervise"]\n', "stages.0 = 'supervise'"),
        ('stages = "supervised"\n', "stages = 'supervised'"),
    ],
)
def test_wrong_type_or_range_names_file_key_and_value(tmp_path: Path, text: str, part: str) -> None:
    # Top-level keys come before the first section.
    path = written(tmp_path, text + SMALLEST if "[" not in text.split("=")[0] else SMALLEST + text)
    line = error_line(path)
    assert line.startswith(f"{path}: ")
    assert part in line


def test_whole_number_is_a_valid_float_but_not_the_reverse(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, SMALLEST), ["--rollout.temperature", "1"])
    assert config.rollout.temperature == 1.0
    assert "seed = 1.0" in error_line(written(tmp_path, SMALLEST), ["--seed", "1.0"])


def test_section_given_as_a_value_is_refused(tmp_path: Path) -> None:
    assert error_line(written(tmp_path, "data = 3\nschema_version = 1\n")).endswith(
        "data is a section, not a value"
    )
    path = written(tmp_path, SMALLEST + "seed = 3\n")
    assert (
        error_line(path, ["--seed.more", "3"]) == "command line: seed.more: seed is not a section"
    )


@pytest.mark.parametrize("version", ["", "schema_version = 2\n", 'schema_version = "1"\n'])
def test_other_schema_version_is_refused(tmp_path: Path, version: str) -> None:
    path = written(tmp_path, version + "data.num_train = 5\n")
    line = error_line(path)
    assert line.startswith(f"{path}: schema_version is ")
    assert f"this satori_fast reads {SCHEMA_VERSION}" in line


def test_missing_file_and_bad_toml_are_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    assert error_line(missing) == f"config file {missing} does not exist"
    broken = written(tmp_path, "schema_version = \n")
    assert error_line(broken).startswith(f"{broken}: not valid TOML: ")
    broken.write_bytes(b"name = '\xff'\n")
    assert error_line(broken).startswith(f"{broken}: not valid TOML: ")


def test_a_file_starts_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "debug").mkdir()
    (tmp_path / "base.toml").write_text(
        SMALLEST + "[reinforce]\nnum_steps = 7\n[reinforce.restarts]\nmax_backtrack = 1\n",
        encoding="utf-8",
    )
    path = written(
        tmp_path / "debug",
        'schema_version = 1\nbase = "../base.toml"\n[reinforce.restarts]\nenabled = false\n',
    )
    config = load_config(path, ["--seed", "3"])
    assert config.reinforce.restarts.enabled is False
    # Sections are merged, so what the file leaves out is the base's.
    assert config.reinforce.restarts.max_backtrack == 1
    assert config.reinforce.num_steps == 7
    assert (config.data.num_train, config.seed) == (5, 3)
    # What a run writes down needs no base.
    assert load_config(written(tmp_path, to_toml(config))) == config


def test_mistakes_of_a_base_name_the_base(tmp_path: Path) -> None:
    base = tmp_path / "base.toml"
    path = written(tmp_path, 'schema_version = 1\nbase = "base.toml"\n')
    assert error_line(path) == f"config file {base} does not exist"
    base.write_text("schema_version = 1\n[rolout]\n", encoding="utf-8")
    assert error_line(path).startswith(f"{base}: unknown key rolout;")
    base.write_text("schema_version = 2\n", encoding="utf-8")
    assert error_line(path).startswith(f"{base}: schema_version is 2")
    base.write_text('schema_version = 1\nbase = "run.toml"\n', encoding="utf-8")
    assert error_line(path).endswith("base leads back to the file itself")


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], {}),
        (["--a", "3"], {"a": 3}),
        (["--a.b", "0.5"], {"a.b": 0.5}),
        (["--a", "-3"], {"a": -3}),
        (["--a", "1e-6"], {"a": 1e-6}),
        (["--a", "true"], {"a": True}),
        (["--a", "[1, 2]"], {"a": [1, 2]}),
        (["--a", '["x", "y"]'], {"a": ["x", "y"]}),
        (["--a", "plain text"], {"a": "plain text"}),
        (["--a", "'3'"], {"a": "3"}),
        (["--a", "data/train.jsonl"], {"a": "data/train.jsonl"}),
        (["--a=b"], {"a": "b"}),
        (["--a.b=x=y"], {"a.b": "x=y"}),
        (["--a="], {"a": ""}),
        (["--a", "1", "--b=2", "--a", "3"], {"a": 3, "b": 2}),
    ],
)
def test_overrides(words: list[str], values: dict[str, object]) -> None:
    parsed = parse_overrides(words)
    assert parsed == values
    assert [type(value) for value in parsed.values()] == [type(v) for v in values.values()]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--seed"], "command line: --seed has no value"),
        (["--seed", "--name", "x"], "command line: --seed has no value"),
        (["seed", "3"], "command line: 'seed' is not of the form --section.key value"),
        (["--seed", "3", "4"], "command line: '4' is not of the form --section.key value"),
        (["--"], "command line: '--' is not of the form --section.key value"),
        (["-s", "3"], "command line: '-s' is not of the form --section.key value"),
    ],
)
def test_malformed_overrides(words: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(words)
    assert str(caught.value) == line


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "seed = 4\n" + SMALLEST + "[data]\n".replace("[data]\n", ""))
    config = load_config(
        path,
        [
            "--seed=7",
            "--stages",
            '["reinforce"]',
            "--data.levels",
            "[1, 2]",
            "--reinforce.restarts.enabled=false",
            "--name",
            "my run",
        ],
    )
    assert config.seed == 7
    assert config.stages == ("reinforce",)
    assert config.data.levels == (1, 2)
    assert config.data.num_train == 5
    assert config.reinforce.restarts.enabled is False
    assert config.name == "my run"


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (
            ["--stages", "[]"],
            "at most once, and at least one",
        ),
        (
            ["--packing.max_tokens_per_microbatch", "100"],
            "packing.max_tokens_per_microbatch = 100 is below rollout.max_seqlen = 2048",
        ),
        (
            ["--data.max_prompt_tokens", "2048"],
            "data.max_prompt_tokens = 2048 leaves no room for a response",
        ),
        (["--tokenizer.kind", "model"], 'tokenizer.kind = "model" needs model.path'),
        (
            ["--reinforce.recipe", "grpo", "--reinforce.samples_per_problem", "1"],
            "reinforce.samples_per_problem = 1 leaves recipe 'grpo' nothing to compare",
        ),
    ],
)
def test_fields_that_do_not_fit_together(tmp_path: Path, overrides: list[str], part: str) -> None:
    line = error_line(written(tmp_path, SMALLEST), overrides)
    assert part in line


def test_fields_that_fit_at_the_border(tmp_path: Path) -> None:
    path = written(tmp_path, SMALLEST)
    load_config(path, ["--packing.max_tokens_per_microbatch", "2048"])
    load_config(path, ["--data.max_prompt_tokens", "2047", "--rollout.max_new_tokens", "1"])
    load_config(path, ["--reinforce.recipe", "ppo", "--reinforce.samples_per_problem", "1"])
    load_config(path, ["--tokenizer.kind", "model", "--model.path", "some/folder"])


def test_built_in_domain_needs_a_number_of_problems(tmp_path: Path) -> None:
    path = written(tmp_path, 'schema_version = 1\ntokenizer.kind = "words"\n')
    assert "data.num_train is missing" in error_line(path)
    load_config(path, ["--data.source", "train.jsonl"])


def test_config_is_frozen() -> None:
    config = Config.example()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.data.num_train = 3  # type: ignore[misc]


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    learning_rate=st.floats(1e-9, 1e3),
    levels=st.lists(st.integers(1, 5), max_size=4),
    num_train=st.integers(1, 2**40),
    tied=st.booleans(),
)
def test_resolved_config_reads_back_equal(
    tmp_path: Path,
    text: str,
    learning_rate: float,
    levels: list[int],
    num_train: int,
    tied: bool,
) -> None:
    example = Config.example()
    optimizer = example.reinforce.optimizer.model_copy(update={"learning_rate": learning_rate})
    config = example.model_copy(
        update={
            "output_dir": text,
            "data": DataConfig(levels=tuple(levels), num_train=num_train),
            "model": ModelConfig(tie_word_embeddings=tied),
            "reinforce": example.reinforce.model_copy(
                update={"optimizer": optimizer, "clip_dual": math.inf}
            ),
        }
    )
    assert load_config(written(tmp_path, to_toml(config))) == config


FUNCTIONS = """
[[reward.functions]]
path = "my_rewards.py:short_answers"
weight = 0.5
[[reward.functions]]
path = "package.module:polite"
name = "politeness"
"""


def test_files_of_reward_functions_are_relative_to_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "base.toml").write_text(SMALLEST + FUNCTIONS)
    path = written(tmp_path, 'schema_version = 1\nbase = "below/base.toml"\n')
    config = load_config(path)
    first, second = config.reward.functions
    assert first.path == f"{tmp_path}/below/my_rewards.py:short_answers"
    assert (first.term, first.weight, second.term) == ("short_answers", 0.5, "politeness")
    assert second.path == "package.module:polite"
    # What the run folder keeps is found from anywhere.
    (tmp_path / "run").mkdir()
    text = to_toml(config)
    assert load_config(written(tmp_path / "run", text)) == config
    ((_, value, meaning),) = [row for row in describe(config) if row[0] == "reward.functions"]
    assert "politeness" in value and value in text and "[[reward.functions]]" in meaning
    # On the command line a file is relative to where it is typed; its folder need not be there.
    monkeypatch.chdir(tmp_path)
    for typed, found in (
        ("../other/mine.py", f"{tmp_path.parent}/other/mine.py"),
        ("/x/mine.py", "/x/mine.py"),
        ("~/mine.py", f"{Path.home()}/mine.py"),
    ):
        overridden = load_config(path, ["--reward.functions", f"[{{path='{typed}:f'}}]"])
        assert [f.path for f in overridden.reward.functions] == [f"{found}:f"]


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("[{path='mine.py'}]", "reward.functions.0.path = 'mine.py': name a file and a function"),
        ("[{path='mine.py:'}]", "name a file and a function in it"),
        ("[{path=':f'}]", "name a file and a function in it"),
        ("[{path='mine.py:f.g'}]", "name a file and a function in it"),
        ("[{path='folder/mine:f'}]", "folder/mine is neither a file that ends in .py nor the name"),
        ("[{weight=1.0}]", "reward.functions.0.path"),
        ("[{path='m:f',wieght=2.0}]", "the nearest valid key is reward.functions.weight"),
        ("[{path='m:f',weight=inf}]", "reward.functions.0.weight"),
        ("[{path='m:f',weight='1'}]", "reward.functions.0.weight"),
        ("[{path='m:f'},{path='n:f'}]", "two functions have the name 'f': set name for one of th"),
        ("[{path='m:rule'}]", "reward.functions: name = 'rule' means something else in metrics"),
        ("[{path='m:f',name='seconds'}]", "reward.functions: name = 'seconds' means something els"),
        ("[{path='m:f',name='a/b'}]", "reward.functions: name = 'a/b': take letters, digits and _"),
        ("{path='m:f'}", "reward.functions is a list of sections: write [[reward.functions]]"),
        ("3", "reward.functions is a list of sections"),
        ("mine.py:f", "reward.functions is a list of sections"),
        ("['mine.py:f']", "reward.functions is a section, not a value"),
    ],
)
def test_reward_functions_that_are_none(tmp_path: Path, value: str, part: str) -> None:
    assert part in error_line(written(tmp_path, SMALLEST), ["--reward.functions", value])


def test_every_default_is_written_out() -> None:
    text = to_toml(Config.example())
    assert text.startswith(f"schema_version = {SCHEMA_VERSION}\n")
    assert "[reinforce.restarts]\nrefresh_every = 0\n" in text
    assert "= none" not in text.lower()


def leaves(section: type[Section], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            keys += leaves(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def test_every_key_has_a_meaning() -> None:
    rows = describe(Config.example())
    assert [key for key, _, _ in rows] == leaves(Config)
    assert [key for key, _, meaning in rows if not meaning.strip()] == []
    assert ("data.num_train", "1000") in [(key, value) for key, value, _ in rows]


def test_restarts_are_on_where_the_format_has_them(tmp_path: Path) -> None:
    path = written(tmp_path, SMALLEST)

    def restarts(*overrides: str) -> bool:
        stages = ("--stages", '["reinforce"]')
        return load_config(path, [*stages, *overrides]).restarts_enabled

    assert load_config(path).reinforce.restarts.enabled is None
    assert restarts() and not restarts("--data.format", "plain")
    for value in ("true", "false"):
        assert restarts("--reinforce.restarts.enabled", value) is (value == "true")
    assert not restarts("--reinforce.restarts.enabled", "false", "--data.format", "plain")


POOL = """
schema_version = 1
tokenizer.kind = "bpe"
[data]
sources = [{ source = "a.jsonl", mapping = "coat", weight = 2.0 }, { source = "gsm8k" }]
"""


def test_a_pool_stands_in_place_of_a_source_and_reads_back(tmp_path: Path) -> None:
    data = load_config(written(tmp_path, POOL)).data
    assert (data.source, data.named) == ("", "a.jsonl + gsm8k")
    assert [(each.source, each.mapping, each.weight) for each in data.pool] == [
        ("a.jsonl", "coat", 2.0),
        ("gsm8k", None, 1.0),
    ]
    again = load_config(written(tmp_path, to_toml(load_config(written(tmp_path, POOL)))))
    assert again.data == data
    assert Config.example().data.pool[0].source == "arithmetic"


def test_one_source_over_several_replaces_them_and_the_other_way_round(tmp_path: Path) -> None:
    alone = ["--data.source", "b.jsonl", "--data.mapping", "coat"]
    data = load_config(written(tmp_path, POOL), alone).data
    assert (data.source, data.mapping, data.sources) == ("b.jsonl", "coat", ())
    (tmp_path / "base.toml").write_text(POOL)
    text = 'schema_version = 1\nbase = "base.toml"\ndata.source = "b.jsonl"\n'
    data = load_config(written(tmp_path, text + 'data.mapping = "coat"\n')).data
    assert (data.source, data.mapping, data.sources) == ("b.jsonl", "coat", ())
    # And several over one, whose mapping is none of theirs.
    (tmp_path / "one.toml").write_text(text + 'data.mapping = "coat"\n')
    text = 'schema_version = 1\nbase = "one.toml"\ndata.sources = [{ source = "c.jsonl" }]\n'
    data = load_config(written(tmp_path, text)).data
    assert (data.source, data.mapping, data.named) == ("", None, "c.jsonl")
    pool = ["--data.sources", '[{ source = "d.jsonl" }]']
    assert load_config(tmp_path / "one.toml", pool).data.named == "d.jsonl"


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (
            ["--data.source", "b.jsonl", "--data.sources", "[{ source = 'a' }]"],
            "data.source = 'b.jsonl' beside data.sources",
        ),
        (["--data.mapping", "coat"], "data.mapping = 'coat' beside data.sources"),
        (["--data.source", ""], "data.source is empty: name a data set"),
        (
            ["--data.sources", "[{ source = 'a' }, { source = 'a' }]"],
            "data.sources lists 'a' twice",
        ),
        (["--data.sources", "[{ source = 'a', weight = 0.0 }]"], "data.sources.0.weight = 0.0"),
        (["--data.sources", "[{ sauce = 'a' }]"], "unknown key data.sources.sauce"),
    ],
)
def test_pools_that_are_none(tmp_path: Path, overrides: list[str], part: str) -> None:
    assert part in error_line(written(tmp_path, POOL), overrides)
