#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A reference script's LongMem cases for compare.py --each: the peak of memory beside the level before, and the search
and attention with a backward pass, composed of the script's own functions.

  LONG_MEM_REFERENCE=longmem.py compare.py --each build/release/benchmarks/bench_long_mem long_mem.py --python PYTHON
"""
import argparse
import importlib.util
import json
import os
import resource
import statistics
import time


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def search_and_attend_backward(ref, tokens):
    import torch
    heads, width, chunk, k, memory = 16, 64, 4, 64, 65536
    generator = torch.Generator().manual_seed(0)
    bank = ref.filled_bank(heads, width, memory, chunk, k, 0.875, generator)
    dim = heads * width
    weights = {n + "_proj.weight": (torch.randn(dim, dim, generator=generator) * dim ** -0.5).requires_grad_()
               for n in ("q", "k", "v", "out")}
    weights["memory_bias"] = torch.zeros(heads, requires_grad=True)
    x = torch.randn(tokens, 1, dim, generator=generator).requires_grad_()
    upstream = torch.randn(tokens, 1, dim, generator=generator)
    bias = ref.alibi(torch.ones(1, tokens, dtype=torch.int32), heads)
    mask = torch.triu(torch.full((tokens, tokens), float("-inf")), 1)

    def step():
        for p in [x, *weights.values()]:
            p.grad = None
        found = bank.search(torch.nn.functional.linear(x, weights["q_proj.weight"]))
        ref.attention(x, weights, heads, bias, mask, None, found).backward(upstream)
    return step, tokens, {}, None


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--case", required=True)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--repeat", type=int, default=5)
    options.add_argument("--tokens", type=int, default=512)
    options.add_argument("--processor-time", action="store_true", help="instead of wall time")
    wanted = options.parse_args()
    clock = time.process_time if wanted.processor_time else time.perf_counter
    spec = importlib.util.spec_from_file_location("reference", os.environ["LONG_MEM_REFERENCE"])
    ref = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ref)
    ref.torch.set_num_threads(wanted.threads)
    ref.faiss.omp_set_num_threads(wanted.threads)
    if "FAISS_BLAS_THRESHOLD" in os.environ:  # queries from which FAISS multiplies matrices
        ref.faiss.cvar.distance_compute_blas_threshold = int(os.environ["FAISS_BLAS_THRESHOLD"])
    name = "longmem." + wanted.case
    cases = ref.bench_list(argparse.Namespace(scale=1.0, tokens=wanted.tokens))
    cases["longmem.search_and_attend_backward"] = lambda: search_and_attend_backward(ref, wanted.tokens)
    step, items, _, setup = cases[name]()
    before, seconds = peak_mb(), []
    for _ in range(wanted.repeat + 1):
        if setup:
            setup()
        start = clock()
        step()
        seconds.append(clock() - start)
    print(json.dumps({"case": name, "items_per_s": items / statistics.median(seconds[1:]), "rss_before_mb": before,
                      "peak_rss_mb": peak_mb()}))


if __name__ == "__main__":
    main()
