"""The demo's users: each knows what the application must answer, and counts whatever differs."""

import http.client
import itertools
import json
import random
import threading
import time
from collections import Counter
from urllib.parse import urlencode

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from websockets.sync.client import connect


class Failed(Exception):
    """What a user found wrong: the kind that is counted, and the words for it."""


class Tally:
    """What all users have seen."""

    def __init__(self):
        self.stop = threading.Event()
        self.requests, self.pulses = [], []  # (began, ended) of every answer; appending needs no lock
        self.counts, self.examples, self.lock = Counter(), [], threading.Lock()

    def add(self, kind, example=None):
        with self.lock:
            self.counts[kind] += 1
            if example and len(self.examples) < 10:
                self.examples.append(f"{kind}: {example}")


class User(threading.Thread):
    """A browser of one provider. After anything wrong it begins a new life: another name, and so other keys."""

    def __init__(self, tally, port, provider, number=0):
        super().__init__(daemon=True)
        self.tally, self.port, self.provider, self.number = tally, port, provider, number
        self.name, self.cookie, self.connection = f"user-{number}", "", None

    def ask(self, view, **query):
        path = f"/{self.provider}/{view}?{urlencode({'user': self.name, **query})}"
        began = time.monotonic()
        try:
            self.connection = self.connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            self.connection.request("GET", path, headers={"Cookie": self.cookie})
            response = self.connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection = None
            raise Failed("errors", f"{path}: {error!r}") from error
        if response.status != 200:
            raise Failed("errors", f"{path}: HTTP {response.status}")
        self.cookie = (response.headers["Set-Cookie"] or self.cookie).split(";")[0]
        self.tally.requests.append((began, time.monotonic()))
        return json.loads(body)

    def expect(self, wanted, view, kind="wrong values", **query):
        answer = self.ask(view, **query)
        if answer != wanted:
            raise Failed("lost sessions" if "lost" in answer else kind, f"{view} of {self.name}: {answer}, not {wanted}")

    def live(self):
        cart, self.cookie = [], ""
        self.expect({"user": self.name}, "login")
        for n in itertools.count(1):
            if self.tally.stop.wait(random.uniform(0, 0.04)):
                return
            self.expect({"user": self.name, "steps": n}, "step")
            cart = [] if n % 12 == 0 else (cart + [str(n)])[-20:]
            self.expect({"cart": cart}, "cart", **({"add": n} if cart else {"empty": 1}))
            self.expect({"hits": n}, "hit")
            if n % 3 == 0:
                self.expect({"shown": [str(n)] * 4, "left": [str(n)] * 2}, "page", text=n)
            if n % 5 == 0:
                self.expect({"alone": True, "deleted": 3}, "checkout")
            if n % 7 == 0:
                self.expect({"seen": n, "invoice": n}, "order", "tasks wrong", number=n)
                self.tally.add("tasks")

    def run(self):
        while not self.tally.stop.is_set():
            self.name = f"user-{self.number}-{time.time_ns()}"
            try:
                self.live()
            except Failed as failed:
                self.tally.add(*failed.args)
                self.tally.stop.wait(0.1)


class Room(User):
    """Two members of a provider's group and one who talks: each message must reach each member once."""

    def listen(self, heard, socket):
        try:
            for message in socket:
                heard[json.loads(message)] += 1
        except Exception as error:  # whatever it was, a member has left
            self.tally.add("errors", f"member of the room: {error!r}")

    def run(self):
        heard, said = [Counter(), Counter()], []
        try:
            sockets = [connect(f"ws://127.0.0.1:{self.port}/{self.provider}/room") for _ in heard]
        except Exception as error:
            return self.tally.add("errors", f"the room does not open: {error!r}")
        members = [threading.Thread(target=self.listen, args=pair, daemon=True) for pair in zip(heard, sockets)]
        for member in members:
            member.start()
        for n in map(str, itertools.count(1)):
            if self.tally.stop.wait(0.05):
                break
            try:
                self.expect({"said": n}, "say", id=n)
                said.append(n)
            except Failed as failed:
                self.tally.add(*failed.args)
        time.sleep(2)  # for what is under way, a second copy of a message too
        for socket, member in zip(sockets, members):
            socket.close()
            member.join()
        for count in (count[message] for count in heard for message in said):
            self.tally.add("messages" if count == 1 else "messages twice" if count else "messages lost")


class Pulse(threading.Thread):
    """A counter of the moving provider, without Django in the way: what a client of the proxy feels of a flip."""

    def __init__(self, tally, url, provider):
        super().__init__(daemon=True)
        # Never tried again: a retry would hide an error, and count twice.
        self.tally, self.client = tally, redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0))
        self.key = f"provider:{provider}:pulse"

    def run(self):
        self.client.set(self.key, 0, ex=3600)
        for n in itertools.count(1):
            if self.tally.stop.wait(0.002):
                return
            began = time.monotonic()
            try:
                if (answer := self.client.incr(self.key)) != n:
                    return self.tally.add("wrong values", f"pulse: {answer}, not {n}")
            except redis.RedisError as error:
                return self.tally.add("errors", f"pulse: {error!r}")
            self.tally.pulses.append((began, time.monotonic()))
