# SPDX-License-Identifier: Apache-2.0
"""The command line of a server; a server itself is started in `test_server_engine`."""

from __future__ import annotations

import pytest

from satori_fast.rollout.vllm_server import main, vllm_flags


def test_further_flags_come_last() -> None:
    flags = vllm_flags("folder", "127.0.0.1", 8000, ["--dtype", "float32"])
    assert flags[:6] == ["--model", "folder", "--host", "127.0.0.1", "--port", "8000"]
    assert flags[-2:] == ["--dtype", "float32"]
    place = flags.index("--logprobs-mode")
    assert flags[place + 1] == "processed_logprobs"


def test_a_public_address_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["folder", "--host", "0.0.0.0"])
    assert caught.value.code == 2
    assert "--allow-public" in capsys.readouterr().err
