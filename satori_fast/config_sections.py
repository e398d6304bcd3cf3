# SPDX-License-Identifier: Apache-2.0
"""The sections of a configuration: every key with its type, default, limits and meaning.

Frozen pydantic models; the text under a field is its description, units included, and
`satori-fast show` prints it. Reading files and overrides is `config`.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SCHEMA_VERSION = 1

StageName = Literal["synthesize", "supervised", "reinforce"]
RecipeName = Literal["grpo", "ppo", "rloo"]


class Section(BaseModel):
    """A frozen section that refuses unknown keys and values of another type (3.0, "3" for 3)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class ModelConfig(Section):
    path: str | None = None
    """folder of a Hugging Face checkpoint to start from; without it a fresh model is made"""
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
    """fresh model: share the embedding with the head"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the parameters; the optimizer keeps fp32 copies of bfloat16 ones"""
    recompute: bool = False
    """recompute activations in the backward pass: less memory, a third more time"""


class TokenizerConfig(Section):
    kind: Literal["model", "words", "bpe"] = "model"
    """model: the checkpoint's own; words: the built-in domain's; bpe: trained on the data here"""
    vocab_size: int = Field(default=2048, gt=300)
    """tokens of a bpe tokenizer, special tokens included"""


class DataConfig(Section):
    source: str = "arithmetic"
    """arithmetic (built in), or a .jsonl/.json/.parquet file, or the hub name of a data set"""
    mapping: str | None = None
    """field mapping of the source (see data.sources.FIELD_MAPPINGS); None: by name"""
    levels: tuple[int, ...] = Field(default=(3,), strict=False)  # TOML lists
    """built-in domain: levels of difficulty, mixed evenly"""
    num_train: int | None = Field(default=None, gt=0)
    """training problems to use; None: all (built-in domain: needed)"""
    eval_source: str | None = None
    """file with held-out problems; None: the built-in domain's held-out half, or a hash split"""
    eval_mapping: str | None = None
    """field mapping of eval_source"""
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)
    """hash split: share of the source that is held out when there is no eval_source"""
    template: Literal["satori", "plain"] = "satori"
    """prompt template: satori is the paper's Template 3, plain is the question and a line break"""
    max_prompt_tokens: int = Field(default=1024, gt=0)
    """longer prompts are filtered out by length, never cut"""


class ParallelConfig(Section):
    tensor: int = Field(default=1, gt=0)
    """tensor-parallel size"""
    pipeline: int = Field(default=1, gt=0)
    """pipeline-parallel size"""
    context: int = Field(default=1, gt=0)
    """context-parallel size"""
    num_threads: int | None = Field(default=None, gt=0)
    """CPU threads of a process; None: torch's default"""


class PackingConfig(Section):
    max_tokens_per_microbatch: int = Field(default=8192, gt=0)
    """tokens in a packed microbatch, prompt and response; one trajectory must fit"""


class OptimizerConfig(Section):
    learning_rate: float = Field(default=1e-6, gt=0)
    """peak learning rate"""
    min_learning_rate_ratio: float = Field(default=0.1, ge=0, le=1)
    """final learning rate as a share of the peak"""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """decay after warm-up"""
    warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    """share of the steps that warm up linearly"""
    weight_decay: float = Field(default=0.0, ge=0)
    """decoupled weight decay of matrices; norms and biases never decay"""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW"""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW"""
    epsilon: float = Field(default=1e-8, gt=0)
    """AdamW"""
    clip_grad: float = Field(default=1.0, ge=0)
    """global gradient norm limit; 0 switches it off"""


class RolloutConfig(Section):
    engine: Literal["embedded", "vllm", "server"] = "embedded"
    """who samples: embedded decodes on the trained weights themselves; vllm is vLLM in this
    process; server is vLLM in another one, started by the run or running at server_url"""
    max_seqlen: int = Field(default=2048, gt=1)
    """context of the engine: prompt and response, tokens"""
    max_new_tokens: int = Field(default=1024, gt=0)
    """response limit, tokens"""
    max_step_tokens: int | None = Field(default=None, gt=0)
    """response tokens per step; longer responses go on in the next step; None: no such limit"""
    max_slots: int = Field(default=256, gt=0)
    """requests decoded at once"""
    temperature: float = Field(default=1.0, ge=0)
    """sampling temperature; log-probs are of the softmax at this temperature on both sides"""
    top_k: int = Field(default=0, ge=0)
    """0: off"""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """1: off"""
    request_seeds: bool = True
    """every sample has a random stream of its own: repeatable, and slower in vLLM"""
    max_logprob_diff: float | None = Field(default=0.2, gt=0)
    """mean |engine - trainer| log-prob of a step, nats, above which the run stops; None: never"""
    sync_timeout_s: float = Field(default=300.0, gt=0)
    """vllm, server: longest weight sync"""
    sync_bucket_mib: int = Field(default=512, gt=0)
    """vllm, server: weights on their way at once"""
    sleep: bool = False
    """vllm: free its GPU memory while the trainer updates"""
    compile: bool = False
    """vllm, server: compile and capture graphs: faster decoding, slower start"""
    gpu_memory_share: float = Field(default=0.4, gt=0, lt=1)
    """vllm, server: of a GPU, for its weights and cache"""
    server_url: tuple[str, ...] = Field(default=(), strict=False)
    """server: running servers that share the requests, e.g. "http://127.0.0.1:8000", several by
    commas; none: the run starts one of its own"""
    server_allow_public: bool = False
    """server: use one that other machines can reach; whoever reaches it can replace its weights or
    run code on it, whether or not it has an API key"""
    server_args: tuple[str, ...] = Field(default=(), strict=False)
    """server: further flags of vLLM where the run starts it, e.g. ["--tensor-parallel-size", "2"]
    """
    server_devices: str | None = None
    """server: CUDA_VISIBLE_DEVICES of a server that the run starts; None: the trainer's"""
    server_start_timeout_s: float = Field(default=600.0, gt=0)
    """server: longest start of an own server, and longest wait for one that is away"""
    sync_route: Literal["auto", "file", "broadcast"] = "auto"
    """server: way of the weights: broadcast over NCCL or gloo, or files; auto: files where all is
    on one machine without a GPU"""
    sync_folder: str | None = None
    """server: folder of the file route, the same path for trainer and servers; None: in memory"""
    max_engine_restarts: int = Field(default=3, ge=0)
    """server: deaths of the engine in a row after which the run stops"""

    @field_validator("server_url", mode="before")
    @classmethod
    def _by_commas(cls, value: Any) -> Any:
        urls = value.split(",") if isinstance(value, str) else value
        return [url.strip().rstrip("/") for url in urls if url.strip()]


class RewardConfig(Section):
    reflection_bonus: float = Field(default=0.5, ge=0)
    """beta: + when a restart from a wrong solution ends right, - when one from a right ends wrong
    """
    num_workers: int = Field(default=1, ge=0)
    """grading processes; 0 grades in the trainer, without a time limit"""
    timeout_s: float = Field(default=5.0, gt=0)
    """seconds per answer; a grader over time is killed, the answer counts as wrong"""


class RestartConfig(Section):
    enabled: bool = True
    """mix restarts into the problems (Satori: restart and explore)"""
    num_problems: int = Field(default=1000, gt=0)
    """training problems that the buffer is built from"""
    num_samples: int = Field(default=8, gt=0)
    """solutions sampled per problem to find a right and a wrong one"""
    max_backtrack: int = Field(default=2, ge=0)
    """T: the last t actions are dropped, t uniform in 0..T"""
    cut_after: Literal["action", "step", "answer"] = "action"
    """what must stand before the cut: any action (the paper), a step, a step with an answer"""
    original_weight: float = Field(default=1.0, ge=0)
    """share of whole problems in a step, relative"""
    correct_weight: float = Field(default=1.0, ge=0)
    """share of restarts from right solutions (D+), relative"""
    incorrect_weight: float = Field(default=1.0, ge=0)
    """share of restarts from wrong solutions (D-), relative"""


class SynthesizeConfig(Section):
    num_problems: int = Field(default=1000, gt=0)
    """training problems to solve"""
    num_solutions: int = Field(default=100, gt=0)
    """first attempts per problem"""
    num_kept: int = Field(default=4, gt=0)
    """right ones and wrong ones kept of them"""
    max_rounds: int = Field(default=2, gt=0)
    """critic rounds"""
    critic_share: float = Field(default=1.0, ge=0, le=1)
    """problems that the critic works on; the others keep a right solution without reflection"""
    confirm_share: float = Field(default=0.0, ge=0, le=1)
    """corrected trajectories that end with a reflection confirming the answer (the paper: none)"""
    generator_skill: float = Field(default=0.3, gt=0, lt=1)
    """scripted generator: how often an attempt is right"""


class SupervisedConfig(Section):
    source: str | None = None
    """demonstrations: a .jsonl file; None: what the synthesize stage wrote, or the data's solutions
    """
    mapping: str | None = "coat"
    """field mapping of source"""
    num_epochs: float = Field(default=2.0, gt=0)
    """passes over the demonstrations"""
    batch_size: int = Field(default=128, gt=0)
    """demonstrations per optimizer step"""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-5, schedule="cosine")
    checkpoint_every: int = Field(default=500, ge=0)
    """optimizer steps between checkpoints; 0: only at the end"""


class ReinforceConfig(Section):
    recipe: RecipeName = "ppo"
    """credit, advantage and loss: a row of algorithms.recipe.RECIPES"""
    num_steps: int = Field(default=100, gt=0)
    """rollout-and-update steps"""
    problems_per_step: int = Field(default=128, gt=0)
    """prompts sampled in a step"""
    samples_per_problem: int = Field(default=8, gt=0)
    """siblings of a prompt; group recipes need at least 2"""
    num_minibatches: int = Field(default=2, gt=0)
    """optimizer steps per rollout step"""
    clip_low: float = Field(default=0.2, gt=0)
    """lower clip of the probability ratio"""
    clip_high: float = Field(default=0.2, gt=0)
    """upper clip of the probability ratio"""
    clip_dual: float | None = Field(default=None, gt=1)
    """bound of the ratio for negative advantages; None: no bound"""
    importance: Literal["none", "truncate", "mask"] = "none"
    """weight by trainer's over engine's probability: clamped into the range, or 0 outside it"""
    importance_level: Literal["token", "sequence"] = "token"
    """that ratio of each token, or the product over a response"""
    importance_low: float = Field(default=0.0, ge=0)
    """lower end of the range"""
    importance_high: float = Field(default=2.0, gt=0)
    """upper end of the range"""
    weighting: Literal["token", "sequence"] | None = None
    """mean over tokens, or over responses of their token means; None: as in the recipe"""
    kl_coefficient: float | None = Field(default=None, ge=0)
    """weight of the KL to the starting model; 0: that model is not loaded; None: as in the recipe
    """
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """weight of the entropy bonus"""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """ppo: lambda of the advantage estimator"""
    critic_warmup_steps: int = Field(default=0, ge=0)
    """ppo: first steps that train the critic alone"""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6)
    critic_optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-6)
    restarts: RestartConfig = RestartConfig()
    checkpoint_every: int = Field(default=50, ge=0)
    """steps between checkpoints; 0: only at the end"""
    evaluate_every: int = Field(default=0, ge=0)
    """steps between evaluations; 0: only at the end"""
    num_logged_samples: int = Field(default=2, ge=0)
    """trajectories of each step written to samples.jsonl"""


class EvaluationConfig(Section):
    num_problems: int = Field(default=400, gt=0)
    """held-out problems, greedy, one response each"""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """response limit; None: the rollout's"""
    num_logged_samples: int = Field(default=8, ge=0)
    """answers of each evaluation written to samples.jsonl"""


class Config(Section):
    schema_version: int = SCHEMA_VERSION
    """version of this file's format"""
    name: str = "run"
    """the run folder is output_dir/name"""
    output_dir: str = "runs"
    """where run folders are made"""
    seed: int = Field(default=0, ge=0)
    """every random choice derives from it and a counter"""
    stages: tuple[StageName, ...] = Field(default=("supervised", "reinforce"), strict=False)
    """what to do, in order"""
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    parallel: ParallelConfig = ParallelConfig()
    packing: PackingConfig = PackingConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    synthesize: SynthesizeConfig = SynthesizeConfig()
    supervised: SupervisedConfig = SupervisedConfig()
    reinforce: ReinforceConfig = ReinforceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if not self.stages or len(set(self.stages)) < len(self.stages):
            raise ValueError(
                f"stages = {list(self.stages)}: list each of {stage_names()} at most once, "
                "and at least one"
            )
        if self.rollout.max_seqlen > self.packing.max_tokens_per_microbatch:
            raise ValueError(
                f"packing.max_tokens_per_microbatch = {self.packing.max_tokens_per_microbatch} is "
                f"below rollout.max_seqlen = {self.rollout.max_seqlen}: a full sequence must fit"
            )
        if self.data.max_prompt_tokens >= self.rollout.max_seqlen:
            raise ValueError(
                f"data.max_prompt_tokens = {self.data.max_prompt_tokens} leaves no room for a "
                f"response in rollout.max_seqlen = {self.rollout.max_seqlen}"
            )
        if self.model.path is None and self.tokenizer.kind == "model":
            raise ValueError(
                'tokenizer.kind = "model" needs model.path: set it, or choose "words" or "bpe"'
            )
        if self.reinforce.recipe != "ppo" and self.reinforce.samples_per_problem < 2:
            raise ValueError(
                f"reinforce.samples_per_problem = 1 leaves recipe {self.reinforce.recipe!r} "
                "nothing to compare: take at least 2"
            )
        if self.data.source == "arithmetic" and self.data.num_train is None:
            raise ValueError("data.num_train is missing: the built-in domain has no end")
        return self

    @classmethod
    def example(cls) -> Config:
        """The defaults, for the built-in domain: what `satori-fast show` prints without a file."""
        return cls(data=DataConfig(num_train=1000), tokenizer=TokenizerConfig(kind="words"))


def stage_names() -> tuple[str, ...]:
    return get_args(StageName)
