# SPDX-License-Identifier: Apache-2.0
"""Stop tokens, which end a response of a model, and the file that carries them.

A model folder names them in up to three places: the tokenizer's end of text, `eos_token_id` of
config.json, and `eos_token_id` of generation_config.json. All of them count, and so do those of
`rollout.stop_tokens`. A run keeps the model's in a generation_config.json beside its tokenizer, and
every model that it exports gets one with all of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from satori_fast.data.prompts import PromptRenderer
from satori_fast.storage import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION_CONFIG = "generation_config.json"


def stop_ids_of(
    folder: Path, tokenizer: PreTrainedTokenizerBase, special_tokens: Sequence[str]
) -> tuple[int, ...]:
    """Ids that end a response of the model in `folder`, the tokenizer's own first; sorted.

    special_tokens: of the response format. ValueError: a file that does not hold ids, or one of
    the format's tokens as a stop token.
    """
    named: dict[int, str] = {}
    for name in ("config.json", _GENERATION_CONFIG):
        value: Any = _read(folder / name).get("eos_token_id")
        ids = value if _is_list(value) else [] if value is None else [value]
        for i in ids:
            if not isinstance(i, int) or isinstance(i, bool) or i < 0:
                raise ValueError(
                    f"{folder / name}: eos_token_id is {value!r}: it must be a token id or a list "
                    "of them"
                )
            named.setdefault(i, name)
    vocabulary = tokenizer.get_vocab()
    for token in special_tokens:
        if vocabulary.get(token) in named:
            number = vocabulary[token]
            raise ValueError(
                f"{folder / named[number]}: eos_token_id {number} is {token} to the tokenizer, so "
                f"every such action would end a response: name the model's end of text there"
            )
    own = tokenizer.eos_token_id
    first = (own,) if isinstance(own, int) else ()
    return (*first, *sorted(named.keys() - set(first)))


def ids_of_stop_tokens(
    tokens: Sequence[str], tokenizer: PreTrainedTokenizerBase, special_tokens: Sequence[str]
) -> tuple[int, ...]:
    """Ids of `rollout.stop_tokens`, each a single token of the tokenizer.

    special_tokens: of the response format. ValueError for one of those, and for a text that is not
    one token: an engine stops at ids.
    """
    anything: Any = tokenizer
    found: list[int] = []
    for token in tokens:
        ids: list[int] = anything.encode(token, add_special_tokens=False)
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            number = "is no token" if len(ids) < 2 else f"is {len(ids)} tokens"
            raise ValueError(
                f"rollout.stop_tokens: {token!r} {number} to the tokenizer: name single tokens of "
                "its vocabulary, or leave it out"
            )
        if token in special_tokens:
            raise ValueError(
                f"rollout.stop_tokens: {token!r} opens a segment of data.format, so every such "
                "segment would end a response: leave it out"
            )
        found += ids
    return tuple(found)


def keep_generation_config(
    model: Path, folder: Path, tokenizer: PreTrainedTokenizerBase, special_tokens: Sequence[str]
) -> None:
    """Write to `folder` the generation_config.json of a model folder, all its stop tokens in it."""
    ids = stop_ids_of(model, tokenizer, special_tokens)
    settings = {**_read(model / _GENERATION_CONFIG), **_ends(ids)}
    write_atomically(folder / _GENERATION_CONFIG, json.dumps(settings, indent=2) + "\n")


def exported_generation(folder: Path, renderer: PromptRenderer) -> dict[str, Any]:
    """Content of generation_config.json of a model that `renderer` sampled; what else it holds is
    what `keep_generation_config` left in `folder`."""
    padding = renderer.tokenizer.pad_token_id
    default = {} if padding is None else {"pad_token_id": padding}
    return default | _read(folder / _GENERATION_CONFIG) | _ends(renderer.stop_ids)


def _ends(ids: tuple[int, ...]) -> dict[str, Any]:
    return {"eos_token_id": ids[0] if len(ids) == 1 else list(ids)} if ids else {}


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not _is_object(content):
        raise ValueError(f"{path} does not hold a JSON object")
    return content


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)
