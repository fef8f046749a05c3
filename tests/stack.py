"""Stores and a proxy of a test's own: real processes on free ports, in a temporary folder, that end with the test."""

import contextlib
import json
import os
import random
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import redis

BINARY = Path(__file__).resolve().parents[1] / "target/debug/cutover"
PORTS = range(12_000, 32_000)  # below those that the system gives to clients, so that no connection takes one meanwhile


def free_port():
    for port in random.sample(PORTS, 200):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no port is free in {PORTS}")


class Process:
    """A process that ends with this one, however that ends: a shell kills it when our end of its stdin closes."""

    def __init__(self, command, log):
        script = '"$@" </dev/null >"$LOG" 2>&1 & echo $!; read _; kill -CONT $!; kill -9 $!'
        self.shell = subprocess.Popen(["sh", "-c", script, "sh", *map(str, command)], text=True, env={**os.environ, "LOG": str(log)},
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.pid = int(self.shell.stdout.readline())

    def signal(self, number):
        os.kill(self.pid, number)

    def end(self):
        self.shell.stdin.close()
        self.shell.wait()
        self.shell.stdout.close()


def eventually(what, holds, seconds=20):
    deadline = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except (OSError, redis.RedisError):
            pass
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain: {what}")
        time.sleep(0.02)


class Stores:
    """The standalone, and a cluster of primaries."""

    def __init__(self, folder, primaries=3):
        self.folder, self.processes = Path(folder), []
        self.standalone, self.standalone_port = self.redis("standalone")
        self.cluster, nodes = [], []
        for n in range(primaries):
            bus = free_port()
            process, port = self.redis(f"node-{n}", "--cluster-enabled", "yes", "--cluster-port", bus)
            self.cluster.append(process)
            nodes.append((port, bus))
            slots = (n * 16384 // primaries, (n + 1) * 16384 // primaries - 1)
            redis.Redis(port=port).execute_command("CLUSTER", "ADDSLOTSRANGE", *slots)
            redis.Redis(port=port).execute_command("CLUSTER", "MEET", "127.0.0.1", *nodes[0])
        self.nodes = [port for port, _ in nodes]
        for port in self.nodes:
            info = redis.Redis(port=port, decode_responses=True)
            eventually("the cluster is ready", lambda: "cluster_state:ok" in str(info.execute_command("CLUSTER", "INFO"))
                       and f"cluster_known_nodes:{primaries}" in str(info.execute_command("CLUSTER", "INFO")))

    def redis(self, name, *arguments):
        port, folder = free_port(), self.folder / name
        folder.mkdir()
        command = ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", folder, *arguments]
        process = self.process(command, folder / "log")
        eventually(f"{name} answers", lambda: redis.Redis(port=port).ping())
        return process, port

    def process(self, command, log):
        self.processes.append(Process(command, log))
        return self.processes[-1]

    def end(self):
        for process in self.processes:
            process.end()


class Proxy:
    """A proxy before the stores. `providers`: id and phase of each line; `lease`: the name that it shares with others;
    `sections`: further lines of a section."""

    def __init__(self, stores, name, providers, lease=None, **sections):
        self.stores, self.folder = stores, stores.folder / name
        self.folder.mkdir()
        self.port, self.admin = free_port(), free_port()
        self.config = self.folder / "proxy.toml"
        more = {name: f"\n{lines}" for name, lines in sections.items()}
        self.config.write_text(f"""
[listen]
address = "127.0.0.1:{self.port}"
workers = 2
[admin]
address = "127.0.0.1:{self.admin}"{more.get("admin", "")}
[standalone]
url = "redis://127.0.0.1:{stores.standalone_port}/0"{more.get("standalone", "")}
[cluster]
seeds = {json.dumps([f"redis://127.0.0.1:{port}" for port in stores.nodes])}{more.get("cluster", "")}
[routing]
keys = ["provider:{{provider}}:*", "*:provider:{{provider}}:*"]{more.get("routing", "")}
[state]
directory = "{self.folder}/state"
[lease]
name = "{lease or name}"
[bypass]{more.get("bypass", "")}
[prefixes]{more.get("prefixes", "")}
[providers]
""" + "".join(f'"{provider}" = "{phase}"\n' for provider, phase in providers.items()))
        self.start()

    def start(self):
        """Again, too, after it was killed."""
        self.process = self.stores.process([BINARY, "--config", self.config, "serve"], self.folder / "proxy.log")
        eventually("the proxy is ready", lambda: urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz").status == 200)

    def cutover(self, *words):
        done = subprocess.run([BINARY, "--config", self.config, *words], capture_output=True, text=True)
        if done.returncode:
            raise AssertionError(f"cutover {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def url(self, db=0):
        return f"redis://127.0.0.1:{self.port}/{db}"
