#!/usr/bin/env bash
# lrec on nodes without a scheduler: run the same command on every node.
#
#     NODES=2 HEAD=node-a RUN=/shared/runs/829m docs/cluster/fit.sh \
#       --config configs/model/lsrm-829m.yaml --config configs/data/lsrm-ml20m.yaml --data.data_dir /shared/data
#
# HEAD is one of the nodes; RUN and data.data_dir lie on a file system that all of them share. When a process fails, each
# node starts again, up to RESTARTS times, from the last checkpoint. To stop, send SIGTERM to this script on one node: all
# processes save, and the script ends with 75 on every node; later, run the same command again.
set -uo pipefail

NODES=${NODES:-1}
DEVICES=${DEVICES:-8}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# torchrun ends with 1 whatever its processes end with: how the run ended stands in its folder.
ended() { cat "$RUN/ended" 2>/dev/null; }

stopped=
stop() {
  stopped=1
  kill -TERM "$torchrun" 2>/dev/null
}
trap stop TERM INT USR1

for ((attempt = 0; attempt <= ${RESTARTS:-3}; attempt++)); do
  rm -f "$RUN/ended"
  # torchrun itself would restart its processes and wait for those of a node that is not to come back.
  torchrun --nnodes "$NODES" --nproc-per-node "$DEVICES" \
    --rdzv-backend c10d --rdzv-endpoint "${HEAD:-127.0.0.1}:${PORT:-29500}" --rdzv-id "$(basename "$RUN")" \
    --max-restarts 0 --shutdown-timeout 300 --signals-to-handle SIGTERM,SIGINT,SIGUSR1 \
    ${LOCAL_ADDRESS:+--local-addr "$LOCAL_ADDRESS"} \
    -m lrec fit --config "${TRAINER:-configs/trainer/fsdp.yaml}" "$@" \
    --trainer.num_nodes "$NODES" --trainer.devices "$DEVICES" \
    --trainer.default_root_dir "$RUN" --ckpt_path last &
  torchrun=$!
  while kill -0 "$torchrun" 2>/dev/null; do # a signal ends a wait
    wait "$torchrun"
  done
  if [ "$(ended)" = finished ]; then
    exit 0
  elif [ -n "$stopped" ]; then # told to stop before there was anything to save, perhaps: the other nodes read it here
    mkdir -p "$RUN" && echo interrupted >"$RUN/ended"
    exit 75
  fi
  sleep "${PAUSE:-10}" # for the other nodes to end as well
  if [ "$(ended)" = interrupted ]; then
    exit 75
  fi
done
exit 1
