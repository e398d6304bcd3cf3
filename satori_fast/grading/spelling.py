# SPDX-License-Identifier: Apache-2.0
r"""One spelling for the many ways to write an answer: Unicode, TeX markup, plain text.

`clean` is what both sides of a comparison go through first: "\dfrac12", "$\frac 1 2$." and
"{\bf \frac 1 2}" come out alike. It never changes what an answer says, and takes linear time,
because it runs in the trainer's process. What an answer says is read by `forms`.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache

_SMALL = [chr(code) for code in (0xB2, 0xB3, 0xB9, 0x2E3, *range(0x2070, 0x209D))]


def _small_letters(kind: str) -> dict[int, str]:
    """Raised ("<super>") or lowered ("<sub>") characters and what they stand for."""
    parts = {letter: unicodedata.decomposition(letter).split() for letter in _SMALL}
    return {ord(k): chr(int(part[1], 16)) for k, part in parts.items() if part and part[0] == kind}


_SUPERSCRIPTS, _SUBSCRIPTS = _small_letters("<super>"), _small_letters("<sub>")
_RAISED = re.compile(f"[{''.join(map(chr, _SUPERSCRIPTS))}]+")
_LOWERED = re.compile(f"[{''.join(map(chr, _SUBSCRIPTS))}]+")
_GREEK = {
    chr(code): rf"\{unicodedata.name(chr(code)).rsplit(' ', 1)[1].lower()} "
    for code in range(0x3B1, 0x3CA)
    if code != 0x3C2  # final sigma
}
_SYMBOLS = str.maketrans(
    _GREEK
    | {
        **dict.fromkeys("\u2212\u2013\u2014\u2010\u2011\u2012\u2015", "-"),
        **dict.fromkeys("\u00b7\u22c5\u2219", r"\cdot "),
        **dict.fromkeys("\u2264\u2a7d", r"\leq "),
        **dict.fromkeys("\u2265\u2a7e", r"\geq "),
        **dict.fromkeys("\u2248\u2243", r"\approx "),
        **dict.fromkeys("\u2205\u2300", r"\emptyset "),
        **dict.fromkeys("\u2018\u2019\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u2033", '"'),
        **dict.fromkeys("\u200b\u200c\u200d\ufeff\u2060", ""),
        "\u00d7": r"\times ",
        "\u00f7": "/",
        "\u2215": "/",
        "\u2260": r"\neq ",
        "\u00b1": r"\pm ",
        "\u2213": r"\mp ",
        "\u221e": r"\infty ",
        "\u222a": r"\cup ",
        "\u2229": r"\cap ",
        "\u2208": r"\in ",
        "\u2209": r"\notin ",
        "\u2216": r"\setminus ",
        "\u2223": r"\mid ",
        "\u00b0": r"^\circ ",
        "\u2218": r"\circ ",
        "\u211d": r"\mathbb{R}",
        "\u2124": r"\mathbb{Z}",
        "\u2115": r"\mathbb{N}",
        "\u211a": r"\mathbb{Q}",
        "\u2102": r"\mathbb{C}",
        "\u27e8": r"\langle ",
        "\u27e9": r"\rangle ",
        "\u3008": r"\langle ",
        "\u3009": r"\rangle ",
        "\u2220": r"\angle ",
        "\u25b3": r"\triangle ",
        "\u2026": r"\ldots ",
        "\u22ef": r"\ldots ",
        "\u2192": r"\to ",
        "\u3001": ",",
        "\uff5b": r"\{",
        "\uff5d": r"\}",
        "\u3002": ".",
        "\u0394": r"\Delta ",
        "\u03a3": r"\Sigma ",
        "\u03a9": r"\Omega ",
        "\u03a6": r"\Phi ",
        "\u0393": r"\Gamma ",
        "\u0398": r"\Theta ",
        "\u20ac": r"\text{euro}",
        "\u00a3": r"\text{pound}",
        "\u00a2": r"\text{cent}",
    }
)
_VULGAR = re.compile("[\u00bc\u00bd\u00be\u2150-\u215e]")
_FRACTION_SLASH = re.compile(r"(\d+)\u2044(\d+)")
_ROOT_SIGN = re.compile(
    r"([\u221a\u221b])\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[a-zA-Z]|\\pi ))"
)


def _vulgar_fraction(match: re.Match[str]) -> str:
    value = Fraction(unicodedata.numeric(match[0])).limit_denominator(100)
    return rf" \frac{{{value.numerator}}}{{{value.denominator}}}"


def _from_unicode(text: str) -> str:
    text = _RAISED.sub(lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _LOWERED.sub(lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = _VULGAR.sub(_vulgar_fraction, text)
    # Symbols before and after: some are made of others, some would lose their meaning.
    text = text.translate(_SYMBOLS)
    text = unicodedata.normalize("NFKC", text)
    text = _FRACTION_SLASH.sub(r"\\frac{\1}{\2}", text).translate(_SYMBOLS)

    def root(match: re.Match[str]) -> str:
        inside = match[2] or match[3] or match[4] or ""
        return (r"\sqrt" if match[1] == "\u221a" else r"\sqrt[3]") + f"{{{inside}}}"

    return _ROOT_SIGN.sub(root, text)


def _rules(*rules: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


_FUNCTIONS = (
    "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp|gcd|lcm|max|min|det"
)
_TEXT_COMMANDS = r"text(?:bf|it|rm|tt|sf|up|md|sc|normal)|emph|[mh]box"
_BOLD_COMMANDS = (
    r"math(?:bf|it|sf|tt|normal|cal|scr)|bm|boldsymbol|pmb|underline|uline|ensuremath|fbox|boxed"
)

# A backslash that a JSON reader took for an escape.
_ESCAPES = _rules(
    (r"\x0c(?=rac)", r"\\f"),
    (r"\x08(?=inom|egin|ar)", r"\\b"),
    (r"\t(?=ext\{|imes|heta|frac|an[ ({])", r"\\t"),
)
# Applied in this order to every answer.
_RULES = _rules(
    (r",\s?\\!\s*", ","),  # 11,\! 111
    (r"(?<!\\)\\[,;:> ]|~|\\(?:q?quad|enspace|thinspace|space|hfill)(?![a-zA-Z])", " "),
    (r"\\[hv]space\*?\s*\{[^{}]*\}|\\(?:tag|label|phantom|vphantom)\s*\{[^{}]*\}", " "),
    (r"(?<!\\)\\[()\[\]!]|(?<!\\)\$", ""),
    (r"\{,\}", ","),
    (r"\{:\}", ":"),
    (r"(?<=\s)(?<!\\)%\s*[a-zA-Z].*", ""),  # a comment
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
    (r"\\leqslant(?![a-zA-Z])|\\leqq(?![a-zA-Z])|\\le(?![a-zA-Z])|<=|=<", r"\\leq "),
    (r"\\geqslant(?![a-zA-Z])|\\geqq(?![a-zA-Z])|\\ge(?![a-zA-Z])|>=", r"\\geq "),
    (r"\\ne(?![a-zA-Z])|\\not\s*=|(?<=\s)!=", r"\\neq "),
    (r"\\lt(?![a-zA-Z])", "<"),
    (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\(?:lvert|rvert|vert)(?![a-zA-Z])", "|"),
    (r"\\(?:lbrace)(?![a-zA-Z])", r"\\{"),
    (r"\\(?:rbrace)(?![a-zA-Z])", r"\\}"),
    (r"\\(?:varnothing|emptyset|O(?=\s*$))(?![a-zA-Z])", r"\\emptyset "),
    (r"\\(?:backslash|smallsetminus)(?![a-zA-Z])", r"\\setminus "),
    (r"\\(?:lor|vee)(?![a-zA-Z])", r"\\text{ or }"),
    (r"\\(?:land|wedge)(?![a-zA-Z])", r"\\text{ and }"),
    (r"\\(?:doteq|simeq|cong|thickapprox)(?![a-zA-Z])|~=", r"\\approx "),
    (r"\\(?:ldots|dots|cdots|dotsc|dotsb)(?![a-zA-Z])|\.\.\.+", r"\\ldots "),
    (
        r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?",
        "",
    ),
    (
        r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|nonumber|notag|rm|bf|it|sf|tt"
        r"|normalsize|large|Large|huge|small|centering)(?![a-zA-Z])",
        " ",
    ),
    (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
    (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\?circ(?![a-zA-Z])|\\degree(?![a-zA-Z])", r"^\\circ "),
    (r"\^\s*\{\s*\\prime\s*\\prime\s*\}", "''"),
    (r"\^\s*\{\s*\\prime\s*\}|\^\s*\\prime(?![a-zA-Z])", "'"),
    (r"(?<=\d)\.(?=\s*/)", ""),  # 3./2
    (rf"\\operatorname\*?\s*\{{\s*({_FUNCTIONS})\s*\}}", r"\\\1 "),
    (rf"\\(?:{_TEXT_COMMANDS})(?![a-zA-Z])", r"\\text"),
    (r"\\(?:mathrm|operatorname\*?)\s*\{\s*([eidxynPkprs])\s*\}(?=\s*[\^_(])", r"\1"),
    (r"\\(?:mathrm|operatorname\*?)\s*\{\s*([eid])\s*\}", r"\1"),
    (r"\\(?:mathrm|operatorname\*?)(?![a-zA-Z])", r"\\text"),
    (r"\\text\s+\{", r"\\text{"),
    (r"\\text\{[\s.,;:]*\}", " "),
    (r"_\s*\{\s*\\text\{\s*(\w+)\s*\}\s*\}", r"_{\1}"),
    (r"\\imath(?![a-zA-Z])", "i"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"\\frac\s*(\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}"),
    (r"\\frac\s*(\d)\s*(\\pi)(?![a-zA-Z])", r"\\frac{\1}{\2}"),
    (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
    (r"\\sqrt\s+([a-zA-Z])", r"\\sqrt{\1}"),
    (r"\\binom\s*(\d)\s*(\d)", r"\\binom{\1}{\2}"),
)
_BOLD = re.compile(rf"\\(?:{_BOLD_COMMANDS})\s*\{{([^{{}}]*)\}}")
_BOLD_LETTER = re.compile(rf"\\(?:{_BOLD_COMMANDS})\s+([a-zA-Z0-9])(?![a-zA-Z])")
_MARKDOWN = re.compile(r"\s*(\*\*|__|`|\"|'')(.+?)\1\s*", re.DOTALL)
# What people type who do not write TeX.
_PLAIN = _rules(
    (r"\*\*", "^"),
    (r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"(?<![\\a-zA-Z])sqrt\s*(\d+)", r"\\sqrt{\1}"),
    (r"(?<![\\a-zA-Z])sqrt(?=\s*[\[{])", r"\\sqrt"),
    (r"(?<![\\a-zA-Z])frac(?=\s*\{)", r"\\frac"),
    (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
    (r"(?<![\\a-zA-Z])(?:infinity|infty|inf)(?![a-zA-Z])", r"\\infty "),
    (rf"(?<![\\a-zA-Z])({_FUNCTIONS})(?=\s*\(|\s+[\dx\\])", r"\\\1 "),
    (r"\+/?-", r"\\pm "),
    (r"\^\s*\(([^()]*)\)", r"^{\1}"),
    (r"\^\s*(-?\d{2,}|-\d)", r"^{\1}"),
    (r"\\log\s*_\s*(\d)\s*(\d)", r"\\log_{\1} \2"),
    (r"_\s*(\d{2,})", r"_{\1}"),
    (r"\{\s*(\d+|[a-z])\s*\\choose\s*(\d+|[a-z])\s*\}", r"\\binom{\1}{\2}"),
    (r"(?:\{\s*\})?\s*_\s*\{?(\d+)\}?\s*C\s*_\s*\{?(\d+)\}?", r"\\binom{\1}{\2}"),
    (
        r"(?:\{\s*\})?\s*_\s*\{?(\d+)\}?\s*P\s*_\s*\{?(\d+)\}?",
        r"\\frac{\1!}{(\1-\2)!}",
    ),
    (r"(?:\{\s*\})?\s*\^\s*\{?(\d+)\}?\s*C\s*_\s*\{?(\d+)\}?", r"\\binom{\1}{\2}"),
)
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore|the|final|correct|required|answer|result|choice|option|value|is"
    r"|are|equals|approximately|approx|about|roughly|around|exactly)(?![a-zA-Z])[\s,:=.]*)+",
    re.IGNORECASE,
)
_LEADING_TEXT = re.compile(r"\\text\{([^{}]*)\}\s*[:=]?\s*(?=\S)")
_WHOLE_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")


_TRAILING = re.compile(r"(?:(?<!\\)[,;:\s]|(?<![.\\])\.)+$")


def _has_one_group(text: str) -> bool:
    """Whether the brace that opens `text` closes at its end."""
    depth = 0
    for position, letter in enumerate(text):
        if letter in "{}" and (position == 0 or text[position - 1] != "\\"):
            depth += 1 if letter == "{" else -1
            if depth == 0:
                return position == len(text) - 1
    return False


def _without_lead(text: str) -> str:
    """`text` without "The answer is" and the like, if something follows."""
    whole = _WHOLE_TEXT.fullmatch(text)
    if whole is not None and (inner := _without_lead(whole[1].strip())) != whole[1].strip():
        return inner
    leading = _LEADING_TEXT.match(text)
    if leading is not None and _LEAD.fullmatch(leading[1].strip() or "="):
        return text[leading.end() :]
    lead = _LEAD.match(text)
    if lead is not None and text[lead.end() - 1] in " :=" and lead.end() < len(text):
        return text[lead.end() :]
    return text


def _peeled(text: str) -> str:
    """`text` without what encloses or introduces all of it: braces, markdown, "The answer is"."""
    for _ in range(8):
        before = text
        text = _TRAILING.sub("", text.strip())
        if text.endswith("\\"):
            text = text.rstrip("\\").rstrip()
        if text.startswith("{") and _has_one_group(text):
            text = text[1:-1]
        if (marked := _MARKDOWN.fullmatch(text)) is not None:
            text = marked[2]
        text = _without_lead(text)
        if text == before:
            break
    return text


@lru_cache(maxsize=16_384)
def clean(answer: str) -> str:
    r"""The usual spelling of an answer.

    >>> clean(r"**The answer is $\dfrac12$.**"), clean("2\u221a3")
    ('\\frac{1}{2}', '2\\sqrt{3}')
    """
    text = answer if answer.isascii() else _from_unicode(answer)
    for pattern, replacement in _ESCAPES:
        text = pattern.sub(replacement, text)
    if r"\\" in text:
        if r"\\begin" in text:
            text = text.replace(r"\\", "\\")
        elif r"\begin" not in text:
            text = re.sub(r"\\\\(?=[a-zA-Z{}%$])", lambda _: "\\", text)
    # Most answers are a bare number.
    if not text.strip().isalnum():
        text = _peeled(text)
        for pattern, replacement in _RULES:
            text = pattern.sub(replacement, text)
        for _ in range(4):
            text, changes = _BOLD.subn(r"{\1}", text)
            if not changes:
                break
        text = _BOLD_LETTER.sub(r"\1", text)
        text = re.sub(r"(?<![a-zA-Z0-9}\]_^])\{([a-zA-Z0-9]|-?\d+)\}(?!\{)", r"\1", text)
        for pattern, replacement in _PLAIN:
            text = pattern.sub(replacement, text)
        text = re.sub(r"\s+", " ", text)
    return _peeled(text).strip()


# --- keys and words ------------------------------------------------------------------------------

_WORDS = re.compile(r"[a-zA-Z][a-zA-Z '-]*[a-zA-Z]")
_DIFFERENCE = re.compile(r"(?<![a-zA-Z])[a-zA-Z]{1,2} ?- ?[a-zA-Z]{1,2}(?![a-zA-Z])")
_LETTERS = re.compile(r"[a-z](?: [a-z])+")
# Short words whose capital letters say nothing; "AB" and "ab" are different names.
_COMMON = "yes no odd even all one two six ten not any none never true false an the it is of"
_SHORT_WORDS = frozenset(_COMMON.split())


def unwrapped(text: str) -> str:
    r"""Contents of a ``\text{}`` that encloses all of `text`, else `text`."""
    whole = _WHOLE_TEXT.fullmatch(text)
    return whole[1].strip().rstrip(".,;:").strip() if whole else text


def words(text: str) -> tuple[str, ...] | None:
    """The words of a cleaned answer that is nothing else, None for any other.

    Capital letters count in names of up to three letters only.
    """
    text = unwrapped(text)
    if _WORDS.fullmatch(text) is None or _DIFFERENCE.search(text) is not None:
        return None
    if _LETTERS.fullmatch(text) is not None:  # "p q s" is a product: the order is free
        return None
    return tuple(
        token.casefold() if len(token) > 3 or token.casefold() in _SHORT_WORDS else token
        for token in re.split("[ -]+", text)
        if token
    )


def key(cleaned: str) -> str | tuple[str, ...]:
    """Two cleaned answers with the same key are the same answer."""
    text = unwrapped(cleaned)
    as_words = words(text)
    if as_words is not None and (len(as_words) != 1 or len(text) > 3):
        return as_words
    if text.casefold() in _SHORT_WORDS:
        return text.casefold()
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    return re.sub(r"(?<![a-zA-Z0-9]) | (?![a-zA-Z0-9])", "", text)


# --- numbers -------------------------------------------------------------------------------------

_LONGEST_NUMBER = 200  # characters; beyond, integers become slow
_DIGITS = r"\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+"
_NUMBER = re.compile(
    rf"([+-]?)\s?(?:({_DIGITS})(\.\d*)?|(\.\d+))"
    r"(?:(?:[eE]|\s?(?:\\times|\\cdot|\*)\s?10\s?\^)\s?([+-]?\d{1,3}|\{\s?[+-]?\d{1,3}\s?\}))?"
)
_FRACTION = re.compile(
    r"([+-]?)\s?(?:(\d+)\s?(?=\\frac)|(\d+)\s(?=\d+\s?/))?"
    r"(?:\\frac\s?\{\s?([+-]?\d+)\s?\}\s?\{\s?([+-]?\d+)\s?\}|(\d+)\s?/\s?(\d+))"
)
_REPEATING = re.compile(
    r"([+-]?)\s?(\d*)\.(\d*)\s?(?:\\(?:overline|bar|dot|overset\{\\frown\})\s?\{?(\d+)\}?|\((\d+)\))"
)
_EUROPEAN = re.compile(r"([+-]?)\s?(\d{1,3}(?:\.\d{3}){2,})(?:,(\d+))?")


@lru_cache(maxsize=16_384)
def number(text: str) -> Fraction | None:
    r"""Value of a cleaned answer that is a plain number, None for any other.

    Plain are decimals with thousands separators or an exponent, fractions, mixed numbers and
    decimals that repeat (``0.1\overline{6}``). "1 2" is no number, "1 1/2" is one and a half.
    """
    if len(text) > _LONGEST_NUMBER or not any(letter.isdigit() for letter in text[:12]):
        return None
    for read in (_decimal, _fraction, _repeating, _grouped_by_dots):
        value = read(text)
        if value is not None:
            return value
    return None


def _decimal(text: str) -> Fraction | None:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, whole, part, bare_part, exponent = match.groups()
    if whole is None:
        whole, part = "0", bare_part
    if whole.startswith("0") and "," in whole:  # 0,111 is a decimal
        return None
    digits = re.sub("[, ]", "", whole) + (part if part and part != "." else "")
    return Fraction(f"{sign}{digits}e{(exponent or '0').strip('{} ')}")


def _fraction(text: str) -> Fraction | None:
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    sign, before_frac, before_slash, top, bottom, plain_top, plain_bottom = match.groups()
    whole = before_frac or before_slash
    numerator, denominator = int(top or plain_top), int(bottom or plain_bottom)
    if denominator == 0:
        return None
    value = Fraction(numerator, denominator)
    if whole is not None:
        if not 0 <= value < 1:  # 2\frac{5}{3}: a product
            return None
        value += int(whole)
    return -value if sign == "-" else value


def _repeating(text: str) -> Fraction | None:
    match = _REPEATING.fullmatch(text)
    if match is None:
        return None
    sign, whole, part, period = match[1], match[2], match[3], match[4] or match[5]
    if match[5] and whole not in ("", "0"):  # 2.5(3) may be a product
        return None
    if r"\dot" in text and len(period) > 1:
        return None
    value = Fraction(f"{whole or '0'}.{part or '0'}")
    value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(part))
    return -value if sign == "-" else value


def _grouped_by_dots(text: str) -> Fraction | None:
    """1.234.567,89"""
    match = _EUROPEAN.fullmatch(text)
    return match and Fraction(f"{match[1]}{match[2].replace('.', '')}.{match[3] or '0'}")


_DECIMAL_COMMA = re.compile(r"[+-]?\s?(\d+),(\d+)")


def decimal_comma(text: str) -> Fraction | None:
    """Value of "3,5" read as a decimal; None where the comma can separate thousands."""
    match = _DECIMAL_COMMA.fullmatch(text) if len(text) <= _LONGEST_NUMBER else None
    if match is None or (len(match[2]) == 3 and len(match[1]) <= 3 and match[1][0] != "0"):
        return None
    return Fraction(text.replace(",", ".").replace(" ", ""))
