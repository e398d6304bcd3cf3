# SPDX-License-Identifier: Apache-2.0
"""Jobs of configs: every shipped one is planned, up to 1,024 GPUs, and none is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from satori_fast.config import ConfigError, load_config
from satori_fast.planning.of_config import device_of, job_of, layout_of, plan_config
from satori_fast.stages.setup import write_tokenizer

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))
EIGHT = str(ROOT / "configs/satori/7b_8gpu.toml")
QUICKSTART = str(ROOT / "configs/quickstart.toml")
# Those that train nothing, and what the others say that they were made for.
H100 = device_of("h100", "bfloat16")
WITHOUT_TRAINING = {"curate.toml", "synthesize.toml"}
MADE_FOR = {
    "1.5b_1gpu.toml": (1, "h100"),
    "7b_32gpu.toml": (32, "h100"),
    "7b_8gpu.toml": (8, "h100"),
    "format_tuning.toml": (8, "h100"),
    "llama-3.1-8b-instruct.toml": (8, "h100"),
    "qwen2-7b-instruct.toml": (8, "h100"),
    "qwen2.5-math-7b.toml": (8, "h100"),
    "qwen2.5-3b-instruct.toml": (8, "h100"),
    "qwen2.5-7b-instruct.toml": (8, "h100"),
    "qwen2.5-coder-7b-instruct.toml": (8, "h100"),
}


@pytest.mark.parametrize(
    "path", CONFIGS, ids=lambda path: path.relative_to(ROOT / "configs").as_posix()
)
def test_every_shipped_config_fits_what_it_was_made_for_and_more(path: Path) -> None:
    config = load_config(path)
    if path.name in WITHOUT_TRAINING:
        with pytest.raises(ConfigError, match="train no model: nothing is to be planned"):
            plan_config(config, num_gpus=8, gpu="h100")
        return
    num_gpus, gpu = MADE_FOR.get(path.name, (1, "h100"))
    found = [plan_config(config, num_gpus=n, gpu=gpu) for n in (num_gpus, 256, 1024)]
    assert [plan.asked.lacking for plan in found] == [None] * 3
    assert all(plan.fitting for plan in found)
    # Data parallelism adds ranks and no memory, and a step never takes longer for it.
    peaks = [plan.asked.fullest.peak for plan in found]
    assert peaks == sorted(peaks, reverse=True)
    assert found[0].asked.layout.num_ranks + found[0].job.engine.num_gpus == num_gpus


def test_models_of_a_stage() -> None:
    ppo = {stage.name: stage for stage in job_of(load_config(EIGHT), H100).stages}
    assert list(ppo) == ["supervised", "preference", "reinforce", "distill_2", "reinforce_2"]
    roles = [(role.name, role.kind, role.trained) for role in ppo["reinforce"].roles]
    assert roles == [
        ("policy", "policy", True),
        ("critic", "scalar", True),
        ("reward", "scalar", False),
    ]
    assert ppo["reinforce"].num_sequences == 256 and ppo["reinforce_2"].num_sequences == 2048
    assert [role.kind for role in ppo["preference"].roles] == ["scalar"]
    assert ppo["preference"].num_sequences == 256  # pairs
    s2r = job_of(load_config(ROOT / "configs/s2r/qwen2.5-math-7b.toml"), H100).stages
    assert [[role.name for role in stage.roles] for stage in s2r] == [["policy", "reference"]] * 2
    assert s2r[0].keeps_start_hidden and not s2r[1].keeps_start_hidden


def test_lengths_that_a_config_does_not_tell_are_assumed() -> None:
    lengths = job_of(load_config(EIGHT), H100).main.lengths
    assert (lengths.prompt, lengths.response, lengths.longest) == (2048, 2048, 4096)
    assert (lengths.expected_prompt, lengths.expected_response) == (512, 1024)


def test_servers_have_gpus_of_their_own() -> None:
    servers = job_of(load_config(ROOT / "configs/satori/7b_32gpu.toml"), H100).engine
    assert servers.kind == "server" and servers.num_gpus == 8
    # 72B is 145 GB of weights: each server needs four GPUs.
    large = ["--model.path", "Qwen/Qwen2.5-72B"]
    assert (
        job_of(load_config(ROOT / "configs/satori/7b_32gpu.toml", large), H100).engine.num_gpus
        == 32
    )
    two = ["--rollout.server_url", "", "--rollout.server_devices", "'0,1'"]
    two += ["--rollout.server_args", '["--tensor-parallel-size", "2"]']
    engine = job_of(load_config(ROOT / "configs/satori/7b_32gpu.toml", two), H100).engine
    assert (engine.num_gpus, engine.tensor) == (2, 2)


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_a_fresh_model_has_the_vocabulary_of_its_tokenizer(kind: str, tmp_path: Path) -> None:
    from satori_fast.data.tokenizer import load_tokenizer

    options = ["--data.source", "word_problems", "--tokenizer.vocab_size", "400"]
    options += ["--data.levels", "[2]", "--data.num_train", "200"]
    config = load_config(
        QUICKSTART, [] if kind == "words" else [*options, "--tokenizer.kind", kind]
    )
    write_tokenizer(config, tmp_path / "tokenizer")
    vocabulary = len(load_tokenizer(tmp_path / "tokenizer"))
    assert job_of(config, H100).sizes.shape.num_logits == vocabulary


def test_the_layout_is_that_of_the_config() -> None:
    layout = layout_of(load_config(EIGHT))
    assert (layout.tensor, layout.pipeline, layout.context, layout.recompute) == (4, 1, 1, "full")


@pytest.mark.parametrize(
    ("overrides", "gpus", "gpu", "message"),
    [
        ([], 8, "h1000", "GPU 'h1000' is not known; known are b200, h200-nvl, h200, "),
        ([], 2, "h100", "--gpus 2 is below what one copy of the models takes, parallel.tensor"),
        ([], 9, "h100", "--gpus 9 is no multiple of parallel.tensor"),
        ([], 0, "h100", "command line: --gpus 0: take at least 1"),
        (["--parallel.tensor", "8"], 8, "h100", "parallel.tensor = 8 does not divide num_key_"),
        (["--model.path", "a/b"], 8, "h100", "model.path = 'a/b' is no folder here"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    overrides: list[str], gpus: int, gpu: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_config(load_config(EIGHT, overrides), num_gpus=gpus, gpu=gpu)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_float32_is_slower_on_a_gpu() -> None:
    config = load_config(EIGHT)
    slow = load_config(EIGHT, ["--model.dtype", "float32"])
    seconds = [
        plan_config(each, num_gpus=8, gpu="h200").asked.time.parts["update"].seconds
        for each in (config, slow)
    ]
    assert seconds[1] > 10 * seconds[0]
