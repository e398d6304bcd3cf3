# SPDX-License-Identifier: Apache-2.0
"""The verb explain against numbers worked by hand: the puzzle of the README, and small steps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satori_fast.algorithms.credit import CreditRule
from satori_fast.algorithms.recipe import RECIPES
from satori_fast.config import Config, ConfigError, load_config
from satori_fast.data.rollout_rows import read_rollout_rows
from satori_fast.stages.explain import _explain_rows, _renderer, _rewards, explain
from satori_fast.types import Credit, Trajectory
from tests.evaluation.test_verification import GROUP

ROOT = Path(__file__).parents[2]
PUZZLE = ROOT / "docs" / "puzzle.jsonl"
QUESTION = {"question": "p 1 q 9 r 2 s 7 t 4 pick 3 sum 14", "answer": "p q t"}
RIGHT, WRONG = r"\boxed{ p q t }", r"\boxed{ p q r }"


def config_of(*overrides: str) -> Config:
    return load_config(ROOT / "configs" / "quickstart.toml", ["--reward.num_workers=0", *overrides])


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def records(file: Path, *overrides: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in explain(config_of(*overrides), file).json_lines()]


def column(record: dict[str, Any], name: str) -> list[float]:
    return [segment[name] for segment in record["segments"]]


def row(response: str, **more: Any) -> dict[str, Any]:
    return {**QUESTION, "response": response, **more}


# Rewards 0, -1, -1, -1: mean -3/4, standard deviation 1/2.
@pytest.mark.parametrize(
    ("recipe", "baselines", "advantages"),
    [
        ("grpo", (-0.75, -0.75), (0.75 / (0.5 + 1e-6), -0.25 / (0.5 + 1e-6))),
        ("grpo_no_std", (-0.75, -0.75), (0.75, -0.25)),
        ("rloo", (-1.0, -2 / 3), (1.0, -1 / 3)),
    ],
)
def test_the_puzzle_by_hand(
    recipe: str, baselines: tuple[float, float], advantages: tuple[float, float]
) -> None:
    *rows, last = records(PUZZLE, "--reinforce.recipe", recipe, "--reinforce.weighting", "sequence")
    lengths = (42, 9, 20, 24)
    for number, (record, length) in enumerate(zip(rows, lengths, strict=True)):
        one = int(number > 0)
        assert record["terms"] == {"rule": -one, "reflection": 0} and record["total"] == -one
        assert (record["correct"], record["kept"]) == (not one, True)
        assert column(record, "reward") == pytest.approx([-one] * len(record["segments"]))
        for name, expected in (("baseline", baselines[one]), ("advantage", advantages[one])):
            assert column(record, name) == pytest.approx(
                [expected] * len(record["segments"]), abs=1e-6
            )
        assert sum(column(record, "num_tokens")) == length
        # A mean over responses of means over tokens: 95 tokens in 4 responses.
        assert column(record, "weight") == pytest.approx(
            [95 / 4 / length] * len(record["segments"])
        )
    kinds = ["continue", "continue", "reflect", "explore", "continue", "continue", "reflect"]
    assert [segment["kind"] for segment in rows[0]["segments"]] == kinds
    assert "".join(segment["text"] for segment in rows[1]["segments"]) == f"p q<|continue|> {WRONG}"
    summary = last["summary"]
    assert (summary["rows"], summary["groups"], summary["tokens"]) == (4, 1, 95)
    assert (summary["accuracy"], summary["reflections_per_answer"]) == (0.25, 1.0)
    # Each response has a quarter of the loss.
    explored = (2 / 42 + 2 / 24) / 4
    assert summary["loss_share/explore"] == pytest.approx(explored)


@pytest.mark.parametrize("weighting", ["token", "segment", "fixed"])
def test_weights_are_those_of_one_minibatch(weighting: str, tmp_path: Path) -> None:
    file = written(tmp_path / "r.jsonl", row(RIGHT), row(f"p<|continue|> {WRONG}"))
    right, wrong, _ = records(
        file, "--reinforce.weighting", weighting, "--reinforce.fixed_length", "16"
    )
    lengths = [column(right, "num_tokens"), column(wrong, "num_tokens")]
    assert lengths == [[6], [1, 7]]
    expected = {
        "token": [[1], [1, 1]],
        "segment": [[7 / 6], [7 / 2, 7 / 2 / 7]],
        "fixed": [[7 / 16], [7 / 16, 7 / 16]],
    }[weighting]
    assert column(right, "weight") == pytest.approx(expected[0])
    assert column(wrong, "weight") == pytest.approx(expected[1])


def test_dropped_groups_say_why_and_weigh_nothing(tmp_path: Path) -> None:
    other = {"question": "another question", "answer": "3"}
    file = written(
        tmp_path / "r.jsonl",
        row(WRONG),
        row(RIGHT, **other),
        row(RIGHT),
        row(WRONG),
        row(RIGHT, **other),
        row(RIGHT, question="a third"),
    )
    *rows, last = records(file)
    assert [record["kept"] for record in rows] == [True, False, True, True, False, False]
    assert [record.get("reason") for record in rows] == [
        None,
        "all 2 rewards of its group are -1",
        None,
        None,
        "all 2 rewards of its group are -1",
        "alone in its group",
    ]
    assert [column(record, "weight") for record in rows] == [[1], [0], [1], [1], [0], [0]]
    assert [column(record, "advantage")[0] for record in rows] == pytest.approx(
        [-0.577349, 0, 1.154698, -0.577349, 0, 0], abs=1e-6
    )
    assert (last["summary"]["groups"], last["summary"]["groups_kept"]) == (3, 1)
    assert last["summary"]["tokens_kept"] == 18


def test_responses_that_were_cut_are_masked_or_fined(tmp_path: Path) -> None:
    file = written(tmp_path / "r.jsonl", row(RIGHT), row(WRONG), row(RIGHT, finish="length"))
    *rows, last = records(file, "--reinforce.truncated=mask")
    assert [record["kept"] for record in rows] == [True, True, False]
    assert rows[2]["reason"] == "cut at the length limit (reinforce.truncated)"
    assert column(rows[2], "weight") == [0] and last["summary"]["groups_kept"] == 1
    fined = records(file, "--reinforce.truncated=penalty")[:-1]
    assert [record["terms"]["overlong"] for record in fined] == [0, 0, -1]


class Remembering(CreditRule):
    """The baseline is the mean total of all steps before."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def assign(self, trajectories: Sequence[Trajectory]) -> list[Credit]:
        totals = [t.reward.total for t in trajectories if t.reward is not None]
        baseline = np.float32(np.mean(self.seen) if self.seen else 0.0)
        self.seen += totals
        return [
            Credit(np.full(len(t.segments), total, np.float32), np.full(len(t.segments), baseline))
            for t, total in zip(trajectories, totals, strict=True)
        ]


def test_steps_are_taken_in_order_and_a_rule_remembers_what_was_kept(tmp_path: Path) -> None:
    file = written(
        tmp_path / "r.jsonl",
        row(RIGHT, step=7),
        row(WRONG, step=7),
        row(RIGHT, step=2),
        row(RIGHT, step=2),
        row(RIGHT, step=2, question="another"),
        row(WRONG, step=2, question="another"),
        row(RIGHT, step=0, stage="later"),
        row(WRONG, step=0, stage="later"),
    )
    config = config_of()
    recipe = replace(RECIPES["grpo"], credit=Remembering)
    renderer = _renderer(config)
    rows = read_rollout_rows(file, renderer)
    with _rewards(config, renderer) as rewards:
        explained = _explain_rows(rows, recipe, rewards, fixed_length=1)
    assert [own.row.number for own in explained] == [*range(1, 9)]
    # Of step 2 the two rows of a group of one reward are not remembered: 0 and -1 are.
    baselines = [float(own.signal.baselines[0]) for own in explained]
    assert baselines == [-0.5, -0.5, 0, 0, 0, 0, 0, 0]
    assert [bool(own.dropped) for own in explained] == [False] * 2 + [True] * 2 + [False] * 4


def test_gae_of_a_critic_that_knows_nothing(tmp_path: Path) -> None:
    file = written(tmp_path / "r.jsonl", row(f"p<|continue|> {WRONG}"), row(RIGHT))
    wrong, right, last = records(file, "--reinforce.recipe", "ppo")
    # -1 at the last of 8 tokens, gamma 1 and lambda 0.95: -0.95^k, k tokens before the end.
    raw = np.array([*-(0.95 ** np.arange(7, -1, -1)), *np.zeros(6)])
    whitened = (raw - raw.mean()) / raw.std()
    assert column(wrong, "advantage") == pytest.approx(
        [whitened[0], whitened[1:8].mean()], abs=1e-5
    )
    assert column(right, "advantage") == pytest.approx([whitened[-1]], abs=1e-5)
    assert (column(wrong, "reward"), column(wrong, "baseline")) == ([0, -1], [0, 0])
    assert (
        "the critic's values are 0; advantage (gae) is the mean over a segment"
        in (last["summary"]["notes"])
    )


def test_terms_that_need_a_model_are_null_and_named(tmp_path: Path) -> None:
    file = written(tmp_path / "r.jsonl", row(RIGHT), row(WRONG))
    right, _, last = records(
        file,
        *("--reward.preference_weight=0.5", "--reward.model=/nowhere", "--reinforce.recipe=rloo"),
    )
    assert right["terms"] == {"rule": 0, "reflection": 0, "preference": None}
    assert right["total"] == 0
    assert last["summary"]["kl"] is None and last["summary"]["reward/preference"] is None
    named = " ".join(last["summary"]["notes"])
    assert "preference is null" in named and "0.01, in the loss) is null" in named


def test_restarts_earn_the_bonus_and_finish_length_has_no_end(tmp_path: Path) -> None:
    start = {"prefix": f"{WRONG}<|reflect|>", "prefix_correct": False}
    file = written(
        tmp_path / "r.jsonl",
        row(f"over<|explore|> less<|continue|> {RIGHT}", **start),
        row("right", **start),
        row("right", finish="length", **start),
        row("right", prefix=f"{WRONG}<|reflect|>"),
    )
    *rows, last = records(file)
    assert rows[0]["terms"] == {"rule": 0, "reflection": 0.5}
    assert [segment["kind"] for segment in rows[1]["segments"]] == ["reflect"]
    assert [column(record, "num_tokens") for record in rows[1:]] == [[2], [1], [2]]
    assert last["summary"]["groups"] == 1 and last["summary"]["truncated"] == 0.25


def test_a_response_of_a_format_without_actions_is_one_segment(tmp_path: Path) -> None:
    file = written(
        tmp_path / "r.jsonl", row(RIGHT, prefix="p q", target="p"), row(WRONG, prefix="p q")
    )
    for record in records(file, "--data.format=plain", "--stages=['reinforce']")[:-1]:
        assert [segment["kind"] for segment in record["segments"]] == ["whole"]
        assert record["segments"][0]["verdict"] is None


def test_verdicts_of_a_group_are_counted_in_the_summary(tmp_path: Path) -> None:
    problem = {"question": "p 7 q 1 r 9 pick 2 sum 8", "answer": "p q"}
    file = written(tmp_path / "r.jsonl", *({**problem, "response": text} for text in GROUP))
    trials = ("--data.format=trials", "--stages=['reinforce']")
    summary = records(file, *trials)[-1]["summary"]
    assert summary == summary | {
        "verification_accuracy": pytest.approx(0.666667, abs=1e-6),
        "error_recall": 0.5,
        "correct_precision": 0.5,
        "wrong_to_right": pytest.approx(1 / 3),
        "right_to_wrong": 0.0,
        "trials": 1.5,
        "num_verifications": 6,
        "num_on_wrong": 4,
        "num_accepted": 4,
        "num_first_wrong": 3,
        "num_first_right": 1,
    }
    alone = written(tmp_path / "s.jsonl", {**problem, "response": r"\boxed{ p q }"})
    unverified = records(alone, *trials)[-1]["summary"]
    assert unverified["verification_accuracy"] is None and unverified["right_to_wrong"] == 0.0
    assert "verification_accuracy" not in records(PUZZLE)[-1]["summary"]


def test_own_functions_give_their_terms(tmp_path: Path) -> None:
    code = "def length(trajectories):\n    return [t.num_response_tokens for t in trajectories]\n"
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    file = written(tmp_path / "r.jsonl", row("p", answer=None), row("p q", answer=None))
    functions = f"[{{path = '{tmp_path}/mine.py:length', weight = 0.5}}]"
    short, long, last = records(
        file,
        *("--reward.rule_weight=0", "--reward.reflection_bonus=0"),
        *("--reward.functions", functions, "--reinforce.recipe=grpo_no_std"),
    )
    assert (short["terms"], long["terms"]) == ({"length": 1}, {"length": 1.5})
    assert (short["correct"], last["summary"]["accuracy"]) == (None, None)
    assert column(long, "advantage") == [0.25]


def test_lines_of_samples_are_rows(tmp_path: Path) -> None:
    sample = {
        "stage": "reinforce",
        "step": 3,
        "problem_id": "p-1",
        "prefix": None,
        "prefix_segments": [],
        "target": None,
        "correct": True,
        "reward": {"rule": 0.0, "total": 0.0},
        "finish": "stop",
    } | QUESTION
    pieces = [{"kind": "continue", "text": "p q", "colour": None}]
    file = written(
        tmp_path / "samples.jsonl",
        {**sample, "segments": [*pieces, {"kind": "continue", "text": f"<|continue|> {RIGHT}"}]},
        {**sample, "segments": pieces},
    )
    right, wrong, _ = records(file)
    assert (right["correct"], wrong["correct"], right["kept"]) == (True, False, True)
    assert column(right, "num_tokens") == [2, 7] and column(wrong, "num_tokens") == [3]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "row 2: not valid JSON"),
        ("[1]", "row 2: "),
        ('{"response": "p"}', "row 2: it has no question: add one"),
        ('{"question": "p", "answer": "p"}', "row 2: it has no response: add one"),
        ('{"question": "p", "response": 3}', "row 2: response is 3: write a text"),
        ('{"question": "p", "response": "p", "step": "a"}', "row 2: step is 'a': write a whole"),
        ('{"question": "p", "response": "p", "finish": "eos"}', "row 2: finish is 'eos': write"),
        ('{"question": "p", "response": "p", "prefix_correct": "no"}', "row 2: prefix_correct is"),
        ('{"question": "p", "response": "", "finish": "length"}', "row 2: an empty response"),
        ('{"question": "p", "segments": {}}', "row 2: segments is no list"),
        ('{"question": "p", "response": "p"}', "row 2: no answer to grade against"),
    ],
)
def test_a_row_that_cannot_be_read_is_one_line(line: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(f"{json.dumps(row(RIGHT))}\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        explain(config_of(), file)
    message = str(caught.value)
    assert str(file) in message and what in message and "\n" not in message


def test_files_without_rows(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="has no row"):
        explain(config_of(), tmp_path / "r.jsonl")
    with pytest.raises(ConfigError, match="does not exist"):
        explain(config_of(), tmp_path / "none.jsonl")


def test_unknown_words_are_taken_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = written(tmp_path / "r.jsonl", row("hello"), row(RIGHT))
    assert len(records(file)) == 3
    assert "row 1: the tokenizer does not know the word 'hello'" in caplog.text


def test_no_model_is_loaded_and_no_folder_made(tmp_path: Path) -> None:
    # A model folder without weights: its tokenizer is enough.
    _renderer(config_of()).tokenizer.save_pretrained(tmp_path / "model")
    program = (
        "import sys; from satori_fast.cli import main; code = main(sys.argv[1:]);"
        "assert not any(m.startswith(('transformers.models.qwen2.modeling', 'vllm')) for m in"
        " sys.modules), 'a model'; sys.exit(code)"
    )
    words = ["explain", str(ROOT / "configs" / "quickstart.toml"), str(PUZZLE), "--json"]
    words += ["--model.path", str(tmp_path / "model"), "--tokenizer.kind", "model"]
    result = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
