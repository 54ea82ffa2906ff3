#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The model of docs/dist.md: memory, bytes and seconds of a step, for entries N and ranks R that are not at hand.

    dist_model.py --round-us 100 --gb-s 1.25 --hit-ns 60 --search 5e10

--round-us and --gb-s are those of the network, --hit-ns and --search (keys x queries x width a second of one rank) those
of a rank; benchmarks/dist.cpp measures all of them.
"""
import argparse
import math


def step(a, n, r):
    """Bytes of memory of a rank, bytes into a rank, seconds of exchange and of search."""
    own, width = a.batch / r, min(a.k, n / r)
    pieces = math.ceil(own / max(1024 // r, 1))
    moved = own * (r - 1) * (4 * a.dim + 8 * width + 4) + own * a.k * (r - 1) / r * 8
    rounds = (4 + 2 * pieces) * a.round_us * 1e-6 if r > 1 else 0
    exchange = rounds + moved / (a.gb_s * 1e9) + a.batch * width * a.hit_ns * 1e-9
    piece = min(a.batch, 1024)
    memory = n / r * (2 * a.dim + 4) + piece * (4 * a.dim + 2 * (8 * width + 4))
    return memory, moved, exchange, n / r * a.batch * a.dim / a.search


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--round-us", type=float, required=True, help="microseconds of a round of nothing")
    p.add_argument("--gb-s", type=float, required=True, help="GB/s into a rank")
    p.add_argument("--hit-ns", type=float, required=True, help="nanoseconds to pack and merge a hit")
    p.add_argument("--search", type=float, required=True, help="keys x queries x width a second of one rank")
    p.add_argument("--batch", type=int, default=512, help="queries of all ranks together")
    p.add_argument("--k", type=int, default=1024)
    p.add_argument("--dim", type=int, default=1024)
    a = p.parse_args()
    print("| entries | ranks | GB a rank | MB into a rank | exchange, ms | search, s | exchange of step |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for n in (10**6, 10**7, 10**8, 10**9):
        for r in (1, 4, 16, 64):
            memory, moved, exchange, search = step(a, n, r)
            print(f"| {n:.0e} | {r} | {memory / 1e9:.3g} | {moved / 1e6:.3g} | {1e3 * exchange:.3g} | {search:.3g} | "
                  f"{100 * exchange / (exchange + search):.2g} % |")


if __name__ == "__main__":
    main()
