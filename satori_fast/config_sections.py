# SPDX-License-Identifier: Apache-2.0
"""The sections of a configuration that stages share: every key with its type, default, limits and
meaning.

Frozen pydantic models; the text under a field is its description, units included, and
`satori-fast show` prints it. Sections of single stages are `config_stages`, the whole is `config`.
"""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from satori_fast.redaction import has_credentials

# Terms of the reward that are not functions, what stands beside them in samples, and what a span
# called "reward" leaves in the metrics.
RESERVED_TERMS = frozenset(
    {"rule", "reflection", "preference", "process", "overlong", "total", "segments"}
    | {"seconds", "seconds_max", "seconds_mean"}
)


class Section(BaseModel):
    """A frozen section that refuses unknown keys and values of another type (3.0, "3" for 3).

    Numbers are finite, unless a key says what `inf` means to it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def with_set(self, **values: Any) -> Self:
        """A copy with those of `values` that are not None; they must be checked already."""
        given = {key: value for key, value in values.items() if value is not None}
        return self.model_copy(update=given)


class ModelConfig(Section):
    path: str | None = None
    """folder or hub name of a checkpoint to start from; without it a fresh model is made"""
    architecture: Literal["qwen2", "llama", "qwen3"] = "qwen2"
    """family of a fresh model"""
    hidden_size: int = Field(default=128, gt=0)
    """width of a fresh model"""
    num_layers: int = Field(default=4, gt=0)
    """depth of a fresh model"""
    num_attention_heads: int = Field(default=4, gt=0)
    """query heads of a fresh model"""
    num_key_value_heads: int = Field(default=2, gt=0)
    """key-value heads of a fresh model"""
    intermediate_size: int = Field(default=384, gt=0)
    """width of the MLP of a fresh model"""
    tie_word_embeddings: bool = True
    """share the embedding with the head in a fresh model"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the parameters; the optimizer keeps fp32 copies of bfloat16 ones"""
    recompute: Literal["none", "selective", "full"] = "none"
    """what the backward pass computes again: none; selective (attention, activation: a third less
    memory); full (whole layers; also true: least memory, a third more time)"""

    @field_validator("recompute", mode="before")
    @classmethod
    def _as_a_switch(cls, value: Any) -> Any:
        return {True: "full", False: "none"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if self.path is None and (self.hidden_size % heads or heads % groups):
            raise ValueError(
                f"model.hidden_size = {self.hidden_size} must be a multiple of "
                f"num_attention_heads = {heads}, and that of num_key_value_heads = {groups}"
            )
        return self


class TokenizerConfig(Section):
    kind: Literal["model", "words", "bpe"] = "model"
    """origin of the tokenizer: model (default with model.path), words (the built-in domain's), bpe
    (trained on the data; default for data of your own)"""
    vocab_size: int = Field(default=2048, gt=300)
    """vocabulary of a bpe tokenizer, tokens, special ones included"""


class ParallelConfig(Section):
    tensor: int = Field(default=1, gt=0)
    """tensor-parallel size"""
    pipeline: int = Field(default=1, gt=0)
    """pipeline-parallel size"""
    chunks: int = Field(default=1, gt=0)
    """parts of the model in each stage of a pipeline, which take turns and so wait less"""
    context: int = Field(default=1, gt=0)
    """context-parallel size: so many processes share the tokens of each microbatch"""
    sequence: bool = True
    """tensor-parallel processes share the tokens between matrix products (less memory)"""
    shard_optimizer: bool = True
    """data-parallel copies share the optimizer: 6 + 12 / copies bytes a parameter, else 18"""
    overlap: bool = True
    """sum gradients during the backward pass, gather stepped weights during the next forward"""
    offload: bool = False
    """between updates the host holds optimizer state and frozen models: more memory for a sampler
    on the same GPU, for copies in every step"""
    num_threads: int | None = Field(default=None, gt=0)
    """CPU threads of a process; None: torch's default"""
    timeout_s: float = Field(default=600.0, gt=0)
    """seconds that processes wait for each other in a collective, and that one may stay silent"""
    main_timeout_s: float = Field(default=7200.0, gt=0)
    """seconds that processes wait for what one does alone (rollout, sync, export)"""
    grace_s: float = Field(default=60.0, gt=0)
    """seconds after SIGTERM to finish the step and save; torchrun's --shutdown-timeout: as long"""

    @model_validator(mode="after")
    def _chunks_of_a_pipeline(self) -> Self:
        if self.chunks > 1 and self.pipeline == 1:
            raise ValueError(
                f"parallel.chunks = {self.chunks} needs a pipeline: raise parallel.pipeline, or "
                "set chunks = 1"
            )
        return self


class PackingConfig(Section):
    max_tokens_per_microbatch: int = Field(default=8192, gt=0)
    """tokens in a packed microbatch, prompt and response; one trajectory must fit"""
    share_prefixes: bool = True
    """compute what sequences of a microbatch begin with alike (the prompt of one problem's samples)
    once for all of them; not with context parallelism"""


class OptimizerConfig(Section):
    learning_rate: float = Field(default=1e-6, gt=0)
    """peak learning rate"""
    min_learning_rate_ratio: float = Field(default=0.1, ge=0, le=1)
    """final learning rate as a share of the peak"""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """learning-rate schedule after warm-up"""
    warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    """share of the steps with linear warm-up; at least one step is left to decay"""
    weight_decay: float = Field(default=0.0, ge=0)
    """decoupled weight decay of matrices; norms and biases never decay"""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the mean of gradients"""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's decay of the mean of squared gradients"""
    epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's term in the denominator"""
    clip_grad: float = Field(default=1.0, ge=0)
    """global gradient norm limit; 0 switches it off"""
    max_skipped_updates: int = Field(default=10, ge=0)
    """updates skipped in a row for a NaN or infinite loss or gradient; one more stops the run"""

    def warmup_steps(self, num_steps: int) -> int:
        """Steps of the warm-up out of `num_steps`."""
        return round(self.warmup_fraction * num_steps)


class RolloutConfig(Section):
    engine: Literal["embedded", "vllm", "server"] = "embedded"
    """sampler: the trained weights themselves, vLLM in this process, or vLLM in another one"""
    max_seqlen: int = Field(default=2048, gt=1)
    """context length of the engine, prompt and response, tokens"""
    max_new_tokens: int = Field(default=1024, gt=0)
    """response limit, tokens"""
    max_step_tokens: int | None = Field(default=None, gt=0)
    """response tokens per step; longer responses go on in the next step; None: no such limit"""
    stop_tokens: tuple[str, ...] = Field(default=(), strict=False)
    """tokens that end a response, beside the stop tokens that the model's own files name"""
    max_slots: int = Field(default=256, gt=0)
    """requests decoded at once"""
    temperature: float = Field(default=1.0, ge=0)
    """sampling temperature; log-probs are of the softmax at this temperature on both sides"""
    top_k: int = Field(default=0, ge=0)
    """sample from the k likeliest tokens only; 0: off"""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """nucleus sampling: share of the probability that is kept; 1: off"""
    request_seeds: bool = True
    """give every sample a random stream of its own: repeatable, and slower in vLLM"""
    max_logprob_diff: float | None = Field(default=0.2, gt=0)
    """mean |engine - trainer| log-prob of a step, nats, above which the run stops; None: never"""
    sync_timeout_s: float = Field(default=300.0, gt=0)
    """vllm, server: longest weight sync, seconds"""
    sync_bucket_mib: int = Field(default=512, gt=0)
    """vllm, server: size of a weight-sync bucket, MiB"""
    sleep: bool = False
    """vllm: free the engine's GPU memory while the trainer updates"""
    compile: bool = False
    """vllm, server: compile and capture graphs (faster decoding, slower start)"""
    gpu_memory_share: float = Field(default=0.4, gt=0, lt=1)
    """vllm, server: share of a GPU's memory for the engine's weights and cache"""
    server_url: tuple[str, ...] = Field(default=(), strict=False)
    """server: URLs of running servers, "http://127.0.0.1:8000"; none: the run starts one"""
    server_allow_public: bool = False
    """server: allow one that others can reach, to replace weights or run code on it"""
    server_args: tuple[str, ...] = Field(default=(), strict=False)
    """server: more vLLM flags of a server that the run starts: ["--tensor-parallel-size", "2"]"""
    server_devices: str | None = None
    """server: CUDA_VISIBLE_DEVICES of a server that the run starts; None: the trainer's"""
    server_start_timeout_s: float = Field(default=600.0, gt=0)
    """server: seconds for a server to start, or to come back where it is away"""
    sync_route: Literal["auto", "memory", "file", "broadcast"] = "auto"
    """server: path of the weights; auto: shared memory (CUDA IPC) on one machine, else broadcast"""
    sync_folder: str | None = None
    """server: folder of sync_route = "file", seen by trainer and servers; None: in memory"""
    max_engine_restarts: int = Field(default=3, ge=0)
    """server: engine deaths in a row that are restarted; one more stops the run"""
    server_lease_s: float = Field(default=3600.0, gt=0)
    """server: seconds of silence after which the servers of a run on another host may be taken"""

    @field_validator("server_url", mode="before")
    @classmethod
    def _by_commas(cls, value: Any) -> Any:
        urls = value.split(",") if isinstance(value, str) else value
        return [url.strip().rstrip("/") for url in urls if url.strip()]

    @field_validator("server_url")
    @classmethod
    def _without_credentials(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        if any(map(has_credentials, urls)):
            raise ValueError(
                "leave user and password out, they would be written to config.toml: vLLM takes a "
                "key from the environment variable VLLM_API_KEY, on both sides"
            )
        return urls

    @field_validator("server_args")
    @classmethod
    def _without_key(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        if any(flag.partition("=")[0] in ("--api-key", "--api_key") for flag in flags):
            raise ValueError(
                "leave --api-key out, it would be written to config.toml: set the environment "
                "variable VLLM_API_KEY, which server and trainer read"
            )
        return flags

    @model_validator(mode="after")
    def _keys_of_this_engine(self) -> Self:
        for key, engine in KEYS_OF_ENGINES.items():
            value = getattr(self, key)
            if self.engine != engine and value != type(self).model_fields[key].default:
                raise ValueError(
                    f'rollout.{key} is for engine = "{engine}" and does nothing for engine = '
                    f'"{self.engine}": take it out, or set rollout.engine = "{engine}"'
                )
        if self.engine != "embedded" and (self.top_k or self.top_p < 1):
            raise ValueError(
                f'rollout.top_k = {self.top_k}, top_p = {self.top_p:g} with engine = "'
                f'{self.engine}": vLLM reports log-probs after these filters, which no trainer can '
                'recompute: set top_k = 0 and top_p = 1.0, or engine = "embedded"'
            )
        own = "server_args" if self.server_args else "server_devices"
        if self.server_url and getattr(self, own):
            raise ValueError(
                f"rollout.{own} is for a server that the run starts, but rollout.server_url names "
                f"running ones: take one of the two out"
            )
        if self.sync_folder is not None and self.sync_route != "file":
            raise ValueError(
                f'rollout.sync_folder is for sync_route = "file", not "{self.sync_route}": take it '
                'out, or set sync_route = "file"'
            )
        return self


# Keys that say nothing to other engines: such a setting would be passed over in silence.
KEYS_OF_ENGINES = {
    "sleep": "vllm",
    "server_url": "server",
    "server_args": "server",
    "server_devices": "server",
    "sync_route": "server",
    "sync_folder": "server",
}


class FunctionConfig(Section):
    path: str
    """the function: "my_rewards.py:short_answers", a file relative to this one, or
    "module:function" """
    weight: float = 1.0
    """factor of the function's values; 0: it is not called"""
    name: str | None = None
    """name of the reward term in metrics, samples and report; None: the function's"""

    @field_validator("path")
    @classmethod
    def _names_a_function(cls, path: str) -> str:
        place, colon, function = path.rpartition(":")
        if not (colon and place and function.isidentifier()):
            raise ValueError(
                'name a file and a function in it, "my_rewards.py:short_answers", or a module and '
                'a function, "module:function"'
            )
        is_module = all(part.isidentifier() for part in place.split("."))
        if not place.endswith(".py") and not is_module:
            raise ValueError(f"{place} is neither a file that ends in .py nor the name of a module")
        return path

    @property
    def term(self) -> str:
        """Name of its term."""
        return self.name or self.path.rpartition(":")[2]

    @model_validator(mode="after")
    def _has_a_name_of_its_own(self) -> Self:
        if not re.fullmatch(r"[A-Za-z_]\w{0,59}", self.term, flags=re.ASCII):
            raise ValueError(
                f"reward.functions: name = {self.term!r}: take letters, digits and _, at most 60"
            )
        if self.term in RESERVED_TERMS:
            raise ValueError(
                f"reward.functions: name = {self.term!r} means something else in metrics and "
                f"samples, as do {', '.join(sorted(RESERVED_TERMS - {self.term}))}: give the "
                "function another name"
            )
        return self


class RewardConfig(Section):
    rule_weight: float = Field(default=1.0, ge=0)
    """factor of the reward by the final answer, reward.right or reward.wrong"""
    right: float = 0.0
    """reward of a right final answer (S2R: 1)"""
    wrong: float = -1.0
    """reward of a wrong or missing final answer"""
    answer: str = "boxed"
    """place of the final answer: boxed (the last \\boxed{}); with data.format = "plain" also
    last_number, hashes (after ####), or a pattern with one group"""
    reflection_bonus: float = Field(default=0.5, ge=0)
    """beta: + where a restart corrects a wrong solution, - where it breaks a right one; grpo, gspo
    cancel it (group's std) if the preference reward is off"""
    preference_weight: float = Field(default=0.0, ge=0)
    """factor of the reward model's sigmoid(score) (the paper: 1); 0: that model is not loaded"""
    normalize_preference: bool = True
    """standardise scores before the sigmoid, as the paper's code does (its text: false)"""
    model: str | None = None
    """folder or hub name of a reward model; None: the one that the preference stage made"""
    functions: tuple[FunctionConfig, ...] = Field(default=(), strict=False)
    """[[reward.functions]]: a reward term of your own: path ("my_rewards.py:short_answers" or
    "module:function"), weight, name"""
    function_timeout_s: float | None = Field(default=None, gt=0)
    """CPU seconds of a call of a reward function (wall clock: ten times, at least 30), beyond which
    the run stops; None: reward.timeout_s"""
    num_workers: int = Field(default=1, ge=0)
    """grading processes (up to 8 while data is loaded); 0: in the trainer, without a time limit"""
    timeout_s: float = Field(default=5.0, gt=0)
    """CPU seconds to grade an answer; beyond it the grader is killed and the answer is wrong"""

    @model_validator(mode="after")
    def _right_is_better(self) -> Self:
        if self.right <= self.wrong:
            raise ValueError(
                f"reward.right = {self.right:g} is not above reward.wrong = {self.wrong:g}: a "
                "right answer earns more"
            )
        return self

    @field_validator("functions")
    @classmethod
    def _have_different_names(
        cls, functions: tuple[FunctionConfig, ...]
    ) -> tuple[FunctionConfig, ...]:
        terms = [function.term for function in functions]
        if twice := [term for term in terms if terms.count(term) > 1]:
            raise ValueError(f"two functions have the name {twice[0]!r}: set name for one of them")
        return functions


class ProfilingConfig(Section):
    trace: bool = False
    """record operators and kernels of some steps of each stage in trace.json (--profile)"""
    trace_first_step: int = Field(default=2, ge=0)
    """steps of a stage before the trace begins, as warm-up"""
    trace_num_steps: int = Field(default=2, gt=0)
    """steps of a stage that are traced"""
    trace_stacks: bool = False
    """record Python stacks in the trace too: slower and larger"""
    trace_memory: bool = False
    """record memory allocations in the trace too"""
    peak_tflops: float | None = Field(default=None, gt=0)
    """peak TFLOP/s per device, the MFU denominator; None: that of the run's own type"""
    peak_bandwidth_gbs: float | None = Field(default=None, gt=0)
    """peak memory bandwidth per device, GB/s; None: its data sheet's"""
    measure_peaks: bool = True
    """measure peaks when the run starts, 0.3 s: of CPUs, unknown GPUs, and of float32"""
    watch_host_memory: bool = True
    """warn when host memory grows steadily and will not last, or beyond host_growth_limit"""
    host_growth_limit: float = Field(default=0.25, gt=0)
    """growth of host memory within a stage that is warned of, as a share of the machine's"""


class LoggingConfig(Section):
    tensorboard: bool = True
    """write TensorBoard event files to the run folder"""
    wandb: bool = False
    """send metrics to Weights & Biases (pip install wandb); WANDB_MODE=offline keeps them here"""
    wandb_project: str = "satori-fast"
    """Weights & Biases project of the run"""
    prometheus_port: int = Field(default=0, ge=0, le=65535)
    """serve the newest metrics to Prometheus on this port; 0: off"""
    prometheus_address: str = "127.0.0.1"
    """address that metrics are served on; whoever reaches it can read them"""


class BenchmarkConfig(Section):
    name: str
    """a row of `evaluation.benchmarks.BENCHMARKS`: gsm8k, math500, ..."""
    protocol: str = "config"
    """how it is asked: as the run trains (config), or satori, s2r, srl, chat"""
    limit: int | None = Field(default=None, gt=0)
    """its first so many questions only; None: all"""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """response limit, tokens; None: the protocol's (config: that of held-out problems)"""


class EvaluationConfig(Section):
    at_start: bool = False
    """evaluate the starting model too, before the first stage: an entry "start" of the summary"""
    num_problems: int = Field(default=400, gt=0)
    """held-out problems that are evaluated, with one greedy response each"""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """response limit of the evaluation, tokens; None: the rollout's"""
    num_logged_samples: int = Field(default=8, ge=0)
    """answers of each evaluation written to samples.jsonl"""
    benchmarks: tuple[BenchmarkConfig, ...] = Field(default=(), strict=False)
    """benchmarks that every evaluation asks too, one greedy response a question; a table each"""
    data_dir: str | None = None
    """folder with the files of the benchmarks; None: they come from the hub"""
