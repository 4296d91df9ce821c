#!/usr/bin/env bash
# Train with several processes on each machine: tools/dist_train.sh CONFIG PROCESSES [flags of tools/train.py]
# On several machines, run it on each with NNODES and MASTER_ADDR set, the first machine's address. RESTARTS=3 starts all processes again after a
# failure, up to three times, from the newest checkpoint (with --resume among the flags).
set -eu
CONFIG=$1
PROCESSES=$2
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # or a restart meets the addresses of the processes before it
torchrun --nnodes "${NNODES:-1}" --nproc_per_node "$PROCESSES" --rdzv_backend c10d --rdzv_id "${JOB:-bnn}" \
    --rdzv_endpoint "${MASTER_ADDR:-127.0.0.1}:${PORT:-29500}" --max_restarts "${RESTARTS:-0}" \
    "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "${@:3}"
