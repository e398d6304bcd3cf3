# SPDX-License-Identifier: Apache-2.0
"""The command line, one rank of which raises in its third step: `python -m tests.drill.raising`."""

from __future__ import annotations

import os
import sys
from typing import Any

from satori_fast import cli
from satori_fast.stages import reinforce

RANK, STEP, REASON = 1, 2, "this rank was told to raise"


def main() -> int:
    step_of = reinforce.reinforce_step

    def raising(learner: Any, source: Any, step: int) -> Any:
        if int(os.environ["RANK"]) == RANK and step == STEP:
            raise RuntimeError(REASON)
        return step_of(learner, source, step)

    reinforce.reinforce_step = raising
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
