# SPDX-License-Identifier: Apache-2.0
"""The job, the layout and the device of a config.

Lengths that a config does not tell are assumed: a quarter of the longest prompt, half of the
longest response.
"""

from __future__ import annotations

from dataclasses import replace

from satori_fast.config import Config, ConfigError, ImitationConfig, ReinforceConfig
from satori_fast.planning.devices import Device
from satori_fast.planning.job import EnginePlan, Job, Lengths, Role, Stage
from satori_fast.planning.layouts import Layout
from satori_fast.planning.planner import Plan, make_plan, with_servers
from satori_fast.planning.sizes import ModelSizes, sizes_of
from satori_fast.profiling.data_sheets import data_sheet_named
from satori_fast.profiling.flops import ModelShape

PROMPT_SHARE, RESPONSE_SHARE = 0.25, 0.5
_POLICY = Role("policy", "policy", trained=True)
_REFERENCE = Role("reference", "policy", trained=False)
# Products in float32 over those in bfloat16: 67 of 989 TFLOP/s (H100), 19.5 of 312 (A100).
_FLOAT32_SHARE = 1 / 15


def plan_config(config: Config, *, num_gpus: int, gpu: str) -> Plan:
    """The plan of a config on `num_gpus` GPUs of a known name, or "cpu" for processes on this host.
    ConfigError, one line, for what cannot be planned."""
    if num_gpus < 1:
        raise ConfigError(f"command line: --gpus {num_gpus}: take at least 1")
    try:
        device = device_of(gpu, config.model.dtype)
        job = job_of(config, device)
        return make_plan(job, layout_of(config), device, num_gpus)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def device_of(name: str, dtype: str) -> Device:
    """The device of that name, its products of this type."""
    if name.lower() == "cpu":
        return _host(dtype)
    device = Device.of_sheet(data_sheet_named(name))
    return device if dtype == "bfloat16" else device.slower(_FLOAT32_SHARE)


def _host(dtype: str) -> Device:
    """This machine, its speed measured (0.3 s)."""
    import torch

    from satori_fast.profiling.memory_growth import machine_memory
    from satori_fast.profiling.peaks import measured_peaks

    peaks = measured_peaks(torch.device("cpu"), getattr(torch, dtype))
    assert peaks.flops_per_s is not None and peaks.bytes_per_s is not None
    return Device.of_host(
        memory_bytes=machine_memory().total_bytes,
        flops_per_s=peaks.flops_per_s,
        bytes_per_s=peaks.bytes_per_s,
    )


def layout_of(config: Config) -> Layout:
    """The layout of a config, on one copy of the models."""
    parallel = config.parallel
    return Layout(
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        context=parallel.context,
        chunks=parallel.chunks,
        shard_optimizer=parallel.shard_optimizer,
        overlap=parallel.overlap,
        sequence=parallel.sequence,
        offload=parallel.offload,
        recompute=config.model.recompute,
    )


def job_of(config: Config, device: Device) -> Job:
    """The job of a config on devices of this kind. ConfigError where no stage trains a model."""
    stages = tuple(stage for name in config.stages for stage in _stages(config, name))
    if not stages:
        raise ConfigError(
            f"stages = {list(config.stages)} train no model: nothing is to be planned"
        )
    sizes = model_sizes(config)
    return Job(
        name=config.name,
        model=config.model.path or f"a fresh {config.model.architecture}",
        sizes=sizes,
        dtype=config.model.dtype,
        microbatch=config.packing.max_tokens_per_microbatch,
        engine=engine_of(config, sizes, device),
        stages=stages,
    )


def model_sizes(config: Config) -> ModelSizes:
    """Sizes of the model that a config starts from; a fresh one has the vocabulary of its
    tokenizer."""
    model = config.model
    if model.path is not None:
        return sizes_of(model.path)
    shape = ModelShape(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_heads=model.num_attention_heads,
        num_kv_heads=model.num_key_value_heads,
        head_dim=model.hidden_size // model.num_attention_heads,
        intermediate_size=model.intermediate_size,
        num_logits=_vocabulary(config),
    )
    family = model.architecture
    return ModelSizes(
        shape, model.tie_word_embeddings, biased=family == "qwen2", normed=family == "qwen3"
    )


def _vocabulary(config: Config) -> int:
    """Tokens of the tokenizer that a run makes for itself."""
    if config.tokenizer.kind != "words":
        return config.tokenizer.vocab_size
    from satori_fast.data.domains import words_of
    from satori_fast.data.tokenizer import word_ids

    formats = (config.response_format, config.step_format)
    special_tokens = config.response_format.special_tokens
    return len(word_ids(words_of(config.data.source, formats), special_tokens))


def engine_of(config: Config, sizes: ModelSizes, device: Device) -> EnginePlan:
    """The engine of a config. Servers that run elsewhere are assumed to have nine tenths of as many
    GPUs each as the weights need."""
    rollout = config.rollout
    if rollout.engine == "embedded":
        return EnginePlan("embedded", rollout.max_slots)
    plan = EnginePlan(
        rollout.engine,
        rollout.max_slots,
        share=rollout.gpu_memory_share,
        sleeps=rollout.sleep,
        bucket_bytes=rollout.sync_bucket_mib * 2**20,
    )
    if rollout.server_url:
        weights = sizes.num_parameters() * (2 if config.model.dtype == "bfloat16" else 4)
        return with_servers(plan, len(rollout.server_url), weights, device)
    tensor = _tensor_of(rollout.server_args)
    devices = rollout.server_devices.split(",") if rollout.server_devices else []
    return replace(plan, tensor=tensor, num_gpus=len(devices))


def _tensor_of(flags: tuple[str, ...]) -> int:
    """GPUs of a server, by vLLM's flag."""
    words = [word for flag in flags for word in flag.split("=")]
    name = "--tensor-parallel-size"
    return int(words[words.index(name) + 1]) if name in words else 1


# -- stages ---------------------------------------------------------------------------------------


def _stages(config: Config, name: str) -> list[Stage]:
    """What a name in `stages` stands for: none where no model trains, several for rounds."""
    if name == "supervised":
        return [_imitation(config, name, config.supervised)]
    if name == "initialise":
        return [_imitation(config, name, config.initialise, samples=True)]
    if name == "distill":
        return [_imitation(config, name, config.distill, samples=True)]
    if name == "preference":
        return [_preference(config)]
    if name == "offline":
        return [_offline(config)]
    if name == "srl":
        return [_reinforcement(config, name, config.srl.reinforcement())]
    if name == "reinforce":
        return [_reinforcement(config, name, config.reinforce)]
    if name == "iterate":
        return [
            stage
            for number in range(len(config.iterate.rounds))
            for stage in _round(config, number)
        ]
    return []


def _round(config: Config, number: int) -> list[Stage]:
    settings = config.iterate.rounds[number]
    distill = settings.distillation(config.distill)
    reinforce = settings.reinforcement(config.reinforce)
    return [
        _imitation(config, f"distill_{number + 2}", distill, samples=True),
        _reinforcement(config, f"reinforce_{number + 2}", reinforce),
    ]


def _imitation(
    config: Config, name: str, settings: ImitationConfig, *, samples: bool = False
) -> Stage:
    """Demonstrations are as long as the context at most."""
    stays_near = settings.kl_coefficient > 0
    return Stage(
        name,
        (_POLICY, _REFERENCE) if stays_near else (_POLICY,),
        lengths_of(config),
        num_sequences=settings.batch_size,
        num_prompts=settings.batch_size,
        num_minibatches=1,
        sampling="before" if samples else "never",
        keeps_start_hidden=stays_near,
    )


def _preference(config: Config) -> Stage:
    pairs = config.preference.batch_size
    roles = (Role("reward", "scalar", trained=True),)
    return Stage("preference", roles, lengths_of(config), 2 * pairs, pairs, 1, sampling="before")


def _offline(config: Config) -> Stage:
    """The stored log-probs are those of old policy and reference: neither is loaded."""
    number = config.offline.batch_size
    return Stage("offline", (_POLICY,), lengths_of(config), number, number, 1, sampling="before")


def _reinforcement(config: Config, name: str, settings: ReinforceConfig) -> Stage:
    from satori_fast.config_checks import recipe_of  # torch

    needs, roles = recipe_of(settings).needs, [_POLICY]
    if "critic" in needs:
        roles.append(Role("critic", "scalar", trained=True))
    if "reference" in needs:
        roles.append(_REFERENCE)
    if config.reward.preference_weight and name != "srl":
        roles.append(Role("reward", "scalar", trained=False))
    return Stage(
        name,
        tuple(roles),
        lengths_of(config),
        num_sequences=settings.problems_per_step * settings.samples_per_problem,
        num_prompts=settings.problems_per_step,
        num_minibatches=settings.num_minibatches,
        sampling="in steps",
    )


def lengths_of(config: Config) -> Lengths:
    """Longest and expected sequences of a config."""
    prompt = config.data.max_prompt_tokens
    response = min(config.rollout.max_new_tokens, config.rollout.max_seqlen - prompt)
    return Lengths(prompt, response, PROMPT_SHARE * prompt, RESPONSE_SHARE * response)
