# SPDX-License-Identifier: Apache-2.0
"""A process that runs a user's reward functions and that can be killed: the two ends of it.

A plain subprocess, as the graders' is (`grading.worker`): nothing of the caller's ``__main__`` is
imported again, and what a function breaks is its own process. Trajectories go in pickled, numbers
come back as JSON. Which functions there are, and what becomes of their numbers, is `rewards.user`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import math
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import IO, Any, cast

from satori_fast.types import Trajectory

_WORKER_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from satori_fast.rewards.worker import serve; serve()"
)
_LENGTH = struct.Struct(">Q")
_MIN_WALL_S = 30.0
_WALL_FACTOR = 10
_LOAD_S = 300.0  # a file may import large libraries
_SHOWN = 80  # characters of a value in a message

Function = Callable[[Sequence[Trajectory]], Any]


class RewardFunctionError(ValueError):
    """A user's reward function gave no rewards; one line with the function and the fix."""


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Time limits of one call of a function, for all trajectories of a step together.

    cpu_s:  CPU seconds of its process, all threads: a busy machine fails no right function.
    wall_s: seconds until it must have returned, for one that sleeps or waits.
    load_s: seconds until its file or module must have been loaded, once.
    """

    cpu_s: float
    wall_s: float
    load_s: float = _LOAD_S

    @classmethod
    def of_cpu(cls, cpu_s: float) -> CallLimits:
        """`cpu_s`, and ten times that in wall-clock seconds, at least 30."""
        return cls(cpu_s, max(_MIN_WALL_S, _WALL_FACTOR * cpu_s))


# -- the worker's end -------------------------------------------------------------------------


def serve() -> None:
    """Main loop of a worker process.

    A request is a pickled tuple: path, trajectories (None: only load the function), and the limits
    of CPU and wall-clock seconds. A reply is a line of JSON.
    """
    # The real standard streams are for requests and replies alone: what a function prints goes to
    # standard error, and it has no input.
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # A scheduler's SIGTERM is for the parent, which still finishes its step; its end is ours.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGPROF, signal.SIGALRM))
    functions: dict[str, Function] = {}
    replies.write('"ready"\n')
    while header := requests.read(_LENGTH.size):
        path, trajectories, cpu_s, wall_s = pickle.loads(requests.read(*_LENGTH.unpack(header)))
        # Kills it even inside C code; the alarm also when the parent is gone. A function may take
        # the alarm for itself: the parent has a clock of its own.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, 0 if trajectories is None else cpu_s)
        signal.setitimer(signal.ITIMER_REAL, 2 * wall_s)
        reply = _reply(functions, path, trajectories)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps(reply) + "\n")


def _reply(
    functions: dict[str, Function], path: str, trajectories: Sequence[Trajectory] | None
) -> dict[str, Any]:
    """{"values": [...]} or {"fault": one line, "traceback": text}."""
    doing = "cannot be loaded"
    try:
        if path not in functions:
            functions[path] = load_function(path)
        doing = "raised an error"
        if trajectories is None:
            return {"values": []}
        return {"values": checked_values(functions[path](trajectories), trajectories)}
    except RewardFunctionError as error:
        return {"fault": str(error), "traceback": ""}
    except BaseException as error:  # sys.exit and an interrupt of the function's own, too
        return {
            "fault": f"{doing}: {_described(error)}: fix it",
            "traceback": "".join(traceback.format_exception(error)),
        }


def load_function(path: str) -> Function:
    """The function that ``"file.py:name"`` or ``"module:name"`` names; its file is run.

    A file's own folder is the last place on Python's path, so that it can import its neighbours.
    """
    place, _, name = path.rpartition(":")
    module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        what = "no function" if function is None else f"{type(function).__name__}, no function,"
        raise RewardFunctionError(
            f"cannot be loaded: {place} has {what} {name!r}: correct reward.functions: path"
        )
    return cast(Function, function)


def _load_file(file: Path) -> ModuleType:
    # A name of its own: two files may be called the same, and none may hide a library.
    name = f"_reward_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}_{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def checked_values(result: Any, trajectories: Sequence[Trajectory]) -> list[float]:
    """A finite number for each trajectory, from what a function returned: a list, a tuple, or an
    array of numpy or torch. RewardFunctionError, naming the problem, for anything else."""
    need = f"return a list with a number for each of the {len(trajectories)} trajectories"
    if result is None:
        raise RewardFunctionError(f"returned None: {need}")
    values: Any = result.tolist() if hasattr(result, "tolist") else result
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise RewardFunctionError(f"returned {_shown(result)}: {need}")
    values = cast(Sequence[Any], values)
    if len(values) != len(trajectories):
        raise RewardFunctionError(
            f"returned {len(values)} numbers for {len(trajectories)} trajectories: return one for "
            "each, in their order"
        )
    return [
        _number(value, f"problem {t.problem.problem_id!r} (number {n} of {len(trajectories)})")
        for n, (value, t) in enumerate(zip(values, trajectories, strict=True), start=1)
    ]


def _number(value: Any, whose: str) -> float:
    number: Any = value
    if hasattr(value, "item"):  # a scalar of numpy or torch
        with contextlib.suppress(Exception):  # an array of several numbers is none
            number = value.item()
    if not isinstance(number, int | float):
        raise RewardFunctionError(f"gave {_shown(value)} for {whose}: return numbers")
    try:
        found = float(number)
    except OverflowError:  # an integer beyond all floats
        found = math.inf
    if not math.isfinite(found):
        raise RewardFunctionError(f"gave {found} for {whose}: return finite numbers")
    return found


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
    return f"{text} ({type(value).__name__})"


def _described(error: BaseException) -> str:
    """The error in one line, where the user's code raised it, and for which problem if a variable
    there says so."""
    message = " ".join(str(error).split())
    kind = type(error).__name__
    described = f"{kind}: {message}" if message else kind
    if isinstance(error, SyntaxError):
        return described  # it names file and line itself
    frames: list[tuple[FrameType, int]] = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename != __file__ and "importlib" not in frame.f_code.co_filename
    ]
    if not frames:
        return described
    frame, line = next(
        ((f, n) for f, n in reversed(frames) if "site-packages" not in f.f_code.co_filename),
        frames[-1],
    )
    described = f"{described} ({frame.f_code.co_filename}:{line})"
    for frame, _ in reversed(frames):
        for value in frame.f_locals.values():
            if isinstance(value, Trajectory):
                return f"{described}, at problem {value.problem.problem_id!r}"
    return described


# -- the parent's end -------------------------------------------------------------------------


class FunctionWorker:
    """The parent's end of the process that runs all functions of a run; started when first needed.

    One that is killed or dies is started anew at the next call, but a run stops at the first
    error. Close it, or use it as a context manager.
    """

    def __init__(self, limits: CallLimits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> FunctionWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, name: str, path: str) -> None:
        """Run the file or module of a function, so that a mistake in it comes before training.

        name: of its term, for messages. RewardFunctionError says what is wrong.
        """
        self._ask(name, path, None)

    def call(self, name: str, path: str, trajectories: Sequence[Trajectory]) -> list[float]:
        """Call the function on the trajectories; its values are checked by `checked_values`.

        RewardFunctionError when it gives none; a function that is late is killed.
        """
        self.load(name, path)  # with more time than a call has
        return self._ask(name, path, trajectories)

    def close(self) -> None:
        """Kill the process, if there is one, and whatever it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(BrokenPipeError), process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its session is its own
            process.kill()

    def _ask(self, name: str, path: str, trajectories: Sequence[Trajectory] | None) -> list[float]:
        """The worker's values; RewardFunctionError for a fault, a late reply or a death."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        limits = self._limits
        wall_s = limits.load_s if trajectories is None else limits.wall_s
        request = pickle.dumps((path, trajectories, limits.cpu_s, wall_s))
        assert process.stdin is not None and process.stdout is not None
        line = b""
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(_LENGTH.pack(len(request)))
                process.stdin.write(request)
                process.stdin.flush()
                line = _line_within(process.stdout, wall_s)
        except BaseException:  # an interrupt: a reply that comes later would be the next call's
            self.close()
            raise
        reply: dict[str, Any] | None = json.loads(line) if line else None
        if reply is not None and "values" in reply:
            return reply["values"]
        if reply is None:
            fault = self._ending(process, wall_s, loading=trajectories is None)
        else:
            fault = reply["fault"]
        error = RewardFunctionError(f"reward function {name} ({path}) {fault}")
        if reply is not None and reply["traceback"]:
            error.add_note(f"In the reward function's process:\n{reply['traceback']}")
        raise error

    def _ending(self, process: subprocess.Popen[bytes], wall_s: float, *, loading: bool) -> str:
        """Describe the end of a process that sent no reply; it is gone afterwards."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # its pipe closes before it ends
            process.wait(1.0)
        code = process.poll()
        self.close()
        if loading and code is None:
            return f"was not loaded within {wall_s:g} s: do less when the file is imported"
        faster = "make it faster, or raise reward.function_timeout_s"
        if code is None or code == -signal.SIGALRM:
            return f"did not return within {wall_s:g} s and was killed: {faster}"
        if code == -signal.SIGPROF:
            cpu_s = self._limits.cpu_s
            return f"took more than {cpu_s:g} CPU seconds for one step and was killed: {faster}"
        if code < 0:
            how = f"was ended by signal {signal.Signals(-code).name}"
        else:
            how = f"ended its process with exit status {code}"
        return f"{how}: a crash in a library, or no memory left; its output is above"

    def _start(self) -> subprocess.Popen[bytes]:
        # The worker finds modules where this process would. Ctrl-C reaches the parent only, whose
        # end closes the worker's input.
        command = [sys.executable, "-P", "-c", _WORKER_PROGRAM, json.dumps(sys.path)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._process = process
        assert process.stdout is not None
        if _line_within(process.stdout, _LOAD_S) != b'"ready"\n':
            self.close()
            raise RuntimeError(
                f"the process for reward functions did not start (exit status "
                f"{process.returncode}); its error is printed above"
            )
        return process


def _line_within(stream: IO[bytes], limit_s: float) -> bytes:
    """A line from a pipe that nothing else is read from; b"" at its end or after `limit_s`."""
    deadline = time.monotonic() + limit_s
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(1000 * left_s):
            return b""
        # Unbuffered: what lies in a buffer of this process would not wake the poll.
        piece = os.read(stream.fileno(), 1 << 20)
        if not piece:
            return b""
        line += piece
    return line
