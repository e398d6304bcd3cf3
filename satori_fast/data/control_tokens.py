# SPDX-License-Identifier: Apache-2.0
"""Control tokens of a tokenizer, and the tokens that it puts before every text.

A control token is one that text cannot spell by chance: turns of a chat, the end of text, a meta
action. A template writes them; a question that merely quotes one must not. Stop tokens are
`data.stop_tokens`; templates are `data.prompts`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters that stand for control tokens while a text goes through a template.
_PRIVATE_USE = range(0xE000, 0xF900)
_MARKER = re.compile(r"<\|?[^|<>\s]+\|?>")


class ControlTokens:
    """The control tokens of a tokenizer: added tokens that are special or written `<...>`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer  # its annotations are incomplete
        self._ids: dict[str, int] = {
            token.content: number
            for number, token in self._tokenizer.added_tokens_decoder.items()
            if token.special or re.fullmatch(r"<.*>", token.content)
        }
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def encode_quoting(self, render: Callable[..., str], *texts: str) -> list[int]:
        """Ids of `render(*texts)` in which the control tokens that `texts` quote are plain text.

        Texts that quote none get the ids of the rendered text as it is.
        """
        quoted = {token for text in texts for token in self._pattern.findall(text)}
        if not quoted:
            return self._encode(render(*texts))
        marks = dict(zip(sorted(quoted), _unused_characters("".join(texts)), strict=False))
        rendered = render(
            *(self._pattern.sub(lambda found: marks[found.group()], text) for text in texts)
        )
        # A control token ends the tokens around it, plain or not: the pieces are encoded apart.
        spelled = {mark: self._spelled(token) for token, mark in marks.items()}
        pieces = re.split(f"([{''.join(spelled)}])", rendered)
        return [i for piece in pieces for i in spelled.get(piece) or self._encode(piece)]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _spelled(self, token: str) -> list[int]:
        """Ids of the token's characters as any text has them."""
        ids = self._tokenizer.encode(token, add_special_tokens=False, split_special_tokens=True)
        if self._ids.keys().isdisjoint(self._tokenizer.convert_ids_to_tokens(ids)):
            return ids
        # Added but not special, or a word of the vocabulary: whole characters cannot be it.
        return [i for character in token for i in self._encode(character)]


def unknown_markers(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, ...]:
    """Markers of a template, such as `<|im_start|>`, that are not tokens of the tokenizer."""
    known = tokenizer.get_vocab()
    return tuple(m for m in dict.fromkeys(_MARKER.findall(template)) if m not in known)


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that the tokenizer's post-processor puts before every text: begin-of-text, or none.

    Read off what it does: that a `bos_token` is set does not say that it is used. What it puts
    after a text (some put the end there) has no place in a prompt.
    """
    anything: Any = tokenizer
    if not anything.encode(""):
        return ()
    text = anything.encode("a", add_special_tokens=False)
    whole = anything.encode("a")
    for start in range(len(whole) - len(text) + 1):
        if whole[start : start + len(text)] == text:
            return tuple(whole[:start])
    return ()


def _unused_characters(text: str) -> Iterator[str]:
    return (c for c in map(chr, _PRIVATE_USE) if c not in text)
