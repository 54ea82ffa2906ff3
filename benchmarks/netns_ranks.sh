#!/bin/sh
# SPDX-License-Identifier: MIT
# netns_ranks.sh N DELAY RATE program arguments...: starts the program as N ranks, each in a network namespace of its own
# that is tied to the others by a bridge; what a rank sends passes at RATE (1gbit) and is held up by DELAY milliseconds
# (0: not at all). A delay needs Python: delay_relay.py carries the frames then. Needs root, ip and tc. The machine's
# net.core.netdev_max_backlog is 10000 meanwhile: a real wire would not drop the frames that 1000 leave no room for.
# Everything is as before at the end.
set -eu
ranks=$1 delay=$2 rate=$3
shift 3
bridge=mnemo-br
relay=""
backlog_file=/proc/sys/net/core/netdev_max_backlog
backlog=$(cat $backlog_file)
cleanup() {
    echo "$backlog" 2>/dev/null >$backlog_file || true
    if [ -n "$relay" ]; then kill "$relay" 2>/dev/null || true; fi
    r=0
    while [ "$r" -lt "$ranks" ]; do ip netns del "mnemo$r" 2>/dev/null || true; r=$((r + 1)); done
    ip link del $bridge 2>/dev/null || true
}
# receive_on CORE DEVICE [prefix of a command]: frames that come are all taken in by one core. Else each is by the core
# that sent it, two cores overtake each other, and TCP takes that for frames that were lost.
cores=$(nproc)
if [ "$cores" -gt 32 ]; then cores=32; fi
receive_on() {
    mask=$(printf %x $((1 << $1)))
    queue=$2/queues/rx-0/rps_cpus
    shift 2
    "$@" sh -c "echo $mask >$queue"
}
cleanup
trap cleanup EXIT
echo 10000 2>/dev/null >$backlog_file || true
r=0
names=""
while [ "$r" -lt "$ranks" ]; do ip netns add "mnemo$r"; names="$names mnemo-v$r"; r=$((r + 1)); done
if [ "$delay" = 0 ]; then
    ip link add $bridge type bridge
    ip link set $bridge up
else
    ready=$(mktemp)
    # shellcheck disable=SC2086
    "$(dirname "$0")/delay_relay.py" "$delay"e-3 $names >"$ready" &
    relay=$!
    until [ -s "$ready" ]; do kill -0 "$relay"; sleep 0.1; done
    rm "$ready"
fi
r=0
while [ "$r" -lt "$ranks" ]; do
    if [ "$delay" = 0 ]; then
        # Jumbo frames: with 1500 bytes two cores are busy with frames, not ranks.
        ip link add "mnemo-v$r" mtu 9000 type veth peer name eth0 mtu 9000 netns "mnemo$r"
        ip link set "mnemo-v$r" master $bridge up
        receive_on $((r % cores)) "/sys/class/net/mnemo-v$r"
    else
        ip link set "mnemo-v$r" netns "mnemo$r" name eth0 mtu 32000 # few frames to carry
    fi
    ip -n "mnemo$r" link set lo up
    ip -n "mnemo$r" addr add "10.77.0.$((r + 1))/24" dev eth0
    ip -n "mnemo$r" link set eth0 up
    receive_on $((r % cores)) /sys/class/net/eth0 ip netns exec "mnemo$r"
    # BBR, which some machines have, takes what the token bucket lets pass at once for the wire's rate.
    ip netns exec "mnemo$r" sysctl -qw net.ipv4.tcp_congestion_control=reno
    tc -n "mnemo$r" qdisc add dev eth0 root tbf rate "$rate" burst 64kb latency 500ms
    r=$((r + 1))
done
export MASTER_ADDR=10.77.0.1 GLOO_SOCKET_IFNAME=eth0
"$(dirname "$0")/../examples/start_ranks.sh" "$ranks" sh -c 'exec ip netns exec "mnemo$RANK" "$@"' sh "$@"
