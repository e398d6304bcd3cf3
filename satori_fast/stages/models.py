# SPDX-License-Identifier: Apache-2.0
"""Model folders: found, made, read as learners, and left by learners.

Each stage reads a model folder and leaves one, in Hugging Face form, so every stage's result opens
in plain transformers and a stage can start from any other's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from satori_fast.backbone.architecture import Recompute, load_hf_config, with_score_statistics
from satori_fast.backbone.export import export_hf
from satori_fast.backbone.model import Kind, PolicyModel
from satori_fast.backbone.optimizer import OptimizerSettings
from satori_fast.backbone.step import Learner, build_learner
from satori_fast.backbone.weights import NewTokenRows
from satori_fast.config import Config, ConfigError, OptimizerConfig
from satori_fast.data.prompts import PromptRenderer
from satori_fast.data.stop_tokens import exported_generation
from satori_fast.data.tokenizer import load_tokenizer
from satori_fast.stages.run_folder import RunFolder
from satori_fast.storage import replaced_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FRESH_MODEL = "models/initial"  # in the run folder


@dataclass(frozen=True)
class ModelFolders:
    """Reads model folders for one tokenizer, and leaves learners as such folders.

    tokenizer_folder: of the renderer's tokenizer; its generation_config.json goes into exports.
    dtype:            of the parameters. max_seqlen: longest sequence that they will see.
    """

    renderer: PromptRenderer
    tokenizer_folder: Path
    dtype: str
    recompute: Recompute
    max_seqlen: int

    def hf_config(self, folder: Path) -> Any:
        """The Hugging Face config of a model folder, its vocabulary grown to the tokenizer's.

        ConfigError when its context is too short.
        """
        hf_config = load_hf_config(folder)
        hf_config.vocab_size = max(hf_config.vocab_size, len(self.renderer.tokenizer))
        if self.max_seqlen > hf_config.max_position_embeddings:
            raise ConfigError(
                f"rollout.max_seqlen = {self.max_seqlen} exceeds the model's context of "
                f"{hf_config.max_position_embeddings} positions"
            )
        return hf_config

    def policy(
        self, folder: Path, optimizer: OptimizerConfig | None = None, *, num_steps: int = 0
    ) -> Learner:
        """The model of a folder as a policy; frozen without an `optimizer`."""
        hf_config = with_score_statistics(self.hf_config(folder), None)
        learner = self._learner(folder, hf_config, "policy", optimizer, num_steps=num_steps)
        limit_vocabulary(learner, self.renderer.tokenizer)
        return learner

    def scalar(
        self,
        folder: Path,
        optimizer: OptimizerConfig | None = None,
        *,
        num_steps: int = 0,
        normalized: bool = False,
    ) -> Learner:
        """The model of a folder with one number for each token; frozen without an `optimizer`.

        normalized: it gives (score - mean) / std, with the statistics of its folder.
        """
        hf_config = self.hf_config(folder)
        if not normalized:
            hf_config = with_score_statistics(hf_config, None)
        return self._learner(folder, hf_config, "scalar", optimizer, num_steps=num_steps)

    def _learner(
        self,
        folder: Path,
        hf_config: Any,
        kind: Kind,
        optimizer: OptimizerConfig | None,
        *,
        num_steps: int,
    ) -> Learner:
        return build_learner(
            hf_config,
            kind=kind,
            weights=NewTokenRows(folder, tokens_unknown_to(folder, self.renderer)),
            optimizer=None if optimizer is None else optimizer_settings(optimizer, num_steps),
            dtype=getattr(torch, self.dtype),
            recompute=self.recompute,
        )

    def export(self, learner: Learner, folder: Path) -> None:
        """Leave a learner as a Hugging Face folder with its tokenizer, prompt and stop tokens."""
        generation = exported_generation(self.tokenizer_folder, self.renderer)
        export_hf(learner, folder, self.renderer.tokenizer_to_serve(), generation=generation)


def limit_vocabulary(learner: Learner, tokenizer: PreTrainedTokenizerBase) -> None:
    """Keep a policy, and the engines that serve it, to the ids of `tokenizer`: checkpoints have
    more rows than tokens, and what they would sample there decodes to nothing."""
    if isinstance(learner.module, PolicyModel):
        num_ids = max(tokenizer.get_vocab().values()) + 1
        learner.module.limit_vocabulary(min(num_ids, learner.hf_config.vocab_size))


def tokens_unknown_to(folder: Path, renderer: PromptRenderer) -> dict[int, tuple[int, ...]]:
    """Ids of the format's special tokens that the tokenizer in a model folder does not have, each
    with the ids of its name as that one spells it: of <|reflect|> those of the word "reflect".

    The model was not trained with them. Without a tokenizer there, none.
    """
    if not (folder / "tokenizer_config.json").exists():
        return {}
    tokenizer = load_tokenizer(folder)
    known = tokenizer.get_vocab()
    return {
        number: _ids_of(tokenizer, _said_by(token))
        for token, number in renderer.special_ids.items()
        if token not in known
    }


def _ids_of(tokenizer: Any, words: str) -> tuple[int, ...]:
    """The ids of words inside a text; none where they are not in the vocabulary."""
    try:
        ids = tokenizer.encode(f" {words}", add_special_tokens=False)
    except Exception:  # one of whole words without an unknown one raises nothing more precise
        return ()
    return () if tokenizer.unk_token_id in ids else tuple(ids)


def _said_by(token: str) -> str:
    return token.strip("<|>").replace("_", " ")


def optimizer_settings(config: OptimizerConfig, num_steps: int) -> OptimizerSettings:
    """Settings of an optimizer of `num_steps` steps: the fields of both sides have the same names,
    but for the lengths in steps."""
    warmup_steps = config.warmup_steps(num_steps)
    if config.schedule != "constant":
        # How many steps there are is often known only when the data is there.
        warmup_steps = min(warmup_steps, num_steps - 1)
    return OptimizerSettings(
        **config.model_dump(exclude={"warmup_fraction"}),
        warmup_steps=warmup_steps,
        decay_steps=num_steps,
    )


def initial_model_folder(config: Config, folder: Path) -> Path:
    """The model that the first stage reads: the checkpoint's folder, or a fresh one of the run."""
    if config.model.path is None:
        return folder / _FRESH_MODEL
    path = model_folder(config.model.path)
    load_hf_config(path)
    return path


def model_folder(path: str, *, weights: bool = True) -> Path:
    """A folder as it is, or a snapshot of the hub's model of this name ("owner/model"), with or
    without its weights."""
    if Path(path).expanduser().is_dir() or path.count("/") != 1 or path.startswith((".", "~", "/")):
        return Path(path).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.txt", "*.jinja", "*.model", *(["*.safetensors"] * weights)]
        return Path(snapshot_download(path, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{path} is neither a folder nor a model that can be fetched from the hub: {reason}"
        ) from None


def make_fresh_model(config: Config, tokenizer: PreTrainedTokenizerBase, place: RunFolder) -> None:
    """Leave a randomly initialised model in Hugging Face form, read later like any checkpoint."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if place.has(_FRESH_MODEL):
        return
    model = config.model
    hf_config = AutoConfig.for_model(
        model.architecture,
        vocab_size=len(tokenizer),
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads,
        head_dim=model.hidden_size // model.num_attention_heads,
        intermediate_size=model.intermediate_size,
        max_position_embeddings=config.rollout.max_seqlen,
        tie_word_embeddings=model.tie_word_embeddings,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(config.seed)
    fresh = AutoModelForCausalLM.from_config(hf_config, dtype=getattr(torch, model.dtype))
    with replaced_folder(place.path / _FRESH_MODEL) as folder:
        fresh.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    place.note(place.path / _FRESH_MODEL)
