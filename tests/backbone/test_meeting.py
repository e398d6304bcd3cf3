# SPDX-License-Identifier: Apache-2.0
"""Waits of ranks for each other, in threads of this process: who is named, and who survives.

The two ranks of `test_waits_longer_than_a_collective_may_take` are processes that talk over gloo.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from satori_fast import failures, termination
from satori_fast.backbone.meeting import Limits, Meeting, RankLost, caller
from satori_fast.processes import this_process

PATIENT = Limits(collective_s=60.0, main_s=60.0)


@pytest.fixture
def store() -> Any:
    return dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]


@pytest.fixture
def meetings(request: pytest.FixtureRequest, store: Any) -> Iterator[list[Meeting]]:
    """Two ranks of one store, with the limits that a test asks for."""
    made = [Meeting(store, rank, 2, getattr(request, "param", PATIENT)) for rank in range(2)]
    yield made
    for meeting in made:
        meeting.close()


def test_the_others_wait_until_one_opens(meetings: list[Meeting]) -> None:
    first, second = meetings
    came = threading.Event()

    def wait() -> None:
        second.await_opening(second.at("work"), "work", limit_s=60.0)
        came.set()

    thread = threading.Thread(target=wait)
    thread.start()
    number = first.at("work")
    assert not came.wait(0.2)
    first.open(number)
    thread.join(30)
    assert came.is_set()


def test_all_meet(meetings: list[Meeting]) -> None:
    threads = [threading.Thread(target=meeting.meet, args=("there",)) for meeting in meetings]
    for _ in range(2):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        threads = [threading.Thread(target=meeting.meet, args=("again",)) for meeting in meetings]


def test_a_rank_that_is_too_late_is_named_with_where_it_was(meetings: list[Meeting]) -> None:
    first, second = meetings
    second.at("elsewhere")
    first.at("elsewhere")
    number = first.at("the rollout")
    with pytest.raises(RankLost) as caught:
        first.await_opening(number, "the rollout", limit_s=0.2)
    text = str(caught.value)
    assert text.startswith("rank 1 on ") and "did not come to the rollout within" in text
    assert "parallel.main_timeout_s = 0.2 s (rank 1 was last at elsewhere, now at " in text


def test_a_rank_that_lives_and_does_not_come_shows_its_stacks(
    meetings: list[Meeting], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = meetings
    monkeypatch.setattr(failures, "_folder", tmp_path)
    second.at("elsewhere")
    first.at("elsewhere")
    first.at("the rollout")
    told = first.report("Timed out waiting 1000ms for recv", is_of_peers=True)
    assert told is not None and "rank 1 on " in told and "did not come" in told
    path = tmp_path / "stacks-rank1.log"
    assert "meeting.py:" in told and f"{path} has its stacks" in told
    text = path.read_text()
    assert text.startswith("MainThread:\n") and "\npulse:\n" in text
    assert "test_a_rank_that_lives_and_does_not_come_shows_its_stacks" in text


@pytest.mark.parametrize("meetings", [Limits(collective_s=0.4, main_s=600.0)], indirect=True)
def test_a_rank_without_a_pulse_is_named_long_before_the_other_limit(
    meetings: list[Meeting],
) -> None:
    first, second = meetings
    second.close()
    with pytest.raises(RankLost, match=r"^rank 1 on .* within parallel.timeout_s = 0.4 s"):
        first.await_opening(first.at("a"), "a", limit_s=600.0)


@pytest.mark.parametrize("meetings", [Limits(collective_s=0.1, main_s=600.0)], indirect=True)
def test_a_rank_with_a_pulse_may_take_its_time(meetings: list[Meeting]) -> None:
    first, second = meetings
    number = first.at("a")
    timer = threading.Timer(1.0, second.open, args=(number,))
    timer.start()
    first.await_opening(number, "a", limit_s=600.0)
    timer.join()


def test_a_process_that_is_gone_is_named(meetings: list[Meeting], store: Any) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone = replace(this_process(), pid=ended.pid, host="node7")
    store.set("who/1", json.dumps(asdict(gone)))
    with pytest.raises(RankLost, match=rf"rank 1 on node7 \(pid {ended.pid}\) is gone"):
        meetings[0].await_opening(meetings[0].at("a"), "a", limit_s=600.0)
    told = meetings[0].report("Connection closed by peer", is_of_peers=True)
    assert told is not None
    assert told.startswith(f"stopped because rank 1 on node7 (pid {ended.pid}) is gone ")


def test_what_was_found_first_is_what_all_tell(meetings: list[Meeting], store: Any) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone = replace(this_process(), pid=ended.pid, host="node7")
    store.set("who/1", json.dumps(asdict(gone)))
    found = meetings[0].reason()
    assert found is not None and found.startswith("rank 1 on node7")
    # Rank 0 ends for it, and is gone too when rank 1, restarted say, looks.
    store.set("who/0", json.dumps(asdict(gone)))
    assert meetings[1].reason() == found


@pytest.mark.parametrize("shared", [True, False])
def test_one_rank_of_a_machine_speaks_to_a_log_of_all(
    shared: bool, meetings: list[Meeting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("satori_fast.failures.shares_log", lambda: shared)
    first, second = meetings
    assert [second.speaks(), first.speaks(), second.speaks()] == [True, not shared, True]


def test_the_rank_that_fails_first_speaks(
    meetings: list[Meeting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("satori_fast.failures.shares_log", lambda: True)
    first, second = meetings
    second.report("no such tensor", is_of_peers=False)
    assert second.speaks() and not first.speaks()


def test_the_first_failure_is_what_everybody_says(meetings: list[Meeting]) -> None:
    first, second = meetings
    assert second.report("no such tensor", is_of_peers=False) is None
    reason = "stopped because rank 1 failed first: no such tensor"
    assert first.report("Connection closed by peer", is_of_peers=True) == reason
    assert first.report("my own", is_of_peers=False) == reason
    with pytest.raises(RankLost, match="stopped at a: rank 1 failed first: no such tensor"):
        first.await_opening(first.at("a"), "a", limit_s=600.0)


def test_a_grace_period_knows_of_a_failure(meetings: list[Meeting]) -> None:
    assert termination._hopeless() is None
    meetings[0].report("full disk", is_of_peers=False)
    assert termination._hopeless() == "rank 0 failed first: full disk"
    meetings[1].close()
    assert termination._hopeless() is None


def test_a_place_is_named_by_the_code_that_waits() -> None:
    assert caller() == "test_meeting.test_a_place_is_named_by_the_code_that_waits"


WORKER = """
import datetime, sys, time
import torch.distributed as dist
from satori_fast.backbone.meeting import Limits, RankLost
from satori_fast.backbone.parallel import initialize_parallel, shutdown_parallel
rank, folder = int(sys.argv[1]), sys.argv[2]
store = dist.FileStore(folder + "/store", 2)
limit = datetime.timedelta(seconds=6)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=limit)
state = initialize_parallel(limits=Limits(6.0, 300.0))
class Awkward(Exception):
    def __init__(self, a, b):
        super().__init__(a)
def fail():
    raise Awkward("no", "way")
assert state.from_main(lambda: (time.sleep(9), "done")[1]) == "done"
time.sleep(9 * rank)
assert state.all_gather(rank) == [0, 1]
assert state.any_rank(rank == 1) and not state.any_rank(False)
try:
    state.on_main(fail)
except Exception as error:
    assert error.failed_rank == 0 and "no" in str(error)
shutdown_parallel()
state = initialize_parallel(limits=Limits(6.0, 300.0))
assert state.from_main(lambda: 3) == 3
print("ready", flush=True)
if rank == 1:
    time.sleep(600)
try:
    state.all_gather(rank)
except RankLost as error:
    print(error, flush=True)
"""


@pytest.mark.ranks
@pytest.mark.slow
def test_waits_longer_than_a_collective_may_take(tmp_path: Path) -> None:
    """Limits of gloo of 6 s, waits of 9 s; then a rank that is stopped is named."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            assert rank.stdout is not None and rank.stdout.readline() == "ready\n"
        ranks[1].send_signal(signal.SIGSTOP)
        said, _ = ranks[0].communicate(timeout=120)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert said.startswith("rank 1 on ") and f"(pid {ranks[1].pid})" in said
    assert "within parallel.timeout_s = 6 s" in said
