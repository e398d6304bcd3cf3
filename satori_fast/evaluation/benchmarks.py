# SPDX-License-Identifier: Apache-2.0
"""The table of benchmarks: where each is found, which fields it has, how its answers are judged.

One row adds a benchmark. Reading one is `benchmark_sets`, how it is asked `protocols`, what counts
as right `judging`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from satori_fast.data.field_mappings import FIELD_MAPPINGS, FieldMapping

AnswerKind = Literal["math", "choice", "label", "cells", "output", "input"]
"""What an answer is: "math", a value or an expression; "choice", a letter; "label", one of a few
words; "cells", contents of a table, by commas; "output" and "input" of a Python function."""

Labels = tuple[tuple[str, ...], ...]

_YES_NO: Labels = (("Yes", "true"), ("No", "false"))
_THREE: Labels = (("True", "yes"), ("False", "no"), ("Uncertain", "unknown"))
_PROOFS: Labels = (("proved", "yes"), ("disproved", "no"), ("unknown", "uncertain"))
_LETTER = "{question}\n\nAnswer with the letter of the right choice."
_STEM = ("biology", "chemistry", "computer science", "engineering", "math", "physics")
_NOT_PUBLISHED_BY = "the paper does not say which part of it was asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A row of the table.

    title:     its name in papers. fields: of a row of its file.
    file:      name of its data file, without ending; also of a data set of the hub where `fields`
               has a hub_id: split and revision are what is read there.
    size:      questions as published; None where no size is.
    questions: SHA-256 of the questions (`benchmark_sets.questions_digest`); None: not known.
    asks:      the question as it is asked: {question}, with the choices below it, or {a field}.
               What a row lacks leaves no blank line.
    labels:    words that an answer may be, each followed by those that mean the same.
    only:      rows that belong to it, by field: one of these values.
    unit, error: fields with the unit of the answer, and with how far off it may be.
    note:      in which way the published set differs, in one line.
    """

    name: str
    title: str
    kind: AnswerKind
    fields: FieldMapping
    file: str
    size: int | None
    questions: str | None = None
    split: str = "test"
    revision: str | None = None
    asks: str = "{question}"
    labels: Labels = ()
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    unit: str | None = None
    error: str | None = None
    note: str = ""


def _cruxeval(kind: AnswerKind, *, asks: str, questions: str) -> Benchmark:
    return Benchmark(
        name=f"cruxeval_{kind}",
        title=f"CRUXEval-{kind[0].upper()}",
        kind=kind,
        fields=FieldMapping("code", "output", problem_id="id", hub_id="cruxeval-org/cruxeval"),
        file="cruxeval",
        size=800,
        questions=questions,
        asks=asks,
    )


_ROWS = (
    Benchmark(
        name="gsm8k",
        title="GSM8K",
        kind="math",
        fields=FIELD_MAPPINGS["gsm8k"],
        file="gsm8k",
        size=1319,
        questions="639c8eeb8e0f16379a702ba0ad2da92502494fb74f3a7b7e1c1415fd77f6d632",
    ),
    Benchmark(
        name="math500",
        title="MATH500",
        kind="math",
        fields=FIELD_MAPPINGS["math500"],
        file="math500",
        size=500,
        questions="7668ca58ad9a81462b24041aaed6de2bd6b6d7ec20e79ab653d80217f2a69f19",
    ),
    Benchmark(
        name="amc23",
        title="AMC 2023",
        kind="math",
        fields=FIELD_MAPPINGS["amc23"],
        file="amc23",
        size=40,
        questions="76caa332bbd7a8af4e3283411dee84bd2d19824ec1e9fe665ec52a1f536dd9b5",
    ),
    Benchmark(
        name="aime24",
        title="AIME 2024",
        kind="math",
        fields=FIELD_MAPPINGS["aime24"],
        file="aime24",
        size=30,
        questions="76efb5ef26d5bf2030b2fefad5a1130c541dca36dcacee21843843915f2a945e",
    ),
    Benchmark(
        name="aime25",
        title="AIME 2025",
        kind="math",
        fields=FIELD_MAPPINGS["aime25"],
        file="aime25",
        size=30,
        questions="3d0157990a94b519d81379db1390cd6543fde2bf02b84341b6a2a53ac15797f9",
    ),
    Benchmark(
        name="olympiadbench",
        title="OlympiadBench",
        kind="math",
        fields=FIELD_MAPPINGS["olympiadbench"],
        file="olympiadbench",
        size=675,
        questions="00ad88803b5c6ae96d84d396c99c1212193b2c4086c79bcdf19a55706448bc79",
        asks="{context}\n\n{question}",
        unit="unit",
        error="error",
        note="its paper counts 674 open-ended English questions of mathematics without images, "
        "the evaluation package that the three papers use has 675",
    ),
    Benchmark(
        name="minerva_math",
        title="Minerva",
        kind="math",
        fields=FIELD_MAPPINGS["minerva_math"],
        file="minerva_math",
        size=272,
        questions="68cee7f7b617967b5e0c3fa74ce23d9ed750b475ae5ea9a520235b34f53fd623",
    ),
    Benchmark(
        name="college_math",
        title="College Math",
        kind="math",
        fields=FIELD_MAPPINGS["college_math"],
        file="college_math",
        size=2818,
        questions="81ec6e892d86524c3d1c151b67fd56038e1315a16595ba2b9b42c2bc104045fe",
    ),
    Benchmark(
        name="gaokao2023en",
        title="Gaokao 2023 En",
        kind="math",
        fields=FIELD_MAPPINGS["gaokao2023en"],
        file="gaokao2023en",
        size=385,
        questions="62d0f3f467c630dc0e3f7bad9e55820a81c6bea65e851026bc3ce36297d4041a",
        note="rows 168 and 193 have no answer as published: theirs stands inside the question",
    ),
    Benchmark(
        name="mmlu_stem",
        title="MMLU STEM",
        kind="choice",
        fields=FIELD_MAPPINGS["mmlu_stem"],
        file="mmlu_stem",
        size=3018,
        questions="f55fbd9b1cce4040bd0f2675e06ff21c9640526358a7ba8ca3d4ab0b283b74e3",
        asks=_LETTER,
    ),
    Benchmark(
        name="mmlu_pro_stem",
        title="MMLU-Pro STEM",
        kind="choice",
        fields=FieldMapping(
            "question",
            "answer_index",
            "choice",
            choices="options",
            problem_id="question_id",
            level="category",
            hub_id="TIGER-Lab/MMLU-Pro",
        ),
        file="mmlu_pro",
        size=None,
        asks=_LETTER,
        only={"category": _STEM},
        note=_NOT_PUBLISHED_BY,
    ),
    Benchmark(
        name="strategyqa",
        title="StrategyQA",
        kind="label",
        fields=FIELD_MAPPINGS["strategyqa"],
        file="strategyqa",
        size=229,
        questions="b4d9ca88c8651f52e27ac42ebea4587257cd9e4816aa2a8f9bd565236f404832",
        asks="{question}\n\nAnswer with Yes or No.",
        labels=_YES_NO,
        note="the part held out of 2,290 questions whose answers are published",
    ),
    Benchmark(
        name="folio",
        title="FOLIO",
        kind="label",
        fields=FieldMapping("conclusion", "label", hub_id="yale-nlp/FOLIO"),
        file="folio",
        size=204,
        questions="2e930ebc84e0a981c13ad7aa43d101358df24e5552ee49c20aa7ff2751ee3f06",
        split="validation",
        asks="Premises:\n{premises}\n\nConclusion: {question}\n\nBy the premises, is the "
        "conclusion True, False or Uncertain? Answer with one of these words.",
        labels=_THREE,
        note="later versions of the set have 203 rows",
    ),
    Benchmark(
        name="boardgameqa",
        title="BoardgameQA",
        kind="label",
        fields=FieldMapping("example", "label", hub_id="tasksource/Boardgame-QA"),
        file="boardgameqa",
        size=None,
        asks="{question}\n\nAnswer with proved, disproved or unknown.",
        labels=_PROOFS,
        note=_NOT_PUBLISHED_BY,
    ),
    Benchmark(
        name="tablebench",
        title="TableBench",
        kind="cells",
        fields=FieldMapping(
            "question",
            "answer",
            problem_id="id",
            level="qtype",
            hub_id="Multilingual-Multimodal-NLP/TableBench",
        ),
        file="tablebench",
        size=None,
        asks="{table}\n\n{question}\n\nAnswer with the contents of cells or with numbers, "
        "separated by commas.",
        only={
            "instruction_type": ("TCoT",),
            "qtype": ("FactChecking", "NumericalReasoning", "DataAnalysis"),
        },
        note=f"charts are left out; {_NOT_PUBLISHED_BY}",
    ),
    _cruxeval(
        "output",
        questions="fe74d2040776ee3af43d35d16ec8062a0b633a8b3e128fd038ca5691396f79b2",
        asks="A Python function:\n\n```python\n{question}\n```\n\n"
        "What does f({input}) return? Answer with the value as Python writes it.",
    ),
    _cruxeval(
        "input",
        questions="3dda603c189b449f2acd6377a3ebb8bdd6195a120a655665f61de5d0b2686cd0",
        asks="A Python function:\n\n```python\n{question}\n```\n\n"
        "For which arguments does it return {output}? Answer with a call of f, as Python writes "
        "it; any that returns this is right.",
    ),
)
BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType({row.name: row for row in _ROWS})


def benchmarks_named(names: Sequence[str]) -> list[Benchmark]:
    """The rows of these names, in the table's order; "all" stands for every one.

    ValueError for a name that is none, and for no name.
    """
    unknown = [name for name in names if name != "all" and name not in BENCHMARKS]
    if unknown or not names:
        what = f"{unknown[0]!r} is no benchmark" if unknown else "no benchmark is named"
        raise ValueError(f"{what}: choose of all, {', '.join(BENCHMARKS)}")
    return [row for row in _ROWS if row.name in names or "all" in names]
