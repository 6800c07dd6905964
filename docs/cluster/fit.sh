#!/usr/bin/env bash
# lrec on nodes without a scheduler: run the same command on every node.
#
#     NODES=2 HEAD=node-a RUN=/shared/runs/829m docs/cluster/fit.sh \
#       --config configs/model/lsrm-829m.yaml --config configs/data/lsrm-ml20m.yaml --data.data_dir /shared/data
#
# HEAD is one of the nodes; RUN and data.data_dir lie on a file system that all of them share. When a process fails,
# torchrun starts all of them again, up to RESTARTS times, from the last checkpoint. To stop, send SIGTERM to torchrun on
# one node: all processes save; later, run the same command again.
set -euo pipefail

NODES=${NODES:-1}
DEVICES=${DEVICES:-8}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

exec torchrun --nnodes "$NODES" --nproc-per-node "$DEVICES" \
  --rdzv-backend c10d --rdzv-endpoint "${HEAD:-127.0.0.1}:${PORT:-29500}" --rdzv-id "$(basename "$RUN")" \
  --max-restarts "${RESTARTS:-3}" --shutdown-timeout 300 ${LOCAL_ADDRESS:+--local-addr "$LOCAL_ADDRESS"} \
  -m lrec fit --config "${TRAINER:-configs/trainer/fsdp.yaml}" "$@" \
  --trainer.num_nodes "$NODES" --trainer.devices "$DEVICES" \
  --trainer.default_root_dir "$RUN" --ckpt_path last
