# SPDX-License-Identifier: Apache-2.0
"""Tables of how the similarity reward behaves on the targets of each stage of step problems.

Not for measuring it, which is done where the reward is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from satori_fast.profiling.summary import number

# Kinds of actions: key, head of the column.
CASES = (
    ("itself", "the target"),
    ("digit", "one digit changed"),
    ("half", "first half"),
    ("double", "twice as long"),
    ("title", "title alone"),
    ("unrelated", "unrelated"),
)


def similarity_tables(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A table for each stage, from the contents of similarity_STAGE.json.

    "stage", "note", "columns" and "rows" of text, one for each granularity. Columns that no row has
    a value for are left out.
    """
    return [_table(str(stage["stage"]), stage["rows"]) for stage in stages]


def _table(stage: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    cases = [(key, head) for key, head in CASES if any(key in row["cases"] for row in rows)]
    cells = [
        [
            str(row["granularity"]),
            *(_cell(row["cases"].get(key), row["num_targets"]) for key, _ in cases),
            f"{number(row['median_length'], 0)}, {number(row['longest'], 0)}",
        ]
        for row in rows
    ]
    first = rows[0]
    note = f"Targets: {first['num_targets']:,}. Autojunk: {'on' if first['autojunk'] else 'off'}."
    columns = ["elements", *(head for _, head in cases), "length: median, longest"]
    return {"stage": stage, "note": note, "columns": columns, "rows": cells}


def _cell(case: Mapping[str, Any] | None, num_targets: int) -> str:
    """Mean and deviation, and of how many targets where it is not all of them."""
    if case is None:
        return "-"
    text = f"{number(case['mean'], 3)} ± {number(case['std'], 3)}"
    own = int(case["num_targets"])
    return text if own == num_targets else f"{text} (n={own:,})"
