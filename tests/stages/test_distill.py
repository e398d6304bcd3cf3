# SPDX-License-Identifier: Apache-2.0
"""Which solutions are distilled, and a student of another family with another tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from satori_fast.config import ConfigError
from satori_fast.data.arithmetic import domain_words
from satori_fast.data.formats.coat import META_ACTION_TOKENS
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer, encode_demonstration
from satori_fast.data.tokenizer import add_special_tokens, build_word_tokenizer, load_tokenizer
from satori_fast.stages import run_stages
from satori_fast.stages.distill import hardest
from satori_fast.stages.run import build_run
from satori_fast.stages.solutions import Solved
from satori_fast.types import Demonstration, Problem
from tests.stages.test_run import tiny_config

TOKENIZER = build_word_tokenizer(domain_words())
add_special_tokens(TOKENIZER, META_ACTION_TOKENS)
RENDERER = PromptRenderer(TOKENIZER, PLAIN_TEMPLATE, 100)


def solved(name: str, *samples: tuple[str, bool]) -> Solved:
    problem = Problem(name, "p 7 q 1 pick 2 sum 8", "p q")
    return [
        (encode_demonstration(Demonstration(problem, text), RENDERER, group_id=0), correct)
        for text, correct in samples
    ]


GROUPS = [
    solved("easy", ("p", True), ("q", True), ("p q", True), ("q p", True)),
    solved("never", ("p", False), ("q", False), ("p q", False), ("q p", False)),
    solved("hard", ("p", False), ("q", False), ("p q", True), ("q p", False)),
    solved("half", ("p", True), ("p", True), ("q", False), ("q", False)),
]


def test_the_hardest_solved_problems_are_kept() -> None:
    rng = np.random.default_rng(0)
    kept = hardest(GROUPS, num_kept=2, solutions_per_problem=4, rng=rng)
    # Two equal solutions are one; a problem that was never solved teaches nothing.
    assert [(d.problem.problem_id, d.response) for d in kept] == [("hard", "p q"), ("half", "p")]
    everything = hardest(GROUPS, num_kept=9, solutions_per_problem=3, rng=rng)
    assert [d.problem.problem_id for d in everything] == ["hard", "half", "easy", "easy", "easy"]
    assert len({d.response for d in everything[2:]}) == 3


def tokenizer_without_meta_actions() -> PreTrainedTokenizerFast:
    """Other ids for the words of the domain, and a word more."""
    words = ["<eos>", "further", *reversed(domain_words())]
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>")


def test_a_student_of_another_family_learns_in_its_own_tokens(tmp_path: Path) -> None:
    tokenizer = tokenizer_without_meta_actions()
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 9,  # padded, as real checkpoints are
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=48,
        eos_token_id=tokenizer.eos_token_id,
    )
    student = tmp_path / "student"
    AutoModelForCausalLM.from_config(config).save_pretrained(student)
    tokenizer.save_pretrained(student)
    options = ("--stages", '["synthesize", "supervised", "distill"]')
    options += ("--supervised.num_epochs", "8.0", "--distill.student", f"'{student}'")
    options += ("--distill.num_problems", "40", "--distill.num_epochs", "2.0")
    options += ("--distill.batch_size", "8", "--distill.optimizer.learning_rate", "3e-3")
    config = tiny_config(tmp_path, *options)
    entry = run_stages(config)["stages"][-1]
    assert entry["stage"] == "distill" and entry["num_demonstrations"] > 0
    folder = tmp_path / "tiny" / "models" / "distill"
    saved = json.loads((folder / "config.json").read_text())
    assert saved["model_type"] == "llama" and saved["vocab_size"] == len(tokenizer) + 9
    exported = load_tokenizer(folder)
    word = "further"
    assert exported.convert_tokens_to_ids(word) == tokenizer.convert_tokens_to_ids(word)
    assert exported.convert_tokens_to_ids("<|reflect|>") >= len(tokenizer)
    # What follows, in this run or a resumed one, goes on with the student and its tokens.
    with build_run(config, resume=True) as run:
        assert run.models["policy"].resolve() == folder.resolve()
        assert run.renderer.encode(word) == exported.encode(word, add_special_tokens=False)


def test_a_teacher_that_solves_nothing_is_an_error(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "--stages", '["distill"]', "--rollout.max_new_tokens", "2")
    with pytest.raises(ConfigError, match="the teacher solved no problem"):
        run_stages(config)
