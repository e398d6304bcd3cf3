# SPDX-License-Identifier: Apache-2.0
"""Format tuning: which demonstrations are imitated, from where, and what a step does with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from satori_fast.backbone.parallel import initialize_parallel
from satori_fast.backbone.step import build_learner
from satori_fast.config import Config, ConfigError, OptimizerConfig
from satori_fast.data.chains import parse_chain, solution_text
from satori_fast.data.domains import DOMAINS
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.experience.demonstrations import DemonstrationSource
from satori_fast.profiling.metrics import read_metrics
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.stages import run_stages
from satori_fast.stages.models import optimizer_settings
from satori_fast.stages.run import build_run
from satori_fast.stages.supervised import (
    Imitation,
    demonstration_sources,
    load_trajectories,
    supervised_step,
)
from satori_fast.stages.trainer import StepResult
from satori_fast.types import Problem, Segment, SegmentKind, Trajectory
from tests.stages.test_run import timeless, tiny_config
from tests.tiny_models import imitation_reference, tiny_model

WORDS = [f"w{i}" for i in range(60)]
RENDERER = PromptRenderer(build_word_tokenizer(WORDS), PLAIN_TEMPLATE, max_prompt_tokens=6)
# Question and solution, in words.
ROWS = [
    ("w0 w1", "w2 w3"),
    ("w4", "w5 w6 w7"),
    ("w8 w9 w10", "w11"),
    ("w0  W1 w1 w1 w1 w1 w1", "w2"),  # beyond the prompt limit
    ("w12", " ".join(WORDS[:40])),  # beyond the context
]
PROBLEMS = [Problem(str(n), question, "1") for n, (question, _) in enumerate(ROWS)]


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "demonstrations.jsonl"
    rows = [{"question": q, "answer": "1", "response": r} for q, r in ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def loaded(source: str, *, heldout: int = 2, own_data: bool = False) -> list[Trajectory]:
    """The problem of that number is held out, the first is the only one that is trained on."""
    return load_trajectories(
        source,
        "coat",
        RENDERER,
        problems=PROBLEMS[:1],
        heldout=PROBLEMS[heldout : heldout + 1],
        max_seqlen=30,
        own_data=own_data,
    )


def test_heldout_and_long_demonstrations_are_left_out(
    source: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert [t.problem.question for t in loaded(source)] == ["w0 w1", "w4"]
    # The two beyond a limit are counted together.
    assert "of 5 demonstrations 1 are for problems not trained on, 2 exceed" in caplog.text


def test_of_the_runs_own_data_only_training_problems_are_imitated(source: str) -> None:
    assert [t.problem.question for t in loaded(source, own_data=True)] == ["w0 w1"]
    with pytest.raises(ConfigError, match=r"leaves no demonstration within rollout\.max_seqlen"):
        loaded(source, heldout=0, own_data=True)


def named(config: Config, written: Path | None) -> list[tuple[str, str | None]]:
    return [(each.source, each.mapping) for each in demonstration_sources(config, written)]


def test_demonstrations_come_from_the_config_then_the_run_then_the_data(tmp_path: Path) -> None:
    alone = ("--stages", "['supervised']")
    own = ("--supervised.source", "own.jsonl", "--supervised.mapping", "gsm8k")
    given = tiny_config(tmp_path, *alone, *own)
    written = tmp_path / "demonstrations.jsonl"
    assert named(given, written) == [(given.supervised.source, "gsm8k")]
    assert named(tiny_config(tmp_path), written) == [(str(written), "coat")]
    with pytest.raises(ConfigError, match="add synthesize to stages before it"):
        named(tiny_config(tmp_path), None)
    options = ("--data.source", "gsm8k.jsonl", "--data.mapping", "gsm8k", "--tokenizer.kind", "bpe")
    data = tiny_config(tmp_path, *alone, *options)
    assert named(data, None) == [(data.data.source, "gsm8k")]
    chains = tiny_config(tmp_path, *alone, "--data.source", "chains")
    assert named(chains, None) == [("chains", None)]


def test_the_expert_of_a_domain_solves_the_training_problems() -> None:
    domain = DOMAINS["chains"]
    problems = domain.problems(6, levels=[4], split="train", seed=0)
    renderer = PromptRenderer(build_word_tokenizer(domain.words()), PLAIN_TEMPLATE, 16)
    heldout, length = [problems[2]], {"max_seqlen": 60, "own_data": True}
    loaded = load_trajectories(
        "chains", None, renderer, problems=problems, heldout=heldout, **length
    )
    assert [t.problem for t in loaded] == [p for p in problems if p != problems[2]]
    for trajectory in loaded:
        assert trajectory.segments[0].text == solution_text(
            parse_chain(trajectory.problem.question)
        )
        assert trajectory.response_tokens[-1] == renderer.eos_id


@pytest.mark.parametrize(("wanted", "trained"), [(20, 20), (50, 30), (None, 30)])
def test_so_many_demonstrations_are_imitated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wanted: int | None, trained: int
) -> None:
    settings = ["--data.source", "chains", "--data.levels", "[4,6]", "--data.num_train", "30"]
    if wanted is not None:
        settings += ["--supervised.num_demonstrations", str(wanted)]
    config = tiny_config(tmp_path, "--stages", "['supervised']", *settings)
    config = config.with_set(supervised=config.supervised.with_set(batch_size=10))
    run_stages(config)
    assert len(read_metrics(tmp_path / "tiny" / "metrics.jsonl")) == trained // 10
    assert ("num_demonstrations = 50, and there are 30" in caplog.text) is (wanted == 50)
    # Held-out chains are reported by their length.
    (entry,) = json.loads((tmp_path / "tiny" / "analysis.json").read_text())["stages"]
    assert [row["label"] for row in entry["by_level"]] == ["4", "6"]


def test_a_step_imitates_responses_and_no_prompts(source: str) -> None:
    initialize_parallel(seed=0)
    model = tiny_model("qwen2_tied", num_hidden_layers=2)
    policy = build_learner(
        model.config,
        weights=model.state_dict(),
        optimizer=optimizer_settings(OptimizerConfig(learning_rate=1e-3), num_steps=1),
    )
    demonstrations = DemonstrationSource(loaded(source), batch_size=2, seed=0)
    packing, spans = PackingSpec(64, num_minibatches=1), SpanRecorder()
    options = {"packing": packing, "span": spans.span, "imitation": Imitation()}
    result = supervised_step(policy, demonstrations, 0, **options)
    batches = pack(result.experience.trajectories, None, packing, "token")
    # Two tokens and three, and the end of both.
    assert sum(int(batch.loss_mask.sum()) for batch in batches) == 7
    expected = imitation_reference(model, batches)
    assert result.stats["update/loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert result.trained == {"policy": policy} and not result.advantages
    moved = dict(policy.hf_weights())
    assert any(not torch.equal(moved[n], w) for n, w in model.state_dict().items() if n in moved)
    assert {"pack", "update"} <= set(spans.end_step().spans_s)


def trials_config(folder: Path, *overrides: str) -> Config:
    """Imitation of trials of the built-in domain, a wrong one before the right one."""
    folder.mkdir()
    fixed = ("--stages", "['supervised']", "--data.format", "trials")
    wrong = r"\boxed{ t u }"
    with build_run(tiny_config(folder, *fixed, "--name", "problems")) as run:
        rows = [
            {
                "question": problem.question,
                "answer": problem.answer,
                "response": rf"{wrong} wait over again \boxed{{ {problem.answer} }} wait right",
            }
            for problem in run.problems
        ]
    source = folder / "trials.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny_config(folder, *fixed, "--supervised.source", f"'{source}'", *overrides)


MASK = ("--supervised.loss", "verify_and_last")
ANCHOR = ("--supervised.kl_coefficient", "0.1")


def test_imitation_with_a_mask_and_an_anchor_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*MASK, *ANCHOR, "--supervised.num_epochs", "2", "--supervised.checkpoint_every", "2")
    whole, cut = (trials_config(tmp_path / name, *options) for name in ("whole", "cut"))
    run_stages(whole)

    def breaks_off(policy: Any, source: Any, step: int, **options: Any) -> StepResult:
        if step == 3:
            raise KeyboardInterrupt
        return supervised_step(policy, source, step, **options)

    with monkeypatch.context() as patch:
        patch.setattr("satori_fast.stages.supervised.supervised_step", breaks_off)
        with pytest.raises(KeyboardInterrupt):
            run_stages(cut)
    run_stages(cut, resume=True)
    lines = read_metrics(tmp_path / "whole" / "tiny" / "metrics.jsonl")
    # At the start the model is the one it is compared with, to the last bit.
    assert lines[0]["update/kl"] == 0.0 and len(lines) == 5
    assert all(line["update/kl"] > 1e-4 for line in lines[1:])
    for line in lines:
        expected = line["update/nll"] + 0.1 * line["update/kl"]
        assert line["update/loss"] == pytest.approx(expected, rel=1e-6)
        assert line["logprob/mfu"] > 0
    name = Path("tiny") / "models" / "supervised" / "model.safetensors"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    metrics = Path("tiny") / "metrics.jsonl"
    assert timeless(tmp_path / "cut" / metrics) == timeless(tmp_path / "whole" / metrics)
    page = (tmp_path / "whole" / "tiny" / "trained_supervised.html").read_text()
    # The wrong solution, four tokens, is not trained.
    assert page.count("10 of 14 tokens trained") == page.count("<article>") > 10


def trial_trajectories() -> list[Trajectory]:
    """Two demonstrations of solve and verify, segments of 2 (wrong), 3, 2, 3 and of 2, 3 tokens."""
    solve, verify = SegmentKind.SOLVE, SegmentKind.VERIFY
    shapes = [[(solve, 2), (verify, 3), (solve, 2), (verify, 3)], [(solve, 2), (verify, 3)]]
    made = []
    for number, shape in enumerate(shapes):
        stops = np.cumsum([length for _, length in shape]).tolist()
        segments = tuple(
            Segment(kind, stop - length, stop, "")
            for (kind, length), stop in zip(shape, stops, strict=True)
        )
        tokens = np.random.default_rng(number).integers(0, 60, 3 + stops[-1]).astype(np.int32)
        logprobs = np.zeros(stops[-1], np.float32)
        made.append(Trajectory(PROBLEMS[0], number, tokens, 3, logprobs, -1, "stop", segments))
    return made


def test_a_masked_step_is_transformers_loss_on_labels_of_the_trained_tokens() -> None:
    """And its KL is that of transformers' logits, to another model, on the same tokens."""
    initialize_parallel(seed=0)
    model, other = (tiny_model("qwen2_tied", num_hidden_layers=n) for n in (2, 1))
    policy = build_learner(
        model.config,
        weights=model.state_dict(),
        optimizer=optimizer_settings(OptimizerConfig(learning_rate=1e-3), num_steps=1),
    )
    start = build_learner(other.config, weights=other.state_dict())
    trajectories = trial_trajectories()
    result = supervised_step(
        policy,
        DemonstrationSource(trajectories, batch_size=2, seed=0),
        0,
        packing=PackingSpec(64, num_minibatches=1),
        span=SpanRecorder().span,
        imitation=Imitation("verify_and_last", start, 0.5),
    )
    nll, kl, num_trained = 0.0, 0.0, 0
    for trajectory, untrained in zip(trajectories, (5, 3), strict=True):
        ids = torch.from_numpy(trajectory.tokens).long()[None]
        labels = ids.clone()
        labels[:, :untrained] = -100  # the prompt of three tokens, and the wrong solution
        count = int((labels >= 0).sum())
        with torch.no_grad():
            nll += count * model(ids, labels=labels).loss.item()
            logp, logq = (
                m(ids).logits[0, untrained - 1 : -1].double().log_softmax(-1)
                for m in (model, other)
            )
        kl += (logp.exp() * (logp - logq)).sum().item()
        num_trained += count
    assert num_trained == 8 + 5
    assert result.stats["update/nll"] == pytest.approx(nll / num_trained, rel=1e-5)
    assert result.stats["update/kl"] == pytest.approx(kl / num_trained, rel=1e-5)
    expected = (nll + 0.5 * kl) / num_trained
    assert result.stats["update/loss"] == pytest.approx(expected, rel=1e-5)
    assert result.start is start and set(result.trained) == {"policy"}
