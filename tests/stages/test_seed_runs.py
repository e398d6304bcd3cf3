# SPDX-License-Identifier: Apache-2.0
"""One config with several seeds: which commands are started, what is refused, what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from satori_fast import termination
from satori_fast.cli import main
from satori_fast.profiling.metrics import read_metrics
from satori_fast.stages import seed_runs
from tests.stages.test_run import TINY

CONFIG = 'schema_version = 1\nname = "toy"\ntokenizer.kind = "words"\ndata.num_train = 5\n'
# Stands in for the interpreter: notes how it was called, and leaves the summary of a run whose
# accuracy is a tenth of the seed. A file "fail" beside the folders ends it with that code.
STUB = """#!{python}
import json, sys
from pathlib import Path
options = dict(word[2:].split("=", 1) for word in sys.argv if "=" in word)
home = Path(__file__).parent
with (home / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
if (home / "fail").exists() and options["seed"] != "0":
    raise SystemExit(int((home / "fail").read_text()))
folder = home / options["name"]
folder.mkdir(exist_ok=True)
entry = {{"stage": "reinforce", "accuracy": int(options["seed"]) / 10, "wall_s": 1.0}}
summary = {{"name": folder.name, "version": "", "device": {{}}, "wall_s": 2.0, "stages": [entry]}}
(folder / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of runs, with a config and an interpreter that starts no real run."""
    stub = tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(0o755)
    monkeypatch.setattr(seed_runs.sys, "executable", str(stub))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (tmp_path / "toy.toml").write_text(CONFIG)
    return tmp_path


def run(home: Path, *options: str) -> int:
    config = ["run", str(home / "toy.toml"), "--output_dir", str(home)]
    return main([*config, *options])


def calls(home: Path) -> list[list[str]]:
    return [*map(json.loads, (home / "calls.jsonl").read_text().splitlines())]


def refused(home: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line of a command that starts nothing."""
    before = (home / "calls.jsonl").exists()
    assert run(home, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (home / "calls.jsonl").exists() == before
    return line


def test_each_seed_is_a_command_of_its_own(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(home, "--seeds", "3", "5", "--reinforce.num_steps", "7", "--profile") == 0
    first, second = calls(home)
    assert first[:4] == ["-m", "satori_fast", "run", str(home / "toy.toml")]
    assert first[-2:] == ["--name=toy-seed-3", "--seed=3"]
    assert second[-2:] == ["--name=toy-seed-5", "--seed=5"]
    assert first[:-2] == second[:-2]
    assert "--profiling.trace" in first and first[first.index("--reinforce.num_steps") + 1] == "7"
    table = json.loads((home / "toy-seeds.json").read_text())
    (stage,) = table["stages"]
    assert stage["accuracy"]["values"] == [0.3, 0.5]
    assert stage["accuracy"]["standard_error"] == pytest.approx(0.1)
    shown = capsys.readouterr().out
    assert "toy: 2 seeds" in shown and f"wrote {home / 'toy-seeds.json'}" in shown


def test_a_name_of_the_command_line_is_that_of_all(home: Path) -> None:
    assert run(home, "--seeds", "0", "--name", "mine") == 0
    assert calls(home)[0][-2] == "--name=mine-seed-0"
    assert (home / "mine-seeds.json").exists()


def test_what_is_there_needs_resume_and_stays_in_the_table(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(home, "--seeds", "0", "1") == 0
    capsys.readouterr()
    line = refused(home, capsys, "--seeds", "1", "2")
    assert f"{home / 'toy-seed-1'} is there already" in line and "--resume" in line
    line = refused(home, capsys, "--seeds", "1", "2", "--resume")
    assert "is of seeds 0 1: name 0 in --seeds as well" in line
    assert run(home, "--seeds", "0", "1", "2", "--resume") == 0
    # Single runs know what is left of them: all are started, and told to resume.
    assert [call[-1] for call in calls(home)[2:]] == ["--resume"] * 3
    assert json.loads((home / "toy-seeds.json").read_text())["seeds"] == [0, 1, 2]


def test_a_table_without_its_runs_is_not_written_over(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "toy-seeds.json").write_text("{}")
    assert "toy-seeds.json is there already" in refused(home, capsys, "--seeds", "0")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--seeds", "0", "1", "--seed", "2"), "--seeds and --seed exclude each other"),
        (("--seeds", "0", "1", "--seed=2"), "--seeds and --seed exclude each other"),
        (("--seeds", "1", "1"), "--seeds 1 1 names a seed twice"),
        (("--seeds", "0", "--dry-run"), "--dry-run tries one run"),
        (("--seeds", "-1"), "seed = -1"),
        (("--seeds", "x"), "argument --seeds: invalid int value: 'x'"),
        (("--seeds", "0", "--name", "n" * 195), "at most 200 bytes"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], reason: str
) -> None:
    assert reason in refused(home, capsys, *options)


def test_several_ranks_are_refused(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "not under torchrun" in refused(home, capsys, "--seeds", "0")


def test_a_run_that_fails_ends_all_with_its_code_and_the_table_of_the_others(home: Path) -> None:
    (home / "fail").write_text("3")
    with pytest.raises(SystemExit) as caught:
        run(home, "--seeds", "0", "1", "2")
    assert caught.value.code == 3
    assert [call[-1] for call in calls(home)] == ["--seed=0", "--seed=1"]
    table = json.loads((home / "toy-seeds.json").read_text())
    assert (table["seeds"], table["runs"]) == ([0, 1, 2], {"0": "toy-seed-0"})


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 130)]
)
def test_a_signal_reaches_the_run_at_work(tmp_path: Path, number: int, code: int) -> None:
    stub = tmp_path / "python"
    program = f"""#!{sys.executable}
import signal, sys, time
from pathlib import Path
def end(number, frame):
    Path("{tmp_path}/ended").write_text(str(number))
    raise SystemExit(1)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
Path("{tmp_path}/started").touch()
time.sleep(600)
"""
    stub.write_text(program)
    stub.chmod(0o755)
    config = tmp_path / "toy.toml"
    config.write_text(CONFIG)
    # Shells have what they start in the background ignore interrupts.
    command = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from satori_fast.cli import main
from satori_fast.stages import seed_runs
sys.executable = {str(stub)!r}
seed_runs._INTERRUPT_S = 0.1
sys.exit(main(["run", {str(config)!r}, "--output_dir", {str(tmp_path)!r}, "--seeds", "0"]))
"""
    runner = subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (tmp_path / "started").exists():
        assert runner.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    os.kill(runner.pid, number)
    _, shown = runner.communicate(timeout=120)
    assert (runner.returncode, (tmp_path / "ended").read_text()) == (code, str(int(number)))
    assert shown.splitlines()[-1].startswith("satori-fast: ") and "--resume" in shown


@pytest.mark.parametrize(
    ("number", "ends_with"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, termination.Terminated)],
)
def test_a_signal_reaches_a_run_that_is_being_started(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, ends_with: type[BaseException]
) -> None:
    class Signalled(subprocess.Popen[bytes]):
        def __init__(self, command: list[str]) -> None:
            super().__init__(command, stderr=subprocess.DEVNULL)
            os.kill(os.getpid(), number)

    monkeypatch.setattr(subprocess, "Popen", Signalled)
    monkeypatch.setattr(seed_runs, "_INTERRUPT_S", 0.1)
    before = psutil.Process().children()  # helpers of other tests
    # Shells have what they start in the background ignore interrupts.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with termination.sigterm_handled(), pytest.raises(ends_with):
            seed_runs._run([sys.executable, "-c", "import time; time.sleep(600)"])
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert psutil.Process().children() == before


@pytest.mark.slow
def test_real_runs_are_those_of_single_commands(tmp_path: Path) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(TINY)
    options = ["--output_dir", str(tmp_path), "--stages", '["synthesize", "supervised"]']
    options += ["--parallel.num_threads", "1"]
    assert main(["run", str(config), *options, "--seeds", "0", "1"]) == 0
    assert main(["run", str(config), *options, "--name", "alone", "--seed", "1"]) == 0
    first, second, alone = (
        [line["update/loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")[1:]]
        for name in ("tiny-seed-0", "tiny-seed-1", "alone")
    )
    assert second == alone != first
    before = (tmp_path / "tiny-seed-0" / "metrics.jsonl").read_bytes()
    assert main(["run", str(config), *options, "--seeds", "0", "1", "--resume"]) == 0
    assert (tmp_path / "tiny-seed-0" / "metrics.jsonl").read_bytes() == before
    assert main(["report", str(tmp_path / "tiny-seeds.json")]) == 0
    page = (tmp_path / "tiny-seeds.html").read_text()
    assert "mean of 2 seeds" in page and "Over the seeds" in page
