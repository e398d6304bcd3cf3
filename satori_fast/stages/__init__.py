# SPDX-License-Identifier: Apache-2.0
"""One verb, one file, one config section: the stages of a run, and the set-up they share."""

from __future__ import annotations

from typing import Any

from satori_fast.config import Config


def run_stages(config: Config, *, resume: bool = False) -> dict[str, Any]:
    """Run `config.stages` in order, skipping those that a resumed run has finished.

    Returns the summary, which is also written to the run folder with the report.
    """
    from satori_fast.stages.checks import check_stages
    from satori_fast.stages.curate import curate
    from satori_fast.stages.distill import distill
    from satori_fast.stages.evaluate import start
    from satori_fast.stages.initialise import initialise
    from satori_fast.stages.iterate import plan_stages
    from satori_fast.stages.offline import offline
    from satori_fast.stages.preference import preference
    from satori_fast.stages.reinforce import reinforce
    from satori_fast.stages.run import build_run
    from satori_fast.stages.settled import settled
    from satori_fast.stages.srl import srl
    from satori_fast.stages.supervised import supervised
    from satori_fast.stages.synthesize import synthesize_demonstrations

    stages = {
        "start": start,
        "curate": curate,
        "synthesize": synthesize_demonstrations,
        "supervised": supervised,
        "initialise": initialise,
        "preference": preference,
        "reinforce": reinforce,
        "offline": offline,
        "srl": srl,
        "distill": distill,
    }
    with build_run(settled(config), resume=resume) as run:
        plans = plan_stages(run.config)[len(run.finished) :]
        if plans:
            check_stages(run.context(plans[0]), run.folder, plans)
        for plan in plans:
            run.books.begin_stage(plan.name)
            context = run.context(plan)
            run.finish_stage(plan.name, stages[plan.kind](context, run.folder, run.books))
        return run.finalize()
