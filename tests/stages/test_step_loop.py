# SPDX-License-Identifier: Apache-2.0
"""The loop around steps, with books and a folder that only write down what is asked of them."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from satori_fast.backbone.optimizer import NonFiniteUpdate
from satori_fast.backbone.step import Learner
from satori_fast.cli import main
from satori_fast.profiling.spans import StepTimes
from satori_fast.stages.alarms import TrainingStopped
from satori_fast.stages.books import Books
from satori_fast.stages.run_folder import StageProgress
from satori_fast.stages.step_loop import StepLoop
from satori_fast.termination import Terminated, sigterm_handled
from tests.stages.test_mismatch import policy_of
from tests.stages.test_run import TINY
from tests.tiny_models import random_batch


class Recorder:
    """Implements `Records` and `Checkpoints` of the loop: writes down what is asked of it."""

    def __init__(self, path: Path = Path(), done: StageProgress | None = None) -> None:
        self.path = path
        self.done = done or StageProgress()
        self.calls: list[tuple[Any, ...]] = []

    def start_steps(self, num_steps: int) -> None:
        self.calls.append(("start", num_steps))

    def record(self, step: int, metrics: Mapping[str, float]) -> StepTimes:
        self.calls.append(("record", step, metrics["loss"]))
        return StepTimes(wall_s=1.5)

    def alarm(self, kind: str, message: str) -> None:
        self.calls.append(("alarm", kind, message))

    def digests(self) -> dict[str, str]:
        return {"metrics.jsonl": "digest"}

    def reset_clock(self) -> None:
        self.calls.append(("clock",))

    def resume(self, stage: str, learners: Mapping[str, Learner]) -> StageProgress:
        return self.done

    def save(
        self,
        stage: str,
        learners: Mapping[str, Learner],
        progress: StageProgress,
        *,
        records: Mapping[str, str] | None,
    ) -> None:
        assert stage == "reinforce" and records == self.digests()
        self.calls.append(("save", progress.step, progress.data, progress.times.wall_s))

    def settle(self, stage: str, *, wait: bool) -> None:
        if wait:
            self.calls.append(("settle",))

    def exported(self, stage: str) -> Path:
        return self.path / "models" / stage

    def export(self, policy: Learner, folder: Path) -> None:
        self.calls.append(("export", str(folder)))


def loop_of(recorder: Recorder, num_steps: int, **schedule: int) -> StepLoop:
    learners = {"policy": policy_of()}
    options = {"checkpoint_every": 0, **schedule}
    return StepLoop(
        "reinforce", learners, num_steps, recorder, recorder, **options, export=recorder.export
    )


def walk(
    done: StageProgress, num_steps: int, every: int, **schedule: int
) -> tuple[list[tuple[Any, ...]], StepLoop]:
    """Steps with due evaluations, and everything that the loop asked for, but for the clock."""
    recorder = Recorder(done=done)
    loop = loop_of(recorder, num_steps, **schedule)
    assert loop.resume() == done.data
    with loop:
        for step in loop:
            if loop.is_due(every):
                recorder.calls.append(("evaluate", step))
            loop.finish_step({"loss": 0.1 * step}, {"at": step + 1}, shown={"loss": 0.0})
    return [call for call in recorder.calls if call != ("clock",)], loop


def test_order_of_a_step_and_of_the_last_one() -> None:
    calls, loop = walk(StageProgress(), 3, 2, checkpoint_every=2, export_every=1)
    assert calls == [
        ("start", 3),
        ("record", 0, 0.0),
        ("export", "models/reinforce-step-1"),
        ("evaluate", 1),
        ("record", 1, 0.1),
        (
            "export",
            "models/reinforce-step-2",
        ),  # before the checkpoint: a kill between the two loses neither
        ("save", 2, {"at": 2}, 3.0),
        ("evaluate", 2),
        ("record", 2, 0.2),
        ("save", 3, {"at": 3}, 4.5),  # the last step's model is the stage's own
        ("settle",),
    ]
    assert loop.done == StageProgress(3, StepTimes(wall_s=4.5), {"at": 3})


def test_zero_means_only_at_the_end() -> None:
    calls, _ = walk(StageProgress(), 4, 0, checkpoint_every=0)
    assert [call[:2] for call in calls if call[0] != "record"] == [
        ("start", 4),
        ("evaluate", 3),
        ("save", 4),
        ("settle",),
    ]


def test_resumed_stage_does_what_is_left_and_adds_to_its_times() -> None:
    done = StageProgress(4, StepTimes(wall_s=10.0), {"at": 4})
    calls, loop = walk(done, 5, 0, checkpoint_every=0)
    assert calls == [
        ("start", 1),
        ("evaluate", 4),
        ("record", 4, 0.4),
        ("save", 5, {"at": 5}, 11.5),
        ("settle",),
    ]
    finished, same = walk(loop.done, 5, 1, checkpoint_every=1)
    assert finished == [("start", 0)]
    assert same.done == loop.done


def test_a_step_that_is_not_finished_is_an_error() -> None:
    with (
        pytest.raises(AssertionError, match="finish_step"),
        loop_of(Recorder(), 2) as loop,
    ):
        list(loop)


def test_a_skipped_update_is_told_and_too_many_leave_their_batch(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, StageProgress(4))
    begun = loop_of(recorder, 9)
    begun.resume()
    failure = NonFiniteUpdate(
        "update",
        3,
        loss=math.nan,
        grad_norm=math.nan,
        microbatches=[(random_batch([3]), None)],
    )
    skipped = {"loss": 0.0, "update/loss": math.nan, "update/num_skipped": 1.0}
    with (
        pytest.raises(TrainingStopped, match=r"reinforce step 5: 3 updates of the policy") as e,
        begun as loop,
    ):
        for step in loop:
            if step == 5:
                raise failure
            loop.finish_step(skipped, {}, shown={})
    ((kind, message),) = [call[1:] for call in recorder.calls if call[0] == "alarm"]
    assert kind == "updates of the policy"
    assert message.startswith("reinforce step 4: 1 updates of the policy were skipped")
    path = tmp_path / "failures" / "reinforce-step-5.safetensors"
    assert path.exists() and str(path) in str(e.value)


def test_a_sigterm_ends_the_loop_after_its_step_with_a_checkpoint() -> None:
    recorder = Recorder()
    with (
        pytest.raises(Terminated, match="saved at step 2 of reinforce; --resume continues"),
        sigterm_handled(),
        loop_of(recorder, 5) as loop,
    ):
        for step in loop:
            if step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                recorder.calls.append(("the step goes on",))
            loop.finish_step({"loss": 0.0}, {"at": step + 1}, shown={})
    assert [call[0] for call in recorder.calls] == [
        *("start", "record", "the step goes on", "record", "save", "clock", "settle")
    ]
    assert recorder.calls[-3][:3] == ("save", 2, {"at": 2})


@pytest.mark.slow
def test_a_run_ended_by_sigterm_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(TINY.replace('["synthesize", "supervised", "reinforce"]', '["reinforce"]'))
    command = ["run", str(config), "--rollout.max_new_tokens", "8", "--output_dir"]
    assert main([*command, f"'{tmp_path / 'quiet'}'"]) == 0

    record = Books.record

    def ending(self: Books, step: int, metrics: Any) -> StepTimes:
        if step == 2 and not (tmp_path / "disturbed" / "tiny" / "checkpoints").exists():
            pytest.fail("no checkpoint yet")
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return record(self, step, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Books, "record", ending)
        assert main([*command, f"'{tmp_path / 'disturbed'}'"]) == 143
    assert "terminated; saved at step 3 of reinforce" in capsys.readouterr().err
    assert main([*command, f"'{tmp_path / 'disturbed'}'", "--resume"]) == 0
    weights, samples = "models/reinforce/model.safetensors", "samples.jsonl"
    for name in (weights, samples):
        ours, theirs = (tmp_path / run / "tiny" / name for run in ("disturbed", "quiet"))
        assert ours.read_bytes() == theirs.read_bytes(), name
