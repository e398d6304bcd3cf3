# SPDX-License-Identifier: Apache-2.0
"""Leaks, languages, markup and repetitions: what each filter catches, and what it must let pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from satori_fast.synthesis.filters import fault_of, is_english, leaks, normalised


@pytest.mark.parametrize(
    "text",
    [
        "According to the ground truth, x is 3.",
        "This differs from the Ground-Truth solution.",
        "The reference\nanswer is 4.",
        "As the given solution shows, we add.",
        "It does not match the provided answer.",
        "the expected  answer",
    ],
)
def test_leaks_are_seen(text: str) -> None:
    assert leaks(text) and fault_of(text) == "leak"


@pytest.mark.parametrize(
    "text",
    [
        "The correct answer is 4, so the ground is wet and true.",
        "We are given that the solution is unique.",
        "Given x = 3, a solution given that y > 0 is z = 2.",
        "The answer is provided by Pythagoras.",
    ],
)
def test_plain_mathematics_is_no_leak(text: str) -> None:
    assert not leaks(text)


@pytest.mark.parametrize(
    "text",
    [
        "\u6240\u4ee5\u7b54\u6848\u662f 12",
        "So we have \u56e0\u6b64 x = 3.",
        "\u041f\u043e\u044d\u0442\u043e\u043c\u0443 x = 3",
        "\u0391\u03c1\u03b1 \u03c4\u03bf x = 3",
        "\u0644\u0630\u0644\u0643 x = 3",
        "Soit x le nombre de pommes, donc nous avons 3x + 2 = 11.",
        "Wir addieren die Zahlen und das Ergebnis ist daher 12, nicht 13.",
        "Entonces tenemos que la suma de los dos es una constante.",
        "Quindi abbiamo che il numero di mele sono tre.",
    ],
)
def test_other_languages_are_seen(text: str) -> None:
    assert not is_english(text) and fault_of(text) == "not_english"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x^2 + 3x = \\frac{1}{2}",
        "Let \u03b1\u03b2 = \u03c0 and \u2220ABC = 30\u00b0 with x \u2208 \u211d, |\u2135| > 0.",
        "By M\u00f6bius inversion and Poincar\u00e9's caf\u00e9, \u00bd of it is \u00be.",
        "\U0001d465 = 5 \u00b5m, and x\u00b2 \u2264 9.",
        "Los Angeles has 3 pizzerias per block, as in the El Paso case of la Cruz.",
        "p r t",
    ],
)
def test_english_and_formulas_pass(text: str) -> None:
    assert is_english(text) and fault_of(text) is None


def test_solutions_of_a_real_data_set_pass(data_dir: Path) -> None:
    lines = (data_dir / "train" / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()
    faults = [fault_of(json.loads(line)["answer"]) for line in lines]
    assert faults.count(None) == len(faults)


def test_special_tokens_are_seen() -> None:
    assert fault_of("a <|reflect|> b") == fault_of("a<|im_end|>") == "special_token"
    assert fault_of("|x| < 3 | y > 2") is None


def test_same_texts() -> None:
    same = ["Add 2 and 3.", " add  2\nand 3", "ADD 2 AND 3 ."]
    assert len({normalised(text) for text in same}) == 1
    assert normalised("Add 2 and 3") != normalised("Add 23 and")
