# SPDX-License-Identifier: Apache-2.0
"""SRL's worked numbers: from responses to similarities, kept groups and advantages; prompts of step
problems; and how a batch is filled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from satori_fast.algorithms.recipe import RECIPES, effective_recipe
from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.config import load_config
from satori_fast.data.chains import parse_chain
from satori_fast.data.cursor import ProblemCursor
from satori_fast.data.domains import DOMAINS
from satori_fast.data.prompts import PromptRenderer
from satori_fast.data.steps import Asked, LastStep, step_problems
from satori_fast.experience.online import OnlineSource
from satori_fast.experience.source import Judge
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.rewards.terms import drop_uninformative_groups, score
from satori_fast.rollout.engine import SamplingParams
from satori_fast.rollout.restarting import Restarting
from satori_fast.stages.explain import _renderer, explain
from satori_fast.stages.rewards import build_step_rewards
from satori_fast.stages.step_metrics import experience_metrics
from satori_fast.types import (
    Experience,
    Prefix,
    Problem,
    RewardBreakdown,
    Segment,
    SegmentKind,
    Trajectory,
)
from tests.rollout.scripted_engine import ScriptedEngine

WORKED = Path(__file__).parents[2] / "configs" / "srl" / "worked.toml"
QUESTION = "start 37 plus 25 minus 8 swap plus 9"
TARGET = "37 + 25 = 62"

SRL = RECIPES["srl"]
EPSILON = 0.01


def group(rewards: Sequence[float]) -> list[Trajectory]:
    return [
        Trajectory(
            problem=Problem("p", "q", None),
            group_id=0,
            tokens=np.zeros(2, dtype=np.int32),
            prompt_len=1,
            logprobs=np.zeros(1, dtype=np.float32),
            policy_version=0,
            finish="stop",
            segments=(Segment(SegmentKind.STEP, 0, 1, "x"),),
            reward=RewardBreakdown({"similarity": reward}),
        )
        for reward in rewards
    ]


@pytest.mark.parametrize(
    ("rewards", "deviation", "advantages"),
    [
        ([1.0, 0.8, 0.8, 0.4], 0.217945, [0.993395, 0.198679, 0.198679, -1.390753]),
        ([0.4, 0.4, 0.4, -1.0], 0.606218, [0.499999] * 3 + [-1.499998]),
        ([0.8, 0.8, 0.6, 0.6], 0.1, [0.866018] * 2 + [-0.866018] * 2),
    ],
)
def test_a_group_that_differs_is_kept_and_compared(
    rewards: list[float], deviation: float, advantages: list[float]
) -> None:
    assert float(np.std(rewards)) == pytest.approx(deviation, abs=1e-6)
    trajectories = group(rewards)
    assert SRL.min_group_std == EPSILON
    assert drop_uninformative_groups(trajectories, EPSILON) == trajectories
    credits = SRL.credit().assign(trajectories)
    found = [float(credit.values[0] - credit.baselines[0]) for credit in credits]
    assert found == pytest.approx(advantages, abs=1e-6)


def test_a_group_that_hardly_differs_is_dropped() -> None:
    rewards = [0.5] * 7 + [0.51]
    assert float(np.std(rewards)) == pytest.approx(0.003307, abs=1e-6)
    assert drop_uninformative_groups(group(rewards), 0.01) == []
    assert len(drop_uninformative_groups(group(rewards), 1e-6)) == 8


def test_the_row_is_grpo_with_a_wider_filter() -> None:
    grpo = RECIPES["grpo"]
    assert replace(SRL, name="grpo", paper=grpo.paper, credit=grpo.credit, min_group_std=1e-6) == (
        grpo
    )
    assert SRL.credit() == grpo.credit() and SRL.kl_coefficient == 0.0 and not SRL.needs
    assert effective_recipe("srl", temperature=1.0).min_group_std == 0.01


# --- through the command -------------------------------------------------------------------------


def explained(
    file: Path, responses: Sequence[str], *overrides: str, target: str = TARGET, prefix: str = ""
) -> list[dict[str, Any]]:
    """Rows and summary of `satori-fast explain configs/srl/worked.toml FILE --json`."""
    rows = [
        {"question": QUESTION, "prefix": prefix, "target": target, "response": response}
        for response in responses
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = explain(load_config(WORKED, list(overrides)), file).json_lines()
    return [json.loads(line) for line in lines]


def thought(action: str) -> str:
    return f"<think> plus </think> {action}".rstrip()


WORDS = [
    (TARGET, 1.0),
    ("37 + 25 = 52", 0.8),
    ("37 + 24 = 61", 0.6),
    ("62", 0.333333),
    ("25 + 37 = 62", 0.6),
    ("37 + 25 = 62 62 - 8 = 54", 0.666667),
    ("", -1.0),
]


def test_similarities_of_words(tmp_path: Path) -> None:
    *rows, last = explained(tmp_path / "r.jsonl", [thought(action) for action, _ in WORDS])
    for row, (action, value) in zip(rows, WORDS, strict=True):
        assert row["similarity"] == pytest.approx(value, abs=1e-6), action
        assert row["total"] == row["terms"]["similarity"] == row["similarity"]
        assert row["correct"] is None and row["fault"] == (None if action else "empty_action")
    assert last["summary"]["accuracy"] is None
    assert last["summary"]["exact"] == pytest.approx(1 / 7)


def test_similarity_of_characters(tmp_path: Path) -> None:
    own = ["--srl.granularity", "characters"]
    *rows, _ = explained(tmp_path / "r.jsonl", [thought("37 + 25 = 52"), thought(TARGET)], *own)
    assert [row["similarity"] for row in rows] == pytest.approx([0.916667, 1.0], abs=1e-6)


def test_a_copied_title_through_the_command(tmp_path: Path) -> None:
    responses = [thought("plus 25 :"), thought(f"plus 25 : {TARGET}")]
    *rows, _ = explained(tmp_path / "r.jsonl", responses, target=f"plus 25 : {TARGET}")
    assert [row["similarity"] for row in rows] == pytest.approx([0.545455, 1.0], abs=1e-6)


@pytest.mark.parametrize(("autojunk", "value"), [("false", 0.987342), ("true", 0.0)])
def test_autojunk_is_a_key(tmp_path: Path, autojunk: str, value: float) -> None:
    """Ten words by turns, 200 of target and 195 of response: every word is more than 1 % of it."""
    cycle = [str(n) for n in range(10)] * 20
    options = ("--srl.autojunk", autojunk, "--rollout.max_seqlen", "1024")
    options += ("--packing.max_tokens_per_microbatch", "4096")
    *rows, _ = explained(
        tmp_path / "r.jsonl", [thought(" ".join(cycle[5:]))], *options, target=" ".join(cycle)
    )
    assert rows[0]["similarity"] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("response", "fault", "more"),
    [
        (TARGET, "no_monologue", ()),
        (f"<think> plus {TARGET}", "unclosed_monologue", ()),
        (f"<think> plus </think> <think> plus </think> {TARGET}", "several_monologues", ()),
        (f"{TARGET} <think> plus </think> {TARGET}", "text_before_monologue", ()),
        (thought(f"<solution> {TARGET}"), "broken_solution_tags", ()),
        (thought(TARGET), "no_solution_tags", ("--srl.solution_tags", "required")),
        (thought("<solution> </solution>"), "empty_action", ()),
        (thought(f"<solution> {TARGET} </solution>"), None, ()),
        (
            thought(f"<solution> {TARGET} </solution>"),
            None,
            ("--srl.solution_tags", "required"),
        ),
    ],
)
def test_every_fault_costs_one(
    tmp_path: Path, response: str, fault: str | None, more: tuple[str, ...]
) -> None:
    row, last = explained(tmp_path / "r.jsonl", [response], *more)
    assert (row["fault"], row["similarity"]) == (fault, 1.0 if fault is None else -1.0)
    assert more or last["summary"]["fault"] == float(fault is not None)


def advantages(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    for row in rows:  # a response is compared as a whole: all its tokens have one advantage
        assert len({segment["advantage"] for segment in row["segments"]}) == 1
    return [row["segments"][0]["advantage"] for row in rows]


@pytest.mark.parametrize(
    ("actions", "deviation", "expected", "by_format"),
    [
        (
            [TARGET, "37 + 25 = 52", "37 + 24 = 62", "9 + 8 = 7"],
            "0.217945",
            [0.993395, 0.198679, 0.198679, -1.390753],
            0.0,
        ),
        (
            ["9 + 8 = 7", "1 + 2 = 3", "4 + 5 = 9", ""],
            "0.606218",
            [0.499999, 0.499999, 0.499999, -1.499998],
            1.0,
        ),
    ],
)
def test_kept_groups_and_their_advantages(
    tmp_path: Path, actions: list[str], deviation: str, expected: list[float], by_format: float
) -> None:
    """A higher epsilon drops the group, and says the deviation."""
    responses = [thought(action) for action in actions]
    *rows, last = explained(tmp_path / "r.jsonl", responses)
    assert all(row["kept"] for row in rows)
    assert advantages(rows) == pytest.approx(expected, abs=1e-6)
    assert last["summary"]["kept_by_format"] == by_format
    *rows, last = explained(tmp_path / "r.jsonl", responses, "--srl.min_group_std", "0.7")
    reason = f"the rewards of its group have a standard deviation of {deviation}, not above "
    assert {row["reason"] for row in rows} == {f"{reason}min_group_std = 0.7"}
    assert not any(row["kept"] for row in rows) and "kept_by_format" not in last["summary"]


def test_a_group_that_hardly_differs_is_dropped_through_the_command(tmp_path: Path) -> None:
    """Of a hundred words of target and response, 50 are in common seven times, then 51."""
    responses = [thought(" ".join(["1"] * n + ["2"] * (100 - n))) for n in [50] * 7 + [51]]
    target = " ".join(["1"] * 51 + ["3"] * 49)
    options = ("--rollout.max_seqlen", "1024", "--packing.max_tokens_per_microbatch", "4096")
    *rows, last = explained(tmp_path / "r.jsonl", responses, *options, target=target)
    assert [row["similarity"] for row in rows] == [0.5] * 7 + [0.51]
    (reason,) = {row["reason"] for row in rows}
    assert reason == (
        "the rewards of its group have a standard deviation of 0.00330719, not above "
        "min_group_std = 0.01"
    )
    assert last["summary"]["groups_kept"] == 0


def test_what_people_read(tmp_path: Path) -> None:
    explained(tmp_path / "r.jsonl", [thought("37 + 25 = 52"), TARGET])
    console = Console(record=True, width=200, file=(tmp_path / "out").open("w"))
    explain(load_config(WORKED), tmp_path / "r.jsonl").show(console)
    lines = console.export_text().splitlines()
    assert lines[:3] == [f"step 0: {QUESTION}", "so far: nothing", f"expert's step: {TARGET}"]
    assert "row 1: a step, reward 0.8 = similarity 0.8, kept" in lines
    assert "row 2: no step (no_monologue), reward -1 = similarity -1, kept" in lines


# --- instances and their prompts -----------------------------------------------------------------


def worked_renderer(*overrides: str) -> PromptRenderer:
    return _renderer(load_config(WORKED, list(overrides)))


def instances(
    renderer: PromptRenderer, last: LastStep, *, tell_title: bool = False
) -> list[Problem]:
    """Those of a solution of five steps: four operations and the answer."""
    problem = Problem("c", QUESTION, parse_chain(QUESTION).answer)
    ((_, steps),) = DOMAINS["chains"].solved([problem])
    assert len(steps) == 5 and renderer.steps is not None
    return step_problems(
        problem, steps, renderer.steps.format.dialect, asked=Asked("step", last, tell_title)
    )


def test_a_solution_of_five_steps_gives_four_instances_or_five() -> None:
    renderer = worked_renderer()
    skipped, asked = instances(renderer, "skip"), instances(renderer, "ask")
    assert (len(skipped), len(asked)) == (4, 5) and asked[:4] == skipped
    assert all(problem.answer is None for problem in asked)
    targets = [problem.prefix.target for problem in asked if problem.prefix]
    assert targets[2] == "swap : swap 54 = 45" and targets[4] == "answer : \\boxed{ 54 }"


def test_the_third_prompt_holds_two_steps_and_only_if_asked_the_next_title() -> None:
    renderer = worked_renderer()
    for tell_title, more in ((False, ""), (True, " next swap")):
        third = instances(renderer, "skip", tell_title=tell_title)[2]
        shown = renderer.decode(renderer.prompt_ids(third))
        assert shown == (
            f"{QUESTION} so far plus 25 : 37 + 25 = 62 ; minus 8 : 62 - 8 = 54 ;{more}"
        )
        assert third.prefix is not None and third.prefix.target is not None
        assert third.prefix.target.startswith("swap :") != tell_title
        assert "swap 54 = 45" in third.prefix.target


# --- filling a batch -----------------------------------------------------------------------------

# Five groups, by what their words have in common with the target's five.
SHARED = {1.0: 5, 0.8: 4, 0.6: 3, 0.4: 2}
GROUPS = [
    [0.4, 0.4, 0.4, 0.4],
    [1.0, 0.8, 0.8, 0.4],
    [-1.0, -1.0, -1.0, -1.0],
    [0.4, 0.4, 0.4, -1.0],
    [0.8, 0.8, 0.6, 0.6],
]
STARTS = [f"start {n} plus 1 plus 2 plus 3 plus 4" for n in range(len(GROUPS))]


def answering(reward: float) -> str:
    """A response that earns a reward against `TARGET`."""
    if reward < 0:
        return TARGET
    words = TARGET.split()
    return thought(" ".join([*words[: SHARED[reward]], *["9"] * (5 - SHARED[reward])]))


class Feed:
    """The five problems in order, then again."""

    def __init__(self) -> None:
        made = [Problem(q, q, None, Prefix("", "step", target=TARGET)) for q in STARTS]
        self.cursor = ProblemCursor(made, shuffle=False)

    def take(self, num_problems: int, *, step: int) -> list[Problem]:
        return self.cursor.take(num_problems)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.cursor.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cursor.load_state_dict(state)


class Dying(ScriptedEngine):
    """An engine whose process is killed before a round."""

    rounds_left: int = 1

    def generate(self, requests: Any, sampling: Any) -> Any:
        if not self.rounds_left:
            raise KeyboardInterrupt
        self.rounds_left -= 1
        return super().generate(requests, sampling)


def filling(*, dies: bool = False) -> tuple[OnlineSource, PromptRenderer]:
    """Two problems a step, four samples, epsilon 0.01."""
    config = load_config(WORKED)
    renderer = _renderer(config)
    asked = {
        f"{start} so far": [answering(reward) for reward in group]
        for start, group in zip(STARTS, GROUPS, strict=True)
    }
    engine = (Dying if dies else ScriptedEngine)(renderer, asked)
    rewards = build_step_rewards(config.srl, renderer)
    source = OnlineSource(
        Restarting(engine, initialize_parallel(seed=0), max_restarts=0),
        Feed(),
        Judge(lambda t: score(t, rewards), SRL.credit(), EPSILON, SpanRecorder().span),
        sampling=lambda step: SamplingParams(num_samples=4, seed=step),
        problems_per_step=2,
        max_rounds=5,
    )
    return source, renderer


def assert_filled(experience: Experience, renderer: PromptRenderer) -> None:
    totals = [t.reward.total for t in experience.sampled if t.reward is not None]
    assert totals == pytest.approx([reward for rewards in GROUPS[:4] for reward in rewards])
    kept = [t.problem.question for t in experience.trajectories[::4]]
    assert kept == [STARTS[1], STARTS[3]] and len(experience.trajectories) == 8
    metrics = experience_metrics(
        experience, format_of=renderer.format_of, min_group_std=SRL.min_group_std
    )
    counted = {
        "rollout/num_rounds": 2,
        "rollout/groups_sampled": 4,
        "rollout/groups_uniform": 2,
        "rollout/groups_surplus": 0,
        "rollout/discard_rate": 0.5,
        "rollout/kept_by_format": 0.5,
    }
    assert {name: metrics[name] for name in counted} == counted
    assert not any("accuracy" in name for name in metrics)
    assert experience.credits is not None
    found = [float(credit.values[0] - credit.baselines[0]) for credit in experience.credits]
    assert found[:4] == pytest.approx([0.993395, 0.198679, 0.198679, -1.390753], abs=1e-6)
    assert found[4:] == pytest.approx([0.499999] * 3 + [-1.499998], abs=1e-6)


def asked_next(source: OnlineSource) -> list[str]:
    return [t.problem.question for t in source.next(1).sampled[::4]]


def test_two_rounds_fill_a_batch() -> None:
    source, renderer = filling()
    assert_filled(source.next(0), renderer)
    # The fifth comes next, and the first again.
    assert asked_next(source)[:2] == [STARTS[4], STARTS[0]]


def test_a_batch_goes_on_from_the_state_between_steps() -> None:
    source, renderer = filling()
    begun = json.loads(json.dumps(source.state_dict()))
    assert_filled(source.next(0), renderer)
    after = json.loads(json.dumps(source.state_dict()))
    again, _ = filling()
    again.load_state_dict(begun)
    assert_filled(again.next(0), renderer)
    resumed, _ = filling()
    resumed.load_state_dict(after)
    assert asked_next(resumed) == asked_next(source) == asked_next(again)


def test_a_kill_between_the_rounds_draws_both_again() -> None:
    """A checkpoint has the state after the step before: both rounds are of the killed step."""
    killed, renderer = filling(dies=True)
    saved = json.loads(json.dumps(killed.state_dict()))
    with pytest.raises(KeyboardInterrupt):
        killed.next(0)
    resumed, _ = filling()
    resumed.load_state_dict(saved)
    assert_filled(resumed.next(0), renderer)
    assert asked_next(resumed)[0] == STARTS[4]
