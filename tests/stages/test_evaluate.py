# SPDX-License-Identifier: Apache-2.0
"""The verb eval: the accuracy of a model folder, and no run folder left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from satori_fast.config import ConfigError
from satori_fast.data.arithmetic import domain_words
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.profiling.metrics import read_metrics
from satori_fast.profiling.report_runs import read_run
from satori_fast.stages import run_stages
from satori_fast.stages.evaluate import evaluate_model
from satori_fast.stages.iterate import plan_stages
from satori_fast.stages.run import build_run
from tests.stages.test_run import tiny_config
from tests.tiny_models import tiny_model


def test_a_model_folder_is_evaluated_as_in_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = build_word_tokenizer(domain_words())
    model = tiny_model("qwen2", vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=0)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = ("--tokenizer.kind", "model", "--model.path", f"'{tmp_path / 'model'}'")
    config = tiny_config(tmp_path, *options)
    result = evaluate_model(config)
    assert not (tmp_path / "tiny").exists()
    shown = capsys.readouterr()
    assert f"accuracy {result.accuracy:.1%}" in shown.out
    assert "evaluate 20/20 (100 %)" in shown.err and "evaluate" not in shown.out
    with build_run(config) as run:
        context = run.context(plan_stages(config)[0])
        policy = context.model_folders.policy(tmp_path / "model")
        within = context.evaluator(run.books).evaluate(context.engine(policy))
    assert result.num_problems == within.num_problems == 20
    assert [t.tokens.tolist() for t in result.rollout.trajectories] == [
        t.tokens.tolist() for t in within.rollout.trajectories
    ]
    assert result.correct == within.correct


def test_an_evaluation_is_kept_as_a_folder_that_reports_read(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "--name", "before", "--profiling.measure_peaks", "false")
    result = evaluate_model(config, keep=True)
    summary = json.loads((tmp_path / "before" / "summary.json").read_text())
    (stage,) = summary["stages"]
    assert (stage["stage"], stage["accuracy"]) == ("eval", result.accuracy)
    assert stage["num_problems"] == 20 and (tmp_path / "before" / "report.html").exists()
    (line,) = read_metrics(tmp_path / "before" / "metrics.jsonl")
    assert line["eval/no_answer"] == result.no_answer
    record = read_run(tmp_path / "before")
    assert record.summary["stages"][0]["stage"] == "eval" and len(record.samples) == 8
    with pytest.raises(ConfigError, match="holds an evaluation, which has no stages"):
        run_stages(config, resume=True)
    with pytest.raises(ConfigError, match="holds a run"):
        evaluate_model(config, keep=True)
