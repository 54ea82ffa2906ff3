#!/bin/sh
# SPDX-License-Identifier: MIT
# start_ranks.sh N program arguments...: starts the program N times on this machine, as N ranks that meet at MASTER_PORT
# (29500 if not set) of MASTER_ADDR (the loopback). Ends when all have ended, with 1 if one of them has failed.
ranks=$1
shift
export WORLD_SIZE="$ranks" MASTER_ADDR="${MASTER_ADDR:-127.0.0.1}" MASTER_PORT="${MASTER_PORT:-29500}"
pids=""
rank=0
while [ "$rank" -lt "$ranks" ]; do
    RANK=$rank "$@" &
    pids="$pids $!"
    rank=$((rank + 1))
done
status=0
for pid in $pids; do wait "$pid" || status=1; done
exit $status
