# SPDX-License-Identifier: Apache-2.0
"""Stories in plain English about one quantity, and reading them back.

    Leo is 12 years old. Mia keeps 14 shells in a box. She finds 10 more in the attic. Later, Mia
    gives half of them to Leo. How many shells does she have in the end?

A story begins with a number, goes on with events that change it, and asks for what is there in the
end. It may mention a number that has nothing to do with it (an aside), at one of its ends, where no
"them" or "it" is taken for what the aside is about. Its sentences are composed
from `stories.toml`: a theme, a person, a thing, one wording of several for each sentence. Every
number in a story is at least 2, so that plurals are right, and so is the quantity at any time.

What is calculated from a story, and which stories are drawn, is `word_problems`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from satori_fast.data.drawn_problems import is_held_out

Kind = Literal["add", "subtract", "multiply", "divide"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SIGNS: Mapping[Kind, str] = MappingProxyType(
    {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
)
# The smallest number that a story has, or that its quantity becomes: "1 apples" is no English.
SMALLEST = 2
OPENERS = ("", "Then ", "Later, ", "After that, ", "Next, ")
_SHE = {"she": "she", "her": "her", "him": "her", "herself": "herself"}
_HE = {"she": "he", "her": "his", "him": "him", "herself": "himself"}
_WOMEN = "Mia Emma Nora Lucy Anna Zoe Maya Ruth Clara Ella Ivy Sara Leah Nina Rosa Amy"
_MEN = "Leo Ben Tom Sam Max Noah Omar Paul Eric Finn Hugo Ian Jack Luke Adam Theo"
_PRONOUNS = {**dict.fromkeys(_WOMEN.split(), _SHE), **dict.fromkeys(_MEN.split(), _HE)}
NAMES = tuple(_PRONOUNS)
_SLOT = re.compile(r"\{(\w+)\}")
_TAIL = re.compile(r"\[([^\]]*)\]")
_FIXED = re.compile(r"=([0-9]+) ")


@dataclass(frozen=True, slots=True)
class Theme:
    """Wordings of the stories of a kind; see the head of `stories.toml`.

    first: the kind that the first event must have, where the beginning asks for one.
    places: what {place} may be; empty where no wording has it.
    """

    things: tuple[str, ...]
    begin: tuple[str, ...]
    add: tuple[str, ...]
    subtract: tuple[str, ...]
    multiply: tuple[str, ...]
    divide: tuple[str, ...]
    state: str
    ask: tuple[str, ...]
    places: tuple[str, ...] = ()
    first: Kind | None = None

    def wordings(self, kind: Kind) -> tuple[str, ...]:
        """The wordings of an event of a kind."""
        return {
            "add": self.add,
            "subtract": self.subtract,
            "multiply": self.multiply,
            "divide": self.divide,
        }[kind]

    def fixed_number(self, kind: Kind, wording: int) -> int | None:
        """The number that a wording says in words, as "half" does; None where it is any."""
        found = _FIXED.match(self.wordings(kind)[wording])
        return int(found[1]) if found else None


def _read_themes() -> tuple[Mapping[str, Theme], tuple[str, ...]]:
    file = resources.files("satori_fast.data") / "stories.toml"
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    themes: dict[str, dict[str, Any]] = table["themes"]
    made = {
        name: Theme(**{key: _frozen(value) for key, value in theme.items()})
        for name, theme in themes.items()
    }
    return MappingProxyType(made), _frozen(table["asides"])


def _frozen(value: Any) -> Any:
    return tuple(cast("list[str]", value)) if isinstance(value, list) else value


THEMES, ASIDES = _read_themes()


@dataclass(frozen=True, slots=True)
class Event:
    """A change of the quantity, and how it is told.

    wording: place among the theme's for this kind. opener: place in `OPENERS`. named: it says the
    person's name where it could say the pronoun.
    """

    kind: Kind
    number: int
    wording: int = 0
    opener: int = 0
    named: bool = False

    def apply(self, value: int) -> int | None:
        """The quantity after the event; None where a story cannot go on: below `SMALLEST`, or no
        whole number."""
        result = calculate(value, self.kind, self.number)
        return result if result is not None and result >= SMALLEST else None


def calculate(value: int, kind: Kind, number: int) -> int | None:
    """Result of one operation; None where it is no whole number, or below 0.

    >>> calculate(14, "add", 9), calculate(14, "divide", 4), calculate(4, "subtract", 9)
    (23, None, None)
    """
    if kind == "divide":
        return None if value % number else value // number
    result = value + number if kind == "add" else value - number
    if kind == "multiply":
        result = value * number
    return result if result >= 0 else None


@dataclass(frozen=True, slots=True)
class Aside:
    """A number that nothing follows from. is_last: it is said before the question, and not before
    everything else."""

    wording: int
    number: int
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class Story:
    """The content of a problem. name, other, thing, place: "" where no sentence says it.

    begin, ask: places among the theme's wordings.
    """

    theme: str
    start: int
    events: tuple[Event, ...]
    thing: str
    name: str = ""
    other: str = ""
    place: str = ""
    begin: int = 0
    ask: int = 0
    aside: Aside | None = None

    @property
    def question(self) -> str:
        return " ".join(self._sentences())

    @property
    def values(self) -> tuple[int, ...]:
        """The quantity at the beginning and after each event."""
        values = [self.start]
        for event in self.events:
            after = event.apply(values[-1])
            assert after is not None, self
            values.append(after)
        return tuple(values)

    @property
    def answer(self) -> str:
        return str(self.values[-1])

    @property
    def heldout(self) -> bool:
        """Whether a story is held out: by its calculation, so that no wording of it is trained."""
        steps = " ".join(f"{SIGNS[event.kind]} {event.number}" for event in self.events)
        return is_held_out(f"{self.start} {steps}")

    @property
    def numbers(self) -> tuple[int, ...]:
        """Every number of the story but the answer: the start, those of events, the aside's."""
        aside = [] if self.aside is None else [self.aside.number]
        return (self.start, *(event.number for event in self.events), *aside)

    def clause(self, place: int) -> str:
        """An event as a solution repeats it: the person by pronoun, nothing that is beside the
        point.

        >>> parse_story("Mia has 5 shells. She finds 9 more in the attic. How many shells does Mia "
        ...             "have now?").clause(0)
        'she finds 9 more'
        """
        event = self.events[place]
        return self.fill(_TAIL.sub("", self._wording(event)), n=event.number)

    def state(self, value: str) -> str:
        """Statement of the quantity, as a solution has it. value: a number, or an equation."""
        return self.fill(THEMES[self.theme].state, value=value)

    def _sentences(self) -> list[str]:
        theme = THEMES[self.theme]
        told = [_sentence(self.fill(theme.begin[self.begin], n=self.start))]
        told += [self.told(event) for event in self.events]
        if self.aside is not None:
            aside = _sentence(self.fill(ASIDES[self.aside.wording], n=self.aside.number))
            told.insert(len(told) if self.aside.is_last else 0, aside)
        return [*told, _sentence(self.fill(theme.ask[self.ask]), end="?")]

    def told(self, event: Event) -> str:
        """An event as the story tells it: a sentence."""
        wording = _TAIL.sub(r"\1", self._wording(event))
        if event.named:
            wording = wording.replace("{she}", "{name}", 1)
        told = self.fill(wording, n=event.number)
        opener = OPENERS[event.opener]
        return f"{opener}{told}." if opener else _sentence(told)

    def _wording(self, event: Event) -> str:
        return _FIXED.sub("", THEMES[self.theme].wordings(event.kind)[event.wording])

    def fill(self, wording: str, **numbers: int | str) -> str:
        """A wording of the theme with what this story puts into its slots."""
        pronouns = _PRONOUNS.get(self.name, _SHE)
        return wording.format(
            name=self.name,
            other=self.other,
            thing=self.thing,
            place=self.place,
            **pronouns,
            **numbers,
        )


def parse_story(question: str) -> Story:
    """The story of a question text. Raises ValueError for a text that is none."""
    try:
        story = _read(re.split(r"(?<=[.?]) ", question))
    except ValueError:
        story = None
    # Told again it is the same text: nothing was overlooked.
    if story is None or story.question != question:
        raise ValueError(f"not a story of the built-in domain: {question!r}")
    return story


def said(story: Story) -> Story:
    """The story without what no sentence of it says: that is what can be read back."""
    text = story.question
    kept = {"name": story.name, "other": story.other, "place": story.place}
    unsaid = {field: "" for field, word in kept.items() if word and not _says(text, word)}
    return replace(story, **unsaid)


def _says(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}s?\b", text) is not None


# --- reading -------------------------------------------------------------------------------------


def _read(sentences: list[str]) -> Story:
    """Raises ValueError where a sentence is none of the wordings."""
    *told, last = sentences
    aside, other = None, ""
    for place in (0, -1):
        found = _read_aside(told[place], is_last=place == -1) if told else None
        if found is not None and aside is None:
            aside, other = found
            del told[place]
    story = _read_beginning(told.pop(0) if told else "")
    story = replace(story, aside=aside, other=story.other or other)
    for sentence in told:
        story = _read_event(story, sentence)
    for ask, wording in enumerate(THEMES[story.theme].ask):
        if _sentence(story.fill(wording), end="?") == last:
            return replace(story, ask=ask)
    raise ValueError(last)


def _read_beginning(sentence: str) -> Story:
    for name, theme in THEMES.items():
        for begin, wording in enumerate(theme.begin):
            if found := _match(name, wording, sentence):
                heard = {"thing": theme.things[0], "name": "", "other": "", "place": ""}
                heard |= found.groupdict()
                return Story(
                    name,
                    int(heard["n"]),
                    (),
                    heard["thing"],
                    heard["name"],
                    heard["other"],
                    heard["place"],
                    begin=begin,
                )
    raise ValueError(sentence)


def _read_event(story: Story, sentence: str) -> Story:
    """The story with one more event. ValueError where the sentence tells none of its theme."""
    theme = THEMES[story.theme]
    openers = [o for o, opener in enumerate(OPENERS) if opener and sentence.startswith(opener)]
    opener = openers[0] if openers else 0
    told = sentence.removeprefix(OPENERS[opener])
    for kind in KINDS:
        for wording, text in enumerate(theme.wordings(kind)):
            found = _match(story.theme, _FIXED.sub("", _TAIL.sub(r"\1", text)), told)
            if found is None:
                continue
            number = theme.fixed_number(kind, wording) or int(found["n"])
            heard = replace(story, other=found.groupdict().get("other", story.other))
            for named in (False, True):
                event = Event(kind, number, wording, opener, named)
                if heard.told(event) == sentence:
                    return replace(heard, events=(*story.events, event))
    raise ValueError(sentence)


def _read_aside(sentence: str, *, is_last: bool) -> tuple[Aside, str] | None:
    """The aside of a sentence, and who it is about; None for another sentence."""
    theme = next(iter(THEMES))  # asides are the same in all
    for wording, text in enumerate(ASIDES):
        if found := _match(theme, text, sentence):
            aside = Aside(wording, int(found["n"]), is_last=is_last)
            return aside, found.groupdict().get("other", "")
    return None


def _match(theme: str, wording: str, sentence: str) -> re.Match[str] | None:
    """Match a sentence with a wording, which begins small where the sentence begins large."""
    pattern = _pattern(theme, wording)
    small = sentence[:1].lower() + sentence[1:]
    return pattern.fullmatch(sentence) or pattern.fullmatch(small)


@cache
def _pattern(theme: str, wording: str) -> re.Pattern[str]:
    """A pattern of the sentences that a wording can become, with a group for each slot."""
    name = "[A-Z][a-z]+"
    slots = {
        **dict.fromkeys(("she", "her", "him", "herself"), r"\w+"),
        **dict.fromkeys(("name", "other"), name),
        "n": "[0-9]+",
        "thing": "|".join(THEMES[theme].things),
        "place": "|".join(THEMES[theme].places),
    }
    pattern, seen = "", set[str]()
    for place, part in enumerate(_SLOT.split(wording)):
        if place % 2 == 0:
            pattern += re.escape(part)
        elif part in seen or part.startswith(("she", "he", "hi")):
            pattern += rf"(?:{slots[part]})"
        else:
            pattern += rf"(?P<{part}>{slots[part]})"
            seen.add(part)
    return re.compile(rf"{pattern}\.")


def _sentence(text: str, *, end: str = ".") -> str:
    return f"{text[0].upper()}{text[1:]}{end}"
