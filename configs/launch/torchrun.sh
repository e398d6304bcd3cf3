#!/usr/bin/env bash
# A run on the GPUs of this machine, one process each; copy it and change what is above the line.
#   bash configs/launch/torchrun.sh CONFIG.toml --section.key value ...
# CONFIG may be any file of configs/; what follows it overrides its keys. Start the same line again
# after a stop: --resume goes on where the last checkpoint is, and begins where there is none.
set -euo pipefail
: "${PROCESSES:=8}"              # processes, one for each GPU
: "${PYTHON:=python}"            # of the environment with satori_fast
: "${GRACE_S:=60}"               # seconds from SIGTERM to the end: parallel.grace_s of the config
# --------------------------------------------------------------------------------------------------
if [ $# -eq 0 ]; then
    echo "usage: bash $0 CONFIG.toml [--section.key value ...]" >&2
    exit 2
fi
# exec: a signal to this script reaches torchrun, which passes it on.
exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$PROCESSES" \
    --shutdown-timeout "$GRACE_S" -m satori_fast run "$@" --resume
