# SPDX-License-Identifier: Apache-2.0
"""Responses on disk: as they were sampled, whole after a kill, and of one evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satori_fast.data.formats.coat import COAT
from satori_fast.data.formats.trials import TRIALS
from satori_fast.data.prompts import PromptRenderer
from satori_fast.data.tokenizer import add_special_tokens, train_tokenizer
from satori_fast.evaluation.responses import (
    Asked,
    Response,
    ResponseFile,
    boxes_of,
    sample,
    too_long,
)
from satori_fast.rollout.engine import SamplingParams
from satori_fast.types import Problem
from tests.rollout.scripted_engine import ScriptedEngine

IDENTITY = {"model": "m", "protocol": {"name": "satori"}}


def renderer_of(format: Any = COAT) -> PromptRenderer:
    tokenizer = train_tokenizer(["1+1? so \\boxed{5} é 🙂 no, wait"], 280, special_tokens=())
    add_special_tokens(tokenizer, format.special_tokens)
    return PromptRenderer(tokenizer, "{question}\n", 60, (), format)


def asked(question: str, number: int = 0) -> Asked:
    return Asked("amc23", Problem(f"amc23/{question}", question, "5"), number, 7)


def test_a_response_is_kept_as_it_was_sampled() -> None:
    renderer = renderer_of()
    text = "so \\boxed{4} é<|reflect|>no, wait \\boxed{5}"
    engine = ScriptedEngine(renderer, {"1+1?\n": [text]})
    sampling = SamplingParams(temperature=0.0, max_new_tokens=200)
    (found,) = sample(
        engine, [asked("1+1?")], sampling, renderer=engine.renderer, seed_of=lambda _: 3
    )
    assert found.key == ("amc23", "amc23/1+1?", 0)
    assert (found.prompt, found.finish) == ("1+1?\n", "stop")
    assert found.segments == (
        ("continue", "so \\boxed{4} é"),
        ("reflect", "<|reflect|>no, wait \\boxed{5}"),
    )
    assert found.text == found.answered_text == text
    assert [answer for answer, _ in found.boxes] == ["4", "5"]
    ids = renderer.encode(text)
    assert found.num_tokens == len(ids) + 1  # the end of text
    for answer, token in found.boxes:
        assert (
            renderer.decode(ids[:token]).count("}")
            == renderer.decode(ids[: token - 1]).count("}") + 1
        ), answer
    assert engine.requests[0].seed == 3


def test_longest_prompts_are_asked_first_and_endless_ones_are_told() -> None:
    engine = ScriptedEngine(renderer_of(), {"1+1?\n": ["5"], "1+1?1+1?\n": ["5"]}, max_seqlen=50)
    every = [asked("1+1?"), asked("1+1?1+1?"), asked("1+1?" * 40)]
    assert too_long(engine, every, engine.renderer) == every[2:]
    sampling = SamplingParams(max_new_tokens=99)
    list(sample(engine, every[:2], sampling, renderer=engine.renderer, seed_of=lambda _: 0))
    lengths = [len(request.prompt_ids) for request in engine.requests]
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(r.prompt_ids) + r.max_new_tokens == 50 for r in engine.requests)


def test_boxes_of_verifications_are_no_answers() -> None:
    check = "Wait, let me recheck my solution. \\boxed{7} no"
    text = f"so \\boxed{{4}}\n\n{check}\n\nLet me try again.\\boxed{{5}}"
    engine = ScriptedEngine(renderer_of(TRIALS), {"1+1?\n": [text]}, max_seqlen=900)
    sampling = SamplingParams(max_new_tokens=800)
    (found,) = sample(
        engine, [asked("1+1?")], sampling, renderer=engine.renderer, seed_of=lambda _: 0
    )
    kinds = [kind for kind, _ in found.segments]
    assert kinds == ["solve", "verify", "solve"]
    assert [answer for answer, _ in found.boxes] == ["4", "5"]
    assert "\\boxed{5}" in found.answered_text
    assert "\\boxed{4}" not in found.answered_text


def test_of_thousands_of_boxes_the_first_and_the_last_are_kept() -> None:
    text = "".join(f"\\boxed{{{n}}}" for n in range(200))
    engine = ScriptedEngine(renderer_of(), {"1+1?\n": [text]}, max_seqlen=9000)
    sampling = SamplingParams(max_new_tokens=8000)
    (found,) = sample(
        engine, [asked("1+1?")], sampling, renderer=engine.renderer, seed_of=lambda _: 0
    )
    assert [answer for answer, _ in found.boxes] == [*map(str, range(63)), "199"]


def test_characters_cut_by_tokens_do_not_move_boxes() -> None:
    renderer = renderer_of()
    ids = np.asarray(renderer.encode("é🙂\\boxed{é} and \\boxed{🙂}"))
    assert [answer for answer, _ in boxes_of(ids, renderer)] == ["é", "🙂"]
    half = ids[1:]  # begins within a character, perhaps
    assert [answer for answer, _ in boxes_of(half, renderer)] == ["é", "🙂"]
    assert [t for _, t in boxes_of(half, renderer)] == [t - 1 for _, t in boxes_of(ids, renderer)]


def response(number: int) -> Response:
    segments = (("continue", "a"), ("reflect", f"\\boxed{{{number}}}"))
    return Response("amc23", "amc23/1", number, "1?\n", segments, 9, "stop", ((str(number), 8),))


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "evaluations" / "responses.jsonl"
    file = ResponseFile(path, IDENTITY)
    for number in range(3):
        file.add(response(number))
    with pytest.raises(ValueError, match="in use"):
        ResponseFile(path, IDENTITY)
    file.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])  # a kill tore the last line
    again = ResponseFile(path, IDENTITY)
    assert again.responses == {response(n).key: response(n) for n in range(2)}
    again.add(response(2))
    again.close()
    assert path.read_bytes() == whole


def test_a_file_of_another_evaluation_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    ResponseFile(path, IDENTITY).close()
    with pytest.raises(ValueError, match="of another evaluation: its model is 'm', not 'n'"):
        ResponseFile(path, IDENTITY | {"model": "n"})
    with pytest.raises(ValueError, match="its seed is None, not 3"):
        ResponseFile(path, IDENTITY | {"seed": 3})
    ResponseFile(path, IDENTITY).close()
