# SPDX-License-Identifier: Apache-2.0
"""Runs a config on two processes, as torchrun starts them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run_on_two(config: Path, *options: str, timeout_s: float = 300) -> None:
    """Run a config file to its end; its run folder lies beside it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", "-m", "satori_fast", "run", str(config)]
    command += ["--output_dir", str(config.parent), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stderr[-2000:]
