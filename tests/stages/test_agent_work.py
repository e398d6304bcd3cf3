# SPDX-License-Identifier: Apache-2.0
"""What a stage of agents has on disk, found again by a resumed run, and its tables."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from rich.console import Console

from satori_fast.config import AgentConfig
from satori_fast.data.sources import load_demonstrations
from satori_fast.stages.agent_work import (
    AgentRecords,
    has_language_models,
    open_records,
    print_stats,
    put_to_work,
    write_demonstrations,
)
from satori_fast.stages.agents import AgentModels
from satori_fast.stages.context import Context
from satori_fast.stages.seeds import Seeds
from satori_fast.synthesis.agents import Unusable
from satori_fast.synthesis.chat import ChatReply
from satori_fast.synthesis.outcomes import Outcome
from satori_fast.types import Demonstration, Problem

PROBLEMS = [Problem(f"p{number}", f"{number} + 1", str(number + 1)) for number in range(4)]
SCRIPTED = {"writer": AgentConfig()}
PAID = {"writer": AgentConfig(kind="endpoint", model="m", prompt_price=2.0)}


async def outcomes(problems: list[Problem]) -> AsyncGenerator[Outcome, None]:
    for problem in problems:
        outcome = Outcome(problem, [Demonstration(problem, f"\\boxed{{{problem.answer}}}", "I")])
        outcome.drop(Unusable("too_long", "..."))
        yield outcome


def worked(folder: Path, limit: int) -> AgentRecords:
    """A session that ends after problem `limit`."""
    context = SimpleNamespace(stage="stage", seeds=Seeds(0), console=Console(quiet=True))

    def work(models: AgentModels, records: AgentRecords) -> AsyncGenerator[Outcome, None]:
        return outcomes(PROBLEMS[records.num_done : limit])

    return asyncio.run(
        put_to_work(
            cast(Context, context),
            folder,
            PROBLEMS,
            SCRIPTED,
            section="stage",
            types=("I",),
            work=work,
        )
    )


def test_a_resumed_run_goes_on_behind_the_finished_problems(tmp_path: Path) -> None:
    records = worked(tmp_path, 3)
    assert records.journal is None and records.num_done == 3
    records = worked(tmp_path, 4)
    assert [d.problem for d in records.demonstrations] == PROBLEMS
    assert records.stats.metrics() == {
        "stage/demonstrations": 4.0,
        "stage/type_I": 4.0,
        "stage/dropped/too_long": 4.0,
    }
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["finished.jsonl"]


def test_replies_of_language_models_are_kept_and_paid_once(tmp_path: Path) -> None:
    assert has_language_models(PAID) and not has_language_models(SCRIPTED)
    assert not has_language_models({"writer": AgentConfig(kind="scalar", model="m")})
    with open_records(tmp_path, PROBLEMS, PAID, types=("I",), stage="stage") as records:
        assert records.journal is not None
        records.journal.add("00" * 16, "writer", ChatReply("a", prompt_tokens=500_000))
    with open_records(tmp_path, PROBLEMS, PAID, types=("I",), stage="stage") as records:
        assert records.stats.metrics()["stage/writer/cost"] == 1.0


def test_tables_say_what_was_spent_where_somebody_was_asked(tmp_path: Path) -> None:
    for configs, is_told in ((SCRIPTED, False), (PAID, True)):
        text = io.StringIO()
        own = tmp_path / str(is_told)
        with open_records(own, PROBLEMS, configs, types=("I",), stage="stage") as records:
            print_stats(records.stats, Console(file=text))
        assert ("prompt tokens" in text.getvalue()) is is_told
        assert "demonstrations" in text.getvalue()


def test_demonstrations_are_read_back(tmp_path: Path) -> None:
    made = [Demonstration(problem, f"\\boxed{{{problem.answer}}}", "2") for problem in PROBLEMS]
    write_demonstrations(tmp_path / "made.jsonl", made)
    found, report = load_demonstrations(tmp_path / "made.jsonl", "coat")
    assert [(d.problem.question, d.response) for d in found] == [
        (d.problem.question, d.response) for d in made
    ]
    assert report.num_skipped == 0
