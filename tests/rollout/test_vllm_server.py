# SPDX-License-Identifier: Apache-2.0
"""The command line of a server; a server itself is started in `test_server_engine`."""

from __future__ import annotations

import shlex

import pytest

from satori_fast.rollout.vllm_server import main, vllm_flags


def test_further_flags_come_last() -> None:
    flags = vllm_flags("127.0.0.1", 8000, ["--dtype", "float32"])
    assert flags[:4] == ["--host", "127.0.0.1", "--port", "8000"]
    assert flags[-2:] == ["--dtype", "float32"]
    place = flags.index("--logprobs-mode")
    assert flags[place + 1] == "processed_logprobs"


def test_the_line_of_vllm_serve_is_shown_and_nothing_is_started(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["my folder", "--show", "--tensor-parallel-size", "2"])
    words = shlex.split(capsys.readouterr().out)
    place = words.index("vllm")
    assert words[place : place + 3] == ["vllm", "serve", "my folder"]
    assert "VLLM_SERVER_DEV_MODE=1" in words[:place]
    assert words[place + 3 :] == vllm_flags("127.0.0.1", 8000, ["--tensor-parallel-size", "2"])


def test_a_public_address_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["folder", "--host", "0.0.0.0"])
    assert caught.value.code == 2
    assert "--allow-public" in capsys.readouterr().err
