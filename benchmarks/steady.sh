#!/bin/sh
# SPDX-License-Identifier: MIT
# steady.sh COMMAND...: runs it on a machine whose idle cores look out for work for a millisecond before they halt. A
# core of a virtual machine that halts comes back when the host has one for it: for messages of tens of microseconds
# that is now nothing and now ten times what they take. Needs root; everything is as before at the end. Says how much
# of the processors the host has kept to itself meanwhile.
set -eu
poll=/sys/module/haltpoll/parameters/guest_halt_poll_ns
if [ -w $poll ]; then
    before=$(cat $poll)
    trap 'echo "$before" >$poll' EXIT
    trap 'exit 1' INT TERM
    echo 1000000 >$poll
fi
# Seconds that the host has taken, and all that have passed, of all cores.
seconds() { awk -v hz="$(getconf CLK_TCK)" '/^cpu / {all = 0; for (i = 2; i <= 9; ++i) all += $i; print $9 / hz, all / hz}' /proc/stat; }
first=$(seconds)
status=0
"$@" || status=$?
echo "$first $(seconds)" | awk '{printf "steady.sh: the host kept %.1f of %.0f seconds of processors\n", $3 - $1, $4 - $2}' >&2
exit $status
