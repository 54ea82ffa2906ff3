#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Puts a benchmark program beside a reference script: same machine, same session, same number of threads.

  compare.py build/release/benchmarks/bench_knn_lm reference.py [--cases a,b] [--threads 1] [--repeat 5]

Both are run one after the other. A benchmark whose label is the name of a case of the script is compared with it; rates
are medians over the repetitions, in items per second of wall time. The script is asked with --threads, --repeat and
--case, and prints one JSON object a line: case, items_per_s. --python names the interpreter that runs it.

With --each every case gets processes of its own, program and script in turn: what the machine does beside changes less
between the two, and peak memory above the start is compared, too (peak_rss_mb and rss_before_mb of both). With
--processor-time, for one thread, rates are per second of processor time: what other programs take does not count.
"""
import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys


def processor():
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def ours(program, repeat, environment, pattern):
    command = [program, "--benchmark_format=json", f"--benchmark_repetitions={repeat}",
               f"--benchmark_filter={pattern}"]
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
    rates = {}
    for run in json.loads(out)["benchmarks"]:
        if run.get("run_type") == "iteration" and "items_per_second" in run:
            rate = run["items_per_second"]
            if not run["name"].split("/repeats")[0].endswith("/real_time"):  # counted in processor time
                rate *= run["cpu_time"] / run["real_time"]
            rates.setdefault(run.get("label") or run["name"], []).append(rate)
    return {name: statistics.median(values) for name, values in rates.items()}


def theirs(python, script, cases, threads, repeat, environment):
    """Cases that run several times are told apart by the parameters that differ: `case vocab=512`."""
    command = [python, script, "--threads", str(threads), "--repeat", str(repeat)]
    if cases:
        with open(script) as source:  # some scripts call the option --only
            text = source.read()
            command += [next(o for o in ("--case", "--cases", "--only") if f'"{o}"' in text), cases]
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    names = []
    for line in lines:
        runs = [other.get("params", {}) for other in lines if other.get("case") == line.get("case")]
        differing = [f"{name}={value}" for name, value in line.get("params", {}).items()
                     if any(run.get(name) != value for run in runs)]
        names.append(" ".join([line.get("case", ""), *differing]))
    for line, name in zip(lines, names):
        line["case"] = name
    return {line["case"]: line["items_per_s"] for line in lines if "items_per_s" in line}


def extra(record):
    return record["peak_rss_mb"] - record["rss_before_mb"] if "rss_before_mb" in record else None


def each(wanted, environment):
    """name -> (our rate, their rate, our extra memory, theirs), a case at a time."""
    tests = subprocess.run([wanted.program, "--benchmark_list_tests", f"--benchmark_filter={wanted.filter}"],
                           env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    for test in tests:
        command = [wanted.program, "--benchmark_format=json", f"--benchmark_repetitions={wanted.repeat}",
                   f"--benchmark_filter=^{re.escape(test)}$"]
        out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
        runs = [r for r in json.loads(out)["benchmarks"] if r.get("run_type") == "iteration"]
        name = runs[0].get("label") or runs[0]["name"]
        rates = [r["items_per_second"] for r in runs]
        if wanted.processor_time and runs[0]["name"].split("/repeats")[0].endswith("/real_time"):
            rates = [rate * r["real_time"] / r["cpu_time"] for rate, r in zip(rates, runs)]
        rate, memory = statistics.median(rates), extra(runs[0])
        case = name.split(".", 1)[-1]
        if wanted.cases and case not in wanted.cases.split(","):
            continue
        command = [wanted.python, wanted.reference, "--threads", str(wanted.threads), "--repeat", str(wanted.repeat),
                   "--case", case] + ["--processor-time"] * wanted.processor_time
        out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        found = [record for record in found if record.get("case") == name and "items_per_s" in record]
        yield name, rate, found[0]["items_per_s"] if found else None, memory, extra(found[0]) if found else None


def compare_each(wanted, environment):
    print(f"{processor()}, {wanted.threads} thread(s), load {os.getloadavg()[0]:.1f}, median of {wanted.repeat}")
    print(f"{'':28} {'items/s':>10} {'reference':>10} {'ratio':>7}   {'extra MB':>9} {'reference':>9} {'ratio':>7}")
    record = {}
    for name, rate, other, memory, other_memory in each(wanted, environment):
        line = f"{name:28} {rate:10.1f}"
        line += f" {other:10.1f} {rate / other:6.1f}x" if other else f" {'':18}"
        if memory is not None:
            line += f"   {memory:9.1f}"
            line += f" {other_memory:9.1f} {memory / other_memory:7.3f}" if other_memory else ""
        print(line, flush=True)
        record[name] = {"mnemo": rate, "reference": other, "extra_mb": memory, "reference_extra_mb": other_memory}
    return record


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("program", help="a Google Benchmark program")
    options.add_argument("reference", help="the script to compare with")
    options.add_argument("--cases", default="", help="names for the script's --case, with commas; default: all")
    options.add_argument("--filter", default=".", help="regular expression for the program's benchmarks")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--repeat", type=int, default=5)
    options.add_argument("--python", default=sys.executable)
    options.add_argument("--each", action="store_true", help="a case at a time, with peak memory")
    options.add_argument("--processor-time", action="store_true", help="with --each: instead of wall time")
    options.add_argument("--json", help="writes every number to this file")
    wanted = options.parse_args()
    if wanted.processor_time and not wanted.each:
        options.error("--processor-time goes with --each, and with a script that takes it, too")

    environment = dict(os.environ)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[variable] = str(wanted.threads)

    if wanted.each:
        record = {"processor": processor(), "threads": wanted.threads, "cases": compare_each(wanted, environment)}
        if wanted.json:
            with open(wanted.json, "w") as file:
                json.dump(record, file, indent=2)
        return

    rates = ours(wanted.program, wanted.repeat, environment, wanted.filter)
    reference = theirs(wanted.python, wanted.reference, wanted.cases, wanted.threads, wanted.repeat, environment)

    load = os.getloadavg()[0]
    print(f"{processor()}, {wanted.threads} thread(s), load {load:.1f}, median of {wanted.repeat}")
    # A label such as `case | how` is a variant of ours.
    for name in rates:
        if name.split(" | ")[0] in reference:
            reference.setdefault(name, reference[name.split(" | ")[0]])
    names = [name for name in rates if name in reference]
    if not names:
        sys.exit("no benchmark is labelled with a case of the script")
    width = max(map(len, names))
    print(f"{'items per second':{width}}  {'mnemo':>12}  {'reference':>12}  {'ratio':>7}")
    for name in names:
        print(f"{name:{width}}  {rates[name]:12.1f}  {reference[name]:12.1f}  {rates[name] / reference[name]:6.1f}x")
    for name in sorted(set(rates) - set(names)):
        print(f"{name}: {rates[name]:.1f}, not in the reference")
    if wanted.json:
        record = {"processor": processor(), "threads": wanted.threads, "repeat": wanted.repeat, "load": load,
                  "mnemo": rates, "reference": reference,
                  "ratio": {name: rates[name] / reference[name] for name in names}}
        with open(wanted.json, "w") as file:
            json.dump(record, file, indent=2)


if __name__ == "__main__":
    main()
