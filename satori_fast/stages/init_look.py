# SPDX-License-Identifier: Apache-2.0
"""Facts that `init` sees: a model folder, a data file and this machine.

What follows from them is `init_guess`; the config's text is `init`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch

from satori_fast.backbone.architecture import SUPPORTED, load_hf_config
from satori_fast.config import ConfigError
from satori_fast.data.field_guess import guess_fields
from satori_fast.data.field_mappings import FIELD_MAPPINGS, FieldMapping
from satori_fast.data.formats.coat import META_ACTION_TOKENS
from satori_fast.data.formats.plain import PLAIN
from satori_fast.data.prompts import (
    TEMPLATES,
    ChatTemplate,
    PromptRenderer,
    check_chat_template,
)
from satori_fast.data.rows import file_fields, file_rows, is_file_name
from satori_fast.data.sources import load_demonstrations, load_problems
from satori_fast.data.stop_tokens import stop_ids_of
from satori_fast.data.tokenizer import load_tokenizer
from satori_fast.data.values import BadRow
from satori_fast.grading import extract_answer
from satori_fast.profiling.device import describe_device
from satori_fast.profiling.flops import ModelShape
from satori_fast.profiling.memory_growth import machine_memory
from satori_fast.profiling.peaks import DevicePeaks, device_peaks
from satori_fast.stages.books import shape_of_config
from satori_fast.stages.models import model_folder
from satori_fast.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
_NUM_GUESSED_FROM = 200  # rows
_NUM_MEASURED = 2000  # problems and solutions whose tokens are counted
_NO_LIMIT = 1 << 40
_BUSY_PERCENT = 30.0  # of all cores
_ANSWER = "\ue000"  # no template writes it


@dataclass(frozen=True, slots=True)
class ModelLook:
    """A model folder.

    template:         the value of `data.template` that fits: "chat", "satori" or "plain".
    system:           what its chat template can be told before the question; None: nothing.
    knows_actions:    its tokenizer has the meta-action tokens of Satori.
    stop_tokens:      what ends a response by the model's own files.
    unnamed_ends:     what its chat template ends an answer with, and its files do not name.
    """

    path: str
    shape: ModelShape
    num_parameters: int
    context: int
    family: str
    template: str
    system: str | None
    knows_actions: bool
    stop_tokens: tuple[str, ...]
    unnamed_ends: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DataLook:
    """A data file, read with the model's tokenizer and template.

    mapping:         name of the field mapping, "" where they were guessed.
    fields:          what is read.
    skipped:         rows that cannot be used, by reason; "" where all can.
    prompt_tokens, solution_tokens: int64, of the first problems and of their worked solutions.
    boxed_share:     solutions with a boxed answer, 0 to 1.
    first:           a problem, to be shown.
    """

    path: str
    mapping: str
    fields: FieldMapping
    num_problems: int
    skipped: str
    prompt_tokens: np.ndarray
    solution_tokens: np.ndarray
    boxed_share: float
    first: Problem


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine that a run here would train on. peaks: by the name of a type, "float32" and
    "bfloat16"; is_busy: something else runs on it now."""

    name: str
    kind: str
    memory_bytes: float
    peaks: dict[str, DevicePeaks]
    is_busy: bool = False


def look_at_model(path: str) -> tuple[ModelLook, PromptRenderer]:
    """A model folder (or a name of the hub), and how it would be asked. ConfigError for one that
    cannot be trained here."""
    try:
        folder = model_folder(path, weights=False)
        hf_config = load_hf_config(folder)
        tokenizer = load_tokenizer(folder)
        stop_ids = stop_ids_of(folder, tokenizer, ())
    except (ValueError, OSError) as error:
        raise ConfigError(f"MODEL {path}: {error}") from None
    if hf_config.model_type not in SUPPORTED:
        known = ", ".join(SUPPORTED.values())
        raise ConfigError(f"MODEL {path}: {hf_config.model_type} is not supported; {known} are")
    template, system = _template_of(tokenizer)
    asked = ChatTemplate(system) if template == "chat" else TEMPLATES[template]
    shape, anything = shape_of_config(hf_config), tokenizer
    num_embeddings = 1 if hf_config.tie_word_embeddings else 2
    ends = tuple(_tokens(tokenizer, stop_ids))
    look = ModelLook(
        path=path,
        shape=shape,
        num_parameters=shape.num_layers * shape.layer_weights + num_embeddings * shape.head_weights,
        context=int(hf_config.max_position_embeddings),
        family=next(iter(hf_config.architectures or ()), hf_config.model_type),
        template=template,
        system=system,
        knows_actions=set(META_ACTION_TOKENS) <= anything.get_vocab().keys(),
        stop_tokens=ends,
        unnamed_ends=tuple(t for t in _chat_end(tokenizer) if template == "chat" and t not in ends),
    )
    return look, PromptRenderer(tokenizer, asked, _NO_LIMIT, stop_ids, PLAIN)


def _template_of(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str | None]:
    """Template and system message that the tokenizer takes."""
    for template in (ChatTemplate(SYSTEM), ChatTemplate()):
        try:
            check_chat_template(tokenizer, template)
        except ValueError:
            continue
        if template.system is None or SYSTEM in template.render(tokenizer, "1 + 1"):
            return "chat", template.system
    markers = ("<|im_start|>", "<|im_end|>")
    return ("satori" if set(markers) <= tokenizer.get_vocab().keys() else "plain"), None


def _chat_end(tokenizer: Any) -> list[str]:
    """The token that the chat template writes right after an answer; none where it is text."""
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template is a program of the model's author, or there is none
        return []
    ids = tokenizer.encode(text.partition(_ANSWER)[2].strip(), add_special_tokens=False)[:1]
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    return [token for token in _tokens(tokenizer, ids) if token in special]


def _tokens(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(list(ids))


def look_at_data(path: str, renderer: PromptRenderer) -> DataLook:
    """A data file: its fields by name or by a guess, what can be used, and lengths in tokens.
    ConfigError for one whose fields nobody can guess."""
    if not is_file_name(path):
        raise ConfigError(f"DATA {path}: name a data file; of a hub name nothing can be seen first")
    try:
        mapping, fields = _fields_of(Path(path).expanduser())
        problems, report = load_problems(path, fields)
        solutions: Sequence[str] = ()
        if fields.response is not None:
            found, _ = load_demonstrations(path, fields, limit=_NUM_MEASURED)
            solutions = [each.response for each in found]
    except (ValueError, OSError) as error:
        raise ConfigError(f"DATA {path}: {str(error).removeprefix(f'{path}: ')}") from None
    boxed = [bool(extract_answer(text)) for text in solutions]
    return DataLook(
        path=path,
        mapping=mapping,
        fields=fields,
        num_problems=len(problems),
        skipped=report.skipped() if report.num_skipped else "",
        prompt_tokens=np.array(
            [len(renderer.unchecked_prompt_ids(p)) for p in problems[:_NUM_MEASURED]]
        ),
        solution_tokens=np.array([len(renderer.encode(text)) + 1 for text in solutions], int),
        boxed_share=float(np.mean(boxed)) if boxed else 0.0,
        first=problems[0],
    )


def _fields_of(path: Path) -> tuple[str, FieldMapping]:
    """Name and fields of the mapping that reads a file: that of its name if its fields are there,
    else a guess without a name."""
    names = file_fields(path).names
    by_name = sorted((key for key in FIELD_MAPPINGS if path.name.startswith(key)), key=len)
    if by_name and {FIELD_MAPPINGS[by_name[-1]].question, FIELD_MAPPINGS[by_name[-1]].answer} <= {
        *names
    }:
        return by_name[-1], FIELD_MAPPINGS[by_name[-1]]
    rows = [row for _, row in islice(file_rows(path, names), _NUM_GUESSED_FROM)]
    guessed = guess_fields([row for row in rows if not isinstance(row, BadRow)])
    if guessed is None:
        raise ValueError(
            f"no field is named like a question and an answer; its fields are: "
            f"{', '.join(sorted(names))}: rename two of them to question and answer"
        )
    return "", guessed.mapping


def look_at_machine() -> Machine:
    """The device that a run here would train on, its memory and its speed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        memory = float(torch.cuda.get_device_properties(device).total_memory)
    else:
        memory = machine_memory().available_bytes
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return Machine(
        name=str(describe_device(device)["name"]),
        kind=device.type,
        memory_bytes=memory,
        peaks={name: device_peaks(device, dtype) for name, dtype in types.items()},
        is_busy=device.type == "cpu" and psutil.cpu_percent(interval=0.2) > _BUSY_PERCENT,
    )
