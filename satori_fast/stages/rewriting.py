# SPDX-License-Identifier: Apache-2.0
"""Expert solutions that an agent writes again as steps, for the stage srl.

Replies and outcomes are on disk as they come (`agent_work`), in a folder of the stage's name: a
killed run asks nothing twice. demonstrations_STAGE.jsonl keeps the solutions as lines
`N. **Title** text`, which another run reads with srl.mapping = "coat" and srl.parser = "numbered";
STAGE.html shows samples and what was dropped. What the agent is asked is `synthesis.step_agents`;
what steps become is `step_data`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from satori_fast.data.steps import ExpertStep, parse_steps
from satori_fast.stages.agent_work import (
    AgentRecords,
    print_stats,
    put_to_work,
    write_demonstrations,
)
from satori_fast.stages.agents import AgentModels, step_agent_configs, step_rewriter
from satori_fast.stages.context import Context
from satori_fast.synthesis.outcomes import Outcome
from satori_fast.synthesis.page import Action, write_page
from satori_fast.synthesis.stats import SynthesisStats
from satori_fast.synthesis.step_agents import REWRITTEN, rewrite_solutions, steps_of
from satori_fast.types import Demonstration


@dataclass(frozen=True)
class Rewriting:
    """Outcomes of solutions, by problem id, and the statistics of the agent."""

    outcomes: Mapping[str, Outcome]
    stats: SynthesisStats

    def steps(self, solution: Demonstration) -> Sequence[ExpertStep]:
        """The steps that a solution was written into; raises NoSteps, as `parse_steps` does."""
        return steps_of(self.outcomes[solution.problem.problem_id])

    def figures(self) -> dict[str, float]:
        """Figures for the summary: requests, retries, tokens and cost of the agent."""
        return {
            f"{role}_{name}": float(number)
            for role, numbers in self.stats.spent().items()
            for name, number in numbers.items()
        }


def rewritten_path(folder: Path, stage: str) -> Path:
    """The solutions that the agent of a run wrote, in its folder."""
    return folder / f"demonstrations_{stage}.jsonl"


async def rewrite(context: Context, folder: Path, solutions: Sequence[Demonstration]) -> Rewriting:
    """Have the agent write every one of `solutions` again, but those that it is done with; for the
    main process alone. folder: of the run."""
    config = context.config.srl

    def work(models: AgentModels, records: AgentRecords) -> AsyncGenerator[Outcome, None]:
        return rewrite_solutions(
            solutions[records.num_done :],
            step_rewriter(models),
            pool=context.grader.pool,
            num_concurrent=config.num_concurrent,
        )

    records = await put_to_work(
        context,
        folder,
        [each.problem for each in solutions],
        step_agent_configs(config),
        section="srl",
        types=(REWRITTEN,),
        work=work,
    )
    _write(context, folder, records)
    outcomes = {outcome.problem.problem_id: outcome for outcome in records.finished.outcomes}
    return Rewriting(outcomes, records.stats)


def _write(context: Context, folder: Path, records: AgentRecords) -> None:
    """Leave the page for people, the table on the console and the file for other runs."""
    made, stats, stage = records.demonstrations, records.stats, context.stage
    write_page(
        folder / f"{stage}.html",
        made,
        stats,
        title=f"{context.config.name}: solutions rewritten as steps",
        meanings={REWRITTEN: "an expert's solution as titled steps"},
        actions=_actions,
    )
    print_stats(stats, context.console)
    if made:
        write_demonstrations(rewritten_path(folder, stage), made)


def _actions(solution: str) -> list[Action]:
    """The steps of a rewritten solution, as the page shows them."""
    steps = enumerate(parse_steps(solution, "numbered"), start=1)
    return [Action("continue", step.text, f"{number}. {step.title}") for number, step in steps]
