# SPDX-License-Identifier: Apache-2.0
"""The wheel, tried where nothing else of this repository is.

    python -m tests.wheel_check

Builds it, looks for every file of the package in it, installs it with its dependencies into a fresh
virtual environment, and uses it from an empty folder: the compiled kernels, a plan, a whole small
run. `make wheel-check` calls it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "satori_fast"
CONFIG = ROOT / "configs" / "debug" / "grpo.toml"
# What the compiled module is called in a wheel, whatever the platform.
COMPILED = "_C."


def main() -> None:
    """Build, look, install, use; an exception where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", default="torch", help="requirement of the torch to install")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder) / "wheel")
        say(f"{wheel.name}: {check_files(wheel)} files")
        python = install(Path(folder) / "environment", [options.torch, str(wheel)])
        use(python, Path(folder) / "empty")
    say("the wheel works in a fresh environment")


def say(line: str) -> None:
    """Print a line at once."""
    print(f"== wheel-check: {line}", flush=True)


def build(folder: Path) -> Path:
    """The wheel of this checkout, by the build tools of this environment."""
    words = ["wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    run([sys.executable, "-m", "pip", *words, str(ROOT)], folder=ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_files(wheel: Path) -> int:
    """Number of files of the package in a wheel. ValueError names one that is missing, and a wheel
    without compiled kernels."""
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    missing = sorted(set(files_of_package()) - packed)
    if missing:
        raise ValueError(f"{wheel.name} lacks {missing[0]}, and {len(missing) - 1} files more")
    if not any(name.startswith(f"{PACKAGE}/{COMPILED}") for name in packed):
        raise ValueError(f"{wheel.name} has no compiled kernels: {PACKAGE}/{COMPILED}*")
    return sum(name.startswith(f"{PACKAGE}/") for name in packed)


def files_of_package() -> list[str]:
    """Every file of the package that the repository keeps, as seen from its root."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", PACKAGE]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def install(folder: Path, requirements: Sequence[str]) -> Path:
    """The Python of a new environment with these requirements."""
    run([sys.executable, "-m", "venv", str(folder)])
    python = folder / "bin" / "python"
    for requirement in requirements:
        say(f"installing {Path(requirement).name}")
        run([str(python), "-m", "pip", "install", "-q", requirement])
    return python


def use(python: Path, folder: Path) -> None:
    """Compiled kernels, a plan, and every stage of a config, small; far from the repository."""
    folder.mkdir()
    program = f"from satori_fast import {COMPILED[:-1]}; print({COMPILED[:-1]}.__file__)"
    say(run([str(python), "-c", program], folder=folder).strip())
    command = str(python.with_name("satori-fast"))
    plan = run([command, "plan", str(CONFIG), "--gpus", "8", "--gpu", "h100"], folder=folder)
    say(plan.splitlines()[0])
    run([command, "run", str(CONFIG), "--dry-run"], folder=folder)


def run(words: Sequence[str], *, folder: Path | None = None) -> str:
    """Output of a command, which must succeed. PYTHONPATH must not lead back to this checkout."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        list(words), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
