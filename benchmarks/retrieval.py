#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Large-k retrieval beside its peers: one table, with ratios, recall and the share of the machine's peaks.

  retrieval.py build/release/benchmarks/bench_retrieval reference.py [--rows R1,R6] [--rounds 3] [--json out.json] [--plot out.svg]

For each shape both programs get the same keys and queries and run in turn, `rounds` times; the best rate of each case
counts, and ratios are of these. The reference script is asked with --keys, --queries, --k, --batch, --metric, --threads,
--repeat and --cases, and prints one JSON object a line: case, params, seconds_min, recall, gflops or gbytes_s. Peaks
(gemm_*, read_bandwidth) are measured in the same run. Needs numpy. --n makes all large shapes smaller, for a quick look.
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile

import numpy

EXACT = dict(k=1024, batch=1024, metric="l2", threads=1)
LISTS_256, LISTS_1024 = dict(EXACT, n=400000, d=256), dict(EXACT, n=300000, d=1024)
# id, shape, our case, the peer's case ("linked" ones run in our program; None: a peak), least ratio to report as reached
ROWS = [
    ("R1", dict(EXACT, n=100000, d=256), "packed", "faiss_flat", 3.3),
    ("R1", dict(EXACT, n=100000, d=1024), "packed", "faiss_flat", 2.9),
    ("R1 unpacked", dict(EXACT, n=100000, d=256), "exact", "faiss_flat", None),
    ("R1 unpacked", dict(EXACT, n=100000, d=1024), "exact", "faiss_flat", None),
    ("R2 k=8", dict(EXACT, n=100000, d=256, k=8, metric="ip"), "packed", "faiss_flat", 3.6),
    ("R2 k=64", dict(EXACT, n=100000, d=256, k=64), "packed", "faiss_flat", 3.6),
    ("R3", dict(EXACT, n=100000, d=256), "packed", "torch_bf16", 4.5),
    ("R3", dict(EXACT, n=100000, d=1024), "packed", "torch_bf16", 2.5),
    ("R4", dict(EXACT, n=100000, d=256), "packed", "faiss_linked_flat", 4.5),
    ("R4", dict(EXACT, n=100000, d=1024), "packed", "faiss_linked_flat", 3.8),
    ("R5 batch 4", dict(EXACT, n=100000, d=256, batch=4), "packed", "faiss_flat", 10),
    ("R5 batch 16", dict(EXACT, n=100000, d=256, batch=16), "packed", "faiss_flat", 10),
    ("R5 batch 256", dict(EXACT, n=100000, d=256, batch=256), "packed", "faiss_flat", 10),
    ("R6", dict(EXACT, n=100000, d=1024, batch=1), "packed", "faiss_flat", 3.5),
    ("R6", dict(EXACT, n=100000, d=1024, batch=1), "packed", "read_bandwidth", 0.8),
    ("R7 batch 16", dict(EXACT, n=100000, d=64, k=64, batch=16, metric="ip"), "packed", "faiss_flat", 5),
    ("R7 batch 2048", dict(EXACT, n=100000, d=64, k=64, batch=2048, metric="ip"), "packed", "faiss_flat", 3.3),
    ("R8", dict(EXACT, n=10000, d=256, batch=2048), "exact", "faiss_flat", 3.3),
    ("R8", dict(EXACT, n=10000, d=256, batch=2048), "exact", "torch_fp32", 2.9),
    ("R9 int8", dict(EXACT, n=100000, d=256), "scan_int8", "gemm_int8", 0.85),
    ("R9 bf16", dict(EXACT, n=100000, d=256), "scan_bfloat16", "gemm_bf16", 0.9),
    ("R10 int8", dict(EXACT, n=100000, d=1024), "packed", "gemm_bf16", 1.2),
    ("R10 bf16", dict(EXACT, n=100000, d=1024), "packed_bfloat16", "gemm_bf16", 0.8),
    ("R11", dict(EXACT, n=100000, d=256, threads=2), "packed", "one_thread", 1.85),
    ("R12", dict(LISTS_256, batch=2048), "ivf_pq_products", "ivf_pq_32", 6),
    ("R12", dict(LISTS_256, batch=2048), "ivf_pq_products", "faiss_linked_ivf_pq", None),
    ("R12", dict(LISTS_1024, batch=2048), "ivf_pq_products", "ivf_pq_32", 3.3),
    ("R12", dict(LISTS_1024, batch=2048), "ivf_pq_products", "faiss_linked_ivf_pq", None),
    ("R13", LISTS_256, "lists_nprobe32", "ivf_flat_32", 10),
    ("R13", LISTS_256, "lists_nprobe32", "ivf_pq_32", 5),
    ("R13", LISTS_1024, "lists_nprobe32", "ivf_flat_32", 10),
    ("R13", LISTS_1024, "lists_nprobe32", "ivf_pq_32", 5),
    ("R13 small", dict(EXACT, n=100000, d=256), "lists_first_pass", "ivf_flat_128", 8),
    ("R13 small", dict(EXACT, n=100000, d=1024), "lists_first_pass", "ivf_flat_128", 8),
    ("R14", dict(EXACT, n=100000, d=8, batch=1024, vocab=32768), "tail_gold", "tail_gold", 15),
    ("R15 32768", dict(EXACT, n=100000, d=8, batch=256, vocab=32768), "tail_dense", "tail_dense", 25),
    ("R15 267744", dict(EXACT, n=100000, d=8, batch=64, vocab=267744), "tail_dense", "tail_dense", 50),
]
# Runs a script that measures with time.perf_counter, in processor time.
PROCESSOR_TIME = ("import runpy, sys, time; time.perf_counter = time.process_time; sys.argv = sys.argv[1:]; "
                  "runpy.run_path(sys.argv[0], run_name='__main__')")
# Instructions that both sides are held to: FAISS's name for them, and that of a processor of OpenBLAS's without more.
LEVELS = {"plain": ("NONE", "Prescott"), "avx2": ("AVX2", "Haswell"), "avx512": ("AVX512", "SkylakeX")}
PEAKS = ("gemm_fp32", "gemm_bf16", "gemm_int8", "read_bandwidth")


def rows_like_hidden_states(n, d, seed=0):
    """Clusters of Zipf sizes, a falling spectrum, a common offset, turned at random."""
    random = numpy.random.default_rng(seed)
    clusters = max(64, n // 256)
    spectrum = (numpy.arange(d) + 1.0) ** -0.55
    spectrum *= numpy.sqrt(d / (spectrum**2).sum())
    turn = numpy.linalg.qr(random.standard_normal((d, d)))[0].astype("f4")
    weights = 1 / (numpy.arange(clusters) + 10.0)
    centres = random.standard_normal((clusters, d)) * spectrum
    centres[:, 0] += 1.5 * spectrum[0]
    labels = random.choice(clusters, n, p=weights / weights.sum())
    out = numpy.empty((n, d), "f4")
    for i in range(0, n, 65536):
        some = labels[i:i + 65536]
        noise = 0.6 * random.standard_normal((len(some), d)) * spectrum
        out[i:i + 65536] = (centres[some] + noise).astype("f4") @ turn
    return out


def data_for(shape, folder):
    paths = [os.path.join(folder, f"{what}_{shape['n']}_{shape['d']}.npy") for what in ("keys", "queries")]
    if not os.path.exists(paths[0]):
        rows = rows_like_hidden_states(shape["n"] + 2048, shape["d"])
        numpy.save(paths[0], rows[:shape["n"]])
        numpy.save(paths[1], rows[shape["n"]:])
    return paths


def better(found, name, case):
    if name not in found or case["rate"] > found[name]["rate"]:
        found[name] = case


def ours(program, shape, paths, cases, found, environment, processor_time):
    command = [program, "--keys", paths[0], "--queries", paths[1], "--benchmark_format=json",
               "--benchmark_min_time=0.01", "--benchmark_repetitions=5",
               f"--benchmark_filter=^({'|'.join(cases)})/"]
    for name in ("k", "batch", "metric", "threads", "vocab"):
        if name in shape:
            command += ["--" + name, str(shape[name])]
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    for run in json.loads(out)["benchmarks"]:
        if run.get("error_occurred") or run.get("run_type") != "iteration":
            continue
        share = run["real_time"] / run["cpu_time"] if processor_time else 1
        case = {"rate": share * run.get("items_per_second", 0), "recall": run.get("recall"),
                "flops": share * run.get("flop/s", 0), "bytes": share * run.get("bytes/s", 0), "bytes_a_key": run.get("bytes_a_key"),
                "build_s": run.get("build_s"), "same_ids": run.get("same_ids")}
        case.update({name: run[name] for name in ("p50_ms", "p95_ms", "p99_ms") if name in run})
        better(found, run["label"], case)


def theirs(python, script, shape, paths, cases, found, environment, processor_time):
    command = [python] + (["-c", PROCESSOR_TIME] if processor_time else []) + [script, "--keys", paths[0], "--queries", paths[1], "--n", str(shape["n"]), "--repeat", "3",
               "--cases", ",".join(cases), "--nprobe", "32,128"]
    if not any(c.startswith("tail") for c in cases):
        command += ["--d", str(shape["d"])]
    for name in ("k", "batch", "metric", "threads", "vocab"):
        if name in shape:
            command += ["--" + name, str(shape[name])]
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    for line in out.splitlines():
        run = json.loads(line) if line.startswith("{") else {}
        if "seconds_min" not in run:
            continue
        peak = run["case"] in PEAKS
        rate = run.get("gflops", run.get("gbytes_s", 0)) * 1e9 if peak else shape["batch"] / run["seconds_min"]
        nprobe = run["params"].get("nprobe")
        better(found, run["case"] + (f"_{nprobe}" if nprobe else ""), {"rate": rate, "recall": run.get("recall"), "bytes_a_key": run.get("bytes_per_key"),
                                    "build_s": run.get("build_s"), "flops": rate if peak else None})


def measure(options, shape, wanted, folder):
    paths = data_for(shape, folder)
    environment = dict(os.environ, **{v: str(shape["threads"]) for v in
                                      ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")})
    if options.level:
        environment["MNEMO_SIMD"] = options.level
        environment["FAISS_SIMD_LEVEL"], environment["OPENBLAS_CORETYPE"] = LEVELS[options.level]
    mine = sorted({row[2] for row in wanted} | {row[3] for row in wanted if "linked" in row[3]})
    reference = sorted({"tail" if p.startswith("tail") else "machine" if p in PEAKS else p.rsplit("_", 1)[0] if p.startswith("ivf") else p
                        for _, _, _, p, _ in wanted if "linked" not in p and p != "one_thread"})
    found, peers = {}, {}
    for _ in range(options.rounds):
        ours(options.program, shape, paths, mine, found, environment, options.processor_time)
        if reference:
            theirs(options.python, options.reference, shape, paths, reference, peers, environment,
                   options.processor_time)
        if any(row[3] == "one_thread" for row in wanted):
            alone = {}
            ours(options.program, dict(shape, threads=1), paths, mine, alone, environment, False)
            better(peers, "one_thread", alone[wanted[0][2]])
    peers.update({name: case for name, case in found.items() if "linked" in name})
    return found, peers


def plot(rows, path):
    bars, height = [], 18
    widest = max(row["ratio"] for row in rows)
    for i, row in enumerate(rows):
        width, y = 400 * row["ratio"] / widest, 30 + i * height
        bars.append(f'<text x="190" y="{y + 11}" text-anchor="end">{row["id"]} d={row["d"]}</text>'
                    f'<rect x="200" y="{y}" width="{width:.1f}" height="{height - 5}" fill="#4477aa"/>'
                    f'<text x="{204 + width:.1f}" y="{y + 11}">{row["ratio"]:.2f} {row["peer"]}</text>')
    with open(path, "w") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{40 + len(rows) * height}" '
                   'font-family="sans-serif" font-size="11"><text x="200" y="18">times the peer\'s rate</text>'
                   + "".join(bars) + "</svg>\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="bench_retrieval")
    parser.add_argument("reference", help="the script with the peers")
    parser.add_argument("--rows", default="", help="ids to measure, with commas; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--n", type=int, default=0, help="keys at most")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the reference script")
    parser.add_argument("--processor-time", action="store_true",
                        help="count both sides' processor time, on a machine that is not quiet; one thread only")
    parser.add_argument("--level", choices=LEVELS, help="hold both sides to these instructions: the exact searches alone, "
                        "unpacked")
    parser.add_argument("--json", help="writes every number to this file")
    parser.add_argument("--plot", help="writes the ratios as an SVG")
    parser.add_argument("--data", default=os.path.join(tempfile.gettempdir(), "mnemo_bench_retrieval"))
    options = parser.parse_args()
    os.makedirs(options.data, exist_ok=True)

    ids = set(filter(None, options.rows.split(",")))
    chosen = [row for row in ROWS if not ids or row[0].split()[0] in ids]
    if options.level:
        chosen = [(name, shape, "exact", peer, 1) for name, shape, case, peer, _ in chosen
                  if case in ("packed", "exact") and "faiss" in peer and "unpacked" not in name]
    if not chosen:
        sys.exit(f"no row is called {options.rows}")
    if options.n:
        chosen = [(i, dict(s, n=min(s["n"], options.n)), *rest) for i, s, *rest in chosen]
    print(f"{platform.processor() or platform.machine()}, load {os.getloadavg()[0]:.1f}, best of {options.rounds}")
    print(f"{'row':14} {'n':>7} {'d':>5} {'k':>5} {'batch':>5}  {'case':17} {'rate/s':>9} {'recall':>7}  "
          f"{'peer':22} {'rate/s':>9} {'recall':>7}  {'ratio':>7} {'least':>6}")
    shapes, records = [], []
    for row in chosen:
        if row[1] not in shapes:
            shapes.append(row[1])
    for shape in shapes:
        if options.processor_time and shape["threads"] > 1:
            print(f"{'R11':14} needs a quiet machine: left out")
            continue
        wanted = [row for row in chosen if row[1] == shape]
        found, peers = measure(options, shape, wanted, options.data)
        for name, _, case, peer, least in wanted:
            if case not in found or peer not in peers:
                print(f"{name:14} {case}: no figure for {case if case not in found else peer}")
                continue
            mine, other = found[case], peers[peer]
            rate = mine["bytes"] if peer == "read_bandwidth" else mine["flops"] if peer in PEAKS else mine["rate"]
            recalls = [f"{c['recall']:.4f}" if c.get("recall") is not None else "" for c in (mine, other)]
            ratio = rate / other["rate"]
            print(f"{name:14} {shape['n']:7} {shape['d']:5} {shape['k']:5} {shape['batch']:5}  {case:17} {rate:9.4g} "
                  f"{recalls[0]:>7}  {peer:22} {other['rate']:9.4g} {recalls[1]:>7}  {ratio:7.2f} {least or '':>6}"
                  + ("" if least is None or ratio >= least else "  below"), flush=True)
            records.append({"id": name, **shape, "case": case, "peer": peer, "ratio": ratio, "least": least,
                            "mnemo": mine, "reference": other})
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": platform.processor() or platform.machine(), "load": os.getloadavg()[0],
                       "rounds": options.rounds, "rows": records}, file, indent=2)
    if options.plot and records:
        plot(records, options.plot)


if __name__ == "__main__":
    main()
