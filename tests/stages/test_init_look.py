# SPDX-License-Identifier: Apache-2.0
"""Model folders, data files and this machine, seen as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from satori_fast.config import ConfigError
from satori_fast.data.formats.coat import META_ACTION_TOKENS
from satori_fast.data.tokenizer import add_special_tokens, load_tokenizer
from satori_fast.stages.init_look import SYSTEM, look_at_data, look_at_machine, look_at_model
from tests.stages.test_init import sums, write_rows
from tests.tiny_models import save_chat_model

TEXTS = [row["response"] for row in sums(50)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("models") / "tiny", TEXTS)


def changed(folder: Path, copy: Path, **attributes: Any) -> str:
    """A copy of a model folder whose tokenizer has other attributes."""
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(copy)
    tokenizer: Any = load_tokenizer(folder)
    for name, value in attributes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(copy)
    return str(copy)


def test_a_model_folder(folder: Path) -> None:
    look, renderer = look_at_model(str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert look.num_parameters == matrices and look.context == 512
    assert (look.template, look.system, look.family) == ("chat", SYSTEM, "Qwen2ForCausalLM")
    assert look.stop_tokens == ("<|im_end|>",) and look.unnamed_ends == ()
    assert not look.knows_actions
    assert renderer.decode(renderer.encode(TEXTS[0])) == TEXTS[0]


def test_the_template_that_fits(folder: Path, tmp_path: Path) -> None:
    look, _ = look_at_model(changed(folder, tmp_path / "bare", chat_template=None))
    assert (look.template, look.system) == ("satori", None)  # its markers are there
    silent = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}"
    silent += "{% endfor %}"
    look, _ = look_at_model(changed(folder, tmp_path / "silent", chat_template=silent))
    assert (look.template, look.system) == ("chat", None)  # it drops the system turn


def test_an_end_that_only_the_chat_template_knows(folder: Path, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path / "copy", eos_token="<|endoftext|>")
    for name in ("config.json", "generation_config.json"):
        path = tmp_path / "copy" / name
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "eos_token_id": 0}))
    look, _ = look_at_model(copy)
    assert look.stop_tokens == ("<|endoftext|>",) and look.unnamed_ends == ("<|im_end|>",)


def test_a_model_that_knows_the_meta_actions(folder: Path, tmp_path: Path) -> None:
    copy = Path(changed(folder, tmp_path / "copy"))
    tokenizer = load_tokenizer(copy)
    add_special_tokens(tokenizer, META_ACTION_TOKENS)
    tokenizer.save_pretrained(copy)
    assert look_at_model(str(copy))[0].knows_actions


def test_models_that_cannot_be_trained(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        look_at_model(str(tmp_path))
    copy = Path(changed(folder, tmp_path / "gpt2"))
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**content, "model_type": "gpt2"}))
    with pytest.raises(ConfigError, match=r"gpt2 is not supported; Qwen2 and Qwen2\.5, "):
        look_at_model(str(copy))


def test_a_data_file(folder: Path, tmp_path: Path) -> None:
    _, renderer = look_at_model(str(folder))
    rows = [*sums(60), {"question": "Who?", "answer": None, "response": "x"}]
    look = look_at_data(str(write_rows(tmp_path / "mine.jsonl", rows)), renderer)
    assert look.mapping == "" and look.fields.response == "response"
    assert look.num_problems == 60 and "1 x empty field 'answer'" in look.skipped
    lengths = [len(renderer.encode(row["response"])) + 1 for row in sums(60)]
    assert look.solution_tokens.tolist() == lengths and look.boxed_share == 1.0
    (prompt,) = {len(renderer.unchecked_prompt_ids(look.first))}
    assert look.prompt_tokens[0] == prompt and len(look.prompt_tokens) == 60


def test_a_hub_name_is_no_file(folder: Path) -> None:
    _, renderer = look_at_model(str(folder))
    with pytest.raises(ConfigError, match="name a data file"):
        look_at_data("openai/gsm8k", renderer)


def test_this_machine() -> None:
    machine = look_at_machine()
    assert machine.memory_bytes > 2**28 and machine.name
    assert machine.peaks.keys() == {"float32", "bfloat16"}
