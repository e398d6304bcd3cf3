# SPDX-License-Identifier: Apache-2.0
"""Tests by name, one line of JSON for each: a program that runs inside the sandbox.

`patches` starts it as a file, in the repository's folder, with the report's name in $TMPDIR and the
tests' names. It imports the standard library alone. A test's line is written before the next test
begins, so a killed run leaves the lines of those that ended.
"""

from __future__ import annotations

import json
import os
import sys
import unittest
from collections.abc import Sequence

_MAX_DETAIL = 200


def main(report: str, names: Sequence[str]) -> None:
    """Run each named test by itself and write whether it passed, and else its error."""
    sys.path.insert(0, os.getcwd())
    with open(os.path.join(os.environ["TMPDIR"], report), "w", buffering=1) as file:
        for name in names:
            error = _error_of(name)
            line = {"test": name, "passed": error is None, "error": error}
            file.write(json.dumps(line) + "\n")


def _error_of(name: str) -> str | None:
    """Error of one test in a line, None if it passed. A skipped test did not."""
    result = unittest.TestResult()
    try:
        unittest.defaultTestLoader.loadTestsFromName(name).run(result)
    except (Exception, SystemExit) as error:  # of a module that does not import
        return f"{type(error).__name__}: {error}"[:_MAX_DETAIL]
    faults = [text for _, text in (*result.errors, *result.failures)]
    if faults:
        return _last_error(faults[0])[:_MAX_DETAIL]
    if result.skipped or result.unexpectedSuccesses or not result.testsRun:
        return "skipped, missing, or passed where failure is expected"
    return None


def _last_error(text: str) -> str:
    """Line of a traceback that names the exception, below its last frame."""
    lines = text.splitlines()
    frames = [place for place, line in enumerate(lines) if line.startswith('  File "')]
    below = lines[frames[-1] + 1 if frames else 0 :]
    return next((line for line in below if line and not line.startswith(" ")), lines[-1])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
