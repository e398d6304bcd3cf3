# SPDX-License-Identifier: Apache-2.0
"""Pages of evaluations: evaluation.html with a page of responses for each benchmark, and several
evaluations side by side, compared problem by problem.

They are made from evaluation.json, responses.jsonl and judgements.jsonl alone. Markup and scripts
are `profiling.templates`; runs have pages of their own (`profiling.report`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from satori_fast.data.formats import FORMATS
from satori_fast.evaluation.statistics import PairedComparison, compare
from satori_fast.profiling.report import render_page, write_page
from satori_fast.profiling.report_samples import cut_text
from satori_fast.profiling.summary import number, percent
from satori_fast.storage import read_sealed, sealed_records

EVALUATION, RESPONSES, JUDGEMENTS = "evaluation.json", "responses.jsonl", "judgements.jsonl"
COLUMNS = (
    "benchmark",
    "problems",
    "golds unread",
    "accuracy %",
    "95 %",
    "strict %",
    "lenient %",
    "cut %",
    "no box %",
)
_MOST_NAMED = 50  # problems that two evaluations answer differently
Record = Mapping[str, Any]


def write_evaluation_pages(folder: Path) -> Path:
    """Write evaluation.html of an evaluation, and BENCHMARK.html with every response of each.

    Returns the path of the first. DamagedFile for files that are not as they were written.
    """
    result = read_sealed(folder / EVALUATION)
    questions = _responses_by_benchmark(folder)
    pages = [
        {"title": own["title"], "href": f"{name}.html"}
        for name, own in result["benchmarks"].items()
    ]
    index = {"title": "All", "href": "evaluation.html"}
    for name, own in result["benchmarks"].items():
        page = render_page(
            "evaluation.html",
            title=own["title"],
            pages=[index, *pages],
            facts=_set_facts(own),
            columns=COLUMNS,
            rows=[result_cells(own)],
            tables=_set_tables(own),
            samples=questions.get(name, []),
            colours=_colours(result["protocol"]["format"]),
            plotly="",
        )
        write_page(page, folder / f"{name}.html")
    page = render_page(
        "evaluation.html",
        title=f"{Path(result['model_path']).name}, protocol {result['protocol']['name']}",
        pages=pages,
        facts=_facts(result),
        columns=COLUMNS,
        rows=[result_cells(own) for own in result["benchmarks"].values()],
        tables=_missing_table(result),
        samples=[],
        colours={},
        plotly="",
    )
    return write_page(page, folder / "evaluation.html")


def write_evaluation_comparison(folders: Sequence[Path], *, output: Path) -> Path:
    """Write a page that sets evaluations side by side; the others are compared with the first."""
    results = [read_sealed(folder / EVALUATION) for folder in folders]
    names = [str(folder) for folder in folders]
    page = render_page(
        "evaluation.html",
        title=f"{len(folders)} evaluations compared",
        pages=[],
        facts=[(f"{number}", name) for number, name in enumerate(names, start=1)],
        columns=(),
        rows=[],
        tables=[
            _side_by_side(results),
            *(
                table
                for number, result in enumerate(results[1:], start=2)
                for table in _against(results[0], result, number)
            ),
        ],
        samples=[],
        colours={},
        plotly="",
    )
    return write_page(page, output)


def result_cells(result: Record) -> list[str]:
    """Cells of the table of results for one benchmark, under its columns."""
    published = f" of {result['published_size']}" if result["partial"] else ""
    unread = len(result["unreadable_golds"]) + len(result["without_gold"])
    low, high = (_hundredths(end) for end in result["accuracy"]["interval"])
    return [
        result["title"],
        f"{result['num_problems']}{published}",
        f"{unread}" if unread else "-",
        _hundredths(result["accuracy"]["value"]),
        f"{low} to {high}",
        *(
            _hundredths(result[name]["value"])
            for name in ("strict", "lenient", "truncated", "no_answer")
        ),
    ]


def comparisons(first: Record, second: Record) -> dict[str, PairedComparison]:
    """Paired comparisons of two evaluations, for each benchmark that both have."""
    shared = [name for name in first["benchmarks"] if name in second["benchmarks"]]
    return {
        name: compare(first["benchmarks"][name]["scores"], second["benchmarks"][name]["scores"])
        for name in shared
    }


def differences(first: Record, second: Record) -> list[str]:
    """List what two evaluations do not share, and their figures may differ for; a line each."""
    found = [
        f"their {name} differ"
        for name in ("versions", "protocol", "temperature", "num_samples", "engine", "dtype")
        if first[name] != second[name]
    ]
    for name, own in first["benchmarks"].items():
        other = second["benchmarks"].get(name)
        if other is not None:
            found += [
                f"{own['title']}: their {what} differ"
                for what, key in (("questions", "questions_sha256"), ("golds", "golds_sha256"))
                if own[key] != other[key]
            ]
    return found


def _side_by_side(results: Sequence[Record]) -> dict[str, Any]:
    names = dict.fromkeys(name for result in results for name in result["benchmarks"])
    rows: list[list[str]] = []
    for name in names:
        own = [result["benchmarks"].get(name) for result in results]
        title = next(each["title"] for each in own if each is not None)
        rows.append([title, *("-" if each is None else _accuracy(each) for each in own)])
    averages = [result["average"] for result in results]
    rows.append(["average", *(f"{percent(each['accuracy'])}" for each in averages)])
    columns = ["benchmark", *(str(number) for number in range(1, len(results) + 1))]
    return {"title": "Accuracy", "note": "", "columns": columns, "rows": rows}


def _against(first: Record, second: Record, number_of: int) -> Iterator[dict[str, Any]]:
    found = comparisons(first, second)
    apart = differences(first, second)
    yield {
        "title": f"{number_of} against 1",
        "note": "Differences in points, on the same problems: the paired interval and the exact "
        "McNemar test. Unpaired: the interval that independent sets of problems would leave. "
        + (f"Not the same in both: {'; '.join(apart)}." if apart else ""),
        "columns": [
            "benchmark",
            "problems",
            "difference",
            "paired 95 %",
            "unpaired 95 %",
            "gained",
            "lost",
            "p",
        ],
        "rows": [
            _comparison_cells(first["benchmarks"][name]["title"], each)
            for name, each in found.items()
        ],
    }
    yield {
        "title": f"Problems that 1 and {number_of} answer differently",
        "note": f"The first {_MOST_NAMED} of each benchmark.",
        "columns": ["benchmark", "gained", "lost"],
        "rows": [
            [
                first["benchmarks"][name]["title"],
                ", ".join(each.better[:_MOST_NAMED]),
                ", ".join(each.worse[:_MOST_NAMED]),
            ]
            for name, each in found.items()
            if each.better or each.worse
        ],
    }


def _comparison_cells(title: str, found: PairedComparison) -> list[str]:
    return [
        title,
        str(found.num_problems),
        f"{100 * found.difference:+.1f}",
        _interval(found.interval, signed=True),
        _interval(found.unpaired, signed=True),
        str(len(found.better)),
        str(len(found.worse)),
        number(found.p_value, 4) if found.p_value is not None else "-",
    ]


def _hundredths(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _accuracy(result: Record) -> str:
    return f"{percent(result['accuracy']['value'])} ({_interval(result['accuracy']['interval'])})"


def _interval(ends: Sequence[float], *, signed: bool = False) -> str:
    if signed:
        return f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}"
    return f"{percent(ends[0])} to {percent(ends[1])}"


def _facts(result: Record) -> list[tuple[str, str]]:
    protocol, average = result["protocol"], result["average"]
    return [
        ("model", result["model_path"]),
        ("protocol", protocol["name"]),
        ("longest response", f"{protocol['max_new_tokens']} tokens"),
        ("samples", f"{result['num_samples']} at temperature {result['temperature']:g}"),
        ("engine", f"{result['engine']}, {result['dtype']}"),
        ("average", f"{percent(average['accuracy'])} ({_interval(average['interval'])})"),
        ("satori_fast", result["versions"]["satori_fast"]),
        ("grader", result["versions"]["grader"]),
    ]


def _set_facts(result: Record) -> list[tuple[str, str]]:
    corrected = result["self_correction"]
    facts = [("source", result["source"]), ("questions", result["questions_sha256"][:12])]
    facts += [("mean length", f"{number(result['mean_tokens'], 0)} tokens")]
    facts += [
        (name.replace("_", " "), f"{own['k']} of {own['n']}") for name, own in corrected.items()
    ]
    facts += [(f"pass@{k}", percent(value)) for k, value in result["pass_at_k"].items()]
    if result["majority"] is not None:
        facts.append((f"maj@{result['num_samples']}", percent(result["majority"]["value"])))
    if result.get("best_of_n") is not None:  # older evaluations have none
        best = percent(result["best_of_n"]["value"])
        facts.append((f"best of {result['num_samples']}, by the reward model", best))
    found = result.get("contamination")
    if found is not None and found["accuracy_without"] is not None:
        own = found["accuracy_without"]
        facts.append(
            ("without what training files hold", f"{percent(own['value'])} of {own['n']} problems")
        )
    return [*facts, *(("differs", fault) for fault in result["faults"])]


def _set_tables(result: Record) -> list[dict[str, Any]]:
    """Curves over budgets, golds that are not read, and where graders disagree."""
    tables = [
        _table(f"Accuracy by {what}", ("up to", "accuracy", "have answered", "go on so far"), rows)
        for what, rows in (
            ("token budget", _curve(result["by_budget"])),
            ("number of attempts", _curve(result["by_boxes"])),
        )
    ]
    levels = [
        [
            each["label"],
            str(each["count"]),
            percent(each["accuracy"]),
            number(each["mean_tokens"], 0),
        ]
        for each in result["by_level"]
    ]
    tables.append(_table("By difficulty", ("level", "problems", "accuracy", "mean tokens"), levels))
    found = result.get("contamination")
    overlaps = [] if found is None else found["overlaps"]
    rows = [[e["problem_id"], e["file"], str(e["row"]), e["text"]] for e in overlaps]
    tables.append(_table("In training files", ("problem", "file", "row", "words"), rows))
    golds = [[*each] for each in (result["unreadable_golds"] | result["without_gold"]).items()]
    tables.append(_table("Golds that are not read", ("problem", "why"), golds))
    rows = [
        [
            each["problem_id"],
            each["gold"] or "",
            each["answer"],
            each["lenient_answer"],
            *("right" if each[name] else "wrong" for name in ("house", "strict", "lenient")),
            each["reason"],
        ]
        for each in result["disagreements"]
    ]
    columns = ("problem", "gold", "answer", "lenient answer", "house", "strict", "lenient", "why")
    tables.append(_table("Where graders disagree", columns, rows))
    return [table for table in tables if table["rows"]]


def _curve(points: Sequence[Record]) -> list[list[str]]:
    return [
        [
            str(point["budget"]),
            percent(point["accuracy"]["value"]),
            percent(point["answered"]),
            percent(point["reached"]),
        ]
        for point in points
    ]


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {"title": title, "note": "", "columns": columns, "rows": rows}


def _missing_table(result: Record) -> list[dict[str, Any]]:
    rows = [[name, why] for name, why in result["missing"].items()]
    return [_table("Not there", ("benchmark", "why"), rows)] if rows else []


def _colours(format: str) -> dict[str, str]:
    known = FORMATS.get(format.partition("/")[0])
    return {} if known is None else {str(k): colour for k, colour in known.colours.items()}


def _responses_by_benchmark(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Responses as the page's browser shows them, by benchmark; those that were judged."""
    judged = {_key(record): record for record in sealed_records(folder / JUDGEMENTS)}
    found: dict[str, list[dict[str, Any]]] = {}
    for record in sealed_records(folder / RESPONSES):
        judgement = judged.get(_key(record)) if "benchmark" in record else None
        if judgement is not None:
            found.setdefault(record["benchmark"], []).append(_entry(record, judgement))
    return found


def _key(record: Record) -> tuple[Any, ...]:
    return record.get("benchmark"), record.get("problem_id"), record.get("sample")


def _entry(response: Record, judgement: Record) -> dict[str, Any]:
    graders = {name: "right" if judgement[name] else "wrong" for name in ("strict", "lenient")}
    found = {"answer": judgement["answer"] or "none", "reason": judgement["reason"]}
    return {
        "stage": judgement["reason"],
        "step": response["sample"],
        "place": f"sample {response['sample']}, {response['num_tokens']} tokens",
        "id": response["problem_id"],
        "question": cut_text(response["prompt"]),
        "answer": judgement["gold"] or "none given",
        "prefix": None,
        "segments": [{"kind": k, "text": cut_text(text)} for k, text in response["segments"]],
        "verdict": "right" if judgement["house"] else "wrong",
        "notes": "Graders",
        "rewards": found | graders,
        "finish": response["finish"],
    }
