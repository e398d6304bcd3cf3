# SPDX-License-Identifier: Apache-2.0
"""The process that runs cases: `python -m benchmarks.gpu.worker --device cuda --scale full`.

It reads one request a line, {"case": name, "allowance_s": seconds}, and answers each with one line.
A kernel that reads out of bounds takes its device context with it; then this process says so and
ends, and the supervisor starts another.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

import torch

from benchmarks.gpu.case import SIZES, Case, Place
from benchmarks.gpu.cases import all_cases
from benchmarks.gpu.timing import Broken, available_bytes, failure

# Share of the free device memory that the suite may take.
MEMORY_SHARE = 0.9


def run_case(case: Case, place: Place) -> dict[str, Any]:
    """The answer to a request: a status, figures if there are any, and whether this process is of
    no more use ("broken")."""
    started = time.perf_counter()
    answer: dict[str, Any] = {"case": case.name, "broken": False}
    try:
        free = available_bytes(place)
        if case.memory > free:
            needs = f"needs {case.memory / 2**30:.1f} GiB, {free / 2**30:.1f} GiB may be taken"
            answer |= {"status": "skipped", "reason": needs}
        else:
            figures = case.run(place)
            place.finish()
            status = "ok" if figures.get("passed", True) else "wrong"
            answer |= {"status": status, "figures": figures}
    except Broken as error:
        answer |= {"status": "failed", "reason": str(error), "broken": True}
    except Exception as error:  # one case failing never loses the rest
        try:
            answer |= failure(error, place)
        except Broken as lost:
            answer |= {"status": "failed", "reason": str(lost), "broken": True}
    return answer | {"seconds": round(time.perf_counter() - started, 2)}


def limit_memory() -> None:
    """No allocation beyond MEMORY_SHARE of what others leave free."""
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE * free / total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--scale", choices=tuple(SIZES), required=True)
    arguments = parser.parse_args()
    # Libraries that print must not disturb the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    if arguments.device == "cuda":
        limit_memory()
    cases = {case.name: case for case in all_cases(arguments.scale)}
    for line in sys.stdin:
        request = json.loads(line)
        place = Place(torch.device(arguments.device), request["allowance_s"])
        answer = run_case(cases[request["case"]], place)
        answers.write(json.dumps(answer) + "\n")
        if answer["broken"]:
            break


if __name__ == "__main__":
    main()
