# SPDX-License-Identifier: Apache-2.0
"""What ends a response: the union of three places, kept through a run and its exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import GenerationConfig

from satori_fast.data.formats.coat import META_ACTION_TOKENS
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer, build_trajectory
from satori_fast.data.stop_tokens import (
    exported_generation,
    ids_of_stop_tokens,
    keep_generation_config,
    stop_ids_of,
)
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.types import Problem

TOKENIZER = build_word_tokenizer(["a", "b", "end", "halt"])
END, HALT = (TOKENIZER.get_vocab()[word] for word in ("end", "halt"))


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (None, None, (0,)),
        (0, None, (0,)),
        (END, None, (0, END)),
        ([END, 0], HALT, (0, END, HALT)),
        (None, [HALT, 0, END], (0, END, HALT)),
        (0, [0, 999], (0, 999)),  # a row of padding: it may be sampled
    ],
)
def test_all_places_count(
    tmp_path: Path, config: Any, generation: Any, expected: tuple[int, ...]
) -> None:
    write(
        tmp_path,
        config={"eos_token_id": config},
        generation_config={"eos_token_id": generation, "temperature": 0.5},
    )
    assert stop_ids_of(tmp_path, TOKENIZER, META_ACTION_TOKENS) == expected


def test_a_folder_without_files_has_the_tokenizers_end(tmp_path: Path) -> None:
    assert stop_ids_of(tmp_path, TOKENIZER, META_ACTION_TOKENS) == (0,)


@pytest.mark.parametrize("value", ["x", [1.5], [True], -1, {}])
def test_what_is_no_token_is_refused_with_its_file(tmp_path: Path, value: Any) -> None:
    write(tmp_path, generation_config={"eos_token_id": value})
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id is"):
        stop_ids_of(tmp_path, TOKENIZER, META_ACTION_TOKENS)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"generation_config\.json .*JSON"):
        stop_ids_of(tmp_path, TOKENIZER, META_ACTION_TOKENS)


def test_an_action_cannot_end_a_response(tmp_path: Path) -> None:
    """LlamaConfig's default eos_token_id is 2, which is an action to a tokenizer of ours."""
    write(tmp_path, config={"eos_token_id": 2})
    with pytest.raises(ValueError, match=r"config\.json: eos_token_id 2 is <\|continue\|> to"):
        stop_ids_of(tmp_path, TOKENIZER, META_ACTION_TOKENS)


def test_stop_tokens_survive_the_way_through_a_run(tmp_path: Path) -> None:
    source, run, exported = (tmp_path / name for name in ("source", "run", "exported"))
    for folder in (source, run, exported):
        folder.mkdir()
    write(
        source,
        config={"eos_token_id": END},
        generation_config={"eos_token_id": [0, HALT], "temperature": 0.6, "do_sample": True},
    )
    keep_generation_config(source, run, TOKENIZER, META_ACTION_TOKENS)
    ids = stop_ids_of(run, TOKENIZER, META_ACTION_TOKENS)
    assert ids == stop_ids_of(source, TOKENIZER, META_ACTION_TOKENS) == (0, END, HALT)
    content = exported_generation(run, PromptRenderer(TOKENIZER, PLAIN_TEMPLATE, 9, ids))
    write(exported, config={"eos_token_id": content["eos_token_id"]}, generation_config=content)
    assert stop_ids_of(exported, TOKENIZER, META_ACTION_TOKENS) == ids
    opened = GenerationConfig.from_pretrained(exported)
    assert opened.eos_token_id == [0, END, HALT] and opened.pad_token_id == 0
    assert (opened.temperature, opened.do_sample) == (0.6, True)


def test_a_run_without_a_source_exports_its_tokenizers_end(tmp_path: Path) -> None:
    renderer = PromptRenderer(TOKENIZER, PLAIN_TEMPLATE, 9)
    assert exported_generation(tmp_path, renderer) == {"pad_token_id": 0, "eos_token_id": 0}


def test_a_stop_token_ends_the_last_segment_and_is_no_text() -> None:
    renderer = PromptRenderer(TOKENIZER, PLAIN_TEMPLATE, 9, (0, END))
    assert renderer.stop_ids == (0, END) and renderer.eos_id == 0
    ids = np.asarray([*renderer.encode("a <|reflect|> b"), END])
    made = build_trajectory(
        Problem("1", "a", "b"), ids, renderer=renderer, group_id=0, finish="stop"
    )
    assert made.segments[-1].stop == len(ids) and made.segments[-1].text == "<|reflect|> b"
    assert made.response_tokens[-1] == END


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("a b",), r"rollout\.stop_tokens: 'a b' is 2 tokens to the tokenizer: name single tokens"),
        (("c",), r"rollout\.stop_tokens: 'c' is no token to the tokenizer"),
        (("",), r"rollout\.stop_tokens: '' is no token to the tokenizer"),
        (("a", "<|reflect|>"), r"rollout\.stop_tokens: '<\|reflect\|>' opens a segment"),
    ],
)
def test_a_stop_token_of_the_config_is_one_token(tokens: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ids_of_stop_tokens(tokens, TOKENIZER, META_ACTION_TOKENS)


def test_stop_tokens_of_the_config_join_the_others_and_the_exports(tmp_path: Path) -> None:
    more = ids_of_stop_tokens(("halt", "end"), TOKENIZER, META_ACTION_TOKENS)
    assert more == (HALT, END)
    assert ids_of_stop_tokens((), TOKENIZER, META_ACTION_TOKENS) == ()
    write(tmp_path, generation_config={"eos_token_id": [0, END]})
    known = stop_ids_of(tmp_path, TOKENIZER, META_ACTION_TOKENS)
    renderer = PromptRenderer(TOKENIZER, PLAIN_TEMPLATE, 9, (*known, *more))
    assert renderer.stop_ids == (0, END, HALT)
    assert exported_generation(tmp_path, renderer)["eos_token_id"] == [0, END, HALT]
