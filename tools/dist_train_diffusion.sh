#!/usr/bin/env bash
# Train a diffusion model with several processes: tools/dist_train_diffusion.sh CONFIG PROCESSES [flags of train_diffusion.py]
# Variables as in dist_train.sh; to go on after a failure, add --resume_from_checkpoint latest.
set -eu
CONFIG=$1
PROCESSES=$2
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # or a restart meets the addresses of the processes before it
torchrun --nnodes "${NNODES:-1}" --nproc_per_node "$PROCESSES" --rdzv_backend c10d --rdzv_id "${JOB:-bnn}" \
    --rdzv_endpoint "${MASTER_ADDR:-127.0.0.1}:${PORT:-29500}" --max_restarts "${RESTARTS:-0}" \
    "$(dirname "$0")/train_diffusion.py" "$CONFIG" "${@:3}"
