# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face configuration -> a Megatron model that reads packed batches.

`PolicyModel` ends in a head that is given to it per call (log-probabilities, a loss), so that the
[T, V] logits need never exist; `ScalarModel` ends in one number per token (critic, reward model).

Not here: weights (`weights.py`), what the heads compute (`kernels`, `algorithms`), training
(`step.py`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
)
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType, ModelType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from satori_fast.backbone.architecture import (
    Recompute,
    head_dim,
    rope_parameters,
    score_statistics,
    transformer_config,
)
from satori_fast.backbone.attention import (
    AttentionPlan,
    PackedCoreAttention,
    PackedSelfAttention,
    plan_attention,
    rotary_frequencies,
)
from satori_fast.backbone.parallel import parallel_state
from satori_fast.backbone.weights import Source, initialize, load_hf, with_true_ties
from satori_fast.kernels import rms_norm, swiglu
from satori_fast.types import PackedBatch, ScoreStatistics

Kind = Literal["policy", "scalar"]


class PolicyHead(Protocol):
    """Function that a policy's last pipeline stage runs on its final hidden states.

    hidden [T, H], weight [V / tensor-parallel size, H]: rows are the tokens from `vocab_start` on;
    rows at or beyond `vocab_size` are padding. Ranks of a context all get all tokens. `group` is
    the tensor-parallel group, None when it has one rank. The head returns the FULL gradient of
    `hidden`, already summed over `group`.
    """

    def __call__(
        self, hidden: Tensor, weight: Tensor, *, vocab_size: int, vocab_start: int, group: Any
    ) -> Any: ...


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **_: Any) -> None:
        super().__init__()
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=device)
        )
        _sum_over_parts(self.weight, config)
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        """The norm of x; with a residual, the norm of the sum and the sum."""
        return rms_norm(x, self.weight, eps=self.eps, residual=residual)


class GatedMLP(MLP):
    """w2(silu(gate) * up), without the optional extras of Megatron's forward."""

    def __init__(self, config: TransformerConfig, **_: Any) -> None:
        linear = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        super().__init__(
            config,
            linear,
            ffn_hidden_size=config.ffn_hidden_size,
            tp_group=_tensor_group(),
        )

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        mixed = self.linear_fc1(hidden_states)[0]
        if self.config.recompute_granularity != "selective" or not torch.is_grad_enabled():
            return self.linear_fc2(swiglu(mixed))
        activation: Any = CheckpointWithoutOutput(fp8=None)  # pyright: ignore[reportArgumentType]
        out, bias = self.linear_fc2(activation.checkpoint(swiglu, mixed))
        activation.discard_output_and_register_recompute(out)
        return out, bias


class PackedLayer(TransformerLayer):
    """h = x + attention(norm(x)), then h + mlp(norm(h)), with the first sum inside its norm.

    Megatron's forward also drops out, adds biases, crosses to an encoder, offloads and recomputes
    parts: `transformer_config` asks for none of these. Whole layers are recomputed from outside.
    """

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, *, packed_seq_params: AttentionPlan, **_: Any
    ) -> tuple[Tensor, None]:
        """hidden_states [T, 1, H] -> the same, and the context of a cross-attention: none."""
        attended, _bias = self.self_attention(
            self.input_layernorm(hidden_states), packed_seq_params=packed_seq_params
        )
        normed, hidden_states = self.pre_mlp_layernorm(attended, hidden_states)
        return hidden_states + self.mlp(normed)[0], None


class VocabularyHead(ColumnParallelLinear):
    """The output projection; runs a `PolicyHead` on its weight when given one.

    It stays a ColumnParallelLinear so that sharded checkpoints, tensor-parallel attributes, tied
    embeddings and the hooks of DistributedDataParallel keep working.
    """

    vocab_size: int  # the true one, set by PolicyModel
    tp_group: Any

    def forward(  # type: ignore[override]
        self,
        input_: Tensor,
        weight: Tensor | None = None,
        runtime_gather_output: bool | None = None,
        *,
        head: PolicyHead | None = None,
        plan: AttentionPlan | None = None,
    ) -> Any:
        if head is None:
            return super().forward(input_, weight, runtime_gather_output)
        weight = self.weight if weight is None else weight
        assert weight is not None
        if self.config.sequence_parallel:
            input_ = _all_tokens(input_)
        if plan is not None:
            input_ = plan.of_tokens(input_)
        size, rank = self.tp_group.size(), self.tp_group.rank()
        return head(
            input_.flatten(0, 1),
            weight,
            vocab_size=self.vocab_size,
            vocab_start=rank * weight.shape[0],
            group=self.tp_group if size > 1 else None,
        )


class ScalarHead(nn.Linear):
    """hidden [T, 1, H] -> fp32 [T]; replicated over tensor-parallel ranks, starts at zero.

    With statistics it gives (w . h - mean) / std, as Satori's code lets its critic.

    The product is fp32. The weight has the trunk's type, because Megatron's checkpoints mix up the
    optimizer state of a model with two types; in half precision the optimizer holds it in fp32.
    """

    def __init__(
        self, config: TransformerConfig, statistics: ScoreStatistics | None = None
    ) -> None:
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        super().__init__(
            config.hidden_size, 1, bias=False, dtype=config.params_dtype, device=device
        )
        nn.init.zeros_(self.weight)
        _sum_over_parts(self.weight, config)
        self.statistics, self.config = statistics, config

    def forward(self, hidden: Tensor, plan: AttentionPlan | None = None) -> Tensor:
        values = F.linear(hidden.float(), self.weight.float())
        if self.statistics is not None:
            values = (values - self.statistics.mean) / self.statistics.std
        if self.config.sequence_parallel:
            values = _all_tokens(values)
        if plan is not None:
            values = plan.of_tokens(values)
        return values.flatten()


class PackedModel(LanguageModule):
    """The trunk shared by both kinds: embedding, layers and final norm over a packed batch.

    hf_config:  what it was built from, its ties as its weights have them.
    num_tokens: ids below it are tokens; embedding rows beyond are padding of the checkpoint.
    num_sent:   rows of hidden states that go from stage to stage, padding included; None: as many
                as a batch has.
    """

    kind: Kind
    hf_config: Any
    num_tokens: int
    num_sent: int | None = None
    rotary_frequencies: Tensor

    def __init__(
        self, config: TransformerConfig, hf_config: Any, *, tied: bool, chunk: int | None
    ) -> None:
        super().__init__(config)
        self.hf_config, self.num_tokens = hf_config, hf_config.vocab_size
        # By these names Megatron's schedule and its sums of gradients know a stage.
        self.pre_process = mpu.is_pipeline_first_stage(ignore_virtual=False, vp_stage=chunk)
        self.post_process = mpu.is_pipeline_last_stage(ignore_virtual=False, vp_stage=chunk)
        self.vp_stage, self.model_type = chunk, ModelType.encoder_or_decoder
        self.share_embeddings_and_output_weights = tied
        if self.pre_process:
            self.embedding = LanguageModelEmbedding(
                config,
                _padded_vocabulary(config, hf_config),
                max_sequence_length=hf_config.max_position_embeddings,
                position_embedding_type="none",  # the AttentionPlan carries the rotary embedding
                tp_group=_tensor_group(),
            )
        self.decoder = TransformerBlock(
            config,
            _block_spec(config, chunk),
            pre_process=self.pre_process,
            post_process=self.post_process,
            vp_stage=chunk,
        )
        if self.post_process:
            self.output_layer = self.head()
        if self.pre_process or self.post_process:
            self.setup_embeddings_and_output_layer()
        frequencies = rotary_frequencies(head_dim(hf_config), rope_parameters(hf_config))
        self.register_buffer("rotary_frequencies", frequencies, persistent=False)

    @abstractmethod
    def head(self) -> Any:
        """The module that follows the trunk on the last stage."""

    def set_input_tensor(self, input_tensor: list[Any]) -> None:
        """Take over what the stage before sent; Megatron's schedule calls it."""
        (received,) = input_tensor
        self.decoder.set_input_tensor(received)

    def trunk(self, batch: PackedBatch, plan: AttentionPlan) -> Tensor:
        """Hidden states [R, 1, H] after this stage's layers (and the final norm on the last); with
        sequence or context parallelism this rank's part of them.

        ValueError where ranks cannot share the rows evenly.
        """
        multiple = parallel_state().token_multiple
        if batch.num_rows % multiple:
            raise ValueError(
                f"a microbatch has {batch.num_rows} rows, and its ranks share multiples of "
                f"{multiple}: pack it with pad_to_multiple = {multiple}"
            )
        embedded = None
        if self.pre_process:
            tokens, positions = batch.tokens, batch.positions
            own = plan.rows
            if own is not None:
                tokens, positions = tokens[own], positions[own]
            embedded = self.embedding(tokens[None], positions[None])
        elif self.num_sent is not None:
            received = self.decoder.input_tensor
            assert received is not None
            self.decoder.set_input_tensor(received[: self._num_rows(batch)])
        hidden = self.decoder(hidden_states=embedded, attention_mask=None, packed_seq_params=plan)
        if self.post_process or self.num_sent is None:
            return hidden
        return F.pad(hidden, (0, 0, 0, 0, 0, self.num_sent - len(hidden)))

    def _num_rows(self, batch: PackedBatch) -> int:
        """Rows of hidden states that this rank has of a batch."""
        size = self.config.tensor_model_parallel_size if self.config.sequence_parallel else 1
        return batch.num_rows // (size * self.config.context_parallel_size)

    def send_padded(self, batches: Sequence[PackedBatch]) -> None:
        """Have stages of a pipeline send each other equally many rows of each of `batches`."""
        self.num_sent = max(map(self._num_rows, batches))

    def plan(self, batch: PackedBatch) -> AttentionPlan:
        """The attention plan of `batch`."""
        return plan_attention(
            batch.cu_seqlens,
            batch.max_seqlen,
            positions=batch.positions,
            frequencies=self.rotary_frequencies,
            dtype=self.config.params_dtype,
            shared=batch.shared,
        )


class PolicyModel(PackedModel):
    """tokens -> whatever `head` makes of the final hidden states and the output weight."""

    kind: Kind = "policy"

    def __init__(self, config: TransformerConfig, hf_config: Any, chunk: int | None = None) -> None:
        tied = bool(hf_config.tie_word_embeddings)
        super().__init__(config, hf_config, tied=tied, chunk=chunk)

    def head(self) -> VocabularyHead:
        """The output projection, which has no weight where it shares the embedding here."""
        init_method: Any = self.config.init_method
        layer = VocabularyHead(
            self.config.hidden_size,
            _padded_vocabulary(self.config, self.hf_config),
            config=self.config,
            init_method=init_method,
            bias=False,
            gather_output=False,
            skip_weight_param_allocation=self.pre_process
            and self.share_embeddings_and_output_weights,
            tp_group=_tensor_group(),
        )
        layer.vocab_size = self.num_tokens
        return layer

    @property
    def head_weight(self) -> Tensor | None:
        """Rows of the output layer that this rank holds, [V / tensor-parallel size, H]; None on
        pipeline stages before the last."""
        if not self.post_process:
            return None
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight

    def limit_vocabulary(self, num_tokens: int) -> None:
        """Leave ids from `num_tokens` on out of the softmax: no token of the tokenizer has them."""
        assert 0 < num_tokens <= self.hf_config.vocab_size
        self.num_tokens = num_tokens
        if self.post_process:
            head: Any = self.output_layer
            head.vocab_size = num_tokens

    def forward(self, batch: PackedBatch, head: PolicyHead | None = None) -> Any:  # type: ignore[override]
        """`head`'s result on the last stage; without a head, logits fp32 [T, V].

        Earlier pipeline stages return their hidden states [T, 1, H].
        """
        plan = self.plan(batch)
        hidden = self.trunk(batch, plan)
        if not self.post_process:
            return hidden
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else None
        # Calling the module, and not reading its weight here, lets a hook gather the weight first.
        if head is not None:
            return self.output_layer(hidden, weight, head=head, plan=plan)
        shard, _ = self.output_layer(hidden, weight)
        shard = plan.of_tokens(shard)
        logits = gather_from_tensor_model_parallel_region(shard, group=self.output_layer.tp_group)
        return logits.squeeze(1)[:, : self.output_layer.vocab_size].float()


class ScalarModel(PackedModel):
    """tokens -> one number per token: a critic, or a reward model read at each last token.

    The numbers are normalised if the configuration holds `architecture.score_statistics`.
    """

    kind: Kind = "scalar"

    def __init__(self, config: TransformerConfig, hf_config: Any, chunk: int | None = None) -> None:
        super().__init__(config, hf_config, tied=False, chunk=chunk)

    def head(self) -> ScalarHead:
        """One number for each token."""
        return ScalarHead(self.config, score_statistics(self.hf_config))

    def forward(self, batch: PackedBatch, head: Callable[[Tensor], Any] | None = None) -> Any:  # type: ignore[override]
        """Values fp32 [T], or what `head` makes of them, on the last pipeline stage."""
        plan = self.plan(batch)
        hidden = self.trunk(batch, plan)
        if not self.post_process:
            return hidden
        values = self.output_layer(hidden, plan)
        return values if head is None else head(values)


def build_model(
    hf_config: Any,
    *,
    kind: Kind = "policy",
    weights: Source | None = None,
    dtype: torch.dtype = torch.float32,
    recompute: Recompute = "none",
    seed: int = 0,
    chunk: int = 0,
) -> PolicyModel | ScalarModel:
    """Build this rank's part of the model, on its device. Call `initialize_parallel` first.

    weights:   a model folder or a mapping of Hugging Face names; None starts from
               normal(0, initializer_range) drawn from `seed`, the same for every parallel layout.
    recompute: what the backward pass computes again. "full": layers, from their inputs, which alone
               are kept; "selective": attention from its input, and the activation.
    chunk:     which of the `ParallelOptions.chunks` parts on this rank.

    ValueError: unsupported architecture or feature, sizes that tensor parallelism does not divide.
    """
    if weights is not None and kind == "policy":
        hf_config = with_true_ties(hf_config, weights)
    config = transformer_config(hf_config, dtype=dtype, recompute=recompute)
    made = PolicyModel if kind == "policy" else ScalarModel
    model = made(config, hf_config, chunk if parallel_state().options.chunks > 1 else None)
    model = model.to(parallel_state().device)
    if weights is None:
        initialize(model, hf_config, seed=seed)
    else:
        load_hf(model, weights, hf_config)
    return model


def _sum_over_parts(weight: Tensor, config: TransformerConfig) -> None:
    """Tell Megatron that with sequence parallelism each tensor-parallel rank has a part of the
    gradient of a replicated weight: the sum is made at the end of a step."""
    mark: Any = weight
    mark.sequence_parallel = config.sequence_parallel


def _all_tokens(part: Tensor) -> Tensor:
    """All tokens' rows from those of this rank. What reads them gives every rank the full gradient,
    of which each takes its own rows."""
    return gather_from_sequence_parallel_region(part, tensor_parallel_output_grad=False)


def _padded_vocabulary(config: TransformerConfig, hf_config: Any) -> int:
    size = config.tensor_model_parallel_size
    return -(-hf_config.vocab_size // size) * size


def _tensor_group() -> Any:
    return mpu.get_tensor_model_parallel_group()


def _block_spec(config: TransformerConfig, chunk: int | None) -> Any:
    norm: Any = RMSNorm
    core_attention: Any = PackedCoreAttention
    head_norm = RMSNorm if config.qk_layernorm else IdentityOp
    attention = ModuleSpec(
        module=PackedSelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=core_attention,
            linear_proj=RowParallelLinear,
            q_layernorm=head_norm,
            k_layernorm=head_norm,
        ),
    )
    layer = ModuleSpec(
        module=PackedLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=attention,
            pre_mlp_layernorm=RMSNorm,
            mlp=GatedMLP,
        ),
    )
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config, vp_stage=chunk), layer_norm=norm
    )
