#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The model of docs/dist.md: memory, bytes and seconds of a step, for entries N and ranks R that are not at hand.

    dist_model.py --round-us 100 --gb-s 1.25 call_ns=... query_ns=... and so on

--round-us and --gb-s are those of the network between as many machines; the constants of a rank, whose core is its own
unless --ranks-per-core says otherwise, are what bench_dist prints (search_...: keys x queries x width a second).
"""
import argparse
import math


def step(a, n, r):
    """Bytes of memory of a rank, bytes into a rank, seconds of exchange and of search."""
    own, width = math.ceil(a.batch / r), min(a.k, n / r)
    pieces = math.ceil(own / max(1024 // r, 1))
    fetched = own * a.k * (r - 1) / r
    moved = own * (r - 1) * (4 * a.dim + 8 * width + 4) + 8 * fetched
    rounds = (4 + 2 * pieces) * a.round_us * 1e-6 if r > 1 else 0
    merge = a.constants["merge_ns"] + a.constants["merge_log_ns"] * math.log2(r)
    work = a.constants["call_ns"] + a.batch * a.dim * a.constants["query_ns"] + a.batch * width * a.constants["pack_ns"]
    work += own * a.k * merge + fetched * a.constants["fetch_ns"]
    exchange = rounds + moved / (a.gb_s * 1e9) + a.ranks_per_core * work * 1e-9
    piece = min(a.batch, 1024)
    memory = n / r * (2 * a.dim + 4) + piece * (4 * a.dim + 2 * (8 * width + 4))
    search = n / r * a.batch * a.dim / a.constants[f"search_{a.batch}_{a.k}"]
    return memory, moved, exchange, a.ranks_per_core * search


def constant(argument):
    name, value = argument.split("=")
    return name, float(value)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--round-us", type=float, required=True, help="microseconds of a round of nothing")
    p.add_argument("--gb-s", type=float, required=True, help="GB/s into a rank")
    p.add_argument("constants", type=constant, nargs="+", help="name=number, as bench_dist prints them")
    p.add_argument("--ranks-per-core", type=float, default=1)
    p.add_argument("--batch", type=int, default=512, help="queries of all ranks together")
    p.add_argument("--k", type=int, default=1024)
    p.add_argument("--dim", type=int, default=1024)
    a = p.parse_args()
    a.constants = dict(a.constants)
    print("| entries | ranks | GB a rank | MB into a rank | exchange, ms | search, s | exchange of step |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for n in (10**6, 10**7, 10**8, 10**9):
        for r in (1, 4, 16, 64):
            memory, moved, exchange, search = step(a, n, r)
            print(f"| {n:.0e} | {r} | {memory / 1e9:.3g} | {moved / 1e6:.3g} | {1e3 * exchange:.3g} | {search:.3g} | "
                  f"{100 * exchange / (exchange + search):.2g} % |")


if __name__ == "__main__":
    main()
