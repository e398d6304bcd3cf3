# SPDX-License-Identifier: Apache-2.0
"""Steps: a monologue and an action, every fault of a response, and where segments are cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from satori_fast.data.formats.steps import (
    DIALECTS,
    FAULTS,
    STEPS,
    StepResponse,
    split_response,
)
from satori_fast.data.prompts import (
    PLAIN_TEMPLATE,
    PromptRenderer,
    StepPrompts,
    build_trajectory,
)
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.types import Prefix, Problem, Trajectory
from tests.data.formats.test_trials import byte_level

RIGHT = "<think> 37 and 25 </think> 37 + 25 = 62"
FAULTY = {
    "": "no_monologue",
    "37 + 25 = 62": "no_monologue",
    "37 </think> 62": "no_monologue",
    "so <think> a </think> 62": "text_before_monologue",
    "</think> <think> a </think> 62": "text_before_monologue",
    "<think> 37 + 25 = 62": "unclosed_monologue",
    "<think> a <think> b": "unclosed_monologue",
    "<think> a </think> 62 <think> b </think>": "several_monologues",
    "<think> a <think> b </think> 62": "several_monologues",
    "<think> a </think> 62 </think>": "several_monologues",
    "<think> a </think>": "empty_action",
    "<think></think> \n": "empty_action",
    "<think> a </think> <solution> </solution>": "empty_action",
    "<think> a </think> <solution> 62": "broken_solution_tags",
    "<think> a </think> 62 </solution>": "broken_solution_tags",
    "<think> a </think> so <solution> 62 </solution>": "broken_solution_tags",
    "<think> a </think> <solution> 62 </solution> done": "broken_solution_tags",
    "<think> a </think> <solution> 6 <solution> 2 </solution>": "broken_solution_tags",
    "<think> a </think> </solution> 62 <solution>": "broken_solution_tags",
}


def renderer_of(tokenizer: Any) -> PromptRenderer:
    return PromptRenderer(tokenizer, PLAIN_TEMPLATE, 64, format=STEPS)


WORDS = renderer_of(build_word_tokenizer(["37", "25", "62", "+", "=", "and", *STEPS.words], ()))


def trajectory(text: str, renderer: PromptRenderer = WORDS) -> Trajectory:
    ids = np.asarray([*renderer.encode(text), renderer.eos_id])
    problem = Problem("1", "37", "62")
    return build_trajectory(problem, ids, renderer=renderer, group_id=0, finish="stop")


def test_a_response_has_a_monologue_and_an_action() -> None:
    assert split_response(RIGHT) == StepResponse("37 and 25", "37 + 25 = 62")
    assert split_response("\n<think></think>62") == StepResponse("", "62")
    tagged = "<think> a </think>\n<solution> 62 </solution>\n"
    for tags in ("accepted", "required"):
        assert split_response(tagged, tags=tags) == StepResponse("a", "62")


@pytest.mark.parametrize("text", FAULTY)
def test_every_other_shape_is_a_fault_of_a_kind(text: str) -> None:
    step = split_response(text)
    assert step.fault == FAULTY[text] and step.action == ""


def test_tags_can_be_asked_for() -> None:
    assert split_response(RIGHT, tags="required").fault == "no_solution_tags"
    assert split_response("<think> a </think>", tags="required").fault == "empty_action"
    assert {*FAULTY.values(), "no_solution_tags"} == set(FAULTS)


PARTS = ["<think>", "</think>", "<solution>", "</solution>", "62", " "]


@given(st.lists(st.sampled_from(PARTS), max_size=8))
def test_an_action_is_what_stands_after_the_one_monologue(parts: list[str]) -> None:
    text = "".join(parts)
    step = split_response(text)
    assert (step.action == "") == (step.fault is not None)
    if step.fault is None:
        assert text.count("<think>") == text.count("</think>") == 1
        assert text.index(step.action, text.index("</think>")) > 0
        assert "<" not in step.action


SOLVED = "<think> a </think> plus 25 : 62 ; <think> b\nc </think> swap : 26"
SOLUTION = Problem("1", "37", None, Prefix("", "solution", target="plus 25 : 62 ; swap : 26"))


def test_a_whole_solution_may_think_before_every_step() -> None:
    assert split_response(SOLVED, whole=True) == StepResponse("a b\nc", "plus 25 : 62 ; swap : 26")
    assert split_response(SOLVED).fault == "several_monologues"
    assert split_response(RIGHT, whole=True) == split_response(RIGHT)
    for text in (f"{SOLVED} </think>", f"{SOLVED} <think>", "<think> <think> </think> 62"):
        assert split_response(text, whole=True).fault == "several_monologues"
    assert split_response("<think> a </think> <think> b </think>", whole=True).fault == (
        "empty_action"
    )
    assert STEPS.asked(SOLUTION) == "37"
    ids = np.asarray([*WORDS.encode(SOLVED), WORDS.eos_id])
    renderer = replace(WORDS, steps=StepPrompts(WORDS.template, STEPS))
    made = build_trajectory(SOLUTION, ids, renderer=renderer, group_id=0, finish="stop")
    assert [segment.kind.value for segment in made.segments] == ["whole"]
    assert not any(STEPS.metrics(made).values())


def test_segments_are_the_monologue_and_the_step() -> None:
    made = trajectory(RIGHT)
    assert [(s.kind.value, s.start, s.stop) for s in made.segments] == [
        ("think", 0, 5),
        ("step", 5, 11),
    ]
    assert made.segments[1].text == "37 + 25 = 62"
    assert [s.kind.value for s in trajectory("<think> 37 </think>").segments] == ["think"]
    assert [s.kind.value for s in trajectory("37 + 25 = 62").segments] == ["whole"]
    twice = trajectory("<think> </think> <think> </think> 62")
    assert [(s.kind.value, s.stop) for s in twice.segments] == [("whole", 6)]


def test_a_token_across_the_end_of_the_monologue_belongs_to_it() -> None:
    renderer = renderer_of(byte_level(">\n\n37", "é </th"))
    made = trajectory("<think>é </think>\n\n37 + 25", renderer)
    think, step = made.segments
    assert think.text == "<think>é </think>\n\n37" and step.text == " + 25"
    assert (think.start, think.stop, step.stop) == (0, step.start, len(made.tokens) - 3)


def test_faults_are_counted_by_kind() -> None:
    found = STEPS.metrics(trajectory("37 + 25 = 62"))
    assert found["fault"] == found["fault/no_monologue"] == 1.0 and sum(found.values()) == 2.0
    right = STEPS.metrics(trajectory(RIGHT))
    assert set(right) == {"fault", *(f"fault/{kind}" for kind in FAULTS)}
    assert not any(right.values())


def test_a_partial_solution_is_steps() -> None:
    assert [(k.value, t) for k, t in STEPS.pieces("37 + 25 = 62 ;")] == [("step", "37 + 25 = 62 ;")]
    assert STEPS.pieces("") == []


def test_a_heading_is_read_back_from_a_written_step() -> None:
    paper, words = DIALECTS["paper"], DIALECTS["words"]
    assert paper.heading(paper.written(12, "Add (a.b)", "37 + 25 = 62")) == "12. **Add (a.b)**"
    assert words.heading(words.written(1, "plus 25", "37 + 25 : 62")) == "plus 25 :"
    for dialect in (paper, words):
        assert dialect.heading(dialect.written(3, "", "37 + 25 = 62")) == ""
