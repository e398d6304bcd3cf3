# SPDX-License-Identifier: Apache-2.0
"""The rewards that a config asks for, and runs whose reward is a function of the user's."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from satori_fast import cli
from satori_fast.config import ConfigError, load_config
from satori_fast.config_sections import FunctionConfig, RewardConfig
from satori_fast.data.formats.plain import PLAIN
from satori_fast.grading import GradingPool
from satori_fast.profiling.metrics import read_metrics
from satori_fast.rewards.terms import score
from satori_fast.rewards.worker import CallLimits, FunctionWorker
from satori_fast.stages.rewards import build_rewards, check_functions
from satori_fast.types import ScoreStatistics, Trajectory
from tests.algorithms.test_advantages import make_trajectory
from tests.stages.preference_run import CONFIG

FUNCTIONS = """
import os, signal

def short_answers(trajectories):
    if os.environ.get("KILL_AT") and os.path.exists(os.environ["KILL_AT"]):
        os.kill(os.getppid(), signal.SIGKILL)
    print("scored", len(trajectories))
    return [-0.01 * t.num_response_tokens for t in trajectories]

def none(trajectories):
    return None

def nan(trajectories):
    return [float("nan")] * len(trajectories)

def short(trajectories):
    return [1.0] * (len(trajectories) - 1)

def raises(trajectories):
    raise KeyError("no such thing")

def hangs(trajectories):
    while True:
        pass

def text(trajectories):
    return ["good"] * len(trajectories)

def drawn(trajectories):
    with open("asked_by", "a") as file:
        file.write(f"{os.getppid()}\\n")
    return [float.fromhex(os.urandom(4).hex()) for _ in trajectories]
"""
REWARD = """
[[reward.functions]]
path = "my_rewards.py:{name}"
weight = 2.0
"""


def written(folder: Path, name: str = "short_answers") -> Path:
    """A config whose only stage is reinforcement with this function of a file beside it."""
    text = CONFIG.replace('["preference", "reinforce"]', '["reinforce"]')
    text = text.replace('recipe = "ppo"\nnum_steps = 2', 'recipe = "rloo"\nnum_steps = 4')
    (folder / "my_rewards.py").write_text(FUNCTIONS)
    path = folder / "tiny.toml"
    path.write_text(f"output_dir = '{folder}'\n{text}{REWARD.format(name=name)}")
    return path


def test_terms_in_their_order() -> None:
    def scorer(trajectories: Sequence[Trajectory]) -> npt.NDArray[np.float32]:
        return np.zeros(len(trajectories), np.float32)

    functions = (FunctionConfig(path="m:f", name="own"), FunctionConfig(path="m:g", weight=0.0))
    config = RewardConfig(preference_weight=0.5, functions=functions)
    with GradingPool(0) as pool, FunctionWorker(CallLimits.of_cpu(1.0)) as worker:
        rewards = build_rewards(
            config,
            grader=pool,
            worker=worker,
            format=PLAIN,
            reward_model=(scorer, ScoreStatistics()),
            share=lambda action: [3.0],
        )
        (scored,) = score([make_trajectory(2, [1])], rewards)
        assert scored.reward is not None
        assert list(scored.reward.terms.items()) == [
            ("rule", -1.0),
            ("reflection", 0.0),
            ("preference", 0.25),
            ("own", 3.0),
        ]
        assert scored.reward.correct is False
        with pytest.raises(ConfigError, match=r"preference_weight = 0\.5 needs a reward model"):
            build_rewards(config, grader=pool, worker=worker, format=PLAIN)


def test_a_function_that_does_not_exist_is_a_mistake_of_the_config() -> None:
    with pytest.raises(ConfigError, match=r"reward function f \(no_such_module:f\): module no_su"):
        check_functions(RewardConfig(functions=(FunctionConfig(path="no_such_module:f"),)))


def test_a_run_with_a_reward_of_the_users(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    assert cli.main(["run", str(path)]) == 0
    assert "scored 8" in capfd.readouterr().err
    run = tmp_path / "tiny"
    lines = read_metrics(run / "metrics.jsonl")
    assert len(lines) == 4
    for line in lines:
        tokens = line["rollout/mean_response_tokens"]
        assert line["reward/short_answers"] == pytest.approx(-0.02 * tokens)
        terms = line["reward/rule"] + line["reward/reflection"] + line["reward/short_answers"]
        assert line["reward/total"] == pytest.approx(terms)
    samples = read_metrics(run / "samples.jsonl")
    trained = [sample for sample in samples if "short_answers" in sample["reward"]]
    assert trained and all("preference" not in sample["reward"] for sample in samples)
    for sample in trained:
        terms = ("rule", "reflection", "short_answers")
        assert sample["reward"]["total"] == sum(sample["reward"][term] for term in terms)
    assert "short_answers" in (run / "report.html").read_text()
    kept = load_config(run / "config.toml")
    assert [f.path for f in kept.reward.functions] == [f"{tmp_path}/my_rewards.py:short_answers"]


def weights(folder: Path) -> str:
    file = folder / "tiny" / "models" / "reinforce" / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_killed_run_goes_on_with_the_same_file_only(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    assert cli.main(["run", str(written(tmp_path / "whole"))]) == 0
    path = written(tmp_path / "killed")
    checkpoint = tmp_path / "killed" / "tiny" / "checkpoints" / "reinforce" / "step-2"
    command = [sys.executable, "-m", "satori_fast", "run", str(path)]
    # In the background the checkpoint might be there when all the steps are done.
    saving = ["--reinforce.checkpoint_every", "2", "--save_in_background", "false"]
    command += saving
    killed = subprocess.run(
        command,
        env={**os.environ, "KILL_AT": str(checkpoint)},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    again = ["run", str(path), "--resume", *saving]
    file = tmp_path / "killed" / "my_rewards.py"
    file.write_text(FUNCTIONS + "# another content\n")
    capfd.readouterr()
    assert cli.main(again) == 2
    assert (
        f"satori-fast: reward.functions.short_answers: {file} is not what it was when the run "
        "began: bring the old content back" in capfd.readouterr().err
    )
    assert cli.main([*again, "--reward.functions", "[]"]) == 2
    assert "the run folder differs from this config in reward.functions" in capfd.readouterr().err
    file.write_text(FUNCTIONS)
    # When a function is given up is not what is computed.
    assert cli.main([*again, "--reward.function_timeout_s", "60.0"]) == 0
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


FAULTS = {
    "none": "returned None: return a list with a number for each of the 8 trajectories",
    "nan": "gave nan for problem '",
    "short": "returned 7 numbers for 8 trajectories: return one for each, in their order",
    "raises": "raised an error: KeyError: 'no such thing' (",
    "hangs": "took more than 1 CPU seconds for one step and was killed: make it faster, or raise",
    "text": "gave 'good' (str) for problem '",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_function_that_gives_no_rewards_stops_the_run_in_one_line(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, name)
    assert cli.main(["run", str(path), "--reward.function_timeout_s", "1.0"]) == 2
    lines = capfd.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith("satori-fast: ")]
    place = f"{tmp_path}/my_rewards.py:{name}"
    assert line.startswith(f"satori-fast: reward function {name} ({place}) {FAULTS[name]}")
    assert not any("Traceback" in line for line in lines)
    if name == "raises":
        assert f"({tmp_path}/my_rewards.py:20): fix it" in line
        # The whole of it is where every traceback is.
        log = (tmp_path / "tiny" / "error.log").read_text()
        assert 'raise KeyError("no such thing")' in log


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("short_answer", FUNCTIONS, "the nearest name there is 'short_answers'"),
        ("short_answers", None, "my_rewards.py does not exist: correct reward.functions: path"),
        ("short_answers", "def f(:", "line 1 is not valid Python"),
        ("short_answers", "import no_lib\n" + FUNCTIONS, "cannot be loaded: ModuleNotFoundError"),
        ("short_answers", "short_answers = 3", "has int, no function, 'short_answers'"),
    ],
)
def test_a_function_that_cannot_be_found_stops_the_run_before_it_trains(
    tmp_path: Path, name: str, code: str | None, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, name)
    if code is None:
        (tmp_path / "my_rewards.py").unlink()
    else:
        (tmp_path / "my_rewards.py").write_text(code)
    assert cli.main(["run", str(path)]) == 2
    (line,) = [text for text in capfd.readouterr().err.splitlines() if "satori-fast: " in text]
    assert line.startswith(f"satori-fast: reward function {name} (") and said in line
    metrics = tmp_path / "tiny" / "metrics.jsonl"
    assert not metrics.exists() or not metrics.read_text()
    # Where nothing learns from it, it is not looked at.
    options = ["--stages", "['synthesize']", "--synthesize.num_problems", "2"]
    assert cli.main(["run", str(path), *options]) == 0


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["drawn", "nan"])
def test_two_processes_have_the_same_rewards(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", "-m", "satori_fast", "run", str(written(tmp_path, name))]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    if name == "nan":
        assert done.returncode != 0
        # Rank 0 says why. The other one does only if it was there first: they write to one log.
        said = [line for line in done.stderr.splitlines() if line.startswith("satori-fast: ")]
        *others, why = sorted(said, reverse=True)
        assert why.startswith("satori-fast: rank 0: reward function nan (")
        assert others in ([], ["satori-fast: rank 1: stopped because rank 0 failed"])
        return
    assert done.returncode == 0, done.stderr[-2000:]
    # The main process asks, once a step; the other rank has its numbers.
    askers = (tmp_path / "asked_by").read_text().split()
    assert len(askers) == 4 and len(set(askers)) == 1
