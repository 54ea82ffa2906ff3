#!/bin/sh
# SPDX-License-Identifier: MIT
# netns_ranks.sh N DELAY RATE program arguments...: starts the program as N ranks, each in a network namespace of its own
# that is tied to the others by a bridge; what a rank sends is held up by DELAY (1ms; 0: not at all) and passes at RATE
# (1gbit). Needs root, ip and tc, and for a delay a kernel with netem. Everything is taken away at the end.
set -eu
ranks=$1 delay=$2 rate=$3
shift 3
bridge=mnemo-br
cleanup() {
    r=0
    while [ "$r" -lt "$ranks" ]; do ip netns del "mnemo$r" 2>/dev/null || true; r=$((r + 1)); done
    ip link del $bridge 2>/dev/null || true
}
cleanup
trap cleanup EXIT
ip link add $bridge type bridge
ip link set $bridge up
r=0
while [ "$r" -lt "$ranks" ]; do
    ip netns add "mnemo$r"
    ip link add "mnemo-v$r" type veth peer name eth0 netns "mnemo$r"
    ip link set "mnemo-v$r" master $bridge up
    ip -n "mnemo$r" link set lo up
    ip -n "mnemo$r" addr add "10.77.0.$((r + 1))/24" dev eth0
    ip -n "mnemo$r" link set eth0 up
    if [ "$delay" = 0 ]; then
        tc -n "mnemo$r" qdisc add dev eth0 root tbf rate "$rate" burst 256kb latency 500ms
    else
        tc -n "mnemo$r" qdisc add dev eth0 root netem delay "$delay" rate "$rate" limit 100000
    fi
    r=$((r + 1))
done
export MASTER_ADDR=10.77.0.1 GLOO_SOCKET_IFNAME=eth0
"$(dirname "$0")/../examples/start_ranks.sh" "$ranks" sh -c 'exec ip netns exec "mnemo$RANK" "$@"' sh "$@"
