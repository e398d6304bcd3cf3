# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face configuration in Megatron's terms, and the refusal of unsupported ones.

Everything that depends on the architecture's name is here. Not here: parameter names
(`weight_table.py`), the modules (`model.py`).
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from satori_fast.backbone.parallel import parallel_state
from satori_fast.backbone.weight_files import refuse_pointer
from satori_fast.types import ScoreStatistics

# Where a reward model keeps its statistics in config.json. The names are those of OpenRLHF, and so
# of Satori's own reward model.
_SCORE_FIELDS = ("mean", "std")

# What the backward pass computes again: nothing; what is large and cheap (attention, activation);
# or whole layers.
Recompute = Literal["none", "selective", "full"]

SUPPORTED = {
    "qwen2": "Qwen2 and Qwen2.5",
    "qwen3": "Qwen3 (dense)",
    "llama": "Llama 2, 3, 3.1 and 3.2",
}


def load_hf_config(folder: str | os.PathLike[str]) -> Any:
    """The configuration in a Hugging Face model folder; ValueError when none can be read."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"model folder {os.fspath(folder)!r} has no config.json")
    refuse_pointer(path, path.read_bytes())
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise ValueError(f"{path} cannot be used: {reason}") from None


def hf_architecture(hf_config: Any, kind: str) -> str:
    """transformers' class for a model of this `kind` ("policy" or "scalar")."""
    prefix = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}[hf_config.model_type]
    return prefix + ("ForCausalLM" if kind == "policy" else "ForSequenceClassification")


def score_statistics(hf_config: Any) -> ScoreStatistics | None:
    """The statistics that a scalar model's values are normalised with, None for raw values."""
    if not hasattr(hf_config, _SCORE_FIELDS[0]):
        return None
    return ScoreStatistics(*(float(getattr(hf_config, field)) for field in _SCORE_FIELDS))


def with_score_statistics(hf_config: Any, statistics: ScoreStatistics | None) -> Any:
    """A copy of the configuration with these statistics, or with none."""
    changed = copy.deepcopy(hf_config)
    for field in _SCORE_FIELDS:
        if hasattr(changed, field):
            delattr(changed, field)
    if statistics is not None:
        changed.mean, changed.std = statistics.mean, statistics.std
    return changed


def head_dim(hf_config: Any) -> int:
    """Channels of one attention head."""
    return (
        getattr(hf_config, "head_dim", None)
        or hf_config.hidden_size // hf_config.num_attention_heads
    )


def has_qkv_bias(hf_config: Any) -> bool:
    """True where the query, key and value projections have a bias (Qwen2 and Qwen2.5)."""
    return hf_config.model_type == "qwen2"


def has_qk_norm(hf_config: Any) -> bool:
    """True where queries and keys are normalised per head (Qwen3)."""
    return hf_config.model_type == "qwen3"


def transformer_config(
    hf_config: Any, *, dtype: torch.dtype, recompute: Recompute = "none"
) -> TransformerConfig:
    """Megatron's configuration of a supported Hugging Face one; ValueError names what is not."""
    state = parallel_state()
    chunks = state.options.chunks
    _check_supported(hf_config, state.tensor_size, state.pipeline_size, chunks)
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"model dtype {dtype} is not supported: use float32 or bfloat16")
    recomputation: dict[str, Any] = {}
    if recompute == "full":
        recomputation = {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    elif recompute == "selective":
        recomputation = {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return TransformerConfig(
        num_layers=hf_config.num_hidden_layers,
        hidden_size=hf_config.hidden_size,
        ffn_hidden_size=hf_config.intermediate_size,
        num_attention_heads=hf_config.num_attention_heads,
        num_query_groups=hf_config.num_key_value_heads,
        kv_channels=head_dim(hf_config),
        layernorm_epsilon=hf_config.rms_norm_eps,
        init_method_std=hf_config.initializer_range,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=has_qkv_bias(hf_config),
        qk_layernorm=has_qk_norm(hf_config),
        attention_dropout=0.0,
        hidden_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        cuda_graph_scope=[],
        persist_layer_norm=False,
        use_cpu_initialization=state.device.type == "cpu",
        # Without it Megatron also skips the tensor-parallel attributes of the parameters, and the
        # gradient norm comes out wrong without an error.
        perform_initialization=True,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        # Gradients are sums that the caller has divided: nothing in Megatron may average them.
        calculate_per_token_loss=True,
        # Stages of a pipeline exchange shapes: packed batches differ in length. Megatron ties this
        # to a dispatcher setting even for dense models. With several chunks two ranks may send each
        # other two tensors at once, which shapes would not survive: there batches are padded.
        variable_seq_lengths=chunks == 1,
        moe_token_dispatcher_type="alltoall",
        overlap_p2p_comm=chunks > 1,
        batch_p2p_comm=chunks == 1,
        tensor_model_parallel_size=state.tensor_size,
        sequence_parallel=state.tensor_size > 1 and state.options.sequence,
        context_parallel_size=state.context_size,
        pipeline_model_parallel_size=state.pipeline_size,
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
        **recomputation,
    )


def _check_supported(hf_config: Any, tensor_size: int, pipeline_size: int, chunks: int) -> None:
    supported = ", ".join(SUPPORTED.values())
    model_type = hf_config.model_type
    if model_type not in SUPPORTED:
        name = (getattr(hf_config, "architectures", None) or [model_type])[0]
        place = getattr(hf_config, "name_or_path", "")
        where = f" (model folder {place})" if place else ""
        raise ValueError(f"architecture {name}{where} is not supported; supported: {supported}")
    sliding = "sliding_attention" in (getattr(hf_config, "layer_types", None) or ())
    biased = model_type != "qwen2" and getattr(hf_config, "attention_bias", False)
    unsupported = {
        "use_sliding_window": sliding,
        "attention_bias": biased,
        "mlp_bias": getattr(hf_config, "mlp_bias", False),
        "partial_rotary_factor": rope_parameters(hf_config).get("partial_rotary_factor", 1.0)
        != 1.0,
        f"hidden_act {hf_config.hidden_act!r}": hf_config.hidden_act != "silu",
    }
    for feature, present in unsupported.items():
        if present:
            raise ValueError(
                f"{model_type} with {feature} is not supported; supported: {supported}"
            )
    divided = {
        "num_key_value_heads": (hf_config.num_key_value_heads, tensor_size, "tensor"),
        "num_attention_heads": (hf_config.num_attention_heads, tensor_size, "tensor"),
        "intermediate_size": (hf_config.intermediate_size, tensor_size, "tensor"),
        "num_hidden_layers": (hf_config.num_hidden_layers, pipeline_size, "pipeline"),
    }
    for field, (value, size, dimension) in divided.items():
        if value % size:
            raise ValueError(
                f"parallel.{dimension} = {size} does not divide {field} = {value} of the model"
            )
    num_layers = hf_config.num_hidden_layers
    if num_layers % (pipeline_size * chunks):
        raise ValueError(
            f"parallel.pipeline * chunks = {pipeline_size} * {chunks} does not divide "
            f"num_hidden_layers = {num_layers} of the model"
        )


def rope_parameters(hf_config: Any) -> dict[str, Any]:
    """rope_theta, rope_type and what that type needs, from any transformers version."""
    rope = getattr(hf_config, "rope_parameters", None)
    if rope is None:  # transformers 4 keeps the base and the scaling apart
        scaling = getattr(hf_config, "rope_scaling", None) or {}
        rope = {"rope_theta": hf_config.rope_theta, **scaling}
    return rope
