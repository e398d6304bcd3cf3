# SPDX-License-Identifier: Apache-2.0
"""The launch files that people copy are right, as far as a machine without a cluster can tell.

Schedulers are stand-ins on the PATH; torchrun is the real one."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from satori_fast.config import Config

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "configs" / "launch"
SCRIPTS = [LAUNCH / "torchrun.sh", LAUNCH / "torchrun_nodes.sh", LAUNCH / "slurm.sbatch"]
CONFIG = "configs/debug/grpo.toml"
by_name = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)

# Writes its words and goes, or waits for a SIGTERM and ends with 143, as a run that saves does.
STAND_IN = """\
#!{python}
import json, os, pathlib, signal, sys, time
folder = pathlib.Path({folder!r})
(folder / "words.json").write_text(json.dumps(sys.argv[1:]))
if os.environ.get("WAITS"):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(60)
sys.exit(int(os.environ.get("ENDS_WITH", "0")))
"""
PROGRAMS = {
    "srun": 'shift\nexec "$@"\n',  # its own option, then a command
    "scontrol": '[ "$1" = show ] && printf "node7\\nnode8\\n" || echo "$@" > {folder}/asked\n',
    "scancel": 'echo "$@" > {folder}/cancelled\nkill -TERM "$(cat {folder}/pid)"\n',
}
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "node[7-8]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_GPUS_ON_NODE": "8",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a script whose Python and scheduler are stand-ins that leave files in tmp_path."""
    programs = {"python-stand-in": STAND_IN.format(python=sys.executable, folder=str(tmp_path))}
    for name, text in PROGRAMS.items():
        programs[name] = "#!/usr/bin/env bash\n" + text.format(folder=tmp_path)
    for name, text in programs.items():
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o755)
    found = {**os.environ, **SLURM, "MAIN": "node7", "MACHINES": "2"}
    return {
        **found,
        "PYTHON": str(tmp_path / "python-stand-in"),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }


def launched(
    script: Path, environment: dict[str, str], *words: str
) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(script), *words]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, cwd=ROOT
    )


# --- words ---------------------------------------------------------------------------------------


@by_name
def test_bash_can_read_it(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@by_name
def test_shellcheck_finds_nothing(script: Path) -> None:
    subprocess.run(["shellcheck", "--shell", "bash", str(script)], check=True)


@by_name
def test_torchrun_is_asked_for_a_run_that_resumes(
    script: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    from torch.distributed.run import get_args_parser

    override = ["--reinforce.num_steps", "3"]
    done = launched(script, environment, CONFIG, *override)
    assert done.returncode == 0, done.stderr
    words = json.loads((tmp_path / "words.json").read_text())
    assert words[:2] == ["-m", "torch.distributed.run"]
    options = get_args_parser().parse_args(words[2:])
    assert options.module and options.training_script == "satori_fast"
    assert options.training_script_args == ["run", CONFIG, *override, "--resume"]
    # torchrun's own limit is 30 s, and the run may take as long as its config says.
    assert options.shutdown_timeout == Config.example().parallel.grace_s == 60
    if script.name == "torchrun.sh":
        assert options.standalone and options.nproc_per_node == "8"
    else:
        assert (options.nnodes, options.nproc_per_node) == ("2", "8")
        host, port = options.rdzv_endpoint.split(":")
        assert host == "node7" and 1024 < int(port) < 65536
        assert options.rdzv_id == {"slurm.sbatch": "4711-0"}.get(script.name, "satori")


@by_name
def test_without_a_config_it_says_how(script: Path, environment: dict[str, str]) -> None:
    done = launched(script, environment)
    assert done.returncode == 2 and "CONFIG.toml" in done.stderr


def test_machines_need_a_place_to_meet(environment: dict[str, str]) -> None:
    del environment["MAIN"]
    done = launched(LAUNCH / "torchrun_nodes.sh", environment, CONFIG)
    assert done.returncode != 0 and "MAIN: name of the machine" in done.stderr


# --- Slurm ---------------------------------------------------------------------------------------


def test_directives_of_slurm() -> None:
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    places = [n for n, line in enumerate(lines) if line.startswith("#SBATCH ")]
    # Slurm reads no directive after the first command.
    assert all(line.startswith("#") for line in lines[: places[-1]])
    found = dict(
        re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", lines[n]).groups()  # type: ignore[union-attr]
        for n in places
    )
    assert found.keys() == {
        *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem"),
        *("exclusive", "time", "signal", "requeue", "open-mode", "output"),
    }
    assert found["ntasks-per-node"] == "1" and found["open-mode"] == "append"
    assert re.fullmatch(r"\d\d:\d\d:\d\d", found["time"])
    seconds = re.fullmatch(r"B:TERM@(\d+)", found["signal"])
    assert seconds is not None and int(seconds[1]) > Config.example().parallel.grace_s


def test_a_job_that_is_asked_to_end_queues_again(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment["WAITS"] = "1"
    command = ["bash", str(LAUNCH / "slurm.sbatch"), CONFIG]
    job = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    until(tmp_path / "pid")
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 143, said
    assert (tmp_path / "cancelled").read_text() == "--signal=TERM 4711.0\n"
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert "put into the queue again" in said


def until(path: Path) -> None:
    """Wait for a file with something in it."""
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.05)


@pytest.mark.parametrize("code", [0, 2])
def test_a_job_that_ends_by_itself_does_not(
    code: int, environment: dict[str, str], tmp_path: Path
) -> None:
    done = launched(LAUNCH / "slurm.sbatch", environment | {"ENDS_WITH": str(code)}, CONFIG)
    assert done.returncode == code and not (tmp_path / "asked").exists()


# --- the container -------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """(instruction, the rest of it) of the Containerfile, lines joined."""
    text = re.sub(r"^#.*\n", "", (LAUNCH / "Containerfile").read_text(), flags=re.MULTILINE)
    joined = re.sub(r"\\\n\s*", " ", text)
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]  # type: ignore[misc]


def test_the_container_is_made_of_what_there_is() -> None:
    found = instructions()
    known = {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in found} <= known and found[0][0] == "FROM"
    copied = [rest.split()[:-1] for name, rest in found if name == "COPY" and "--from" not in rest]
    assert all((ROOT / path).exists() for paths in copied for path in paths)
    # What the build reads: pyproject.toml, and what that names.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build = project["tool"]["scikit-build"]
    needed = {"pyproject.toml", project["project"]["readme"], build["cmake"]["source-dir"]}
    assert needed | set(build["wheel"]["packages"]) <= {path for paths in copied for path in paths}
    extras = re.findall(r"\.\[([\w,-]+)\]", " ".join(rest for _, rest in found))
    assert set(extras[0].split(",")) <= set(project["project"]["optional-dependencies"])
    assert json.loads(dict(found)["ENTRYPOINT"]) == ["satori-fast"]


def test_its_commands_are_words_of_a_shell() -> None:
    for name, rest in instructions():
        if name == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)
            commands = [shlex.split(part)[0] for part in rest.split("&&")]
            assert set(commands) <= {
                "apt-get",
                "rm",
                "python3",
                "pip",
                "DEBIAN_FRONTEND=noninteractive",
            }
    # Packages are chosen without questions, and their lists do not stay in the image.
    installs = [rest for name, rest in instructions() if "apt-get install" in rest]
    assert all("--yes" in rest and "rm -rf /var/lib/apt/lists" in rest for rest in installs)


# --- for real ------------------------------------------------------------------------------------


@pytest.mark.ranks
def test_two_processes_run_and_start_again(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "PROCESSES": "2"}
    small = {
        "output_dir": tmp_path,
        "stages": '["reinforce"]',
        "model.hidden_size": 32,
        "model.num_layers": 1,
        "model.num_attention_heads": 2,
        "model.num_key_value_heads": 1,
        "model.intermediate_size": 64,
        "rollout.max_new_tokens": 8,
        "data.num_train": 40,
        "reinforce.num_steps": 1,
        "reinforce.problems_per_step": 2,
        "reinforce.samples_per_problem": 2,
        "reinforce.num_minibatches": 1,
        "reinforce.restarts.enabled": "false",
        "evaluation.num_problems": 4,
        "reward.num_workers": 0,
        "parallel.num_threads": 1,
    }
    words = [word for key, value in small.items() for word in (f"--{key}", str(value))]
    script = LAUNCH / "torchrun.sh"
    done = launched(script, environment, CONFIG, *words)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = tmp_path / "grpo" / "metrics.jsonl"
    before = metrics.read_bytes()
    done = launched(script, environment, CONFIG, *words)
    assert done.returncode == 0 and metrics.read_bytes() == before
    # A layout that does not divide the world: one line, and torchrun's own.
    wrong = {**environment, "PYTHON": sys.executable}
    done = launched(script, wrong, CONFIG, *words, "--name", "wrong", "--parallel.tensor", "4")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("satori-fast: ")]
    assert len(lines) == 1 and "parallel.tensor" in lines[0]
