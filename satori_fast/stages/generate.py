# SPDX-License-Identifier: Apache-2.0
"""Responses of a model folder to questions of one's own, without data and without a run folder."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from satori_fast.config import Config, ConfigError
from satori_fast.data.prompts import full_response
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.rollout.engine import SamplingParams, collect
from satori_fast.stages.engines import EngineProvider, check_engine
from satori_fast.stages.models import ModelFolders, initial_model_folder
from satori_fast.stages.setup import build_renderer, join_ranks, write_tokenizer
from satori_fast.types import Problem


def generate_texts(
    config: Config,
    questions: Sequence[str],
    *,
    num_samples: int,
    temperature: float,
    seed: int,
) -> list[list[str]]:
    """`num_samples` responses of `config.model` to each question, sampled by the config's engine.

    temperature: 0 is greedy. ConfigError without `model.path`, and for a question that is too long.
    """
    if config.model.path is None:
        raise ConfigError("generate: model.path is not set: name a model folder")
    check_engine(config.rollout)
    parallel = join_ranks(config)
    sampling = SamplingParams(
        temperature=temperature,
        top_k=config.rollout.top_k,
        top_p=config.rollout.top_p,
        max_new_tokens=config.rollout.max_new_tokens,
        num_samples=num_samples,
        seed=seed,
    )
    problems = [Problem(f"question {i}", text, None) for i, text in enumerate(questions)]
    with tempfile.TemporaryDirectory() as own_folder:
        # All ranks work in the folder of the first one.
        folder = Path(parallel.all_gather(own_folder)[0])
        tokenizer = folder / "tokenizer"
        parallel.on_main(lambda: write_tokenizer(config, tokenizer))
        models = ModelFolders(
            build_renderer(config, tokenizer),
            tokenizer,
            dtype=config.model.dtype,
            recompute="none",
            max_seqlen=config.rollout.max_seqlen,
        )
        policy = models.policy(initial_model_folder(config, folder))
        provider = EngineProvider(
            config.rollout,
            run_name=config.name,
            dtype=config.model.dtype,
            folder=folder,
            parallel=parallel,
            spans=SpanRecorder(device=parallel.device, rank=parallel.rank),
        )
        try:
            engine = provider.serve(policy, models.renderer, version=0)
            answered = collect(engine, problems, sampling).trajectories
        except ValueError as error:
            raise ConfigError(f"generate: {error}") from None
        finally:
            provider.close()
    texts = [full_response(trajectory) for trajectory in answered]
    return [texts[i : i + num_samples] for i in range(0, len(texts), num_samples)]
