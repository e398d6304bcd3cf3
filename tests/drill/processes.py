# SPDX-License-Identifier: Apache-2.0
"""What happens to runs of several processes: ranks and servers that are killed or stopped."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.drill.scene import Outcome, Scene
from tests.drill.victim import Ending

_PATIENCE_S = 300.0


def ranks(scene: Scene, *, small: bool) -> Iterator[Outcome]:
    """Rank 1 of 2 is killed, or stopped, in the middle of training; then the run is resumed."""
    with scene.place("ranks-undisturbed") as undisturbed:
        ending = _launched(scene, undisturbed).wait()
        if ending.code:
            yield Outcome("ranks", "undisturbed", "FAILED", ending.stderr[-300:])
            return
        alone = scene.beside(undisturbed / "drill")
        for case, number in (("rank 1 killed", signal.SIGKILL), ("rank 1 stopped", signal.SIGSTOP)):
            if small and number == signal.SIGSTOP:
                continue
            with alone.place(f"ranks-{number}") as place:
                launch = _launched(alone, place)
                launch.when(place / "drill" / "checkpoints" / "supervised" / "step-20")
                os.kill(launch.rank(1), number)
                ending = launch.wait()
                judgement = _judged_ranks(ending, stopped=number == signal.SIGSTOP)
                detail = ending.last_line
                if judgement == "told in one line":
                    resumed = _launched(alone, place, "--resume").wait()
                    judgement, detail = alone.judge(place, resumed)
                yield Outcome("a rank lost, then resumed", case, judgement, detail)


def _judged_ranks(ending: Ending, *, stopped: bool) -> str:
    if ending.code == 0:
        return "NOT NOTICED"
    ours = [line for line in ending.stderr.splitlines() if line.startswith("satori-fast:")]
    if not ours or len(ours) > 2:
        return f"{len(ours)} LINES"
    if stopped and not any("rank 1" in line for line in ours):
        return "RANK NOT NAMED"
    return "told in one line"


class _Launch:
    """A run under torchrun, with short waits."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self._log = log
        module = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *module, "-m", "satori_fast", *arguments],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def when(self, sign: Path) -> None:
        """Wait until a file or folder appears."""
        _wait(lambda: sign.exists() or self.process.poll() is not None)

    def rank(self, number: int) -> int:
        """The process of a rank."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                if child.environ().get("RANK") == str(number):
                    return child.pid
        raise RuntimeError(f"torchrun has no rank {number}")

    def wait(self) -> Ending:
        """End of all ranks, at the latest after `_PATIENCE_S`; none is left behind."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_PATIENCE_S)
        for process in [*family, psutil.Process()]:
            if process.pid != os.getpid():
                with contextlib.suppress(psutil.Error):
                    process.kill()
        code = self.process.poll()
        if code is None:
            self.process.kill()
        return Ending(self.process.wait() if code is None else code, self._log.read_text())


def _launched(scene: Scene, place: Path, *more: str) -> _Launch:
    limits = ("--parallel.timeout_s", "60.0", "--parallel.main_timeout_s", "60.0")
    return _Launch(scene.arguments(place, *limits, *more), place / f"{time.monotonic_ns()}.log")


def servers(scene: Scene, *, small: bool) -> Iterator[Outcome]:
    """A vLLM server is killed, or stopped, between two steps: the same bits as undisturbed."""
    if small or importlib.util.find_spec("vllm") is None:
        return
    model = scene.reference / "models" / "supervised"
    more = ["--stages", '["reinforce"]', "--model.path", f"'{model}'", "--tokenizer.kind", "model"]
    more += ["--reward.preference_weight", "0.0", "--reinforce.restarts.enabled", "false"]
    more += ["--rollout.engine", "server", "--rollout.sync_timeout_s", "30.0"]
    with scene.place("servers-undisturbed") as undisturbed:
        ending = scene.start(undisturbed, *more).wait()
        if ending.code:
            yield Outcome("servers", "undisturbed", "FAILED", ending.stderr[-300:])
            return
        alone = scene.beside(undisturbed / "drill")
        for case, number in (("server killed", signal.SIGKILL), ("server stopped", signal.SIGSTOP)):
            with alone.place(f"servers-{number}") as place:
                victim = alone.start(place, *more)
                sign = place / "drill" / "checkpoints" / "reinforce" / "step-2"
                _wait(sign.exists)
                for child in psutil.Process(victim.pid).children():
                    if any("vllm" in word for word in child.cmdline()):
                        os.kill(child.pid, number)
                judgement, detail = alone.judge(place, victim.wait())
                yield Outcome("a server lost", case, judgement, detail)


def _wait(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not is_done() and time.monotonic() < deadline:
        time.sleep(0.02)
