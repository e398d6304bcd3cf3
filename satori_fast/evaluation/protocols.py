# SPDX-License-Identifier: Apache-2.0
"""Ways to ask benchmarks: the papers' prompts, limits and stop tokens, as data.

A protocol is all that two figures must share to be compared, beside the questions and the grader.
What is asked is `benchmarks`, how prompts become ids `data.prompts`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from satori_fast.data.formats import ResponseFormat
from satori_fast.data.formats.coat import COAT
from satori_fast.data.formats.plain import PLAIN
from satori_fast.data.formats.trials import TRIALS
from satori_fast.data.prompts import (
    SATORI_TEMPLATE,
    ChatTemplate,
    PromptRenderer,
    check_chat_template,
)
from satori_fast.data.stop_tokens import stop_ids_of
from satori_fast.evaluation.benchmarks import Benchmark

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
_SCRATCH_PAPER = (
    f"{_BOXED} You can draft your thinking process inside <think> </think> tags anywhere. "
    'This is your "scratch paper".'
)
# What is asked as a config trains is no row: it is made of the config.
OWN_PROTOCOL = "config"
_ENDS = ("<|im_end|>", "<|endoftext|>", "</s>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One way to ask.

    template: text with one {question}, or the tokenizer's own chat template.
    suffix:   follows the question in the user's turn. format: of responses.
    max_new_tokens: response limit. stop_tokens: end a response beside the model's own, where the
              tokenizer has them. source: where it is published.
    """

    name: str
    template: str | ChatTemplate
    suffix: str = ""
    format: ResponseFormat = PLAIN
    max_new_tokens: int
    stop_tokens: tuple[str, ...] = _ENDS
    source: str

    def question(self, asked: str) -> str:
        """The user's turn for a question."""
        return f"{asked}\n{self.suffix}" if self.suffix else asked

    def renderer(
        self, tokenizer: PreTrainedTokenizerBase, folder: Path, *, max_prompt_tokens: int
    ) -> PromptRenderer:
        """Prompts of this protocol in a tokenizer's ids.

        folder: of the model, whose files name its stop tokens. ValueError for a tokenizer without a
        chat template where one is needed.
        """
        if isinstance(self.template, ChatTemplate):
            anything: Any = tokenizer  # its annotations are incomplete
            if not anything.chat_template:
                raise ValueError(
                    f'protocol "{self.name}" asks in the chat template of the model, and its '
                    "tokenizer has none: take --protocol satori, or an instruction-tuned model"
                )
            check_chat_template(tokenizer, self.template)
        known = tokenizer.get_vocab()
        more = [known[token] for token in self.stop_tokens if token in known]
        stop_ids = (*stop_ids_of(folder, tokenizer, self.format.special_tokens), *more)
        return PromptRenderer(tokenizer, self.template, max_prompt_tokens, stop_ids, self.format)

    def described(self) -> dict[str, Any]:
        """All of it, fit for JSON."""
        chat = isinstance(self.template, ChatTemplate)
        return {
            "name": self.name,
            "template": "chat" if chat else self.template,
            "system": self.template.system if isinstance(self.template, ChatTemplate) else None,
            "suffix": self.suffix,
            "format": self.format.full_name,
            "max_new_tokens": self.max_new_tokens,
            "stop_tokens": list(self.stop_tokens),
        }


_ROWS = (
    Protocol(
        name="satori",
        template=SATORI_TEMPLATE,
        format=COAT,
        max_new_tokens=4096,
        source="Satori, template 3, with the limit of the authors' published usage",
    ),
    Protocol(
        name="s2r",
        template=ChatTemplate(_BOXED),
        format=TRIALS,
        max_new_tokens=8000,
        source="S2R: the prompt qwen25-math-cot of Qwen2.5-Math's evaluation",
    ),
    Protocol(
        name="srl",
        template=ChatTemplate(_SCRATCH_PAPER),
        max_new_tokens=8000,
        source="SRL's evaluation prompt; the paper gives no limit, this is S2R's",
    ),
    Protocol(
        name="chat",
        template=ChatTemplate(),
        suffix=_BOXED,
        max_new_tokens=4096,
        source="any model that was tuned to follow instructions",
    ),
)
PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({row.name: row for row in _ROWS})


def protocol_named(name: str) -> Protocol:
    """The protocol of a name. ValueError for none of them."""
    if name not in PROTOCOLS:
        known = ", ".join([*PROTOCOLS, OWN_PROTOCOL])
        raise ValueError(f"{name!r} is no protocol: choose of {known}")
    return PROTOCOLS[name]


def group_of(benchmark: Benchmark, problem_id: str) -> int:
    """A number of a problem for seeds: the same whatever else is asked."""
    text = f"{benchmark.name}\0{problem_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
