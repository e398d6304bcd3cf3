# SPDX-License-Identifier: Apache-2.0
"""Tokenizers: ids, round trips, saving, and words that a word tokenizer does not know."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from satori_fast.data.formats.coat import META_ACTION_TOKENS
from satori_fast.data.tokenizer import (
    TokenBytes,
    add_special_tokens,
    build_word_tokenizer,
    check_known,
    load_tokenizer,
    train_tokenizer,
)

WORDS = ("1", "2", "+", "=", "\\boxed{3}", "wrong", "right")
TEXTS = ["Janet sells 16 eggs.\nShe makes $18 = 9 * 2 a day.", "so \\boxed{18}"] * 4


def test_word_ids_are_in_order() -> None:
    tokenizer = build_word_tokenizer(WORDS)
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.encode("<|endoftext|> <|unknown|>") == [0, 1]
    assert tokenizer.encode(" ".join(META_ACTION_TOKENS)) == [2, 3, 4]
    assert tokenizer.encode(" ".join(WORDS)) == list(range(5, 5 + len(WORDS)))
    assert len(tokenizer) == 5 + len(WORDS)


@given(st.lists(st.sampled_from([*WORDS, *META_ACTION_TOKENS]), max_size=12))
@settings(max_examples=50, deadline=None)
def test_word_round_trip(words: list[str]) -> None:
    tokenizer = build_word_tokenizer(WORDS)
    text = " ".join(words)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) == len(words)


def test_unknown_word_is_named() -> None:
    tokenizer = build_word_tokenizer(WORDS)
    check_known(tokenizer, "1 + 2 <|reflect|> wrong")
    with pytest.raises(ValueError, match="does not know the word '77'"):
        check_known(tokenizer, "1 + 77 = 2")


def test_byte_level_tokenizer_knows_everything() -> None:
    check_known(train_tokenizer(TEXTS, 300), "\u4e16\u754c 77")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "a"], "occurs twice"),
        (["a b"], "whitespace"),
        ([""], "empty"),
        (["<|reflect|>"], "twice"),
    ],
)
def test_impossible_words_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_word_tokenizer(words)


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@settings(max_examples=50, deadline=None)
def test_trained_round_trip(text: str) -> None:
    tokenizer = trained()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@cache
def trained() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 320)


def test_trained_special_tokens_are_single_ids() -> None:
    tokenizer = trained()
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *META_ACTION_TOKENS]
    assert tokenizer.encode("".join(tokens)) == list(range(len(tokens)))
    assert len(tokenizer.encode("a<|reflect|>b")) == 3
    assert len(tokenizer.encode("1618")) == 4
    assert 262 < len(tokenizer) <= 320
    assert tokenizer.decode(tokenizer.encode("a<|reflect|>b"), skip_special_tokens=True) == "ab"


def test_training_needs_room_for_the_bytes() -> None:
    with pytest.raises(ValueError, match="at least 262"):
        train_tokenizer(TEXTS, 100)


def test_saved_and_reloaded_gives_the_same_ids(tmp_path: Path) -> None:
    text = "1 + 2 <|reflect|> = <|explore|> right <|endoftext|>"
    for name, tokenizer in (("words", build_word_tokenizer(WORDS)), ("bpe", trained())):
        tokenizer.save_pretrained(tmp_path / name)
        loaded = load_tokenizer(tmp_path / name)
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == text
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert (loaded.eos_token_id, loaded.pad_token_id) == (0, 0)
        assert loaded.unk_token == tokenizer.unk_token


def test_meta_action_tokens_are_added_once(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300, special_tokens=())
    before = len(tokenizer)
    assert add_special_tokens(tokenizer, META_ACTION_TOKENS) == 3
    assert add_special_tokens(tokenizer, META_ACTION_TOKENS) == 0
    assert tokenizer.encode("".join(META_ACTION_TOKENS)) == [before, before + 1, before + 2]
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert add_special_tokens(loaded, META_ACTION_TOKENS) == 0
    text = "a<|continue|>b<|explore|>"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text), skip_special_tokens=True) == "ab"


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model folder .*nowhere does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no tokenizer can be loaded from"):
        load_tokenizer(tmp_path)  # a folder without a tokenizer


def test_a_model_folder_does_not_change_how_its_tokenizer_splits(tmp_path: Path) -> None:
    # AutoTokenizer would take Qwen2's pre-tokenizer because of config.json, and drop "\boxed{".
    from transformers import Qwen2Config

    tokenizer = build_word_tokenizer(["p", "q", "\\boxed{", "}"])
    tokenizer.save_pretrained(tmp_path)
    Qwen2Config(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    text = "p \\boxed{ p q } <|reflect|> q"
    assert load_tokenizer(tmp_path).encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("content", ["", "{", "version https://git-lfs.github.com/spec/v1\n"])
def test_a_damaged_tokenizer_is_named_in_one_line(tmp_path: Path, content: str) -> None:
    build_word_tokenizer(["a"]).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="no tokenizer can be loaded from") as refused:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


def test_bytes_of_tokens_are_the_bytes_of_decode() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    text = "a \u00e9\u4e16\U0001f600\n<|reflect|> 12 <|im_end|>\t!"
    ids = tokenizer.encode(text)
    pieces = TokenBytes(tokenizer)(ids)
    assert b"".join(pieces).decode() == text == tokenizer.decode(ids)
    assert b"<|reflect|>" in pieces and len(pieces) == len(ids)
    # A character of several tokens has its bytes in each.
    assert any(len(piece) == 1 and piece[0] > 127 for piece in pieces)
    words = build_word_tokenizer(["a", "\u00e9"])
    ids = words.encode("a \u00e9 <|reflect|> a")
    assert TokenBytes(words)(ids) == [b"a ", "\u00e9 ".encode(), b"<|reflect|> ", b"a"]
