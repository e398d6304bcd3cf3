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

from tests.drill.raising import REASON
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
                detail = ending.detail
                if judgement == "told in one line":
                    resumed = _launched(alone, place, "--resume").wait()
                    judgement, detail = alone.judge(place, resumed)
                yield Outcome("a rank lost, then resumed", case, judgement, detail)


def layouts(scene: Scene, *, small: bool) -> Iterator[Outcome]:
    """Four ranks, two by two, that share the optimizer and save in the background, with a server to
    sample from: one is killed, stopped, or raises, or a checkpoint is damaged; then resumed."""
    if small or importlib.util.find_spec("vllm") is None:
        return
    with scene.place("layouts-undisturbed") as undisturbed:
        ending = _launched(scene, undisturbed, *_TWO_BY_TWO, num_ranks=4).wait()
        if ending.code:
            yield Outcome("layouts", "undisturbed", "FAILED", ending.stderr[-300:])
            return
        alone = scene.beside(undisturbed / "drill")
        for case, lose in _LOSSES.items():
            with alone.place("layouts") as place:
                launch = lose(alone, place)
                ending = launch.wait()
                judgement, detail = _judged_ranks(ending, stopped="stopped" in case), ""
                if case == "rank 1 raises" and REASON not in ending.last_line:
                    judgement = "REASON NOT TOLD"
                if judgement == "told in one line":
                    more = (*_TWO_BY_TWO, "--resume")
                    resumed = _launched(alone, place, *more, num_ranks=4).wait()
                    judgement, detail = alone.judge(place, resumed)
                yield Outcome("TP2 x DP2, then resumed", case, judgement, detail or ending.detail)


def _signalled(number: signal.Signals) -> Callable[[Scene, Path], _Launch]:
    """A launch whose rank 1 gets a signal when there is a checkpoint."""

    def lose(scene: Scene, place: Path) -> _Launch:
        launch = _launched(scene, place, *_TWO_BY_TWO, num_ranks=4)
        launch.when(place / "drill" / "checkpoints" / "reinforce" / "step-2")
        os.kill(launch.rank(1), number)
        return launch

    return lose


def _raising(scene: Scene, place: Path) -> _Launch:
    return _launched(scene, place, *_TWO_BY_TWO, num_ranks=4, module="tests.drill.raising")


def _damaged(scene: Scene, place: Path) -> _Launch:
    """A launch that is killed behind its second checkpoint, which then loses a shard's second half:
    the one before it is left."""
    launch = _launched(scene, place, *_TWO_BY_TWO, num_ranks=4)
    newest = place / "drill" / "checkpoints" / "reinforce" / "step-4"
    launch.when(newest)
    os.kill(launch.rank(3), signal.SIGKILL)
    shard = newest / "policy" / "__3_0.distcp"
    if shard.exists():
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    return launch


_TWO_BY_TWO = (
    *("--stages", '["synthesize", "supervised", "reinforce"]', "--reward.preference_weight", "0.0"),
    *("--model.hidden_size", "64", "--model.num_attention_heads", "2"),
    *("--model.num_key_value_heads", "2", "--parallel.tensor", "2"),
    *("--rollout.engine", "server", "--rollout.sync_timeout_s", "60.0"),
)
_LOSSES: dict[str, Callable[[Scene, Path], _Launch]] = {
    "rank 1 killed": _signalled(signal.SIGKILL),
    "rank 1 stopped": _signalled(signal.SIGSTOP),
    "rank 1 raises": _raising,
    "a shard damaged": _damaged,
}


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

    def __init__(self, arguments: list[str], log: Path, *, num_ranks: int, module: str) -> None:
        self._log = log
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, str(num_ranks), "-m", module, *arguments],
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


def _launched(
    scene: Scene, place: Path, *more: str, num_ranks: int = 2, module: str = "satori_fast"
) -> _Launch:
    limits = ("--parallel.timeout_s", "60.0", "--parallel.main_timeout_s", "200.0")
    log = place / f"{time.monotonic_ns()}.log"
    arguments = scene.arguments(place, *limits, *more)
    return _Launch(arguments, log, num_ranks=num_ranks, module=module)


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
