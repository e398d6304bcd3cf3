# SPDX-License-Identifier: Apache-2.0
"""Arms that start from one model: what an ablation of that form is, and its command.

For each seed the first stages of a config run once and leave a model, and every arm trains from it,
several times, with seeds of its own that are the same ones for every arm. What is left to a driver
is the arms, their predictions, and which figures are read off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.ablations.runs import (
    OTHER_SEED,
    Arm,
    Entry,
    Stages,
    from_models,
    parser,
    run,
    run_repeats,
)
from benchmarks.ablations.tables import FIELDS, write_table


def _as_it_is(run_folder: Path, entry: Entry) -> Entry:
    return entry


@dataclass(frozen=True, slots=True)
class Study:
    """An ablation whose arms start from the model that the first stages of `config` leave.

    name:      of the driver, the folder of runs and the result file.
    about:     the driver's docstring.
    arms:      what they change, by name.
    rows:      rows before those of the arms: the first stages that they are read off, by row. The
               last one's model is where arms start.
    others:    what is said of those rows.
    fields:    columns of the table.
    configs:   of an arm with a config of its own.
    stages:    of an arm that runs another stage than `reinforce`.
    overrides: of every arm.
    figures:   of a run folder and the summary entry of a stage, the entry with its other columns.
    untuned:   stages before those of `rows`.
    then:      what differs in a second run of all those stages, from the first one's model. Rows
               and arms are the second one's.
    seeds:     tunings, and
    repeats:   runs of an arm from each, unless told otherwise.
    """

    name: str
    about: str
    config: str
    arms: Mapping[str, Arm]
    rows: Mapping[str, str] = field(default_factory=lambda: {"format_tuning": "supervised"})
    others: Mapping[str, Arm] = field(default_factory=dict)
    fields: Sequence[str] = FIELDS
    configs: Mapping[str, str] = field(default_factory=dict)
    stages: Mapping[str, str] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    figures: Callable[[Path, Entry], Entry] = _as_it_is
    untuned: Sequence[str] = ("synthesize",)
    then: Sequence[str] = ()
    seeds: Sequence[int] = (0, 1, 2)
    repeats: int = 3

    @property
    def said(self) -> Mapping[str, Arm]:
        """What is said of every row, in the order of the table."""
        return {name: self.others.get(name, Arm()) for name in self.rows} | dict(self.arms)

    def begun(self, seed: int, folder: Path) -> Stages:
        """The entries of the first stages of a seed, which every arm starts from."""
        stages = json.dumps([*self.untuned, *self.rows.values()])
        name = f"tuned-{seed}"
        start: Sequence[str] = ("--stages", stages, "--seed", str(seed))
        if self.then:
            run(self.config, f"first-{seed}", folder, *start)
            first = self._model(folder / f"first-{seed}")
            start = (*from_models(first, seed=seed, stages=stages), *self.then)
        entries = run(self.config, name, folder, *start)
        blank = dict.fromkeys(self.fields)
        return {
            stage: blank | self.figures(folder / name, entries[stage])
            for stage in self.rows.values()
        }

    def trained(self, arm: str, seed: int, repeat: int, folder: Path) -> Entry:
        """The entry of one run of an arm from the model of `seed`."""
        stage = self.stages.get(arm, "reinforce")
        own_seed = seed + OTHER_SEED * (repeat + 1)
        model = self._model(folder / f"tuned-{seed}")
        start = from_models(model, seed=own_seed, stages=json.dumps([stage]))
        name = f"{arm}-{seed}-{repeat}"
        changes = (*start, *self.overrides, *self.arms[arm].overrides)
        entry = run(self.configs.get(arm, self.config), name, folder, *changes)[stage]
        return self.figures(folder / name, entry)

    def _model(self, run_folder: Path) -> Path:
        """Where a run left the model of the last row."""
        return run_folder / "models" / list(self.rows.values())[-1]

    def main(self) -> None:
        """The command of a driver."""
        options = parser(
            self.about.splitlines()[0],
            list(self.arms),
            folder=f"runs/{self.name}",
            output=f"benchmarks/results/{self.name}.json",
            seeds=self.seeds,
            repeats=self.repeats,
        ).parse_args()
        begun, arms = run_repeats(options, self.begun, self.trained)
        rows = {row: [[each[stage]] for each in begun] for row, stage in self.rows.items()}
        write_table(
            options.output,
            f"benchmarks.ablations.{self.name}",
            rows | arms,
            arms=self.said,
            seeds=options.seeds,
            extend=options.extend,
            fields=self.fields,
        )
