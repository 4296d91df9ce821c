#!/usr/bin/env bash
# Train a diffusion model with several processes: tools/dist_train_diffusion.sh CONFIG PROCESSES [flags of train_diffusion.py]
# Variables as in dist_train.sh; to go on after a failure, add --resume_from_checkpoint latest.
set -eu
CONFIG=$1
PROCESSES=$2
torchrun --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" --nproc_per_node "$PROCESSES" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}" --max_restarts "${RESTARTS:-0}" \
    "$(dirname "$0")/train_diffusion.py" "$CONFIG" "${@:3}"
