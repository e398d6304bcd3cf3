# SPDX-License-Identifier: Apache-2.0
"""Stacks of the threads of this process, for a rank that waits for it in vain."""

from __future__ import annotations

import sys
import threading
import traceback
from pathlib import Path
from types import FrameType

_PACKAGE = str(Path(__file__).parents[1])


def stacks() -> str:
    """Python stacks of all threads, the main one first, innermost frame last."""
    frames = sys._current_frames()
    threads = sorted(threading.enumerate(), key=lambda each: each is not threading.main_thread())
    parts = [
        f"{thread.name}:\n{''.join(traceback.format_stack(frames[thread.ident]))}"
        for thread in threads
        if thread.ident in frames
    ]
    return "\n".join(parts)


def place() -> str:
    """Line at which the main thread is: the innermost of this package, or of all."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    innermost = frame
    while frame is not None and not frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return _described(frame or innermost)


def _described(frame: FrameType | None) -> str:
    if frame is None:
        return "an unknown place"
    code = frame.f_code
    return f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}"
