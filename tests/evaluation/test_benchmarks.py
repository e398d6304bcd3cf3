# SPDX-License-Identifier: Apache-2.0
"""The table of benchmarks: its rows are whole, and names are found in it."""

import pytest

from satori_fast.evaluation.benchmarks import BENCHMARKS, benchmarks_named


def test_every_benchmark_of_the_three_papers_has_a_row() -> None:
    satori = {"gsm8k", "math500", "amc23", "aime24", "olympiadbench"}
    satori |= {"folio", "boardgameqa", "strategyqa", "tablebench", "mmlu_pro_stem"}
    satori |= {"cruxeval_output", "cruxeval_input"}
    s2r, srl = {"college_math", "gaokao2023en"}, {"aime25", "minerva_math"}
    assert set(BENCHMARKS) == satori | s2r | srl | {"mmlu_stem"}


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_rows_are_whole(name: str) -> None:
    row = BENCHMARKS[name]
    assert row.name == name
    assert "{question}" in row.asks
    assert (row.kind == "label") == bool(row.labels)
    assert (row.kind == "choice") == (row.fields.choices is not None)
    # What cannot be checked at load says why.
    assert (row.size is None) == (row.questions is None)
    assert row.size is not None or row.note


def test_names_are_found_in_the_order_of_the_table() -> None:
    assert [row.name for row in benchmarks_named(["math500", "gsm8k"])] == ["gsm8k", "math500"]
    assert benchmarks_named(["all"]) == list(BENCHMARKS.values())
    with pytest.raises(ValueError, match="'math' is no benchmark: choose of all, gsm8k"):
        benchmarks_named(["gsm8k", "math"])
    with pytest.raises(ValueError, match="no benchmark is named"):
        benchmarks_named([])
