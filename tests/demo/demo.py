#!/usr/bin/env python3
"""Moves provider 7 to the cluster and back under a small Django application, whose users check every answer.

`make demo` runs it on the stack of `make up`. Exit code 0: nothing was lost, wrong or refused. The provider and proxy.toml
are left as they were found, after Ctrl-C too. The application's logs are in .local/demo.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from threading import Thread

import redis
from users import Failed, Pulse, Room, Tally, User

TOP = Path(__file__).resolve().parents[2]
CONFIG, BINARY, LOGS = TOP / "proxy.toml", TOP / "target/release/cutover", TOP / ".local/demo"
URL, ADMIN, PROVIDER = "redis://127.0.0.1:6380/0", "http://127.0.0.1:9380", "7"
PROVIDERS_OF_USERS = ["7", "7", "7", "7", "8", "9"]
PHASES = ["standalone", "dual-standalone", "dual-cluster", "cluster"]
THERE = ["move dual-standalone", "backfill", "verify", "move dual-cluster", "verify", "move cluster"]
BACK = ["move dual-cluster", "backfill", "verify", "move dual-standalone", "move standalone"]
ERRORS = ["errors", "lost sessions", "wrong values", "messages lost", "messages twice", "tasks wrong", "failed steps"]
ARCHIVE = {f"provider:{PROVIDER}:archive:{n}": f"document {n}" for n in range(5000)}


def phase():
    """The provider's phase in the running proxy."""
    with urllib.request.urlopen(f"{ADMIN}/api/table", timeout=5) as answer:
        phases = {route["id"]: route["phase"] for route in json.load(answer)["routes"]}
    return phases[PROVIDER]


def cutover(step):
    """Runs one command; gives its words, the first line it printed, when it began and ended."""
    verb, *to = step.split()
    words = [verb, PROVIDER, *(["--to", *to] if to else [])]
    began = time.monotonic()
    # A session of its own, here and below: a Ctrl-C is for the demo, which then ends things in order.
    done = subprocess.run([BINARY, *words], cwd=TOP, capture_output=True, text=True, start_new_session=True)
    if done.returncode:
        raise Failed("failed steps", f"cutover {' '.join(words)}: {done.stdout}{done.stderr}")
    return " ".join(words), done.stdout.splitlines()[0], began, time.monotonic()


def go(to):
    """To a phase, through its neighbours, from wherever the provider is."""
    while (now := phase()) != to:
        if now.startswith("dual"):
            cutover("backfill")
        at, goal = PHASES.index(now), PHASES.index(to)
        cutover(f"move {PHASES[at + (1 if goal > at else -1)]}")


def fill_archive(client):
    with client.pipeline(transaction=False) as pipeline:
        for key, value in ARCHIVE.items():
            pipeline.set(key, value, ex=3600)
        pipeline.execute()


def check_archive(tally, client):
    for key, value in zip(ARCHIVE, client.mget(list(ARCHIVE))):
        if value != ARCHIVE[key].encode():
            tally.add("wrong values", f"{key}: {value}")


def start(name, port):
    commands = {
        "web": ["daphne", "-b", "127.0.0.1", "-p", str(port), "-v", "0", "app:application"],
        "worker": ["celery", "-A", "app:celery", "worker", "-P", "threads", "-c", "2", "-l", "WARNING"],
    }
    LOGS.mkdir(parents=True, exist_ok=True)
    with open(LOGS / f"{name}.log", "w") as log:
        return subprocess.Popen([sys.executable, "-m", *commands[name]], cwd=Path(__file__).parent, stdin=subprocess.DEVNULL,
                                stdout=log, stderr=log, start_new_session=True, env={**os.environ, "REDIS_URL": URL})


def wait_until_ready(port):
    """Until an order, which needs the web process and the worker, is answered."""
    for _ in range(100):
        try:
            return User(Tally(), port, PROVIDER).expect({"seen": 1, "invoice": 1}, "order", number=1)
        except Failed as failed:
            error = failed.args[1]
            time.sleep(0.3)
    raise Failed("errors", f"the application does not start: {error}; see {LOGS}")


def milliseconds(spans, began=0.0, ended=float("inf")):
    """How long the spans took that touch an interval, the longest last."""
    return sorted((e - b) * 1e3 for b, e in list(spans) if e >= began and b <= ended) or [0.0]


def journey(tally, client, seconds):
    """There and back, the steps spread evenly over the time; gives the moves, and when they were."""
    began, moves, share = time.monotonic(), [], seconds / (len(THERE) + len(BACK) + 1)
    for number, step in enumerate(THERE + BACK):
        if number in (0, len(THERE)):
            print(f"\nprovider {PROVIDER} goes {'back to the standalone' if number else 'to the cluster'}")
        time.sleep(max(0, began + share * (number + 1) - time.monotonic()))
        command, said, *window = cutover(step)
        print(f"{window[0] - began:6.1f} s  cutover {command:<27} {(window[1] - window[0]) * 1e3:6.0f} ms   {said}", flush=True)
        if step.startswith("move"):
            moves.append((command, *window))
        if step in ("move cluster", "move standalone"):
            check_archive(tally, client)
    time.sleep(max(0, began + seconds - time.monotonic()))
    return moves


def summary(tally, moves):
    print(f"\n      requests  {len(tally.requests)}   (and {len(tally.pulses)} commands of the pulse, "
          f"{tally.counts['tasks']} tasks, {tally.counts['messages']} group messages)")
    for kind in ERRORS:
        print(f"{kind:>14}  {tally.counts[kind]}")
    for name, took in (("pages", milliseconds(tally.requests)), ("pulse", milliseconds(tally.pulses))):
        p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
        print(f"{name:>14}  p50 {p50:.1f} ms   p99 {p99:.1f} ms   longest {took[-1]:.1f} ms")
    print(f"\nthe longest answer while a phase changed, of provider {PROVIDER}'s pulse and of all pages:")
    for command, *window in moves:
        pulse, page = milliseconds(tally.pulses, *window)[-1], milliseconds(tally.requests, *window)[-1]
        print(f"  {command:<28} {pulse:6.1f} ms   {page:6.1f} ms")
    for example in tally.examples:
        print(f"  {example}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long the users stay (default 60)")
    seconds = parser.parse_args().seconds
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tally, client, moves, processes, everyone, is_whole = Tally(), redis.Redis.from_url(URL), [], [], [], False
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    before, found = CONFIG.read_text(), phase()
    try:
        go("standalone")
        fill_archive(client)
        print(f"starting the application at {URL}; provider {PROVIDER} has an archive of {len(ARCHIVE)} keys", flush=True)
        processes += [start("web", port), start("worker", port)]
        wait_until_ready(port)
        everyone += [User(tally, port, provider, number) for number, provider in enumerate(PROVIDERS_OF_USERS, start=1)]
        everyone += [Room(tally, port, PROVIDER), Pulse(tally, URL, PROVIDER)]
        print(f"{len(PROVIDERS_OF_USERS)} users, a room and a pulse check every answer for {seconds:.0f} s", flush=True)
        for one in everyone:
            one.start()
        moves = journey(tally, client, seconds)
        is_whole = True
    except Failed as failed:
        tally.add(*failed.args)
    except KeyboardInterrupt:
        print("\ninterrupted: putting everything back", flush=True)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        tally.stop.set()
        for one in filter(Thread.is_alive, everyone):
            one.join(35)
        for process in processes:
            process.terminate()
        try:
            go(found)
        except (Failed, OSError) as error:
            tally.add("failed steps", f"provider {PROVIDER} could not be brought back to {found}: {error}")
        if CONFIG.read_text() != before:
            CONFIG.write_text(before)
        for process in processes:
            process.wait()
    summary(tally, moves)
    sys.exit(0 if is_whole and tally.requests and not any(tally.counts[kind] for kind in ERRORS) else 1)


if __name__ == "__main__":
    main()
