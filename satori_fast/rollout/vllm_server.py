# SPDX-License-Identifier: Apache-2.0
"""`python -m satori_fast.rollout.vllm_server`: the process of a vLLM server that a trainer syncs.

It is vLLM's own OpenAI server with the flags that sampling for training needs, and with our methods
in its workers. A trainer starts one by itself (`server_process`); on another machine a person does,
with the `engine` folder of the run and any further flag of vLLM:

    python -m satori_fast.rollout.vllm_server FOLDER --host 10.0.0.7 --port 8000 --allow-public

`--show` prints the same as a line of `vllm serve`, for those who start servers their own way; this
package has to be installed there too. Not for talking to a server: `server_engine`.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import runpy
import shlex
import signal
import sys
from collections.abc import Sequence

from satori_fast.rollout.server_process import check_address

_EXTENSION = "satori_fast.rollout.server_worker.ServerExtension"
# vLLM reads these when it is imported. The first opens the routes that sync; nobind: it would pin
# its threads to the cores that a trainer on the same machine uses.
_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
_PR_SET_PDEATHSIG = 1


def vllm_flags(host: str, port: int, further: Sequence[str]) -> list[str]:
    """The flags of `vllm serve FOLDER`. `further` comes last and may override."""
    return [
        *("--host", host, "--port", str(port)),
        *("--load-format", "dummy"),  # the first sync brings the weights
        "--skip-tokenizer-init",
        *("--generation-config", "vllm"),  # no sampling defaults of a checkpoint
        *("--logprobs-mode", "processed_logprobs"),  # at the sampling temperature
        *("--worker-extension-cls", _EXTENSION),
        "--disable-uvicorn-access-log",
        *further,
    ]


def serve_line(folder: str, flags: Sequence[str]) -> str:
    """A line for a shell that starts the same server by `vllm serve`."""
    variables = [f"{name}={value}" for name, value in _ENVIRONMENT.items()]
    return shlex.join([*variables, "vllm", "serve", folder, *flags])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", help="config and tokenizer, as a run writes them to its `engine`")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--allow-public", action="store_true", help="listen beyond this machine")
    parser.add_argument("--show", action="store_true", help="print it as a line of `vllm serve`")
    parser.add_argument("--parent", type=int, help="end when this process does")
    options, further = parser.parse_known_args(arguments)
    try:
        check_address(options.host, allowed=options.allow_public, flag="--allow-public")
    except ValueError as error:
        parser.error(str(error))
    flags = vllm_flags(options.host, options.port, further)
    if options.show:
        print(serve_line(options.folder, flags))  # noqa: T201
        return
    if options.parent is not None:
        _end_with(options.parent)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    sys.argv = ["vllm", "--model", options.folder, *flags]
    # `vllm serve` looks up a package name that the CPU build does not have.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


def _end_with(parent: int) -> None:
    """Ask the kernel for a SIGTERM when `parent` ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit("the process that started this server is gone")


if __name__ == "__main__":
    main()
