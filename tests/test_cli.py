# SPDX-License-Identifier: Apache-2.0
"""Arguments, error lines and exit codes. Nothing here trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from satori_fast import failures
from satori_fast.cli import main
from satori_fast.config import Config, describe

ROOT = Path(__file__).parents[1]
SMALLEST = 'schema_version = 1\ntokenizer.kind = "words"\ndata.num_train = 5\n'


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(SMALLEST, encoding="utf-8")
    return path


def failing_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that must exit with 2."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("satori-fast: ")
    return line.removeprefix("satori-fast: ")


@pytest.mark.parametrize("verb", ["run", "synthesize", "eval", "show"])
def test_missing_config_file(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "none.toml"
    assert failing_line([verb, str(missing)], capsys) == f"config file {missing} does not exist"


@pytest.mark.parametrize("verb", ["run", "synthesize", "eval", "show"])
def test_unknown_key_on_the_command_line(
    verb: str, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failing_line([verb, str(config_file), "--reinforce.num_step", "3"], capsys)
    assert line == (
        "command line: unknown key reinforce.num_step; the nearest valid key is reinforce.num_steps"
    )


def test_ill_typed_key_in_the_file(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config_file.write_text(SMALLEST + "[rollout]\nmax_slots = 'many'\n", encoding="utf-8")
    line = failing_line(["run", str(config_file)], capsys)
    assert line.startswith(f"{config_file}: rollout.max_slots = 'many': ")


def test_override_without_a_value(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = failing_line(["run", str(config_file), "--seed"], capsys)
    assert line == "command line: --seed has no value"


def test_options_of_a_verb_are_not_overrides(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Abbreviations are off: --resum is an override, and no key.
    line = failing_line(["run", str(config_file), "--resum", "1"], capsys)
    assert line.startswith("command line: unknown key resum;")


def test_explain_prints_what_the_readme_shows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command = "explain configs/quickstart.toml docs/puzzle.jsonl"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.partition(f"{command}\n```\n\n```text\n")[2].partition("```")[0]
    assert main(command.split()) == 0
    assert capsys.readouterr().out == shown
    assert main([*command.split(), "--json"]) == 0
    *rows, last = map(json.loads, capsys.readouterr().out.splitlines())
    keys = {"segments", "terms", "total", "correct", "kept"}
    assert [row.keys() for row in rows] == [keys] * 4
    assert list(last) == ["summary"]


def test_explain_names_file_and_row(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rollouts = config_file.with_name("rollouts.jsonl")
    rollouts.write_text('{"question": "p"}\n', encoding="utf-8")
    line = failing_line(["explain", str(config_file), str(rollouts)], capsys)
    assert line == f"{rollouts}, row 1: it has no response: add one"


@pytest.mark.parametrize("verb", ["report", "export"])
def test_verbs_without_a_config_take_no_override(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(tmp_path)] if verb == "report" else [str(tmp_path), str(tmp_path / "to")]
    line = failing_line([verb, *folders, "--seed", "3"], capsys)
    assert line == "command line: '--seed' is not an option of this verb"


def test_report_of_a_folder_that_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none"
    assert str(missing) in failing_line(["report", str(missing)], capsys)


def test_report_of_one_run_and_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        (folder / "metrics.jsonl").write_text('{"stage": "rl", "step": 0}\n')
    monkeypatch.chdir(tmp_path)
    assert main(["report", "a"]) == 0 and (tmp_path / "a" / "report.html").exists()
    assert main(["report", "a", "b"]) == 0 and (tmp_path / "compare.html").exists()
    assert main(["report", "a", "b", "--output", "both.html"]) == 0
    assert (tmp_path / "both.html").exists() and "wrote both.html" in capsys.readouterr().out
    assert failing_line(["report", "a", "a"], capsys).startswith("a is given twice")


def test_show_overrides_need_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    line = failing_line(["show", "--seed=3"], capsys)
    assert line == "show: name a config file to override its keys"


@pytest.mark.parametrize("arguments", [[], ["train"], ["run"], ["export", "one-folder"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = failing_line(arguments, capsys)
    assert line.startswith("command line: ") and "--help` shows" in line


@pytest.mark.parametrize("verb", ["run", "synthesize", "eval", "show", "report", "export"])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert f"satori-fast {verb}" in capsys.readouterr().out


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in ("run", "synthesize", "eval", "show", "report", "export"))


def test_traceback_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SATORI_FAST_TRACEBACK", "1")
    with pytest.raises(ValueError, match="does not exist"):
        main(["run", str(tmp_path / "none.toml")])


def test_a_failure_is_told_though_a_launcher_ends_this_process_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended_meanwhile(error: Exception, rank: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(failures, "write_log", ended_meanwhile)
    assert main(["run", str(tmp_path / "none.toml")]) == failures.USER
    assert [line for line in capsys.readouterr().err.splitlines() if "none.toml" in line]


def test_show_prints_every_key_with_its_meaning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["show"]) == 0
    shown = capsys.readouterr().out
    for key, value, meaning in describe(Config.example()):
        assert key in shown
        assert value in shown
        assert " ".join(meaning.split()) in shown


def test_show_resolves_a_file_and_overrides(
    config_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert main(["show", str(config_file), "--rollout.temperature", "0.25"]) == 0
    shown = capsys.readouterr().out
    (row,) = [line for line in shown.splitlines() if "rollout.temperature" in line]
    assert "0.25" in row
    (row,) = [line for line in shown.splitlines() if "data.num_train" in line]
    assert " 5 " in row


def test_show_recipe_prints_the_row_that_runs(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["--reinforce.recipe", "grpo_no_std", "--reinforce.clip_dual", "inf"]
    changes += ["--rollout.temperature", "0.5", "--rollout.max_new_tokens", "77"]
    assert main(["show", str(config_file), "--recipe", *changes]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["weighting"], shown["fixed_length"]) == (
        "grpo_no_std",
        "fixed",
        77,
    )
    assert shown["credit"] == {"rule": "GroupMean", "divide_by_std": False}
    assert shown["advantage"]["kind"] == "spread" and shown["needs"] == []
    assert (shown["ratio"], shown["ratio_mean"], shown["min_group_std"]) == ("token", True, 1e-6)
    loss = shown["loss"]
    assert (loss["clip_low"], loss["clip_dual"], loss["temperature"]) == (0.2, "inf", 0.5)
    assert "arXiv 2503.20783" in shown["paper"]
    assert main(["show", str(config_file), "--recipe"]) == 0
    assert "fixed_length" not in json.loads(capsys.readouterr().out)


def test_show_recipe_prints_that_of_the_first_stage_that_reinforces(
    capsys: pytest.CaptureFixture[str],
) -> None:
    worked = ["show", "configs/srl/worked.toml", "--recipe"]
    assert main([*worked, "--srl.clip_high", "0.3", "--reinforce.recipe", "ppo"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["min_group_std"], shown["loss"]["clip_high"]) == ("srl", 0.01, 0.3)
    last = ["--stages", '["reinforce", "srl"]', "--reinforce.recipe", "rloo"]
    assert main([*worked, *last]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "rloo"


def test_show_kernels_names_an_implementation_of_each(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from satori_fast import kernels

    assert main(["show", "--kernels"]) == 0
    rows = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert "instruction set of the host" in rows
    for name in ("linear_logprob", "policy_loss", "segment_scan", "pack_bins"):
        assert name in rows
        assert callable(getattr(kernels, name))


def test_module_is_the_command_line_and_starts_without_torch(config_file: Path) -> None:
    config_file.write_text(SMALLEST + "[rolout]\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "satori_fast", "run", str(config_file)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"satori-fast: {config_file}: unknown key rolout; the nearest valid key is rollout"
    ]
    program = (
        "import sys\nfrom satori_fast.cli import main\n"
        "assert main(['run', 'none.toml']) == 2\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=120)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "some/model"], "eval some/model needs --benchmarks all, or names of some"),
        (["eval", "own.toml", "--benchmarks", "all"], "eval MODEL --config own.toml"),
        (["eval", "no/such/model", "--benchmarks", "all"], "no/such/model holds no model"),
        (["eval", "m", "--benchmarks", "all", "--samples", "4"], "--temperature 0 would be 4"),
    ],
)
def test_eval_says_what_it_needs(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err
