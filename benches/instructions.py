#!/usr/bin/env python3
"""How many instructions the proxy executes for a request: a figure that no other work on the machine moves.

Starts the stores and the release build in its three roles as `whole.py` does, the proxy under valgrind's callgrind, and
drives one client through it, so that every run does the same. Counted is what the process executes outside of the kernel
between the first request and the last answer; what it does on its own in that time (it looks around every 50 ms) is
counted beside it, and taken off. A report and no judgement: whoever changes the byte path compares two of them.

Without valgrind it says so and ends well. Needs Python 3.9 and redis-server 7.0 or newer besides.
"""
import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import whole

REQUESTS = 4_800
PIPELINES = [1, 16]
SIZE = 64
# How long it is left alone, to see what it does by itself.
IDLE_SECONDS = 2.0


class Counter:
    """Reads and clears the count of a process that runs under callgrind."""

    def __init__(self, options, process, directory):
        self.control, self.directory = options.callgrind_control, directory
        self.pid = process.popen.pid
        self.dumps = 0

    def _tell(self, word):
        ran = subprocess.run([self.control, word, str(self.pid)], capture_output=True, text=True, timeout=60)
        if ran.returncode != 0 or "Error" in ran.stderr:
            raise SystemExit("callgrind_control %s failed: %s" % (word, (ran.stderr or ran.stdout)[-500:]))

    def clear(self):
        self._tell("--zero")

    def read(self):
        self._tell("--dump")
        self.dumps += 1
        name = os.path.join(self.directory, "callgrind.%d.%d" % (self.pid, self.dumps))
        with open(name) as dump:
            found = re.search(r"^(?:summary|totals): (\d+)", dump.read(), re.MULTILINE)
        if not found:
            raise SystemExit("%s holds no count" % name)
        return int(found[1])

    def over(self, work):
        """What is executed meanwhile, and how long it takes."""
        self.clear()
        began = time.monotonic()
        work()
        took = time.monotonic() - began
        return self.read(), took


def drive(client, command, pipeline):
    """The requests, so many at a time; waits for each answer."""
    keys = [whole.KEY % ("%012d" % number, SIZE) for number in range(whole.KEYS)]
    value = ("x" * SIZE,) if command == "SET" else ()
    for begin in range(0, REQUESTS, pipeline):
        client.pipeline([(command, keys[number % whole.KEYS]) + value for number in range(begin, begin + pipeline)])


def count(options, stores, directory, role):
    """Instructions a request, for each command and pipeline."""
    with contextlib.ExitStack() as stack:
        valgrind = [options.valgrind, "--quiet", "--tool=callgrind",
                    "--callgrind-out-file=%s/callgrind.%%p" % directory]
        process, port = whole.start_proxy(options, role, stores, directory, stack, before=valgrind)
        counter = Counter(options, process, directory)
        row = []
        with whole.Connection(port) as client:
            for pipeline in PIPELINES:
                for command in ("GET", "SET"):
                    drive(client, command, pipeline)
                    idle, idle_seconds = counter.over(lambda: time.sleep(IDLE_SECONDS))
                    busy, seconds = counter.over(lambda: drive(client, command, pipeline))
                    row.append((busy - idle * seconds / idle_seconds) / REQUESTS)
        return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=os.path.join(whole.HERE, "..", "target", "release", "cutover"))
    parser.add_argument("--redis-server", default="redis-server")
    parser.add_argument("--valgrind", default="valgrind")
    parser.add_argument("--callgrind-control", default="callgrind_control")
    options = parser.parse_args()
    options.workers = 1
    if not (shutil.which(options.valgrind) and shutil.which(options.callgrind_control)):
        return print("no valgrind here (Debian: valgrind), so no instructions are counted")
    options.binary = os.path.abspath(options.binary)
    if not os.path.exists(options.binary):
        raise SystemExit("%s is missing (cargo build --locked --release)" % options.binary)
    columns = ["%s, pipeline %d" % (command, pipeline) for pipeline in PIPELINES for command in ("GET", "SET")]
    print("instructions a request, %d B, one client, one worker" % SIZE)
    print("| role | %s |\n| --- |%s" % (" | ".join(columns), " ---: |" * len(columns)), flush=True)
    with tempfile.TemporaryDirectory(prefix="cutover-bench-") as directory, contextlib.ExitStack() as stack:
        stores = whole.Stores(options, directory, stack)
        for role in whole.ROLES:
            row = count(options, stores, directory, role)
            print("| %s | %s |" % (role, " | ".join("{:,.0f}".format(one) for one in row)), flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
