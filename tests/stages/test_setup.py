# SPDX-License-Identifier: Apache-2.0
"""A model folder of somebody else: its stop tokens, its tokenizer, its weights, through a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from satori_fast.config import Config, load_config
from satori_fast.data.arithmetic import domain_words
from satori_fast.data.coat import META_ACTION_TOKENS, SATORI_TEMPLATE
from satori_fast.data.tokenizer import build_word_tokenizer, load_tokenizer, train_tokenizer
from satori_fast.rollout.engine import SamplingParams
from satori_fast.stages.run import Run, build_run
from satori_fast.stages.setup import build_renderer, learner_for
from satori_fast.types import Trajectory
from tests.stages.test_run import TINY
from tests.tiny_models import tiny_model

TOKENIZER = build_word_tokenizer(domain_words())
GREEDY = SamplingParams(temperature=0, max_new_tokens=20)


def config_of(folder: Path, model: Path, *overrides: str) -> Config:
    path = folder / "tiny.toml"
    path.write_text(TINY)
    options = ("--output_dir", f"'{folder}'", "--tokenizer.kind", "model")
    return load_config(path, [*options, "--model.path", f"'{model}'", *overrides])


def model_in(folder: Path, **generation: Any) -> Path:
    model = tiny_model("qwen2", vocab_size=len(TOKENIZER), eos_token_id=0, pad_token_id=0)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def greedy(run: Run, folder: Path | None = None) -> tuple[Trajectory, ...]:
    engine = run.engine(learner_for(run, "policy", None, weights=folder))
    return run.collect(engine, run.problems[:6], GREEDY).trajectories


def by_transformers(folder: Path, trajectory: Trajectory) -> list[int]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    prompt = torch.tensor(trajectory.tokens[None, : trajectory.prompt_len], dtype=torch.long)
    out = model.generate(prompt, do_sample=False, max_new_tokens=GREEDY.max_new_tokens)
    return out[0, trajectory.prompt_len :].tolist()


@pytest.mark.slow
def test_a_run_stops_where_the_model_stops_and_so_do_its_exports(tmp_path: Path) -> None:
    free = model_in(tmp_path / "free", eos_token_id=0)
    with build_run(config_of(tmp_path, free, "--name", "free")) as run:
        responses = [t.response_tokens.tolist() for t in greedy(run)]
    halt = next(i for i in responses[0][4:] if i > len(META_ACTION_TOKENS) + 1)
    source = model_in(tmp_path / "source", eos_token_id=[0, halt], top_k=7, do_sample=True)
    config = config_of(tmp_path, source, "--name", "run")
    exported = tmp_path / "exported"
    with build_run(config) as run:
        assert run.renderer.stop_ids == (0, halt)
        sampled = greedy(run)
        assert "stop" in {t.finish for t in sampled}
        for trajectory in sampled:
            tokens = trajectory.response_tokens.tolist()
            assert tokens == by_transformers(source, trajectory)
            stopped = tokens[-1] in (0, halt)
            assert trajectory.finish == ("stop" if stopped else "length")
            assert not {0, halt} & set(tokens[:-1])
        run.export(learner_for(run, "policy", None), exported)
    for trajectory in sampled:
        assert by_transformers(exported, trajectory) == trajectory.response_tokens.tolist()
    kept = GenerationConfig.from_pretrained(exported)
    assert (kept.eos_token_id, kept.top_k, kept.do_sample) == ([0, halt], 7, True)
    assert json.loads((exported / "config.json").read_text())["eos_token_id"] == [0, halt]
    # A resumed run, and one that starts from the export, stop there too.
    with build_run(config, resume=True) as run:
        assert run.renderer.stop_ids == (0, halt)
    with build_run(config_of(tmp_path, exported, "--name", "next")) as run:
        assert run.renderer.stop_ids == (0, halt)
        again = [t.response_tokens.tolist() for t in greedy(run)]
        assert again == [t.response_tokens.tolist() for t in sampled]


@pytest.mark.parametrize("kind", ["policy", "scalar"])
def test_damaged_weights_are_refused_with_folder_and_tensor(tmp_path: Path, kind: Any) -> None:
    folder = model_in(tmp_path / "damaged", eos_token_id=0)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with (
        build_run(config_of(tmp_path, folder)) as run,
        pytest.raises(ValueError, match=r"damaged: tensor model\.layers\.0\.mlp\.up_proj\.weight"),
    ):
        learner_for(run, kind, None)


def test_markers_of_the_template_that_are_no_tokens_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path, tmp_path, "--data.template", "satori")
    train_tokenizer([SATORI_TEMPLATE], 300, special_tokens=META_ACTION_TOKENS).save_pretrained(
        tmp_path
    )
    build_renderer(config, tmp_path)
    assert "no single token for <|im_start|>, <|im_end|>" in caplog.text
    assert load_tokenizer(tmp_path).eos_token_id == 0
    caplog.clear()
    build_renderer(config_of(tmp_path, tmp_path, "--data.template", "plain"), tmp_path)
    assert not caplog.text
