# SPDX-License-Identifier: Apache-2.0
"""Any exception becomes one line, an exit code, and a traceback where the run is."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from satori_fast import cli, failures
from satori_fast.config import ConfigError
from satori_fast.failures import code_of, is_of_peers, line_of
from satori_fast.rollout.engine import EngineDied


class SafetensorError(Exception):
    """By the name of the library's own."""


class OutOfMemoryError(RuntimeError):
    """By the name of torch's own."""


def caused(cause: Exception) -> Exception:
    try:
        try:
            raise cause
        except type(cause) as inner:
            raise RuntimeError("while saving") from inner
    except RuntimeError as error:
        return error


ERRORS: dict[str, tuple[Exception, int, str]] = {
    "config": (ConfigError("seed = -1: too small"), 2, "seed = -1: too small"),
    "several_lines": (ValueError("a\n  b\r\n\tc\u2028d"), 2, "a b c d"),
    "control": (ValueError("red \x1b[31m\x07"), 2, r"red \x1b[31m\x07"),
    "missing": (FileNotFoundError(2, "No such file", "/a/b"), 2, "/a/b does not exist"),
    "folder": (IsADirectoryError(21, "Is a", "/a"), 2, "/a is a folder, and a file is needed"),
    "no_folder": (NotADirectoryError(20, "Not", "/a/b"), 2, "/a/b is not a folder, or lies below"),
    "forbidden": (PermissionError(13, "Permission denied", "/a"), 2, "/a may not be used by this"),
    "read_only": (OSError(errno.EROFS, "Read-only", "/a"), 1, "/a lies on a file system that is"),
    "two_names": (OSError(errno.EISDIR, "x", "/a", None, "/b"), 2, "/b is a folder"),
    "disk": (
        OSError(errno.ENOSPC, "No space left on device", "/a/b"),
        1,
        "no space left on device: /a/b; free space and pass --resume",
    ),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), 1, "no space left on device; free"),
    "disk_of_safetensors": (
        SafetensorError("I/O error: No space left on device (os error 28)"),
        1,
        "no space left on device; free",
    ),
    "disk_below": (
        caused(OSError(errno.ENOSPC, "No space left on device", "/a")),
        1,
        "no space left on device: /a",
    ),
    "key": (KeyError("weight"), 1, "KeyError: 'weight'"),
    "silent": (RuntimeError(), 1, "RuntimeError"),
    "assertion": (AssertionError("a step ends"), 1, "AssertionError: a step ends"),
    "ours": (EngineDied("the server is gone"), 1, "the server is gone"),
    "memory": (MemoryError(), 1, "the memory of this machine is full: lower packing."),
    "gpu_memory": (
        OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB. GPU 0 has"),
        1,
        "the GPU's memory is full: lower packing.max_tokens_per_microbatch",
    ),
    "unicode": (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad byte"), 2, "text is not UTF-8: "),
    "long": (ValueError("x" * 5000), 2, "x" * 700),
    "secret": (ValueError("at http://me:hush-hush@host"), 2, "at http://***@host"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_one_line_and_a_code(name: str) -> None:
    error, code, said = ERRORS[name]
    line = line_of(error)
    assert line.startswith(said) and len(line) < 900
    assert line.isprintable() and code_of(error) == code


def test_what_only_says_that_a_peer_is_gone() -> None:
    assert is_of_peers(RuntimeError("[gloo/tcp/pair.cc:553] Connection closed by peer"))
    assert not is_of_peers(RuntimeError("the shapes differ"))
    assert not is_of_peers(ValueError("Connection closed by peer"))


def run(monkeypatch: pytest.MonkeyPatch, error: BaseException, folder: Path | None) -> int:
    """The exit code of a verb that opens a run folder and fails."""

    def act(*_: Any) -> None:
        failures.log_to(folder)
        raise error

    monkeypatch.setattr(cli, "_show", act)
    return cli.main(["show"])


def test_the_traceback_goes_to_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_hush_hush")
    assert run(monkeypatch, KeyError("hf_hush_hush"), tmp_path) == 1
    log = tmp_path / "error.log"
    line = capsys.readouterr().err
    assert line == f"satori-fast: KeyError: '***' ({log} has the traceback)\n"
    assert run(monkeypatch, ValueError("mine"), tmp_path) == 2
    text = log.read_text()
    assert text.count("Traceback (most recent call last)") == 2 and "KeyError: '***'" in text
    assert text.count("--- 2") == 2 and ", rank 0, pid" in text


def test_without_a_run_folder_there_is_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (None, tmp_path / "gone"):
        assert run(monkeypatch, KeyError("a"), folder) == 1
        assert "SATORI_FAST_TRACEBACK=1 shows the traceback" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, KeyboardInterrupt(), None) == 130
    assert capsys.readouterr().err == "satori-fast: interrupted; --resume continues the run\n"


def test_a_rank_says_who_it_is_and_tells_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tmp_path / "told.json"
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "TORCHELASTIC_ERROR_FILE": told}.items():
        monkeypatch.setenv(name, str(value))
    assert run(monkeypatch, RuntimeError("no such tensor"), tmp_path) == 1
    line = capsys.readouterr().err.strip()
    log = tmp_path / "error-rank3.log"
    assert line == (f"satori-fast: rank 3: RuntimeError: no such tensor ({log} has the traceback)")
    message = json.loads(told.read_text())["message"]
    assert line.endswith(message["message"]) and message["extraInfo"]["timestamp"].isdigit()


def test_an_error_of_another_rank_is_told_in_short(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = ConfigError("the folder is taken")
    error.failed_rank = 0  # pyright: ignore[reportAttributeAccessIssue]
    assert run(monkeypatch, error, None) == 2
    assert capsys.readouterr().err == "satori-fast: rank 1: stopped because rank 0 failed\n"


@pytest.mark.parametrize(("own", "num_lines"), [(False, 0), (True, 1)])
def test_a_mistake_of_all_ranks_is_one_line_in_every_log(
    own: bool, num_lines: int, tmp_path: Path
) -> None:
    """Ranks of a launcher that share its stderr leave it to the first; one with a log of its own
    (torchrun's --redirects) says it there."""
    rank = [sys.executable, "-m", "satori_fast", "run", str(tmp_path / "none.toml")]
    log = f", stderr=open({str(tmp_path / 'rank1.log')!r}, 'w')" if own else ""
    program = f"import subprocess; raise SystemExit(subprocess.run({rank!r}{log}).returncode)"
    environment = {**os.environ, "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    launcher = [sys.executable, "-c", program]
    done = subprocess.run(launcher, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr == ""
    lines = (tmp_path / "rank1.log").read_text().splitlines() if own else []
    assert len(lines) == num_lines
    assert all(line.startswith("satori-fast: rank 1: config file ") for line in lines)


@pytest.mark.parametrize(("local_rank", "num_lines"), [(0, 1), (1, 0)])
def test_a_launcher_that_ends_ranks_before_they_meet_hears_the_first_alone(
    local_rank: int, num_lines: int
) -> None:
    rank = (
        "import os, signal, sys; from satori_fast import cli; "
        "cli.load_config = lambda *_: os.kill(os.getpid(), signal.SIGTERM); "
        "sys.exit(cli.main(['show', 'any.toml']))"
    )
    command = [sys.executable, "-c", rank]
    program = f"import subprocess; raise SystemExit(subprocess.run({command!r}).returncode)"
    place = {"RANK": str(local_rank), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": "2"}
    launcher = [sys.executable, "-c", program]
    environment = {**os.environ, **place}
    done = subprocess.run(launcher, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 143
    lines = [line for line in done.stderr.splitlines() if line.startswith("satori-fast: ")]
    assert len(lines) == num_lines
