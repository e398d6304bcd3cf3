# SPDX-License-Identifier: Apache-2.0
r"""Units, scale words, percent signs and money around a number: splitting them off and comparing.

A unit may be missing or extra, but two units must agree: "5 km" is 5 and 5000 m, not 5 m. A letter
that stands bare beside a number is a variable in a gold answer (``3m``); only where the gold answer
is a plain number may an answer's letter be a unit ("12m" for 12).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value and what stands around it.

    value:   the text of the number or expression, without unit.
    scale:   of scale words and units: 1000 for "thousand" and for kilometres.
    unit:    base units and their powers, {} for none; words that no table knows are units as well.
    words:   scale of the scale words alone.
    percent: has the value a percent sign?
    binding: the unit must not be missing on the other side: "3:45 PM" is not "3:45".
    """

    value: str
    scale: Fraction = Fraction(1)
    unit: tuple[tuple[str, int], ...] = ()
    words: Fraction = Fraction(1)
    percent: bool = False
    binding: bool = False


def _table() -> dict[str, tuple[str, Fraction]]:
    """Name of a unit to (base unit, how many of them). Names in lower case, singular."""
    rows = {
        "m": "m meter metre:1 km kilometer kilometre:1000 cm centimeter centimetre:1/100 "
        "mm millimeter millimetre:1/1000 nm nanometer:1/1000000000 dm decimeter:1/10 "
        "inch in inche:127/5000 foot ft feet:381/1250 yard yd:1143/1250 mile mi:201168/125",
        "g": "g gram gramme gm:1 kg kilogram kilo:1000 mg milligram:1/1000",
        "lb": "lb lbs pound:1 oz ounce:1/16",
        "s": "s sec second:1 ms millisecond:1/1000 min minute:60 h hr hour:3600 day:86400 "
        "week:604800 minutes:60",
        "year": "year yr:1 month:1/12 decade:10 century:100 centurie:100",
        "dollar": "dollar usd buck $:1 cent:1/100",
        "euro": "euro eur:1",
        "degree": "degree deg:1",
        "radian": "radian rad:1",
        "liter": "liter litre l:1 ml milliliter millilitre:1/1000",
        "volt": "v volt:1",
        "joule": "j joule:1 kj kilojoule:1000",
        "newton": "n newton:1",
        "watt": "w watt:1 kw kilowatt:1000",
        "hz": "hz hertz:1",
        "ohm": "ohm:1",
        "kelvin": "kelvin:1",
        "pascal": "pa pascal:1",
        "mole": "mol mole:1",
    }
    table: dict[str, tuple[str, Fraction]] = {}
    for base, row in rows.items():
        names: list[str] = []
        for token in row.split():
            name, _, factor = token.partition(":")
            names.append(name)
            if factor:
                table |= {known: (base, Fraction(factor)) for known in names}
                names = []
    return table


_UNITS = _table()
_RATES = {"mph": "mile/hour", "kmh": "km/hour", "kph": "km/hour", "fps": "ft/s", "mps": "m/s"}
_SCALES = {
    "dozen": Fraction(12),
    "hundred": Fraction(100),
    "thousand": Fraction(1000),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
    "lakh": Fraction(10**5),
    "crore": Fraction(10**7),
    "half": Fraction(1, 2),
    "halve": Fraction(1, 2),
    "third": Fraction(1, 3),
    "fourth": Fraction(1, 4),
    "quarter": Fraction(1, 4),
    "fifth": Fraction(1, 5),
    "sixth": Fraction(1, 6),
    "seventh": Fraction(1, 7),
    "eighth": Fraction(1, 8),
    "ninth": Fraction(1, 9),
    "tenth": Fraction(1, 10),
    "hundredth": Fraction(1, 100),
    "thousandth": Fraction(1, 1000),
    "millionth": Fraction(1, 10**6),
}
# Words that say more than a unit does: what they follow is not the answer.
_MEANINGFUL_WORDS = """
not or and than less more least most greater larger smaller bigger higher lower fewer plus minus
times over factorial mod modulo base root if when where for except up down below above under
negative positive between through to by into divided multiplied other further else also then but
without nor either both remainder odd even prime percent ago before after false wrong incorrect
north south east west left right squared cubed double triple twice equals equal is are was be no
only maybe perhaps possibly probably infinity pi sqrt sin cos tan log ln exp cot sec csc arcsin
arccos arctan lim gcd lcm det
"""
_NOT_UNITS = frozenset(_MEANINGFUL_WORDS.split())
_BINDING = frozenset(("am", "pm", "bc", "ad", "bce", "ce"))
_FILLERS = frozenset(("unit", "the", "a", "an", "of", "total", "each", "about", "approx"))

_MOST_WORDS = 6  # of a unit

_TEXT = r"\\text\{[^{}]*\}"
_POWER = r"(?:\s*\^\s*\{?-?\d\}?)?"
_TEXT_UNIT = re.compile(
    rf"(?P<value>.*?[^\s])\s*(?P<unit>\\frac\{{{_TEXT}{_POWER}\}}\{{{_TEXT}{_POWER}\}}"
    rf"|{_TEXT}{_POWER}(?:\s*(?:/|-|\\cdot|\\times)?\s*{_TEXT}{_POWER}){{0,5}})",
    re.DOTALL,
)
_PLAIN_VALUE = (
    r"[+-]?\s?(?:\d+:\d\d|\d(?:[\d,. ]*\d)?|\\frac\{\d+\}\{\d+\}|\d+\s?/\s?\d+"
    r"|\d*\\sqrt\{\d+\}|\d*\s?\\pi)"
)
_BARE_UNIT = re.compile(
    rf"(?P<value>{_PLAIN_VALUE}(?:\^\\circ)?)(?P<gap>\s*)"
    rf"(?P<unit>[a-zA-Z][a-zA-Z .'-]*{_POWER}(?:\s*/\s*[a-zA-Z]+{_POWER})?)"
)
_DEGREES = re.compile(r"(?P<value>.+?)\s*\^\\circ\s*(?:\\text\{\s*)?(?P<letter>[CFK]?)\s*\}?")
_ANGLE_INSIDE = re.compile(r"\^\\circ|\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_MONEY = re.compile(
    r"(?P<sign>[+-]?)\s?(?:\\\$|\\text\{\s*(?P<name>[a-z$]+)\s*\})\s?(?P<value>[\d.].*)"
)
_PERCENT = re.compile(
    r"(?P<value>.*?[^\s\\])\s*(?:\\?%|\\text\{\s*(?:percent|per cent|\\?%)\s*\}"
    r"|(?<=[\d\s])(?:percent|per cent))"
    r"(?:\\text\{[^{}\d]*\})?"
)
_MINUTES = re.compile(
    r"(-?)\s*(\d{1,6})\s*\^\\circ\s*(\d\d?)\s*'(?:\s*(\d\d?(?:\.\d{1,9})?)\s*(?:''|\"))?"
)
_ORDINAL = re.compile(r"(?P<value>\d+)(?:\^?\s?\{?(?:\\text\{\s*)?(?:st|nd|rd|th)\s*\}*)")
# Single letters that may be a unit of an answer to a gold answer that is a plain number.
LETTER_UNITS = frozenset("msghLlJNVW")


def _singular(word: str) -> str:
    word = word.strip(".'").casefold()
    if word in _UNITS or word in _SCALES or len(word) <= 3 or not word.endswith("s"):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y" if word[:-1] not in _UNITS else word[:-1]
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word if word.endswith("ss") else word[:-1]


@dataclass
class _Reading:
    """Sum of the words of a unit, as far as they are read."""

    unit: dict[str, int] = field(default_factory=dict)
    scale: Fraction = Fraction(1)
    words: Fraction = Fraction(1)
    binding: bool = False

    def add(self, word: str, power: int) -> None:
        if word in _SCALES:
            self.words *= _SCALES[word]
            self.scale *= _SCALES[word]
        elif word in _BINDING:
            self.binding = True
            self.unit[word] = 1
        elif word not in _FILLERS and not (word == "in" and self.unit):
            base, factor = _UNITS.get(word, (word, Fraction(1)))
            self.unit[base] = self.unit.get(base, 0) + power
            self.scale *= factor**power


@lru_cache(maxsize=4096)
def _unit(text: str) -> _Reading | None:
    """Unit that the words say; None where they are no unit."""
    text = (
        re.sub(r"\\text\{\s*\(?([^{}()]*)\)?\s*\}", r" \1 ", text)
        .replace(r"\cdot", " ")
        .replace(r"\times", " ")
    )
    text = re.sub(r"\s-\s|(?<=[A-Z])-(?=[a-z])", " ", text)
    text = re.sub(r"\\frac\{(.*)\}\{(.*)\}", r"\1/\2", text)
    text = re.sub(r"\b([ap])\s?\.\s?m\b\.?", r"\1m", text, flags=re.IGNORECASE)
    text = re.sub(r"\s*\^\s*\{?(-?\d)\}?", r"^\1", text).replace("degrees ", "degrees")
    for name, rate in _RATES.items():
        text = re.sub(rf"\b{name}\b", rate, text, flags=re.IGNORECASE)
    reading = _Reading()
    sign, power = 1, 1
    tokens = re.findall(r"[a-zA-Z$.'-]+(?:\^-?\d)?|/|\S", text)
    if len(tokens) > _MOST_WORDS:
        return None
    for token in tokens:
        if token == "/" or token.casefold() == "per":
            sign = -1
            continue
        name, _, exponent = token.partition("^")
        word = _singular(name)
        if not re.fullmatch(r"[a-z$][a-z.'$-]*", word) or word in _NOT_UNITS:
            if word not in ("squared", "cubed") or not reading.unit:
                return None
            base = list(reading.unit)[-1]
            extra = 2 if word == "squared" else 3
            reading.unit[base] *= extra
            reading.scale *= reading.scale ** (extra - 1) if len(reading.unit) == 1 else 1
            continue
        if word in ("square", "sq", "cubic", "cu"):
            power = 2 if word.startswith("s") else 3
            continue
        reading.add(word, sign * power * int(exponent or "1"))
        power = 1
    return reading


def _with_unit(value: str, text: str) -> Quantity | None:
    reading = _unit(text)
    if reading is None:
        return None
    unit = tuple(sorted((name, power) for name, power in reading.unit.items() if power))
    return Quantity(value, reading.scale, unit, reading.words, False, reading.binding)


@lru_cache(maxsize=16_384)
def quantity(text: str, *, letters: bool = False) -> Quantity:
    r"""Split a cleaned answer into value and unit; a text without unit is its own value.

    letters: may a bare letter after a plain number be its unit?

    >>> quantity(r"5\text{ cm}").value, quantity("3 thousand").scale, quantity("3m").value
    ('5', Fraction(1000, 1), '3m')
    """
    if (money := _MONEY.fullmatch(text)) is not None:
        name = money["name"] or "dollar"
        inner = quantity(money["sign"] + money["value"])
        if name in ("euro", "pound", "cent", "dollar", "usd", "$") and inner.unit in (
            (),
            (("dollar", 1),),
        ):
            unit = "sterling" if name == "pound" else "euro" if name == "euro" else "dollar"
            return Quantity(inner.value, inner.words, ((unit, 1),), inner.words)
    if (percent := _PERCENT.fullmatch(text)) is not None:
        return Quantity(percent["value"], percent=True)
    if (angle := _MINUTES.fullmatch(text)) is not None:  # 63^\circ 45'
        sign, whole, minutes, seconds = angle.groups()
        value = int(whole) + Fraction(minutes) / 60 + Fraction(seconds or 0) / 3600
        fraction = rf"{sign}\frac{{{value.numerator}}}{{{value.denominator}}}"
        return Quantity(fraction, unit=(("degree", 1),))
    degrees = _DEGREES.fullmatch(text)
    if degrees is not None and _ANGLE_INSIDE.search(degrees["value"]) is None:
        name = degrees["letter"] and f"degree {degrees['letter']}"
        return Quantity(degrees["value"], unit=((name or "degree", 1),))
    if (ordinal := _ORDINAL.fullmatch(text)) is not None:
        return Quantity(ordinal["value"])
    written = _TEXT_UNIT.fullmatch(text) if r"\text{" in text else None
    if written is not None and r"\text{" not in written["value"]:
        found = _with_unit(written["value"], written["unit"])
        if found is not None:
            return found
    if (bare := _BARE_UNIT.fullmatch(text)) is not None and _is_bare_unit(bare, letters=letters):
        found = _with_unit(bare["value"].strip(), bare["unit"])
        if found is not None:
            return found
    return Quantity(text)


def _is_bare_unit(match: re.Match[str], *, letters: bool) -> bool:
    """Whether the letters after a number are a unit, not a product of variables."""
    first = re.split(r"[ .^/]", match["unit"], maxsplit=1)[0]
    if len(first) == 1:
        return letters and match["unit"] in LETTER_UNITS
    known = _singular(first) in _UNITS or first.casefold() in _RATES or first.casefold() in _BINDING
    is_scale = _singular(first) in _SCALES
    spaced = bool(match["gap"])
    plain = len(first) > 3 or first.casefold() in ("sq", "cu", "men", "per")
    return known or (spaced and (plain or is_scale))


def same_unit(a: Quantity, b: Quantity) -> bool:
    """Whether two units name the same thing, apart from scale. Both must be there."""
    if a.unit == b.unit:
        return True
    # "18 small bottles" and "18 bottles"; known units must all agree.
    known = {base for base, _ in _UNITS.values()}
    names_a, names_b = {name for name, _ in a.unit}, {name for name, _ in b.unit}
    if (names_a | names_b) & (known | _BINDING):
        return False
    return names_a <= names_b or names_b <= names_a
