# SPDX-License-Identifier: Apache-2.0
"""Protocols as the papers have them: prompts word for word, limits, stop tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from satori_fast.data.tokenizer import add_special_tokens, train_tokenizer
from satori_fast.evaluation.benchmarks import BENCHMARKS
from satori_fast.evaluation.protocols import PROTOCOLS, group_of, protocol_named
from satori_fast.types import Problem

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
PROMPTS = {
    "satori": "<|im_start|>user\nSolve the following math problem efficiently and clearly.\n"
    f"{BOXED}\nProblem: 1+1?<|im_end|>\n<|im_start|>assistant\n",
    "s2r": f"<|im_start|>system\n{BOXED}<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "srl": f"<|im_start|>system\n{BOXED} You can draft your thinking process inside "
    '<think> </think> tags anywhere. This is your "scratch paper".<|im_end|>\n'
    "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n",
    "chat": f"<|im_start|>user\n1+1?\n{BOXED}<|im_end|>\n<|im_start|>assistant\n",
}


def tokenizer_of(template: str | None) -> PreTrainedTokenizerBase:
    tokens = ("<|im_start|>", "<|im_end|>")
    tokenizer = train_tokenizer([*PROMPTS.values()], 300, special_tokens=tokens)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_prompts_are_the_papers(name: str, tmp_path: Path) -> None:
    protocol, tokenizer = PROTOCOLS[name], tokenizer_of(CHAT)
    add_special_tokens(tokenizer, protocol.format.special_tokens)
    renderer = protocol.renderer(tokenizer, tmp_path, max_prompt_tokens=500)
    ids = renderer.prompt_ids(Problem("p", protocol.question("1+1?"), "2"))
    assert renderer.decode(ids) == PROMPTS[name]
    # The end of a turn ends a response, beside the tokenizer's own end of text.
    assert tokenizer.get_vocab()["<|im_end|>"] in renderer.stop_ids
    assert renderer.stop_ids[0] == tokenizer.eos_token_id


def test_limits() -> None:
    limits = {name: protocol.max_new_tokens for name, protocol in PROTOCOLS.items()}
    assert limits == {"satori": 4096, "s2r": 8000, "srl": 8000, "chat": 4096}


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(None)
    for name in ("chat", "s2r", "srl"):
        with pytest.raises(ValueError, match=f'protocol "{name}" asks in the chat template'):
            PROTOCOLS[name].renderer(tokenizer, tmp_path, max_prompt_tokens=100)
    with pytest.raises(ValueError, match="'own' is no protocol: choose of satori, s2r, srl, chat"):
        protocol_named("own")


def test_numbers_of_problems_do_not_depend_on_what_else_is_asked() -> None:
    aime, amc = BENCHMARKS["aime24"], BENCHMARKS["amc23"]
    numbers = {group_of(row, f"{row.name}/{i}") for row in (aime, amc) for i in range(40)}
    assert len(numbers) == 80
    assert group_of(aime, "aime24/60") == 9447579283081683
