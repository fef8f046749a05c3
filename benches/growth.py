#!/usr/bin/env python3
"""How the cost of a request grows: with pipelining, the size of values, connections, providers with a line, and workers.

Drives the release build in its three roles as `whole.py` does, changing one thing at a time, and writes what CPU time a
request costs the proxy as `docs/performance.svg` and as tables to standard output, for `docs/performance.md`. Each figure
is the median of the rounds. Needs matplotlib besides what `whole.py` needs (`pip install matplotlib`), and about four minutes.
"""
import argparse
import contextlib
import os
import shutil
import signal
import statistics
import sys
import tempfile

import whole

OUTPUT = os.path.join(whole.HERE, "..", "docs", "performance.svg")
# What is changed, its values, and the rest of the workload: command, bytes, pipeline, clients.
GROWTHS = [
    ("pipeline", [1, 2, 4, 8, 16, 32, 64], ("SET", 64, None, 50)),
    ("bytes of a value", [16, 64, 256, 1024, 4096, 16384, 65536], ("SET", None, 1, 50)),
    ("clients", [1, 5, 20, 50, 200, 1000], ("SET", 64, 1, None)),
]
PROVIDERS = [0, 1_000, 10_000, 100_000, 1_000_000]
WORKERS = [1, 2]


def cost(options, process, port, workload):
    """Microseconds of CPU time that a request costs the proxy."""
    command, size, pipeline, whole.CLIENTS = workload
    warm = whole.load(options, port, command, size, pipeline, 40 * whole.CLIENTS * pipeline)
    requests = max(1000, int(warm["rps"] * options.seconds))
    runs = []
    for _ in range(options.rounds):
        before = process.cpu_seconds()
        whole.load(options, port, command, size, pipeline, requests)
        runs.append((process.cpu_seconds() - before) / requests * 1e6)
    return statistics.median(runs)


def print_table(what, values, columns):
    """As Markdown."""
    print("\n| %s | %s |\n| ---: |%s" % (what, " | ".join(columns), " ---: |" * len(columns)))
    for number, value in enumerate(values):
        print("| {:,} | {} |".format(value, " | ".join("%.2f" % column[number] for column in columns.values())), flush=True)


def in_roles(options, stores, directory, what, values, workload):
    """One thing changed, in every role."""
    columns = {}
    with contextlib.ExitStack() as stack:
        for role in whole.ROLES:
            process, port = whole.start_proxy(options, role, stores, directory, stack)
            full = [tuple(value if part is None else part for part in workload) for value in values]
            columns[role] = [cost(options, process, port, one) for one in full]
    print_table(what, values, columns)
    return what, values, columns


def with_providers(options, stores, directory):
    """Lines in the table; the benchmark's own providers are the first of them."""
    columns = {"GET": [], "SET": []}
    for count in PROVIDERS:
        lines = "\n[providers]\n" + "".join('"%012d" = "standalone"\n' % number for number in range(count))
        with contextlib.ExitStack() as stack:
            process, port = whole.start_proxy(options, "standalone", stores, directory, stack, lines)
            for command, column in columns.items():
                column.append(cost(options, process, port, (command, 64, 16, 50)))
    print_table("lines, pipeline 16", PROVIDERS, columns)
    return "providers with a line", PROVIDERS, columns


def with_workers(options, stores, directory):
    """Workers, in every role."""
    columns = {role: [] for role in whole.ROLES}
    for options.workers in WORKERS:
        for role, column in columns.items():
            with contextlib.ExitStack() as stack:
                process, port = whole.start_proxy(options, role, stores, directory, stack)
                column.append(cost(options, process, port, ("SET", 64, 16, 50)))
    options.workers = 1
    print_table("workers, pipeline 16", WORKERS, columns)
    return "workers", WORKERS, columns


def plot(grown):
    """One panel for each thing that was changed."""
    import matplotlib
    matplotlib.use("svg")
    from matplotlib import pyplot
    figure, panels = pyplot.subplots(1, len(grown), figsize=(4 * len(grown), 3.2), layout="constrained")
    for panel, (what, values, columns) in zip(panels, grown):
        positions = range(len(values))
        for name, column in columns.items():
            panel.plot(positions, column, marker="o", label=name)
        panel.set_xticks(positions, ["{:,}".format(value) for value in values], rotation=45)
        panel.set_xlabel(what)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    panels[0].set_ylabel("CPU of the proxy, µs a request")
    figure.savefig(OUTPUT, metadata={"Date": None})
    print("\nwrote %s" % os.path.relpath(OUTPUT))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each run is repeated")
    parser.add_argument("--seconds", type=float, default=0.3, help="about how long one run takes")
    parser.add_argument("--binary", default=os.path.join(whole.HERE, "..", "target", "release", "cutover"))
    options = parser.parse_args()
    options.workers, options.redis_server, options.redis_benchmark = 1, "redis-server", "redis-benchmark"
    if not shutil.which(options.binary):
        raise SystemExit("%s is missing (cargo build --locked --release)" % options.binary)
    options.binary = os.path.abspath(options.binary)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="cutover-growth-") as directory, contextlib.ExitStack() as stack:
        stores = whole.Stores(options, directory, stack)
        grown = [in_roles(options, stores, directory, *growth) for growth in GROWTHS]
        grown += [with_providers(options, stores, directory), with_workers(options, stores, directory)]
    plot(grown)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
