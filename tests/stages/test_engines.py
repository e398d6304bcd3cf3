# SPDX-License-Identifier: Apache-2.0
"""Engines that are refused at the start; a real run whose engine dies in the middle of a step."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from satori_fast.config import Config, ConfigError, RolloutConfig, load_config
from satori_fast.data.prompts import PromptRenderer
from satori_fast.data.tokenizer import build_word_tokenizer
from satori_fast.rollout.server_engine import ServerEngine
from satori_fast.stages import run_stages
from satori_fast.stages.engines import check_engine, server_flags, write_engine_folder
from satori_fast.stages.run import build_run
from tests.stages.test_run import TINY, timeless
from tests.tiny_models import tiny_model

# --- refusals at the start -----------------------------------------------------------------------


def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "vllm" else find(name, *a)
    )


def config_of(folder: Path, *overrides: str) -> Config:
    path = folder / "tiny.toml"
    path.write_text(TINY)
    return load_config(path, ["--output_dir", f"'{folder}'", *overrides])


@pytest.mark.parametrize("engine", ["vllm", "server"])
def test_an_engine_that_is_not_installed_fails_before_anything_is_done(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_vllm(monkeypatch)
    config = config_of(tmp_path, "--rollout.engine", engine)
    with pytest.raises(ConfigError, match=r"needs vLLM.*pip install.*make setup-vllm"):
        build_run(config)
    assert not (tmp_path / "tiny").exists()


def test_an_engine_is_told_to_keep_its_logits_in_float32(tmp_path: Path) -> None:
    renderer = PromptRenderer(build_word_tokenizer(["a"]), "{question}", 8)
    write_engine_folder(tmp_path / "engine", tiny_model("qwen2").config, renderer, dtype="bfloat16")
    written = json.loads((tmp_path / "engine" / "config.json").read_text())
    assert (written["dtype"], written["head_dtype"]) == ("bfloat16", "float32")


def test_servers_elsewhere_need_no_vllm_here(monkeypatch: pytest.MonkeyPatch) -> None:
    without_vllm(monkeypatch)
    check_engine(RolloutConfig(engine="server", server_url=("http://127.0.0.1:8000",)))
    check_engine(RolloutConfig())


def test_urls_may_be_one_text(tmp_path: Path) -> None:
    urls = "http://127.0.0.1:1/, http://127.0.0.1:2"
    config = config_of(tmp_path, "--rollout.server_url", urls, "--rollout.engine", "server")
    assert config.rollout.server_url == ("http://127.0.0.1:1", "http://127.0.0.1:2")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://10.1.2.3:8000", "replace its weights or run code"),
        ("http://0.0.0.0:8000", "rollout.server_allow_public"),
        ("127.0.0.1:8000", "not of the form"),
        ("localhost", "not of the form"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_engine(RolloutConfig(engine="server", server_url=(url,)))


def test_a_public_server_may_be_allowed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_engine(
            RolloutConfig(
                engine="server", server_url=("http://10.1.2.3:8000",), server_allow_public=True
            )
        )
    assert "API key does not guard" in caplog.text


def test_flags_of_the_run_come_before_those_of_the_user() -> None:
    rollout = RolloutConfig(engine="server", max_seqlen=96, server_args=("--dtype", "bfloat16"))
    flags = server_flags(rollout, dtype="float32")
    assert flags[:4] == ("--dtype", "float32", "--max-model-len", "96")
    assert "--no-enable-chunked-prefill" in flags and flags[-2:] == ("--dtype", "bfloat16")
    assert "--no-enable-chunked-prefill" not in server_flags(
        RolloutConfig(request_seeds=False), dtype="float32"
    )


# --- a real run ----------------------------------------------------------------------------------


def run_of(folder: Path) -> Path:
    """A small run that samples from a server of its own."""
    folder.mkdir()
    # vLLM's CPU attention wants heads of 32 numbers or more.
    overrides = {
        "stages": "['reinforce']",
        "model.hidden_size": "64",
        "reinforce.num_steps": "3",
        "reinforce.restarts.enabled": "true",  # of a fresh model too
        "reinforce.num_logged_samples": "1000",
        "solutions.num_problems": "4",
        "evaluation.num_problems": "4",
        "rollout.engine": "server",
        "rollout.sync_timeout_s": "100.0",
    }
    run_stages(config_of(folder, *(w for k, v in overrides.items() for w in (f"--{k}", v))))
    return folder / "tiny"


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make setup-vllm"
)
def test_a_server_killed_in_a_rollout_changes_nothing_but_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = run_of(tmp_path / "quiet")
    generate = ServerEngine.generate
    killed: list[int] = []

    def killing(self: ServerEngine, requests: Any, sampling: Any) -> Iterator[Any]:
        for item in generate(self, requests, sampling):
            yield item
            # In the rollout of the second step, when the first of its samples has come.
            if self.policy_version == 1 and not killed:
                assert self._process is not None and self._process.pid is not None
                killed.append(self._process.pid)
                os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(ServerEngine, "generate", killing)
    disturbed = run_of(tmp_path / "disturbed")
    assert killed

    for name in ("samples.jsonl", "restarts/reinforce-0.jsonl"):
        assert (disturbed / name).read_text() == (quiet / name).read_text()
    restarts = [
        line.pop("rollout/engine_restarts") for line in timeless(disturbed / "metrics.jsonl")
    ]
    assert restarts == [0.0, 1.0, 1.0]
    summary = json.loads((disturbed / "summary.json").read_text())
    assert summary["stages"][0]["accuracy"] is not None
    with pytest.raises(ProcessLookupError):
        os.killpg(killed[0], 0)  # the workers that the server left behind are gone too
