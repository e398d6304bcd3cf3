# SPDX-License-Identifier: Apache-2.0
"""Tables of the similarity reward: cells by hand, columns that nobody needs, and of how many."""

from satori_fast.profiling.report_similarity import similarity_tables


def similarity_entry(stage, *, autojunk=False):
    """The content of a similarity_STAGE.json: 1,200 targets, of which 40 have a title."""
    everywhere = {
        "itself": {"mean": 1.0, "std": 0.0, "num_targets": 1200},
        "unrelated": {"mean": 0.25, "std": 0.05, "num_targets": 1200},
    }
    titled = {"title": {"mean": 6 / 11, "std": 0.125, "num_targets": 40}}
    rows = [
        {"granularity": "characters", "median_length": 21.5, "longest": 2400, "cases": everywhere},
        {
            "granularity": "words",
            "median_length": 8.0,
            "longest": 40,
            "cases": {**everywhere, **titled},
        },
    ]
    shared = {"autojunk": autojunk, "num_targets": 1200}
    return {"stage": stage, "rows": [{**row, **shared} for row in rows]}


def test_a_row_for_each_granularity():
    first, second = similarity_tables(
        [similarity_entry("srl"), similarity_entry("srl_2", autojunk=True)]
    )
    assert first == {
        "stage": "srl",
        "note": "Targets: 1,200. Autojunk: off.",
        "columns": [
            "elements",
            "the target",
            "title alone",
            "unrelated",
            "length: median, longest",
        ],
        "rows": [
            ["characters", "1.000 ± 0.000", "-", "0.250 ± 0.050", "22, 2,400"],
            ["words", "1.000 ± 0.000", "0.545 ± 0.125 (n=40)", "0.250 ± 0.050", "8, 40"],
        ],
    }
    assert (second["stage"], second["note"]) == ("srl_2", "Targets: 1,200. Autojunk: on.")


def test_without_a_stage_of_steps_there_is_no_table():
    assert similarity_tables([]) == []
