#!/usr/bin/env python3
"""The whole proxy in its three roles against a bare Redis: what a request costs.

Starts a standalone Redis, a cluster of three primaries and the release build in the roles of `benches/peers/*.toml`, all
on loopback, drives redis-benchmark through each in turn, and prints requests a second, their ratio to the bare Redis of
the same round, latency, and the CPU time a request costs the proxy and the Redis servers. Everything it started is
stopped at the end, whatever happened.

On a shared machine requests a second depend on who else is running; CPU time a request hardly does, so judge by that.
Needs Python 3.9, redis-server 7.0 or newer and redis-benchmark (Debian: redis-server, redis-tools).
"""
import argparse
import contextlib
import csv
import io
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
HOST = "127.0.0.1"
CLIENTS = 50
KEYS = 10_000
# How a key is called: a provider's, so that a request takes the whole way through the table.
KEY = "provider:%s:k%d"
BARE = "bare Redis"
ROLES = ["standalone", "cluster", "dual"]
# Commands that a role sends to (standalone, cluster) for one request: a run that did otherwise measured something else.
SENT = {BARE: {"GET": (1, 0), "SET": (1, 0)}, "standalone": {"GET": (1, 0), "SET": (1, 0)},
        "cluster": {"GET": (0, 1), "SET": (0, 1)}, "dual": {"GET": (1, 0), "SET": (1, 1)}}


def free_ports(count):
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as open_sockets:
        found = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in found]


class Connection:
    """A blocking client for what has to be set up."""

    def __init__(self, port):
        self.socket = socket.create_connection((HOST, port), 10)
        self.file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def _read(self):
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"-" or not line:
            raise RuntimeError(rest.decode() or "the connection was closed")
        if kind == b"$":
            return self.file.read(int(rest) + 2)[:-2] if int(rest) >= 0 else None
        if kind == b"*":
            return [self._read() for _ in range(int(rest))]
        return rest

    def pipeline(self, commands):
        encoded = []
        for command in commands:
            parts = [str(part).encode() for part in command]
            encoded.append(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
        self.socket.sendall(b"".join(encoded))
        return [self._read() for _ in commands]

    def command(self, *command):
        return self.pipeline([command])[0]


class Process:
    """A process of this script, its log and its CPU time."""

    def __init__(self, name, arguments, directory):
        self.name, self.log = name, os.path.join(directory, name + ".log")
        with open(self.log, "wb") as log:
            self.popen = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory)

    def wait_for(self, port):
        for _ in range(200):
            if self.popen.poll() is not None:
                break
            with contextlib.suppress(OSError):
                return socket.create_connection((HOST, port), 1).close()
            time.sleep(0.05)
        with open(self.log, errors="replace") as log:
            raise SystemExit("%s did not start:\n%s" % (self.name, log.read()[-2000:]))

    def cpu_seconds(self):
        """The run time of all threads, to the nanosecond."""
        tasks, total = "/proc/%d/task" % self.popen.pid, 0
        for task in os.listdir(tasks):
            with contextlib.suppress(OSError), open("%s/%s/schedstat" % (tasks, task)) as schedstat:
                total += int(schedstat.read().split()[0])
        return total / 1e9

    def rss_mib(self):
        with open("/proc/%d/status" % self.popen.pid) as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) / 1024

    def stop(self):
        self.popen.terminate()
        try:
            self.popen.wait(12)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


class Stores:
    """A standalone Redis and a cluster of three primaries, without persistence."""

    def __init__(self, options, directory, stack):
        ports = free_ports(7)
        self.standalone, self.nodes, buses = ports[0], ports[1:4], ports[4:]
        self.processes = {}
        for port in [self.standalone] + self.nodes:
            home = os.path.join(directory, "redis-%d" % port)
            os.mkdir(home)
            arguments = [options.redis_server, "--port", str(port), "--bind", HOST, "--dir", home, "--save", "",
                         "--appendonly", "no"]
            if port in self.nodes:
                arguments += ["--cluster-enabled", "yes", "--cluster-port", str(buses[self.nodes.index(port)])]
            self.processes[port] = Process("redis-%d" % port, arguments, directory)
            stack.callback(self.processes[port].stop)
        for port, process in self.processes.items():
            process.wait_for(port)
        self._join(buses)

    def _join(self, buses):
        edges = [0, 5461, 10923, 16384]
        for index, port in enumerate(self.nodes):
            with Connection(port) as node:
                node.command("CLUSTER", "ADDSLOTSRANGE", edges[index], edges[index + 1] - 1)
                node.command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        with Connection(self.nodes[0]) as first:
            for port, bus in zip(self.nodes[1:], buses[1:]):
                first.command("CLUSTER", "MEET", HOST, port, bus)
        for port in self.nodes:
            with Connection(port) as node:
                for _ in range(300):
                    info = node.command("CLUSTER", "INFO")
                    if b"cluster_state:ok" in info and b"cluster_known_nodes:3" in info:
                        break
                    time.sleep(0.1)
                else:
                    raise SystemExit("the cluster did not form")

    def executed(self):
        """GET and SET commands so far: (standalone, cluster)."""
        counts = []
        for port in [self.standalone] + self.nodes:
            with Connection(port) as node:
                stats = node.command("INFO", "commandstats")
            counts.append(sum(int(calls) for calls in re.findall(rb"cmdstat_(?:get|set):calls=(\d+)", stats)))
        return counts[0], sum(counts[1:])

    def cpu_seconds(self):
        return sum(process.cpu_seconds() for process in self.processes.values())


def start_proxy(options, role, stores, directory, stack, lines="", before=()):
    """Starts the proxy in a role, with further lines in its configuration and words before its command line; gives its
    process and its port."""
    port, admin_port = free_ports(2)
    values = {
        "port": port, "admin_port": admin_port, "workers": options.workers, "workdir": directory,
        "standalone": "%s:%d" % (HOST, stores.standalone), "standalone_port": stores.standalone,
        "cluster": "%s:%d" % (HOST, stores.nodes[0]), "cluster_port": stores.nodes[0],
        "cluster_nodes": ",".join("%s:%d" % (HOST, node) for node in stores.nodes),
    }
    with open(os.path.join(HERE, "peers", role + ".toml")) as template:
        text = template.read()
    for name, value in values.items():
        text = text.replace("{%s}" % name, str(value))
    config = os.path.join(directory, role + ".toml")
    with open(config, "w") as file:
        file.write(text + lines)
    process = Process(role, [*before, options.binary, "--config", config, "serve"], directory)
    stack.callback(process.stop)
    process.wait_for(port)
    return process, port


def fill(port):
    """Every key of every size, through the dual role, which has them in both stores."""
    with Connection(port) as client:
        for size in (64, 1024):
            for begin in range(0, KEYS, 500):
                keys = [KEY % ("%012d" % number, size) for number in range(begin, begin + 500)]
                client.pipeline([("SET", key, "x" * size) for key in keys])


def load(options, port, command, size, pipeline, requests):
    """One run of redis-benchmark: its row of figures."""
    key = KEY % ("__rand_int__", size)
    arguments = [options.redis_benchmark, "-h", HOST, "-p", str(port), "-c", str(CLIENTS), "-P", str(pipeline), "-n",
                 str(requests), "-r", str(KEYS), "--csv", command, key] + (["x" * size] if command == "SET" else [])
    ran = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    rows = list(csv.DictReader(io.StringIO(ran.stdout)))
    if ran.returncode != 0 or len(rows) != 1:
        raise SystemExit("redis-benchmark failed: %s" % (ran.stderr or ran.stdout)[-500:])
    return {name: float(rows[0][name]) for name in ("rps", "p50_latency_ms", "p99_latency_ms")}


def measure(options, stores, peer, process, port, workload, requests):
    """One run with everything that is counted around it."""
    command, size, pipeline = workload
    executed, redis = stores.executed(), stores.cpu_seconds()
    proxy = process.cpu_seconds() if process else 0
    row = load(options, port, command, size, pipeline, requests)
    row["proxy_us"] = (process.cpu_seconds() - proxy) / requests * 1e6 if process else None
    row["redis_us"] = (stores.cpu_seconds() - redis) / requests * 1e6
    # An effect may still be on its way when the client has its last answer.
    for _ in range(40):
        sent = tuple(round((after - before) / requests, 2) for before, after in zip(executed, stores.executed()))
        if sent == SENT[peer][command]:
            break
        time.sleep(0.05)
    else:
        raise SystemExit("%s: the stores executed %s commands a request, not %s" % (peer, sent, SENT[peer][command]))
    row["rss_mib"] = (process or stores.processes[stores.standalone]).rss_mib()
    return row


def bar(value, longest, width=24):
    return "#" * max(1, round(width * value / longest)) if value else ""


def table(workload, rows):
    """What came of one workload: a line a peer, each figure the median of the rounds."""
    command, size, pipeline = workload
    print("\n%s %d B, pipeline %d, %d clients" % (command, size, pipeline, CLIENTS))
    print("%-12s %9s %6s %7s %7s %9s %9s %6s  %s" % (
        "", "req/s", "x bare", "p50 ms", "p99 ms", "proxy us", "redis us", "MiB", "CPU a request: # proxy, = Redis"))
    middle = {peer: {name: statistics.median(run[name] for run in runs) if runs[0][name] is not None else 0
                     for name in runs[0]} for peer, runs in rows.items()}
    longest = max(row["proxy_us"] + row["redis_us"] for row in middle.values())
    for peer, row in middle.items():
        ratio = statistics.median(run["rps"] / bare["rps"] for run, bare in zip(rows[peer], rows[BARE]))
        plot = bar(row["proxy_us"], longest) + bar(row["redis_us"], longest).replace("#", "=")
        print("%-12s %9.0f %6.2f %7.2f %7.2f %9s %9.2f %6.1f  %s" % (
            peer, row["rps"], ratio, row["p50_latency_ms"], row["p99_latency_ms"],
            "%.2f" % row["proxy_us"] if row["proxy_us"] else "-", row["redis_us"], row["rss_mib"], plot), flush=True)
    return middle


def summary(results):
    """Geometric means a pipeline depth: the figures for a commit message."""
    print("\ngeometric means: CPU time of the proxy a request; req/s against the bare Redis")
    for pipeline in sorted({workload[2] for workload in results}):
        for role in ROLES:
            picked = [rows for workload, rows in results.items() if workload[2] == pipeline]
            cpu = statistics.geometric_mean(rows[role]["proxy_us"] for rows in picked)
            ratio = statistics.geometric_mean(rows[role]["rps"] / rows[BARE]["rps"] for rows in picked)
            print("pipeline %-3d %-12s %6.2f us %6.2f x" % (pipeline, role, cpu, ratio))


def run(options, directory, stack):
    stores = Stores(options, directory, stack)
    peers = {BARE: (None, stores.standalone)}
    peers.update({role: start_proxy(options, role, stores, directory, stack) for role in ROLES})
    fill(peers["dual"][1])
    results = {}
    for workload in [(command, size, pipeline) for pipeline in (1, 16) for size in (64, 1024) for command in ("GET", "SET")]:
        rows, requests = {peer: [] for peer in peers}, {}
        for peer, (_, port) in peers.items():
            warm = load(options, port, *workload, 200 * CLIENTS * workload[2] // 4)
            requests[peer] = max(1000, int(warm["rps"] * options.seconds))
        for _ in range(options.rounds):
            for peer, (process, port) in peers.items():
                rows[peer].append(measure(options, stores, peer, process, port, workload, requests[peer]))
        results[workload] = table(workload, rows)
    summary(results)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round instead of three")
    parser.add_argument("--rounds", type=int, default=3, help="how often each run is repeated, the peers in turn")
    parser.add_argument("--seconds", type=float, default=0.8, help="about how long one run takes")
    parser.add_argument("--workers", type=int, default=1, help="worker threads of the proxy")
    parser.add_argument("--binary", default=os.path.join(HERE, "..", "target", "release", "cutover"))
    parser.add_argument("--redis-server", default="redis-server")
    parser.add_argument("--redis-benchmark", default="redis-benchmark")
    options = parser.parse_args()
    options.rounds = 1 if options.quick else options.rounds
    for name in ("binary", "redis_server", "redis_benchmark"):
        found = shutil.which(getattr(options, name))
        if not found:
            raise SystemExit("%s is missing (the proxy: cargo build --locked --release)" % getattr(options, name))
        setattr(options, name, os.path.abspath(found))
    # So that the processes are stopped, not left, when this script is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cutover-bench-") as directory, contextlib.ExitStack() as stack:
        run(options, directory, stack)
    print("\n%d cores, %d worker(s), %d round(s), %.0f s" % (
        os.cpu_count(), options.workers, options.rounds, time.monotonic() - began))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
