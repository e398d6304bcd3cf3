#!/usr/bin/env bash
# A run on several machines: start this on each of them, with the same arguments and the same MAIN.
#   MAIN=trainer-0 MACHINES=4 bash configs/launch/torchrun_nodes.sh CONFIG.toml --section.key value ...
# output_dir has to be a folder that all machines see. Start it again after a stop: --resume.
set -euo pipefail
: "${MAIN:?name of the machine where the processes meet, as the others reach it}"
: "${MACHINES:?number of machines}"
: "${PORT:=29500}"               # on MAIN, open to the other machines alone
: "${RUN_ID:=satori}"            # the same on all machines, another one for each run
: "${PROCESSES:=8}"              # processes on each machine, one for each GPU
: "${PYTHON:=python}"            # of the environment with satori_fast
: "${GRACE_S:=60}"               # seconds from SIGTERM to the end: parallel.grace_s of the config
# --------------------------------------------------------------------------------------------------
if [ $# -eq 0 ]; then
    echo "usage: MAIN=HOST MACHINES=N bash $0 CONFIG.toml [--section.key value ...]" >&2
    exit 2
fi
exec "$PYTHON" -m torch.distributed.run --nnodes "$MACHINES" --nproc-per-node "$PROCESSES" \
    --rdzv-backend c10d --rdzv-endpoint "$MAIN:$PORT" --rdzv-id "$RUN_ID" \
    --shutdown-timeout "$GRACE_S" -m satori_fast run "$@" --resume
