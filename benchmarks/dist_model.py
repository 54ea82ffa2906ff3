#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The model of docs/dist.md: memory, bytes and seconds of a step, for entries N and ranks R that are not at hand.

    dist_model.py --round-us 100 --gb-s 1.25 call_ns=... query_ns=... and so on

--round-us and --gb-s are those of the network between as many machines, a straight line in place of the curve that
bench_dist measures; the constants of a rank are what bench_dist prints. A rank has a machine to itself unless
--ranks-per-core says how many share a core of one.
"""
import argparse
import math


def step(a, n, r):
    """Bytes of memory of a rank, bytes into a rank, seconds of exchange and of search."""
    c = a.constants
    own, width = math.ceil(a.batch / r), min(a.k, n / r)
    pieces = math.ceil(own / max(1024 // r, 1))
    fetched = own * a.k / r  # from each other rank
    messages = [112, 8, 4 * fetched, 4 * fetched]
    messages += pieces * [own / pieces * 4 * a.dim, 8 + own / pieces * (4 + 8 * width)]
    moved = (r - 1) * sum(messages)
    rounds = len(messages) * a.round_us * 1e-6 + moved / (a.gb_s * 1e9) if r > 1 else 0
    packed = a.batch * width
    alone = "alone_" if r == 1 else ""
    work = c[alone + "call_ns"] + a.batch * c[alone + "query_ns"] + packed * c[alone + "pack_ns"]
    work += max(0, packed - (2**16 if r == 1 else 2**15)) * c[alone + "far_ns"]
    # One list is copied, two are merged side by side, more by a tree.
    tree = c["merge_tree_ns"] + math.ceil(math.log2(r)) * c["merge_log_ns"]
    work += own * a.k * (c[alone + "merge_ns"] if r < 3 else tree)
    if r > 1:
        work += own * r * a.dim * c["copy_ns"] + (r - 1) * fetched * c["fetch_ns"]
    exchange = rounds + math.ceil(max(a.ranks_per_core, 1)) * work * 1e-9
    piece = min(a.batch, 1024)
    memory = n / r * (2 * a.dim + 4) + piece * (12 * a.dim + 36 * width) + own * 60 * a.k
    name = f"{'search' if a.ranks_per_core > 0 else 'alone'}_{a.batch}_{a.k}"
    search = c[name + "_s"] + n / r * a.batch * a.dim / c[name]
    return memory, moved, exchange, max(a.ranks_per_core, 1) * search


def constant(argument):
    name, value = argument.split("=")
    return name, float(value)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--round-us", type=float, required=True, help="microseconds of a round of nothing")
    p.add_argument("--gb-s", type=float, required=True, help="GB/s into a rank")
    p.add_argument("constants", type=constant, nargs="+", help="name=number, as bench_dist prints them")
    p.add_argument("--ranks-per-core", type=float, default=0, help="1 or more where a machine has several ranks")
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
