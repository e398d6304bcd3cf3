# SPDX-License-Identifier: Apache-2.0
"""SIGTERM: raised outside of steps, remembered inside, and an end that nothing can hold up."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from satori_fast import termination
from satori_fast.termination import Terminated, deferred, is_asked, sigterm_handled


def term() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)  # the handler runs between two instructions


def test_outside_of_steps_it_is_raised_at_once() -> None:
    earlier = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match="between steps; --resume") as caught, sigterm_handled():
        term()
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == earlier and not is_asked()


def test_inside_it_waits_and_whoever_does_not_see_to_it_ends_behind() -> None:
    done = []
    with pytest.raises(Terminated, match="last checkpoint"), sigterm_handled():
        with deferred():
            with deferred():
                term()
                assert is_asked()
            done.append("inner")
        done.append("never")
    assert done == ["inner"]


def test_an_error_inside_stays_that_error() -> None:
    with pytest.raises(ValueError, match="mine"), sigterm_handled(), deferred():
        term()
        raise ValueError("mine")


def test_it_is_an_exit_that_no_handler_of_errors_swallows() -> None:
    with pytest.raises(SystemExit):
        try:
            raise Terminated("over")
        except Exception:
            pytest.fail("swallowed")


PROGRAM = """
import os, signal, sys, time
from satori_fast import termination
from satori_fast.termination import deferred, sigterm_handled
termination.set_grace(float(sys.argv[1]))
termination.at_sudden_end(lambda: print("cleaned", flush=True))
termination.at_sudden_end(lambda: 1 / 0)
forgotten = lambda: print("forgotten", flush=True)
termination.at_sudden_end(forgotten)
termination.forget(forgotten)
if sys.argv[2:]:
    termination.ask_whether_hopeless(lambda: sys.argv[2], lambda: "hush" not in sys.argv)
with sigterm_handled(), deferred():
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("arguments", "num_signals", "said"),
    [
        (["0.2"], 1, "the step did not end within parallel.grace_s = 0.2"),
        (["500"], 2, "at once by a second SIGTERM"),
        (["500", "rank 3 failed"], 1, "rank 3 failed"),
        (["500", "rank 3 failed", "hush"], 1, None),  # another rank says it
    ],
)
def test_the_end_comes_though_the_step_goes_on(
    arguments: list[str], num_signals: int, said: str | None
) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TORCHELASTIC")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for _ in range(num_signals):
            process.send_signal(signal.SIGTERM)
            if num_signals > 1:
                time.sleep(2 * termination._SAME_REQUEST_ALONE_S)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143 and out == "cleaned\n"
    if said is None:
        assert not err
        return
    (line,) = err.splitlines()
    assert line.startswith("satori-fast: ") and said in line and "--resume" in line


def test_two_signals_of_a_launcher_are_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert termination._same_request_s() > 2


def test_an_event_loop_is_left_in_order() -> None:
    closed = []

    async def work() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            closed.append("work")

    async def all_of_it() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(work())
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(0.01, term)
            await asyncio.sleep(600)

    with pytest.raises(Terminated), sigterm_handled():
        asyncio.run(all_of_it())
    assert closed == ["work"]
