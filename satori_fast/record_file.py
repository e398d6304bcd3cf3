# SPDX-License-Identifier: Apache-2.0
"""Append-only files of JSON lines that survive a kill.

A line is handed to the system before its content is used, so the kill of a process loses none; a
line that the kill tore is dropped. (A power cut can lose the last seconds: nothing waits for the
disk.) What the lines mean is known to those who write them.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from satori_fast.storage import sealed_line, unsealed

logger = logging.getLogger(__name__)


class RecordFile:
    """JSON objects, one a line. Opening it reads what is there; one process may have it open.

    on_record: called with each record that was there and its place, for `read`. Raises ValueError
    for a line that is not as it was written (but for a torn last one), and when another process has
    the file.
    """

    def __init__(self, path: Path, on_record: Callable[[dict[str, Any], int], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{path} is in use: another process works on this run") from None
        self._end = self._scan(on_record)

    def _scan(self, on_record: Callable[[dict[str, Any], int], None]) -> int:
        """The end of the last whole line; what a kill left behind it is cut off."""
        place = 0
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    logger.info("%s: dropped a line that was torn by a kill", self._path)
                    self._file.truncate(place)
                    break
                on_record(unsealed(line, f"{self._path}:{number}"), place)
                place += len(line)
        return place

    def append(self, record: Mapping[str, Any]) -> int:
        """Write one record; its place."""
        line = sealed_line(record).encode()
        place = self._end
        while line:  # a full disk raises, an interrupted write goes on
            written = self._file.write(line)
            line = line[written:]
            self._end += written
        return place

    def read(self, place: int) -> dict[str, Any]:
        """The record that was written at `place`."""
        with self._path.open("rb") as lines:
            lines.seek(place)
            return unsealed(lines.readline(), f"{self._path}, byte {place}")

    def close(self) -> None:
        self._file.close()
