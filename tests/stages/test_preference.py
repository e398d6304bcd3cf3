# SPDX-License-Identifier: Apache-2.0
"""The preference stage on samples that are easy to tell apart: it learns, resumes and exports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from satori_fast.config import ConfigError
from satori_fast.data.tokenizer import load_tokenizer
from satori_fast.evaluation.best_of import SelectionResult
from satori_fast.profiling.metrics import MetricsWriter, read_metrics
from satori_fast.stages.outcome import StageOutcome
from satori_fast.stages.preference import is_better, preference, preference_data
from satori_fast.storage import sealed_line, unsealed
from satori_fast.types import StepReport
from tests.stages.preference_run import NUM_PROBLEMS, NUM_SAMPLES, at_stage, open_run

NUM_HELDOUT = NUM_PROBLEMS // 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StageOutcome]:
    """The run folder and what the stage left."""
    folder = tmp_path_factory.mktemp("preference")
    with open_run(folder) as run:
        outcome = preference(at_stage(run), run.folder, run.books)
        run.finish_stage("preference", outcome)
    return folder / "tiny", outcome


def test_pairs_and_heldout_problems_are_disjoint(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        context = at_stage(run)
        engine = context.engine(context.model_folders.policy(context.policy_folder))
        data = preference_data(
            context.solver(run.folder, run.books).solutions(engine, name="initial"),
            context.config.preference,
            num_problems=NUM_PROBLEMS,
            eos_id=context.renderer.eos_id,
            rng=context.seeds.rng("pairs"),
        )
    heldout = {t.problem.problem_id for group in data.heldout for t, _ in group}
    training = [pair.chosen.problem.problem_id for pair in data.pairs]
    assert len(heldout) == NUM_HELDOUT and heldout.isdisjoint(training)
    assert all(len(group) == NUM_SAMPLES for group in data.heldout)
    # 24 problems, 6 held out; of the 18 others two have wrong samples only.
    assert len(set(training)) == 16 and len(training) == 64


def test_the_reward_model_learns_to_choose(trained: tuple[Path, StageOutcome]) -> None:
    folder, outcome = trained
    figures = outcome.figures
    # A third of the samples are right, and one of the six held-out problems has none.
    assert figures["ceiling"] == pytest.approx(5 / 6)
    assert figures["mean"] == pytest.approx(5 / 6 / 3)
    assert figures["best_of_n"] == pytest.approx(5 / 6)
    assert figures["pair_accuracy"] > 0.95
    assert (figures["num_pairs"], figures["num_heldout"]) == (64, NUM_HELDOUT)
    assert outcome.models == {"reward": folder / "models" / "preference"}
    assert outcome.evaluation is None


def test_metrics_of_the_steps(trained: tuple[Path, StageOutcome]) -> None:
    lines = read_metrics(trained[0] / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(16))  # 4 epochs of 64 pairs, 16 a step
    first, last = lines[0], lines[-1]
    # A new head scores everything 0: all pairs tied, each -log sigmoid(-2).
    assert first["preference/loss"] == pytest.approx(np.log1p(np.exp(2.0)))
    assert (first["preference/accuracy"], first["preference/margin"]) == (0.5, 0.0)
    assert last["preference/accuracy"] > 0.9 and last["preference/margin"] > 1.0
    assert last["preference/loss"] < 0.7 * first["preference/loss"]
    for name in ("learning_rate", "grad_norm"):
        assert last[f"preference/{name}"] > 0
    assert {"update/tokens_per_s", "step/tokens_per_s"} <= last.keys()
    validated = [line["step"] for line in lines if "preference/heldout_best_of_n" in line]
    assert validated == [5, 11, 15]
    assert lines[5]["validate/tokens"] > 0


def test_transformers_gives_the_same_scores(trained: tuple[Path, StageOutcome]) -> None:
    from transformers import AutoModelForSequenceClassification

    folder, outcome = trained
    model = AutoModelForSequenceClassification.from_pretrained(outcome.models["reward"]).eval()
    tokenizer = load_tokenizer(outcome.models["reward"])
    rows = [json.loads(line) for line in (folder / "solutions" / "initial.jsonl").open()]
    scores = []
    with torch.no_grad():
        for row in rows[: NUM_HELDOUT * NUM_SAMPLES]:
            prompt = tokenizer.encode(f"{row['question']}\n", add_special_tokens=False)
            response = row["response_ids"]
            if row["finish"] == "length":  # scored as if it had ended there
                response = [*response[:-1], tokenizer.eos_token_id]
            scores.append(float(model(torch.tensor([prompt + response])).logits[0, 0]))
    # The statistics are those of the held-out candidates' scores at the exported step.
    assert model.config.mean == pytest.approx(np.mean(scores), abs=1e-4)
    assert model.config.std == pytest.approx(np.std(scores), abs=1e-4)
    assert outcome.figures["score_mean"] == pytest.approx(np.mean(scores), abs=1e-4)


class DyingWriter(MetricsWriter):
    """Stops the run at step 11, whose validation is done and whose checkpoint is not written."""

    def write(self, report: StepReport) -> None:
        if report.step == 11:
            raise KeyboardInterrupt
        super().write(report)


def test_an_interrupted_stage_resumes_to_the_same_bits(
    trained: tuple[Path, StageOutcome], tmp_path: Path
) -> None:
    with open_run(tmp_path) as run:
        assert run.books.writer is not None
        run.books.writer.close()
        run.books.writer = DyingWriter(run.folder.path)
        with pytest.raises(KeyboardInterrupt):
            preference(at_stage(run), run.folder, run.books)
    with open_run(tmp_path, resume=True) as run:
        outcome = preference(at_stage(run), run.folder, run.books)
    assert outcome.figures == trained[1].figures
    for name in ("model.safetensors", "config.json"):
        resumed = tmp_path / "tiny" / "models" / "preference" / name
        assert resumed.read_bytes() == (trained[0] / "models" / "preference" / name).read_bytes()
    losses = [
        [line["preference/loss"] for line in read_metrics(folder / "metrics.jsonl")]
        for folder in (trained[0], tmp_path / "tiny")
    ]
    assert losses[0] == losses[1]


def test_nothing_to_compare_is_said_before_training(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        samples = run.folder.path / "solutions" / "initial.jsonl"
        rows = [unsealed(line, "samples") for line in samples.read_bytes().splitlines()]
        samples.write_text("".join(sealed_line({**row, "correct": False}) for row in rows))
        with pytest.raises(ConfigError, match=r"no training problem .* right and wrong samples"):
            preference(at_stage(run), run.folder, run.books)


def test_a_pair_must_fit_into_a_microbatch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"below 160: two sequences of rollout\.max_seqlen"):
        open_run(tmp_path, "--packing.max_tokens_per_microbatch", "159")


def test_the_best_is_chosen_by_best_of_n_then_by_pairs() -> None:
    def result(best_of_n: float, pair_accuracy: float) -> SelectionResult:
        return SelectionResult(best_of_n, 0.2, 0.9, pair_accuracy, 0.0, 1.0)

    best = result(0.6, 0.7)
    assert is_better(best, None)
    assert is_better(result(0.7, 0.5), best) and not is_better(result(0.5, 0.9), best)
    assert is_better(result(0.6, 0.8), best) and not is_better(result(0.6, 0.7), best)
