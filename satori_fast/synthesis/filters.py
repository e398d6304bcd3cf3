# SPDX-License-Identifier: Apache-2.0
"""Filters of demonstrations: leaks, other languages, markup, and what says a thing twice.

Language is decided by rule, because statistical identifiers read mathematics badly: py3langid
calls 4 % of the lines of GSM8K's English solutions another language. The rule: no letter of another
script (one or two Greek letters pass, as symbols), and not more of the commonest words of
other Latin-script languages than of English ones. Short phrases in those languages pass.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from importlib import resources

_SPECIAL_TOKEN = re.compile(r"<\|\w+\|>")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(r"[^\W\d_]+")
_SYMBOL_SCRIPTS = {"GREEK", "HEBREW"}  # alpha, aleph
_LONGEST_SYMBOL = 2  # letters
_FEWEST_FOREIGN_WORDS = 3


def fault_of(text: str) -> str | None:
    """Reason why `text` may not be in a demonstration: "special_token", "leak" or "not_english"."""
    if _SPECIAL_TOKEN.search(text):
        return "special_token"
    if leaks(text):
        return "leak"
    return None if is_english(text) else "not_english"


def leaks(text: str) -> bool:
    """Whether `text` speaks of an answer that its writer was shown, and a reader never sees."""
    return _leak_pattern().search(text) is not None


@cache
def _leak_pattern() -> re.Pattern[str]:
    phrases = _lines("leak_phrases.txt")
    words = (r"[\s-]+".join(map(re.escape, phrase.split())) for phrase in phrases)
    return re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)


def is_english(text: str) -> bool:
    """See the rule at the top. Text without words (formulas) passes."""
    words = _WORD.findall(_COMMAND.sub(" ", text))
    if any(_is_foreign_script(word) for word in words if not word.isascii()):
        return False
    languages = [_function_words().get(word.lower()) for word in words]
    num_english = languages.count("english")
    num_foreign = len(languages) - languages.count(None) - num_english
    return num_foreign < _FEWEST_FOREIGN_WORDS or num_foreign <= num_english


@cache
def _function_words() -> dict[str, str]:
    """A language for each of its commonest words."""
    lines = [line.partition(":") for line in _lines("function_words.txt")]
    return {word: language for language, _, words in lines for word in words.split()}


def _is_foreign_script(word: str) -> bool:
    # NFKC takes the mathematics out of letters: bold, blackboard, superscript, fractions.
    plain = filter(str.isalpha, unicodedata.normalize("NFKC", word))
    scripts = [unicodedata.name(letter, "").split(" ")[0] for letter in plain]
    other = [script for script in scripts if script != "LATIN"]
    return len(other) > _LONGEST_SYMBOL or not set(other) <= _SYMBOL_SCRIPTS


def normalised(text: str) -> str:
    """Two texts that differ in spacing, case or final punctuation only are the same text."""
    return "".join(text.split()).casefold().rstrip(".,;:!")


def read_template(name: str) -> str:
    """A text file of `templates`, shipped with the package."""
    return (resources.files("satori_fast.synthesis") / "templates" / name).read_text(
        encoding="utf-8"
    )


def _lines(name: str) -> list[str]:
    """The lines of a template that say something."""
    lines = (line.strip() for line in read_template(name).splitlines())
    return [line for line in lines if line and not line.startswith("#")]
