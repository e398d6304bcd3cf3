# SPDX-License-Identifier: Apache-2.0
"""Processes that live, that ended, that were not reaped, and those of other machines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

from satori_fast.processes import group_members, is_resource_tracker, this_process


def test_this_process_lives() -> None:
    assert not this_process().is_gone()
    assert str(os.getpid()) in str(this_process())


def test_a_process_that_ended_is_gone_reaped_or_not() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    theirs = replace(this_process(), pid=child.pid, start=0)
    assert not theirs.is_gone()
    child.kill()
    deadline = time.monotonic() + 60
    while not theirs.is_gone() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert theirs.is_gone()
    child.communicate()
    assert theirs.is_gone()


def test_a_number_that_is_used_again_is_another_process() -> None:
    assert replace(this_process(), start=this_process().start + 1).is_gone()


def test_nothing_is_known_of_other_machines() -> None:
    assert not replace(this_process(), place="elsewhere", pid=2**22 + 1).is_gone()


def test_a_group_members_as_long_as_one_of_it() -> None:
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    assert group_members(child.pid) == [child.pid]
    assert not is_resource_tracker(child.pid)
    os.killpg(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while group_members(child.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not group_members(child.pid)  # though nobody has reaped it
    child.wait()
