# SPDX-License-Identifier: Apache-2.0
"""Whole steps of reinforcement learning, ours and TRL's, in turn on the same core.

    python -m benchmarks.peers                              # CPU, some twenty minutes
    python -m benchmarks.peers --workloads W1-medium --record peers_medium
    python -m benchmarks.peers --workloads gpu-1.5b         # on a GPU

They step A B A B ..., each step being a rollout, rewards, old log-probs and two optimizer steps.
Same model folder, prompts, completion lengths, reward, loss and optimizer; `benchmarks/README.md`
says what is not the same. pip install trl first.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from benchmarks import measure
from benchmarks.peers.race import race
from benchmarks.peers.workload import GPU_WORKLOADS, WORKLOADS

ALL = WORKLOADS | GPU_WORKLOADS


def print_race(name: str, result: dict[str, Any]) -> None:
    print(f"{name}: {result['workload']['title']}")
    for side, figures in result["sides"].items():
        rates = "  ".join(f"{k} {v:,.0f}" for k, v in figures["tokens_per_s"].items())
        print(f"  {side:8s} {rates} tokens/s  peak {figures['peak_mib']:,.0f} MiB")
    speed = "  ".join(f"{k} {v:.2f}x" for k, v in result["ratios"]["tokens_per_s"].items())
    print(f"  ratio    {speed}  peak {result['ratios']['peak_mib']:.2f}")


def main() -> None:
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("--workloads", nargs="+", choices=list(ALL), default=["W1", "W2", "W3"])
    options.add_argument("--steps", type=int, help="measured steps of each side; the workload's")
    options.add_argument("--warmup", type=int, default=2)
    options.add_argument("--core", default="1", help='processor core of both sides, or "any"')
    options.add_argument("--record", default="peers", help="of benchmarks/results")
    chosen = options.parse_args()
    for name in chosen.workloads:
        steps = chosen.steps or ALL[name].steps
        result = race(ALL[name], steps=steps, warmup=chosen.warmup, core=chosen.core)
        command = " ".join(["python -m benchmarks.peers", *sys.argv[1:]])
        measure.record(chosen.record, {name: {"command": command, **result}})
        print_race(name, result)


if __name__ == "__main__":
    main()
