# SPDX-License-Identifier: Apache-2.0
"""Small builders from config to parts: ranks, tokenizer, problems, monitor. No loops.

Model folders are `models`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from satori_fast import __version__
from satori_fast.backbone.meeting import Limits
from satori_fast.backbone.parallel import ParallelOptions, ParallelState, initialize_parallel
from satori_fast.config import Config, ConfigError, DataConfig
from satori_fast.data.collection import joined
from satori_fast.data.domains import DOMAINS, Domain, words_of
from satori_fast.data.formats.steps import PAPER_SYSTEM, Steps
from satori_fast.data.problem_file import keep_problems, read_problems
from satori_fast.data.problem_split import fitting, split_problems
from satori_fast.data.prompts import (
    TEMPLATES,
    ChatTemplate,
    PromptRenderer,
    StepPrompts,
    check_chat_template,
    template_named,
)
from satori_fast.data.sources import (
    PoolSource,
    Selection,
    SourceReport,
    check_source,
    load_pool,
    load_problems,
    source_digest,
)
from satori_fast.data.stop_tokens import (
    ids_of_stop_tokens,
    keep_generation_config,
    stop_ids_of,
)
from satori_fast.data.tokenizer import (
    CHAT_TOKENS,
    add_special_tokens,
    build_word_tokenizer,
    has_tokenizer,
    is_word_list,
    load_tokenizer,
    train_tokenizer,
)
from satori_fast.grading import GradingPool
from satori_fast.profiling.device import NvmlSampler
from satori_fast.profiling.memory_growth import MemoryGrowth
from satori_fast.profiling.monitor import StepMonitor
from satori_fast.profiling.peaks import device_peaks
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.profiling.step_tracer import StepTracer, TraceSettings
from satori_fast.stages.models import model_folder
from satori_fast.stages.run_folder import RunFolder
from satori_fast.storage import digests, replaced_folder
from satori_fast.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_MAX_CHECKING_PROCESSES = 8  # of 100 MiB each


def join_ranks(config: Config) -> ParallelState:
    """`initialize_parallel` with the sizes and limits of the config."""
    sizes = config.parallel
    return initialize_parallel(
        sizes.tensor,
        sizes.pipeline,
        config.seed,
        context=sizes.context,
        options=ParallelOptions(
            sizes.chunks,
            sizes.sequence,
            sizes.shard_optimizer,
            sizes.overlap,
            sizes.offload,
        ),
        limits=Limits(sizes.timeout_s, sizes.main_timeout_s),
    )


def check_sources(config: Config) -> None:
    """ConfigError for a data set that cannot be one, before anything is loaded."""
    named: list[tuple[str, str | None]] = [
        ("data.sources" if config.data.sources else "data.source", each.source)
        for each in config.data.pool
    ]
    named += [("data.eval_source", config.data.eval_source)]
    if "srl" in config.stages:
        named += [("srl.expert", config.srl.expert)]
    for key, source in named:
        try:
            if source is not None:
                check_source(source, tuple(DOMAINS) if key == "data.source" else ())
        except (ValueError, OSError) as error:
            raise ConfigError(f"{key}: {error}") from None


def tokenizer_folder(folder: Path) -> Path:
    return folder / "tokenizer"


def make_tokenizer(config: Config, place: RunFolder) -> None:
    """The run's tokenizer, kept in the run folder so that a resumed run has the same ids."""
    saved = tokenizer_folder(place.path)
    if place.has(saved.name):
        return
    write_tokenizer(config, saved)
    place.note(saved)


def write_tokenizer(config: Config, saved: Path) -> None:
    """Leave the tokenizer that the config asks for in the folder `saved`; of a model of the hub
    nothing else is fetched.

    A model keeps the ids that it knows: ConfigError for another kind than its own tokenizer is, and
    where it has none and `tokenizer.kind` is "model".
    """
    special_tokens = config.response_format.special_tokens
    if config.model.path is not None:
        model = model_folder(config.model.path, weights=False)
        if check_kind(config, model):
            keep_tokenizer(model, saved, special_tokens)
            return
    if config.tokenizer.kind == "words":
        tokenizer = build_word_tokenizer(_words(config), special_tokens)
    else:
        tokenizer = train_tokenizer(
            _texts(config),
            config.tokenizer.vocab_size,
            special_tokens=(*CHAT_TOKENS, *special_tokens),
        )
    with replaced_folder(saved) as folder:
        tokenizer.save_pretrained(folder)


def _words(config: Config) -> list[str]:
    """Each word of the built-in domain and of the formats, once."""
    return words_of(config.data.source, (config.response_format, config.step_format))


def check_kind(config: Config, model: Path) -> bool:
    """Whether a model folder has a tokenizer. ConfigError where that is not `tokenizer.kind`."""
    path, kind = config.model.path, config.tokenizer.kind
    if not has_tokenizer(model):
        if kind == "model" and model.is_dir():
            raise ConfigError(
                f"model.path = {path!r} has no tokenizer: copy its tokenizer.json there, or set "
                'tokenizer.kind to "words" (built-in domain) or "bpe" (trained on the data)'
            )
        return kind == "model"
    if kind == "model":
        return True
    known = load_tokenizer(model)
    if kind == "words" and is_word_list(known):
        vocabulary = known.get_vocab()
        if all(word in vocabulary for word in _words(config)):
            return True
    raise ConfigError(
        f'model.path = {path!r} has a tokenizer of its own, and tokenizer.kind = "{kind}" would '
        'give the model foreign ids: take tokenizer.kind out, or set tokenizer.kind = "model"'
    )


def _texts(config: Config) -> Iterator[str]:
    """What a tokenizer of the run learns from: the prompt, questions, answers; of a built-in
    domain, its expert's solutions."""
    yield TEMPLATES[config.data.template].format(question="")
    if (domain := DOMAINS.get(config.data.source)) is not None:
        problems = training_problems(config, domain)
        for demonstration in domain.demonstrations(problems):
            yield f"{demonstration.problem.question} {demonstration.response}"
        return
    for problem in load_pool(pool_of(config.data))[0]:
        yield from (problem.question, problem.answer or "")


def keep_tokenizer(model: Path, folder: Path, special_tokens: Sequence[str]) -> None:
    """Keep the tokenizer of a model folder in `folder`, with the special tokens of the response
    format and what the model stops on."""
    tokenizer = load_tokenizer(model)
    add_special_tokens(tokenizer, special_tokens)
    with replaced_folder(folder) as partial_folder:
        keep_generation_config(model, partial_folder, tokenizer, special_tokens)
        tokenizer.save_pretrained(partial_folder)


def build_renderer(config: Config, folder: Path) -> PromptRenderer:
    """The run's tokenizer, template, format and stop tokens; a warning where a marker is no token.

    ConfigError where they do not go together (`renderer_of`)."""
    renderer = renderer_of(config, load_tokenizer(folder), folder)
    if unknown := renderer.unknown_markers:
        logger.warning(
            'data.template = "%s": the tokenizer has no single token for %s, so a model reads them '
            'as plain text and may not know them: set data.template = "plain", or take a model '
            "whose tokenizer has them",
            config.data.template,
            ", ".join(unknown),
        )
    return renderer


def renderer_of(config: Config, tokenizer: PreTrainedTokenizerBase, folder: Path) -> PromptRenderer:
    """A renderer as the config wants it. ConfigError: a chat template that the tokenizer lacks, a
    stop token that is not one token of it. folder: where the model's stop tokens are named."""
    data, format = config.data, config.response_format
    template = template_named(data.template, data.system)
    steps = step_prompts(config)
    try:
        for each in (template, *([steps.template] if steps else ())):
            if isinstance(each, ChatTemplate):
                check_chat_template(tokenizer, each)
        stop_ids = (
            *stop_ids_of(folder, tokenizer, format.special_tokens),
            *ids_of_stop_tokens(config.rollout.stop_tokens, tokenizer, format.special_tokens),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return PromptRenderer(tokenizer, template, data.max_prompt_tokens, stop_ids, format, steps)


def step_prompts(config: Config) -> StepPrompts | None:
    """Prompts of step problems, None where no steps are asked: with the paper's system message,
    where the template has room for one and no other is set."""
    format = config.step_format
    if format is None:
        return None
    assert isinstance(format, Steps)
    template = config.srl.template or config.data.template
    system = config.srl.system
    if template == "chat" and system is None:
        system = PAPER_SYSTEM
    return StepPrompts(template_named(template, system), format)


def training_problems(config: Config, domain: Domain) -> Sequence[Problem]:
    """The training problems of a built-in domain, as many as the config asks for."""
    data = config.data
    assert data.num_train is not None
    return domain.problems(data.num_train, levels=data.levels, split="train", seed=config.seed)


def build_problems(
    config: Config,
    renderer: PromptRenderer,
    *,
    folder: Path,
    tokenizer: Path,
    parallel: ParallelState,
) -> tuple[Sequence[Problem], Sequence[Problem]]:
    """Training and held-out problems, disjoint; those whose prompt is too long are left out.

    The main process reads, filters and checks a data set once, into the run's `folder`; see
    `data.problem_file`. tokenizer: the folder of the renderer's.
    """
    data = config.data
    domain = DOMAINS.get(data.source)
    if domain is None:
        # "tokenizer_distill" -> "data_distill": other prompts are too long for another tokenizer.
        kept = folder / tokenizer.name.replace("tokenizer", "data", 1)
        books: list[SourceReport] = []
        files = parallel.from_main(
            lambda: keep_problems(
                kept,
                problems_key(config, tokenizer),
                lambda: _read_problems(config, renderer, books),
                skipped=lambda: joined(books).by_reason(),
            )
        )
        return read_problems(kept, files)
    train = training_problems(config, domain)
    # The held-out half does not depend on the seed: runs with different seeds are comparable.
    heldout = domain.problems(
        config.evaluation.num_problems, levels=data.levels, split="heldout", seed=0
    )
    return fitting(train, renderer, what="training"), fitting(heldout, renderer, what="held-out")


def _read_problems(
    config: Config, renderer: PromptRenderer, books: list[SourceReport]
) -> tuple[Sequence[Problem], Sequence[Problem]]:
    """The problems of the data sets, read anew; their answers are checked by killable workers. What
    was skipped of the training sources is added to `books`."""
    data, reward = config.data, config.reward
    with GradingPool(checking_processes(reward.num_workers), reward.timeout_s) as pool:
        load = partial(load_problems, check_answers=pool.check_golds)
        heldout = data.benchmark
        benchmark = partial(load, heldout.source, heldout.read_as) if heldout else None

        def read(*, selection: Selection) -> tuple[list[Problem], SourceReport]:
            problems, report = load_pool(
                pool_of(data), selection=selection, check_answers=pool.check_golds
            )
            books.append(report)
            return problems, report

        return split_problems(
            read,
            benchmark,
            renderer,
            heldout_fraction=data.heldout_fraction,
            num_train=data.num_train,
            num_heldout=config.evaluation.num_problems,
        )


def checking_processes(num_workers: int) -> int:
    """Number of processes that check golds: nothing else works then, so every core may. 0 stays
    0."""
    return num_workers and max(num_workers, min(os.cpu_count() or 1, _MAX_CHECKING_PROCESSES))


def pool_of(data: DataConfig) -> list[PoolSource]:
    """The data sets of the training problems, one or several."""
    return [PoolSource(each.source, each.read_as, each.weight) for each in data.pool]


def problems_key(config: Config, tokenizer: Path) -> dict[str, Any]:
    """All that a data set's problems depend on, for `keep_problems`."""
    data = config.data
    sources = [each.source for each in data.pool]
    sources += [data.eval_source] if data.eval_source is not None else []
    settings = data.model_dump(mode="json", exclude={"levels"})
    return {
        **{f"data.{name}": value for name, value in settings.items()},
        **{f"contents of {name}": source_digest(name) for name in sources},
        "evaluation.num_problems": config.evaluation.num_problems,
        "reward.timeout_s": config.reward.timeout_s,
        "tokenizer": digests(tokenizer),
        "satori_fast": __version__,
    }


def trace_parts(folder: Path) -> Path:
    """Folder in which ranks leave their parts of the trace."""
    return folder / "trace_parts"


def build_monitor(
    config: Config, folder: Path, parallel: ParallelState, spans: SpanRecorder
) -> StepMonitor:
    """Build what measures the steps of this rank."""
    profiling, tracer, growth = config.profiling, None, None
    if profiling.trace:
        settings = TraceSettings(
            first_step=profiling.trace_first_step,
            num_steps=profiling.trace_num_steps,
            stacks=profiling.trace_stacks,
            memory=profiling.trace_memory,
        )
        parts = trace_parts(folder)
        tracer = StepTracer(parts, settings, rank=parallel.rank, device=parallel.device)
    if profiling.watch_host_memory and parallel.is_main:
        growth = MemoryGrowth(limit_share=profiling.host_growth_limit)
    return StepMonitor(
        spans,
        NvmlSampler(parallel.device),
        num_ranks=parallel.world_size,
        gather=parallel.gather_figures,
        peaks=device_peaks(
            parallel.device,
            getattr(torch, config.model.dtype),
            tflops=profiling.peak_tflops,
            bandwidth_gbs=profiling.peak_bandwidth_gbs,
            measure=profiling.measure_peaks,
        ),
        growth=growth,
        tracer=tracer,
    )
