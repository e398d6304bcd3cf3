# SPDX-License-Identifier: Apache-2.0
"""Tokenizers: built from a word list, trained on text, or loaded.

All are Hugging Face fast tokenizers: saved with `save_pretrained`, loaded with `load_tokenizer`.
The special tokens of a format are control tokens: ``decode(..., skip_special_tokens=True)`` drops
them, so segments are cut on ids or on text decoded with them (`data.formats` does).

Prompts are `data.prompts`; resizing a model's embedding is the backbone's business.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satori_fast.data.formats.coat import META_ACTION_TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
UNKNOWN = "<|unknown|>"
_VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


def build_word_tokenizer(
    words: Iterable[str], special_tokens: Sequence[str] = META_ACTION_TOKENS
) -> PreTrainedTokenizerFast:
    """One id per word. Text is split at whitespace; decode joins with single spaces.

    Hence ``decode(encode(text)) == text`` for single-spaced text of known words and special tokens.
    Ids: end of text (also padding) 0, unknown 1, `special_tokens`, then `words` in order. A word
    outside becomes ``<|unknown|>``: `check_known` refuses text that holds one. ValueError for a
    word that is empty, holds whitespace or occurs twice.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = word_ids(words, special_tokens)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return _wrap(tokenizer, special_tokens, unk_token=UNKNOWN)


def word_ids(words: Iterable[str], special_tokens: Sequence[str]) -> dict[str, int]:
    """The ids of `build_word_tokenizer`, and its errors."""
    vocabulary: dict[str, int] = {}
    for word in [END_OF_TEXT, UNKNOWN, *special_tokens, *words]:
        if word.split() != [word]:
            raise ValueError(f"word {word!r} is empty or holds whitespace: it can never be a token")
        if word in vocabulary:
            raise ValueError(f"word {word!r} occurs twice in the vocabulary")
        vocabulary[word] = len(vocabulary)
    return vocabulary


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = (*CHAT_TOKENS, *META_ACTION_TOKENS),
) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on `texts`: every text round-trips, digits are single tokens.

    vocab_size counts the end of text (id 0, also padding), `special_tokens` and the 256 bytes; a
    small corpus may fill less. ValueError when it does not hold those.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    specials = [END_OF_TEXT, *special_tokens]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(specials) + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest}, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer, special_tokens)


def _wrap(
    tokenizer: Tokenizer, special_tokens: Sequence[str], **options: Any
) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        extra_special_tokens=list(special_tokens),
        clean_up_tokenization_spaces=False,
        **options,
    )


def load_tokenizer(folder_or_name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or of a hub name. ValueError when there is none."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    loader: Any = AutoTokenizer  # its annotations are incomplete
    name = str(folder_or_name)
    # AutoTokenizer lets the config's model_type choose the class: beside a qwen2 config.json it
    # puts Qwen2's splitting in place of the file's own, silently. tokenizer.json says it all.
    if (Path(name).expanduser() / "tokenizer.json").is_file():
        loader = PreTrainedTokenizerFast
    # A hub name is "owner/model" or "model"; everything else can only be a folder.
    looks_local = isinstance(folder_or_name, Path) or name.startswith((".", "~", "/"))
    if (looks_local or name.count("/") > 1) and not Path(name).expanduser().is_dir():
        raise ValueError(f"model folder {name} does not exist")
    folder = Path(name).expanduser()
    if folder.is_dir() and not has_tokenizer(folder):
        # AutoTokenizer would make one of the config's family that knows no word.
        raise ValueError(
            f"no tokenizer can be loaded from {name}: it holds none, copy its tokenizer.json there"
        )
    try:
        return loader.from_pretrained(Path(name).expanduser() if looks_local else name)
    except Exception as error:  # the library `tokenizers` raises nothing more special
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"no tokenizer can be loaded from {name}: {reason}") from error


def has_tokenizer(folder: Path) -> bool:
    """Whether a model folder has a tokenizer of its own."""
    return any((folder / file).is_file() for file in _VOCABULARY_FILES)


def is_word_list(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer has a token for each word and none for parts of words."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    return type(getattr(backend, "model", None)).__name__ == "WordLevel"


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, special_tokens: Sequence[str]) -> int:
    """Add those of `special_tokens` that `tokenizer` lacks; how many that was.

    The model's embedding must then cover ``len(tokenizer)`` rows.
    """
    from transformers import AddedToken

    known = tokenizer.get_vocab()
    missing = [
        AddedToken(token, normalized=False, special=True)
        for token in special_tokens
        if token not in known
    ]
    return tokenizer.add_tokens(missing, special_tokens=True) if missing else 0


def check_known(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Raise ValueError naming the first word of `text` that `tokenizer` maps to its unknown token.

    A tokenizer without an unknown token (byte-level) knows every text.
    """
    if tokenizer.unk_token_id is None:
        return
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]  # type: ignore[assignment]
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]  # type: ignore[assignment]
    for token_id, (start, stop) in zip(ids, offsets, strict=True):
        if token_id == tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer does not know the word {text[start:stop]!r}")


class TokenBytes:
    """Token ids to their UTF-8 bytes, so that a place in a text is found among the ids.

    For byte-level tokenizers (GPT-2, Qwen, Llama 3), whose tokens may hold a part of a character,
    and for word lists, whose words are joined by single spaces: a space belongs to the word before
    it. Joined, the bytes of some ids are what ``decode`` makes of them. ValueError for others.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer  # its annotations are incomplete
        backend = self._tokenizer.backend_tokenizer
        decoder = backend.decoder
        self._has_words = decoder is None and is_word_list(tokenizer)
        state = {"type": ""} if decoder is None else json.loads(decoder.__getstate__())
        if not self._has_words and "ByteLevel" not in _decoder_kinds(state):
            raise ValueError(
                "segments are cut by bytes, and this tokenizer is not byte-level: take a model "
                "whose tokenizer is, or a data.format with control tokens"
            )

    def __call__(self, ids: Sequence[int]) -> list[bytes]:
        tokens: list[str] = self._tokenizer.convert_ids_to_tokens(list(ids))
        if self._has_words:
            last = len(tokens) - 1
            return [f"{token}{' ' * (i < last)}".encode() for i, token in enumerate(tokens)]
        return [self._bytes_of(token) for token in tokens]

    def _bytes_of(self, token: str) -> bytes:
        spelled = [self._byte_of.get(character) for character in token]
        # As the decoder does: a token with another character, such as an added one, is its text.
        known = [byte for byte in spelled if byte is not None]
        return bytes(known) if len(known) == len(spelled) else token.encode()

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        """The character that stands for each byte in a byte-level vocabulary, reversed.

        Bytes that print stand for themselves, the others for the characters from 256 on, in order.
        """
        printed = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printed]
        return {chr(byte): byte for byte in printed} | {
            chr(256 + number): byte for number, byte in enumerate(others)
        }


def _decoder_kinds(state: dict[str, Any]) -> Iterator[str]:
    """Types of a decoder and of those that it is made of."""
    yield state["type"]
    for inner in state.get("decoders", ()):
        yield from _decoder_kinds(inner)
