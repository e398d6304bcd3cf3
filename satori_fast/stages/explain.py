# SPDX-License-Identifier: Apache-2.0
"""The verb explain: why the tokens of given responses get the signal that they get.

Tokenizer, format, rewards and recipe are the config's; no model is loaded, nothing is sampled and
no run folder is made. A step of the file is what a step of a run is, in one minibatch: scored,
filtered, credited, packed and estimated by the code that trains. What a model would have to give is
named in `Explanation.notes`.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from satori_fast.algorithms.advantages import estimate_advantages
from satori_fast.algorithms.recipe import Recipe, effective_recipe
from satori_fast.config import Config, ConfigError
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.data.prompts import PromptRenderer, build_trajectory
from satori_fast.data.rows import Row, file_rows
from satori_fast.data.tokenizer import check_known
from satori_fast.data.values import BadRow, answer_text
from satori_fast.evaluation.evaluate import mean_metrics
from satori_fast.experience.signal import segment_signals
from satori_fast.experience.source import Judge
from satori_fast.grading import GradingPool
from satori_fast.rewards.terms import score
from satori_fast.rewards.worker import RewardFunctionError
from satori_fast.stages.rewards import build_rewards, build_worker, check_functions
from satori_fast.stages.setup import build_renderer, write_tokenizer
from satori_fast.stages.step_metrics import reward_metrics
from satori_fast.types import Experience, Prefix, Problem, SegmentSignal, Trajectory

logger = logging.getLogger(__name__)

_FIELDS = ("question", "answer", "response", "prefix", "prefix_correct", "target", "step", "finish")
_PIPED_WIDTH = 100  # columns, where the output is no terminal
# Rows are taken as they stand: no prompt is too long.
_NO_LIMIT = 1 << 40


@dataclass(frozen=True)
class ExplainedRow:
    """A row of the file, with its signal.

    number: of the row in the file, from 1. step: (stage, step), a stage "" where the row has none.
    trajectory: scored. dropped: why its group is not trained on, "" where it is.
    """

    number: int
    step: tuple[str, int]
    trajectory: Trajectory
    signal: SegmentSignal
    dropped: str


@dataclass(frozen=True)
class Explanation:
    """What is said of a file: its rows in order, the counts of the whole, and what was left out.

    absent: terms of the reward that need a model.
    """

    rows: Sequence[ExplainedRow]
    summary: Mapping[str, Any]
    notes: Sequence[str]
    absent: Sequence[str] = ()

    def json_lines(self) -> list[str]:
        """A line of JSON for each row, and a last one, ``{"summary": {...}}``."""
        records = [self._record(row) for row in self.rows]
        summary = {**self.summary, "notes": list(self.notes)}
        return [json.dumps(record) for record in (*records, {"summary": summary})]

    def _record(self, row: ExplainedRow) -> dict[str, Any]:
        reward = row.trajectory.reward
        assert reward is not None
        record = {
            "segments": [dict(segment) for segment in _segment_records(row)],
            "terms": {**reward.terms, **dict.fromkeys(self.absent)},
            "total": reward.total,
            "correct": reward.correct,
            "kept": not row.dropped,
        }
        return record | ({"reason": row.dropped} if row.dropped else {})

    def show(self, console: Console, colours: Mapping[str, str]) -> None:
        """Print it for people. colours: of the kinds of segments."""
        if console.is_terminal:
            self._show(console, colours)
            return
        plain = Console(width=_PIPED_WIDTH, color_system=None)
        with plain.capture() as capture:
            self._show(plain, colours)
        for line in capture.get().splitlines():
            _print(console, line.rstrip())

    def _show(self, console: Console, colours: Mapping[str, str]) -> None:
        question = None
        for row in self.rows:
            problem = row.trajectory.problem
            if question != (question := (row.step, problem.question, problem.prefix)):
                _print(console, f"{_where(row.step)}{problem.question}")
                if problem.prefix is not None:
                    _print(console, f"from: {problem.prefix.text}")
            _print(console, f"\n{self._heading(row)}")
            console.print(_table(row, colours))
        console.print()
        for name, value in self.summary.items():
            _print(console, f"{name:<28} {_shown(value)}")
        for note in self.notes:
            _print(console, f"note: {note}")

    def _heading(self, row: ExplainedRow) -> str:
        reward = row.trajectory.reward
        assert reward is not None
        verdict = {True: "right", False: "wrong", None: "not graded"}[reward.correct]
        terms = [f"{name} {value:g}" for name, value in reward.terms.items()]
        terms += [f"{name} null" for name in self.absent]
        given = f" = {' + '.join(terms)}" if terms else ""
        kept = f"dropped: {row.dropped}" if row.dropped else "kept"
        cut = ", cut off at the limit" if row.trajectory.finish == "length" else ""
        return f"row {row.number}: {verdict}{cut}, reward {reward.total:g}{given}, {kept}"


def explain(config: Config, rollouts: Path) -> Explanation:
    """The signal of every response in the file `rollouts`.

    A row is ``{"question", "answer"?, "response", "prefix"?, "prefix_correct"?, "target"?, "step"?,
    "finish"?}``; a line of a run's samples.jsonl is one too. Rows with the same question, prefix
    and step (and stage) are siblings; steps come in ascending order, and each is one call of the
    credit rule. Every response ends with end-of-text unless finish is "length".

    Raises ConfigError, naming file and row, for a row that cannot be read or has no answer though
    the reward needs one.
    """
    settings = config.reinforce
    recipe = effective_recipe(
        settings.recipe, temperature=config.rollout.temperature, **settings.recipe_overrides()
    )
    check_functions(config.reward)
    renderer = _renderer(config)
    numbered = _read(rollouts, renderer)
    # The reward model is left out.
    reward = config.reward.model_copy(update={"preference_weight": 0.0})
    with (
        GradingPool(reward.num_workers, reward.timeout_s) as grader,
        build_worker(reward) as worker,
    ):
        judge = Judge(
            partial(score, rewards=build_rewards(reward, grader=grader, worker=worker)),
            recipe.credit(),
            recipe.min_group_std,
            lambda _: nullcontext(),
        )
        fixed_length = settings.fixed_length or config.rollout.max_new_tokens
        rows: list[ExplainedRow] = []
        for step in _steps(step for _, step, _ in numbered):
            own = [row for row in numbered if row[1] == step]
            try:
                rows += _explain_step(own, judge, recipe, fixed_length=fixed_length)
            except (ValueError, RewardFunctionError) as error:
                raise ConfigError(f"{rollouts}: {error}") from error
    rows.sort(key=lambda row: row.number)
    absent = ["preference"] if config.reward.preference_weight else []
    summary = _summary(rows, recipe, renderer) | {f"reward/{name}": None for name in absent}
    return Explanation(rows, summary, _notes(rows, recipe, absent), absent)


def segment_colours(config: Config) -> dict[str, str]:
    """Colour of each kind of segment of the config's format."""
    from satori_fast.data.formats import FORMATS

    return {str(kind): colour for kind, colour in FORMATS[config.data.format].colours.items()}


# -- input ------------------------------------------------------------------------------------

# The number of a row, its step, and its trajectory without reward.
_Numbered = tuple[int, tuple[str, int], Trajectory]


def _renderer(config: Config) -> PromptRenderer:
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(config, Path(folder) / "tokenizer")
        renderer = build_renderer(config, Path(folder) / "tokenizer")
    return replace(renderer, max_prompt_tokens=_NO_LIMIT)


def _read(path: Path, renderer: PromptRenderer) -> list[_Numbered]:
    """The rows of the file; siblings have one group id, that no other step has."""
    groups: dict[Any, int] = {}
    found: list[_Numbered] = []
    warned = False
    try:
        for number, row in file_rows(path, _FIELDS):
            try:
                step, problem, response, finish = _fields(row, renderer, f"row {number}")
                given = "" if problem.prefix is None else problem.prefix.text
                group = groups.setdefault((step, problem.question, given), len(groups))
                found.append(
                    (
                        number,
                        step,
                        build_trajectory(
                            problem,
                            _response_ids(response, finish, renderer),
                            renderer=renderer,
                            group_id=group,
                            finish=finish,
                        ),
                    )
                )
            except (BadRow, ValueError) as error:
                detail = getattr(error, "detail", "")
                what = f"{error} ({detail})" if detail else str(error)
                raise ConfigError(f"{path}, row {number}: {what}") from None
            warned = warned or _warn_of_unknown_words(number, given + response, renderer)
    except OSError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not found:
        raise ConfigError(f"{path} has no row: write a JSON object with question and response")
    return found


def _fields(row: Row, renderer: PromptRenderer, name: str) -> tuple[tuple[str, int], Problem, str, Any]:
    """Step, problem, response and finish of a row. BadRow for what is not there or not so."""
    if isinstance(row, BadRow):
        raise row
    answer = row.get("answer")
    if answer is not None and not isinstance(answer, str):
        answer = answer_text(answer, "answer")
    target, text = _text(row, "target", None), _text(row, "prefix", None)
    correct = row.get("prefix_correct")
    if correct not in (None, True, False):
        raise BadRow(f"prefix_correct is {correct!r}: write true, false or null")
    prefix = None
    if text:
        restarts = renderer.format.has_restarts and target is None
        prefix = Prefix(text, "restart" if restarts else "step", correct, target)
    step = row.get("step", 0)
    if not isinstance(step, int) or isinstance(step, bool):
        raise BadRow(f"step is {step!r}: write a whole number")
    finish = row.get("finish", "stop")
    if finish not in ("stop", "length"):
        raise BadRow(f'finish is {finish!r}: write "stop" or "length"')
    problem = Problem(
        _text(row, "problem_id", name) or name,
        _text(row, "question") or "",
        answer,
        prefix,
    )
    stage = _text(row, "stage", "") or ""
    return (stage, step), problem, _response(row), finish


def _text(row: Mapping[str, Any], key: str, *default: str | None) -> str | None:
    """A text of a row; null, or its absence, is the default, where there is one."""
    value = row.get(key)
    if value is None and default:
        return default[0]
    if value is None:
        raise BadRow(f"it has no {key}: add one")
    if not isinstance(value, str):
        raise BadRow(f"{key} is {value!r}: write a text")
    return value


def _response(row: Mapping[str, Any]) -> str:
    """The text of a response, that of its segments in samples.jsonl."""
    if "response" in row or "segments" not in row:
        return _text(row, "response") or ""
    segments = row["segments"]
    if not isinstance(segments, list):
        raise BadRow("segments is no list: give the text as response")
    pieces: list[str] = []
    for segment in cast("list[Any]", segments):
        if not isinstance(segment, Mapping):
            raise BadRow("segments holds what is no object: give the text as response")
        pieces.append(_text(cast("Mapping[str, Any]", segment), "text") or "")
    return "".join(pieces)


def _response_ids(response: str, finish: str, renderer: PromptRenderer) -> np.ndarray:
    """Ids of a response, its stop token included where it has one."""
    ids = renderer.encode(response)
    if finish == "stop" and not (ids and ids[-1] in renderer.stop_ids):
        ids.append(renderer.eos_id)
    if not ids:
        raise BadRow('an empty response with finish "length" has no token: leave the row out')
    return np.asarray(ids)


def _warn_of_unknown_words(number: int, text: str, renderer: PromptRenderer) -> bool:
    try:
        check_known(renderer.tokenizer, text)
    except ValueError as error:
        logger.warning("row %d: %s: it is read as an unknown word", number, error)
        return True
    return False


def _steps(steps: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Each step once: stages as they come, their steps in ascending order."""
    distinct = list(dict.fromkeys(steps))
    stages = list(dict.fromkeys(stage for stage, _ in distinct))
    return sorted(distinct, key=lambda step: (stages.index(step[0]), step[1]))


# -- a step -----------------------------------------------------------------------------------


def _explain_step(
    numbered: Sequence[_Numbered], judge: Judge, recipe: Recipe, *, fixed_length: int
) -> list[ExplainedRow]:
    """Rows of one step. Those of dropped groups have the advantages that they would have if all
    groups were kept, and weight 0; the credit rule remembers the kept ones alone, as in a run."""
    scored = judge.score([trajectory for _, _, trajectory in numbered])
    kept = judge.informative(scored)
    places = {id(trajectory): place for place, trajectory in enumerate(kept)}
    of_all: dict[int, SegmentSignal] = {}
    if len(kept) < len(scored):
        trial = replace(judge, credit=copy.deepcopy(judge.credit))
        everything = trial.experience(scored, scored, policy_version=-1, stats={})
        of_all = _signals(everything, recipe, fixed_length=fixed_length)
    experience = judge.experience(kept, scored, policy_version=-1, stats={})
    of_kept = _signals(experience, recipe, fixed_length=fixed_length)
    sizes = Counter(trajectory.group_id for trajectory in scored)
    rows: list[ExplainedRow] = []
    for index, ((number, step, _), trajectory) in enumerate(zip(numbered, scored, strict=True)):
        dropped = ""
        if id(trajectory) in places:
            signal = of_kept[places[id(trajectory)]]
        else:
            signal = replace(of_all[index], weights=np.zeros(len(trajectory.segments)))
            group = [t for t in scored if t.group_id == trajectory.group_id]
            dropped = "alone in its group"
            if sizes[trajectory.group_id] > 1:
                dropped = _spread(group, recipe.min_group_std)
        rows.append(ExplainedRow(number, step, trajectory, signal, dropped))
    return rows


def _spread(group: Sequence[Trajectory], min_group_std: float | None) -> str:
    """Why a group of several is dropped."""
    totals = [t.reward.total for t in group if t.reward is not None]
    if min(totals) == max(totals):
        return f"all {len(group)} rewards of its group are {totals[0]:g}"
    return (
        f"the rewards of its group have a standard deviation of {np.std(totals):g}, not above "
        f"min_group_std = {min_group_std:g}"
    )


def _signals(
    experience: Experience, recipe: Recipe, *, fixed_length: int
) -> dict[int, SegmentSignal]:
    """Signals of all trajectories as one minibatch on one rank; a critic's values are 0."""
    trajectories, credits = experience.trajectories, experience.credits
    assert credits is not None
    packing = PackingSpec(max(1, experience.num_tokens), 1, fixed_length=fixed_length)
    batches = [
        batch.annotated(values=torch.zeros_like(batch.credit))
        for batch in pack(trajectories, credits, packing, recipe.weighting)
    ]
    advantages = estimate_advantages(batches, recipe.advantage, lambda sums: sums)
    return segment_signals(trajectories, credits, batches, advantages)


# -- output -----------------------------------------------------------------------------------


def _segment_records(row: ExplainedRow) -> list[dict[str, Any]]:
    signal = row.signal
    columns = (signal.rewards, signal.baselines, signal.advantages, signal.weights)
    return [
        {
            "kind": str(segment.kind),
            "text": segment.text,
            "verdict": segment.verdict,
            "reward": _number(reward, 7),  # divided and multiplied in float32
            "baseline": _number(baseline, 7),
            "advantage": _number(advantage),
            "num_tokens": segment.stop - segment.start,
            "weight": _number(weight),
        }
        for segment, reward, baseline, advantage, weight in zip(
            row.trajectory.segments, *columns, strict=True
        )
    ]


def _number(value: float, digits: int = 9) -> float:
    """Rounded; nine digits tell every float32 apart. No negative zero."""
    return float(f"{value:.{digits}g}") + 0.0


def _summary(
    rows: Sequence[ExplainedRow], recipe: Recipe, renderer: PromptRenderer
) -> dict[str, Any]:
    """Counts and means over all rows, flat; shares of the loss weight over the kept ones."""
    trajectories = [row.trajectory for row in rows]
    rewards = [t.reward for t in trajectories if t.reward is not None]
    graded = [reward.correct for reward in rewards if reward.correct is not None]
    kept = [row for row in rows if not row.dropped]
    shares: Counter[str] = Counter()
    for row in kept:
        for segment in _segment_records(row):
            shares[segment["kind"]] += segment["weight"] * segment["num_tokens"]
    total = sum(shares.values())
    return {
        "recipe": recipe.name,
        "weighting": recipe.weighting,
        "rows": len(rows),
        "rows_kept": len(kept),
        "groups": len({t.group_id for t in trajectories}),
        "groups_kept": len({row.trajectory.group_id for row in kept}),
        "steps": len({row.step for row in rows}),
        "accuracy": float(np.mean(graded)) if graded else None,
        **reward_metrics(rewards),
        **mean_metrics(trajectories, renderer.format),
        "truncated": float(np.mean([t.finish == "length" for t in trajectories])),
        "tokens": sum(t.num_response_tokens for t in trajectories),
        "tokens_kept": sum(row.trajectory.num_response_tokens for row in kept),
        **{f"loss_share/{kind}": _number(share / total) for kind, share in shares.items()},
        **({"kl": None} if recipe.loss.terms.kl_coefficient else {}),
    }


def _notes(rows: Sequence[ExplainedRow], recipe: Recipe, absent: Sequence[str]) -> list[str]:
    """What the numbers mean where it is not plain, and what a model would have to give."""
    credit, rule = recipe.credit(), recipe.advantage
    notes = [
        f"baseline is that of the credit rule {type(credit).__name__}",
        "advantage and weight are of each token; a step is one minibatch",
    ]
    if credit.ignores_scale:
        notes.insert(1, "advantage is divided by the standard deviation of the group's rewards")
    if any(row.dropped for row in rows):
        notes.append("dropped groups have the advantages of a step that keeps them, and weight 0")
    if rule.kind == "gae":
        notes.append("the critic's values are 0; advantage (gae) is the mean over a segment")
    if rule.whiten:
        notes.append("advantages are whitened over the tokens of the step")
    notes += [f"the term {name} is null: it needs the reward model" for name in absent]
    terms = recipe.loss.terms
    if terms.kl_coefficient:
        notes.append(
            f"kl (kl_coefficient {terms.kl_coefficient:g}) is null: it needs the policy and its "
            "reference"
        )
    if terms.importance != "none":
        notes.append("importance weights are 1: they need the policy and its engine")
    return notes


def _table(row: ExplainedRow, colours: Mapping[str, str]) -> Table:
    segments = _segment_records(row)
    names = ["reward", "baseline", "advantage", "num_tokens", "weight"]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    has_verdicts = any(segment["verdict"] is not None for segment in segments)
    table.add_column("kind")
    for name in names:
        table.add_column(name.removeprefix("num_"), justify="right")
    if has_verdicts:
        table.add_column("verdict")
    table.add_column("text", overflow="fold")
    for segment in segments:
        cells = [Text(segment["kind"], style=colours.get(segment["kind"], ""))]
        cells += [Text(_shown(segment[name])) for name in names]
        if has_verdicts:
            cells.append(Text(_shown(segment["verdict"])))
        table.add_row(*cells, Text(segment["text"]))
    return table


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "null" if value is None else str(value)


def _where(step: tuple[str, int]) -> str:
    stage, number = step
    return f"{stage}{' ' * bool(stage)}step {number}: "


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
