#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A wire with a delay, where the kernel has no netem: delay_relay.py SECONDS NAME... makes a network device (a tap) of
each name and carries every Ethernet frame from one to the others, SECONDS after it was sent. It says "ready" when they
are there, and ends with the process that started it or when it is told to. Needs root.
"""
import collections
import fcntl
import os
import select
import struct
import sys
import time

TUNSETIFF, TAP, NO_HEADER, LARGEST = 0x400454CA, 0x0002, 0x1000, 1 << 16


def main():
    delay, names = float(sys.argv[1]), sys.argv[2:]
    wires = []
    for name in names:
        wires.append(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK))
        fcntl.ioctl(wires[-1], TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP | NO_HEADER))
    print("ready", flush=True)
    behind = {}  # where a hardware address was last seen
    waiting = collections.deque()  # (when it is due, frame, from)
    parent = os.getppid()
    while os.getppid() == parent:
        wait = waiting[0][0] - time.monotonic() if waiting else 1
        for wire in select.select(wires, [], [], max(wait, 0))[0]:
            try:
                for _ in range(64):
                    frame = os.read(wire, LARGEST)
                    behind[frame[6:12]] = wire
                    waiting.append((time.monotonic() + delay, frame, wire))
            except BlockingIOError:
                pass
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, frame, source = waiting.popleft()
            to = behind.get(frame[:6])
            for wire in [to] if to is not None else [w for w in wires if w != source]:
                try:
                    os.write(wire, frame)
                except OSError:  # its device is down, or full: a frame is lost, as on any wire
                    pass


if __name__ == "__main__":
    main()
