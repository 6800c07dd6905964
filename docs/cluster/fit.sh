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

# torchrun ends with 1 whatever its processes end with: how the run ended stands in its folder. There is no $(...) below,
# because bash may lose a signal that comes while it reads one.
ended_as() { grep -qx "$1" "$RUN/ended" 2>/dev/null; }

stopped=
torchrun=
stop() {
  stopped=1
  [ -z "$torchrun" ] || kill -TERM "$torchrun" 2>/dev/null
}
trap stop TERM INT USR1

# Told to stop, perhaps before there was anything to save: the other nodes read it in the run's folder.
leave_if_stopped() {
  if [ -n "$stopped" ]; then
    mkdir -p "$RUN" && echo interrupted >"$RUN/ended"
    exit 75
  fi
}

for ((attempt = 0; attempt <= ${RESTARTS:-3}; attempt++)); do
  rm -f "$RUN/ended"
  # torchrun itself would restart its processes and wait for those of a node that is not to come back. If it is killed,
  # its processes must not train on without it: setpriv has the system kill them, so that all nodes start again.
  torchrun --nnodes "$NODES" --nproc-per-node "$DEVICES" \
    --rdzv-backend c10d --rdzv-endpoint "${HEAD:-127.0.0.1}:${PORT:-29500}" --rdzv-id "${RUN##*/}" \
    --max-restarts 0 --shutdown-timeout 300 --signals-to-handle SIGTERM,SIGINT,SIGUSR1 \
    ${LOCAL_ADDRESS:+--local-addr "$LOCAL_ADDRESS"} \
    --no-python setpriv --pdeathsig KILL lrec fit --config "${TRAINER:-configs/trainer/fsdp.yaml}" "$@" \
    --trainer.num_nodes "$NODES" --trainer.devices "$DEVICES" \
    --trainer.default_root_dir "$RUN" --ckpt_path last &
  torchrun=$!
  [ -z "$stopped" ] || stop
  while kill -0 "$torchrun" 2>/dev/null; do # a signal ends a wait, too
    sleep "${PAUSE:-10}" >/dev/null 2>&1 &
    wait -n "$torchrun" $!
    # Another node was told to stop: this one may be waiting for it.
    ! ended_as interrupted || stop
  done
  ! ended_as finished || exit 0
  leave_if_stopped
  sleep "${PAUSE:-10}" # for the other nodes to end as well
  leave_if_stopped
  ! ended_as interrupted || exit 75
done
exit 1
