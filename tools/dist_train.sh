#!/usr/bin/env bash
# Train with several processes on each machine: tools/dist_train.sh CONFIG PROCESSES [flags of tools/train.py]
# On several machines, run it on each with NNODES, NODE_RANK and MASTER_ADDR set. RESTARTS=3 starts all processes again after a
# failure, up to three times, from the newest checkpoint (with --resume among the flags).
set -eu
CONFIG=$1
PROCESSES=$2
torchrun --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" --nproc_per_node "$PROCESSES" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}" --max_restarts "${RESTARTS:-0}" \
    "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "${@:3}"
