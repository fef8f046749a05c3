#!/usr/bin/env python3
"""The real Python clients through the proxy, in each phase: redis-py, Django, django-redis, Channels, kombu and Celery.

It starts stores and a proxy of its own (target/debug/cutover, free ports, a temporary folder). Provider 60 is in phase
standalone, 61 in dual-standalone, 62 in dual-cluster, 63 in cluster. What redis-py is answered is compared with what a plain
Redis answers to the same. A test's name is what it promises; the last line counts them.

    clients.py [WORD ...]     only the tests whose names hold one of the words
"""

import asyncio
import contextlib
import gc
import itertools
import logging
import re
import sys
import tempfile
import threading
import time
import unittest
import urllib.request
from pathlib import Path

import redis
import redis.asyncio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from stack import BINARY, Proxy, Stores  # noqa: E402

PHASES = {"60": "standalone", "61": "dual-standalone", "62": "dual-cluster", "63": "cluster"}
FLIPPING = "64"  # the provider that moves during a test

STACK: Proxy

# How tests are made -----------------------------------------------------------------------------------------------------

SUITE = []


def for_each(**axes):
    """A class of tests becomes one class for each combination of the values."""

    def register(cls):
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values))
            name = " ".join([cls.__name__, *(f"resp{v}" if k == "protocol" else PHASES[v] for k, v in chosen.items())])
            SUITE.append(type(name, (cls,), chosen))
        return cls

    return register


class Keys:
    """Keys of the class's provider, or of none, that no other test uses."""

    provider = protocol = None
    serial = itertools.count()

    def key(self, name):
        owner = f"provider:{self.provider}" if self.provider else "nobody"
        return f"{owner}:{self.unique}:{name}"

    def keys(self, count):
        """Names in different slots."""
        return [self.key(f"{n}") for n in range(count)]

    def setUp(self):
        self.unique = f"{next(Keys.serial)}-{{{self._testMethodName}}}"  # a hash tag: one slot for one test's keys ...
        self.is_on_cluster = PHASES.get(self.provider, "").endswith("cluster")

    def spread(self):
        self.unique = self.unique.replace("{", "").replace("}", "")  # ... unless a test wants them in several


# redis-py ---------------------------------------------------------------------------------------------------------------


def plainly(answer):
    """Errors compare by their words."""
    if isinstance(answer, (list, tuple)):
        return [plainly(one) for one in answer]
    return f"{type(answer).__name__}: {answer}" if isinstance(answer, Exception) else answer


class RedisPy(Keys, unittest.TestCase):
    maxDiff = None

    def setUp(self):
        super().setUp()
        self.proxy = redis.Redis(port=STACK.port, protocol=self.protocol)
        self.plain = redis.Redis(port=STACK.plain_port, protocol=self.protocol)
        self.addCleanup(self.proxy.close)
        self.addCleanup(self.plain.close)

    def same(self, work):
        """Does the work on a plain Redis and through the proxy; the answers must be the same. Gives them."""
        wanted = plainly(work(self.plain))
        self.assertEqual(plainly(work(self.proxy)), wanted)
        return wanted


@for_each(provider=PHASES, protocol=[2, 3])
class RedisPyCommands(RedisPy):
    def test_every_type_answers_as_on_a_plain_redis(self):
        s, h, l, z, x = (self.key(name) for name in "shlzx")
        self.same(lambda r: [
            r.set(s, "10", ex=100), r.incrby(s, 5), r.append(s, "\r\n\0ü"), r.get(s), r.ttl(s), r.strlen(s),
            r.getset(s, b"\xff"), r.type(s), r.set(s, "no", nx=True), r.set(s, "yes", xx=True, keepttl=True, get=True),
            r.persist(s), r.ttl(s), r.getdel(s), r.exists(s),
            r.hset(h, mapping={"a": 1, "b": "two"}), r.hincrby(h, "a", 2), sorted(r.hgetall(h).items()), r.hmget(h, "a", "no"),
            r.hincrbyfloat(h, "f", 1.5), r.hdel(h, "b"), r.hlen(h),
            r.rpush(l, *"abcde"), r.lrange(l, 0, -1), r.lpop(l, 2), r.linsert(l, "before", "d", "x"), r.ltrim(l, 1, 2),
            r.lrange(l, 0, -1), r.lpos(l, "d"),
            r.zadd(z, {"one": 1, "half": 0.5, "inf": float("inf")}), r.zrange(z, 0, -1, withscores=True), r.zscore(z, "half"),
            r.zincrby(z, 2, "one"),
            r.zpopmin(z), r.zrangebyscore(z, "-inf", 10, withscores=True), r.zrank(z, "inf"), r.zmscore(z, ["one", "none"]),
            r.xadd(x, {"k": "v"}, id="5-1"), r.xgroup_create(x, "g", "0"), r.xreadgroup("g", "c", {x: ">"}),
            r.xack(x, "g", "5-1"), r.xrange(x), r.xlen(x),
        ])

    def test_sets_bits_and_sketches_answer_as_on_a_plain_redis(self):
        a, b, c = (self.key(name) for name in "abc")
        self.same(lambda r: [
            r.sadd(a, *"1234"), r.sadd(b, *"345"), sorted(r.smembers(a)), sorted(r.sinter(a, b)), r.sdiffstore(c, a, b),
            sorted(r.smembers(c)),
            r.smove(a, b, "1"), r.smismember(b, ["1", "2"]), r.delete(a, b, c), r.setbit(a, 7, 1), r.bitcount(a),
            r.bitfield(a).set("u8", 8, 200).execute(),
            r.pfadd(b, *"abc"), r.pfcount(b), r.pfadd(self.key("b2"), "d"), r.pfcount(b, self.key("b2")),
            r.pfmerge(b, self.key("b2")), r.pfcount(b), r.geoadd(c, [13.361389, 38.115556, "Palermo"]), r.geopos(c, "Palermo"),
            r.copy(a, self.key("copy")), r.rename(a, self.key("renamed")), r.exists(a, self.key("renamed")),
        ])

    def test_wrong_use_gets_the_same_error(self):
        def work(r):
            r.set(self.key("s"), "text")
            pipeline = r.pipeline(transaction=False).incr(self.key("s")).lpush(self.key("s"), 1)
            return pipeline.execute_command("GET").execute_command("NOSUCH").execute(raise_on_error=False)

        self.same(work)

    def test_a_pipeline_keeps_its_order_with_an_error_in_its_middle(self):
        self.spread()

        def work(r):
            pipeline = r.pipeline(transaction=False)
            for n, key in enumerate(self.keys(50)):
                pipeline.set(key, n).incr(key).lpush(key, "wrong type").get(key).expire(key, 60 + n).ttl(key)
            return pipeline.execute(raise_on_error=False)

        self.assertEqual(len(self.same(work)), 300)

    def test_multi_exec_in_one_slot(self):
        a, b = self.keys(2)

        def work(r):
            pipeline = r.pipeline().set(a, 1).incr(a).lpush(b, "x", "y").lrange(b, 0, -1).hset(a, "wrong", "type").get(a)
            return pipeline.execute(raise_on_error=False)

        self.assertEqual(len(self.same(work)), 6)

    def test_multi_exec_over_several_slots(self):
        self.spread()
        keys = self.keys(5)

        def work(r):
            pipeline = r.pipeline().mset(dict.fromkeys(keys, "v")).expire(keys[0], 60).expire(keys[4], 70)
            return pipeline.mget(keys).ttl(keys[4]).execute()

        self.assertEqual(self.same(work)[3:], [[b"v"] * 5, 70])

    def test_mset_mget_exists_unlink_over_several_slots(self):
        self.spread()
        keys = self.keys(40)
        self.same(lambda r: [r.mset({key: n for n, key in enumerate(keys)}), r.mget(*keys, self.key("absent")), r.exists(*keys),
                             r.touch(*keys), r.unlink(*keys[:10]), r.delete(*keys), r.exists(*keys)])

    def test_what_spans_slots_is_done_or_refused_with_crossslot(self):
        self.spread()
        a, b = self.keys(2)
        for work in (lambda r: [r.sadd(a, 1), r.smove(a, b, 1)], lambda r: [r.delete(a, b), r.set(a, 1), r.rename(a, b)]):
            if self.is_on_cluster:
                with self.assertRaisesRegex(redis.ResponseError, "slot"):
                    work(self.proxy)
            else:
                self.same(work)

    def test_a_lock_has_one_owner(self):
        def work(r):
            first, second = (r.lock(self.key("lock"), timeout=10, blocking=False) for _ in range(2))
            seen = [first.acquire(), second.acquire(), first.extend(20), r.pttl(self.key("lock")) > 20_000, first.reacquire(),
                first.release(), second.acquire()]
            with self.assertRaises(redis.exceptions.LockError):
                first.release()
            second.release()
            return [*seen, r.exists(self.key("lock"))]

        self.assertEqual(self.same(work), [True, False, True, True, True, None, True, 0])

    def test_only_one_of_many_threads_is_inside_a_lock(self):
        def work(r):
            r.set(self.key("n"), 0)

            def one():
                for _ in range(5):
                    with r.lock(self.key("lock"), timeout=10, sleep=0.002):
                        r.set(self.key("n"), int(r.get(self.key("n"))) + 1)

            threads = [threading.Thread(target=one) for _ in range(4)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            return r.get(self.key("n"))

        self.assertEqual(self.same(work), b"20")

    def test_transaction_retries_what_another_client_changed(self):
        a, b = self.keys(2)

        def work(r):
            r.mset({a: 1, b: 1})
            tries = []

            def change(pipeline):
                value = int(pipeline.get(a))
                tries.append(value)
                if len(tries) == 1:
                    r.set(a, 10)
                pipeline.multi()
                pipeline.set(a, value + 1).incr(b)

            return [r.transaction(change, a, b), tries, r.mget(a, b)]

        self.assertEqual(self.same(work), [[True, 2], [1, 10], [b"11", b"2"]])

    def test_a_watched_key_that_changed_gives_a_watch_error(self):
        def work(r):
            with r.pipeline() as pipeline:
                pipeline.watch(self.key("w"))
                r.set(self.key("w"), "other")
                pipeline.multi()
                pipeline.set(self.key("w"), "mine")
                with self.assertRaises(redis.WatchError):
                    pipeline.execute()
            return r.get(self.key("w"))

        self.assertEqual(self.same(work), b"other")

    def test_a_registered_script_is_loaded_where_it_is_needed(self):
        a, b = self.keys(2)
        body = f"""-- {self.unique}: no other test has loaded it
            redis.call('INCRBY', KEYS[1], ARGV[1])
            redis.call('SET', KEYS[2], ARGV[1])
            return {{redis.call('GET', KEYS[1]), KEYS[2]}}"""

        def work(r):
            script = r.register_script(body)
            first = r.script_exists(script.sha)
            pipeline = r.pipeline()
            script(keys=[a, b], args=[7], client=pipeline)
            return [first, script(keys=[a, b], args=[5]), script(keys=[a, b], args=[5]), pipeline.execute(),
                r.script_exists(script.sha), r.mget(a, b)]

        self.same(work)

    def test_scan_iter_finds_each_key_once(self):
        self.spread()
        keys = self.keys(300)

        def work(r):
            r.mset(dict.fromkeys(keys, 1))
            found = list(r.scan_iter(match=self.key("*"), count=40))
            return [len(found), sorted(found), sorted(r.keys(self.key("1*"))), sorted(r.scan_iter(match=self.key("2*"),
                count=40, _type="string"))]

        self.same(work)

    def test_hscan_sscan_zscan_go_through_a_big_key(self):
        h, s, z = (self.key(name) for name in "hsz")

        def work(r):
            r.hset(h, mapping={f"f{n}": n for n in range(600)})
            r.sadd(s, *range(600))
            r.zadd(z, {f"m{n}": n for n in range(600)})
            return [sorted(r.hscan_iter(h)), sorted(r.sscan_iter(s)), sorted(tuple(pair) for pair in r.zscan_iter(z))]

        self.same(work)

    def test_a_blocking_pop_waits_for_its_timeout_and_no_longer(self):
        began = time.monotonic()
        self.assertIsNone(self.proxy.blpop([self.key("l"), self.key("m")], timeout=0.3))
        self.assertIsNone(self.proxy.bzpopmin(self.key("z"), timeout=0.3))
        self.assertIsNone(self.proxy.blmove(self.key("l"), self.key("m"), timeout=0.3))
        took = time.monotonic() - began
        self.assertTrue(0.85 < took < 4, took)

    def test_a_blocking_pop_is_woken_by_another_client(self):
        a, b, z = self.key("a"), self.key("b"), self.key("z")

        def work(r):
            answers = []
            for wait, wake in (
                (lambda: r.blpop([a, b], timeout=10), lambda: r.rpush(b, "one")),
                (lambda: r.brpop(a, timeout=10), lambda: r.lpush(a, "two")),
                (lambda: r.bzpopmin(z, timeout=10), lambda: r.zadd(z, {"three": 3})),
                (lambda: r.blmove(a, b, timeout=10), lambda: r.lpush(a, "four")),
            ):
                later = threading.Timer(0.1, wake)
                later.start()
                answers.append(wait())
                later.join()
            return [*answers, r.lrange(b, 0, -1), r.exists(a, z)]

        self.same(work)


@for_each(protocol=[2, 3])
class RedisPyPubSub(RedisPy):
    def messages(self, r, pubsub, count):
        got = []
        deadline = time.monotonic() + 5
        while len(got) < count and time.monotonic() < deadline:
            message = pubsub.get_message(timeout=0.2)
            got += [message] if message else []
        return got

    def test_channels_and_patterns_reach_their_subscribers_in_order(self):
        channel = self.key("channel")

        def work(r):
            with r.pubsub() as pubsub:
                pubsub.subscribe(channel, "other")
                pubsub.psubscribe(channel[:-3] + "*")
                seen = self.messages(r, pubsub, 3)
                counts = [r.publish(channel, f"message {n}") for n in range(20)]
                seen += self.messages(r, pubsub, 40)
                pubsub.unsubscribe("other")
                pubsub.ping()
                return [seen, counts, self.messages(r, pubsub, 2), r.pubsub_numsub(channel), r.publish("other", "nobody")]

        answers = self.same(work)
        self.assertEqual(len(answers[0]), 43)

    def test_a_connection_is_of_use_again_after_unsubscribe(self):
        def work(r):
            connection = r.connection_pool.get_connection()
            answers = []
            for command in (("SUBSCRIBE", "c"), ("UNSUBSCRIBE", "c"), ("SET", self.key("k"), "v"), ("GET", self.key("k"))):
                connection.send_command(*command)
                answers.append(connection.read_response(**({"push_request": True} if self.protocol == 3 else {})))
            return answers

        self.same(work)

    def test_what_is_published_after_subscribe_was_sent_is_heard(self):
        def work(r):
            heard = 0
            for n in range(50):
                with r.pubsub() as pubsub:
                    pubsub.subscribe(self.key(str(n)))  # writes, and does not wait for the answer: as Celery does
                    heard += r.publish(self.key(str(n)), "m")
            return heard

        self.assertEqual(self.same(work), 50)


@for_each(provider=PHASES, protocol=[2, 3])
class RedisPyAsyncio(Keys, unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.proxy = redis.asyncio.Redis(port=STACK.port, protocol=self.protocol)
        self.plain = redis.asyncio.Redis(port=STACK.plain_port, protocol=self.protocol)

    async def asyncTearDown(self):
        await self.proxy.aclose()
        await self.plain.aclose()

    async def same(self, work):
        wanted = plainly(await work(self.plain))
        self.assertEqual(plainly(await work(self.proxy)), wanted)
        return wanted

    async def test_many_at_once_each_get_their_own_answer(self):
        self.spread()

        async def one(r, n):
            key = self.key(str(n))
            return [await r.set(key, n), await r.incr(key), await r.hset(key + "h", "f", n), await r.hgetall(key + "h"),
                await r.mget(key, key + "x")]

        async def work(r):
            return await asyncio.gather(*(one(r, n) for n in range(30)))

        self.assertEqual(len(await self.same(work)), 30)

    async def test_pipelines_and_transactions(self):
        a, b = self.keys(2)

        async def work(r):
            async with r.pipeline(transaction=False) as plain, r.pipeline() as whole:
                return [await plain.set(a, 1).lpush(a, 2).incr(a).get(b).execute(raise_on_error=False),
                    await whole.incr(a).set(b, 3).mget(a, b).execute()]

        await self.same(work)

    async def test_a_lock_and_a_watched_transaction(self):
        a = self.key("a")

        async def work(r):
            async def change(pipeline):
                value = int(await pipeline.get(a) or 0)
                pipeline.multi()
                pipeline.set(a, value + 1)

            async with r.lock(self.key("lock"), timeout=10):
                refused = await r.lock(self.key("lock"), timeout=10).acquire(blocking=False)
                return [refused, await r.transaction(change, a), await r.get(a)]

        self.assertEqual(await self.same(work), [False, [True], b"1"])

    async def test_a_blocking_pop_is_woken_and_a_cancelled_one_takes_nothing(self):
        a = self.key("a")

        async def work(r):
            woken = asyncio.create_task(r.blpop(a, timeout=10))
            await asyncio.sleep(0.1)
            await r.rpush(a, "first")
            answers = [await woken]
            cancelled = asyncio.create_task(r.blpop(a, timeout=10))
            await asyncio.sleep(0.1)
            cancelled.cancel()
            await asyncio.gather(cancelled, return_exceptions=True)
            await asyncio.sleep(0.1)
            await r.rpush(a, "second")
            return [*answers, await r.lrange(a, 0, -1)]

        self.assertEqual((await self.same(work))[1], [b"second"])

    async def test_pubsub_beside_commands(self):
        channel = self.key("channel")

        async def work(r):
            async with r.pubsub() as pubsub:
                await pubsub.subscribe(channel)
                seen = [await pubsub.get_message(timeout=5)]
                sent = [await r.publish(channel, str(n)) for n in range(5)]
                return [sent, seen + [await pubsub.get_message(timeout=5) for _ in range(5)]]

        await self.same(work)

    async def test_scan_iter(self):
        self.spread()

        async def work(r):
            await r.mset(dict.fromkeys(self.keys(60), "v"))
            return sorted([key async for key in r.scan_iter(match=self.key("*"), count=20)])

        self.assertEqual(len(await self.same(work)), 60)


# Flips under clients ----------------------------------------------------------------------------------------------------


class Flips(Keys, unittest.TestCase):
    provider = FLIPPING

    def flip_under(self, work):
        """Four clients repeat the work while the provider flips to dual-cluster and back; gives how often, and the errors."""
        over, errors, done = threading.Event(), [], []

        def client(number):
            with redis.Redis(port=STACK.port) as r:
                for n in itertools.count():
                    if over.is_set():
                        return done.append(n)
                    try:
                        work(r, number, n)
                    except (redis.RedisError, AssertionError) as error:
                        errors.append(repr(error))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        [thread.start() for thread in threads]
        for phase in ("dual-cluster", "dual-standalone", "dual-cluster", "dual-standalone"):
            time.sleep(0.1)
            STACK.cutover("move", FLIPPING, "--to", phase)
        over.set()
        [thread.join() for thread in threads]
        return sum(done), errors

    def test_a_counter_counts_on_through_flips(self):
        def work(r, number, n):
            self.assertEqual(r.incr(self.key(f"counter-{number}")), n + 1)

        count, errors = self.flip_under(work)
        self.assertEqual(errors, [])
        self.assertGreater(count, 100)

    def test_a_transaction_over_several_slots_survives_a_flip(self):
        self.spread()

        def work(r, number, n):
            self.assertEqual(r.pipeline().set(self.key(f"a{number}"), n).set(self.key(f"b{number}"), n).execute(), [True, True])

        count, errors = self.flip_under(work)
        self.assertEqual(errors, [])
        self.assertGreater(count, 100)


SUITE.append(Flips)

# Django -----------------------------------------------------------------------------------------------------------------


def configure_django():
    import django
    from django.conf import settings

    caches = {
        "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": STACK.url()},
        "django-redis": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": STACK.url(), "KEY_PREFIX": "dr"},
    }
    for provider in PHASES:  # all of such a cache belongs to the provider, the sessions in it too
        caches[f"of-{provider}"] = {**caches["default"], "KEY_PREFIX": f"provider:{provider}"}
    settings.configure(CACHES=caches, SESSION_ENGINE="django.contrib.sessions.backends.cache",
                       INSTALLED_APPS=["django.contrib.sessions"])
    django.setup()


@for_each(provider=PHASES)
class DjangoCache(Keys, unittest.TestCase):
    def setUp(self):
        from django.core.cache import caches

        super().setUp()
        self.spread()
        self.cache = caches["default"]

    def test_set_get_add_delete(self):
        c, k = self.cache, self.key("k")
        self.assertEqual([c.get(k, "none"), c.set(k, {"a": [1, None]}, 60), c.get(k), c.add(k, 2), c.has_key(k), c.delete(k),
            c.delete(k), c.add(k, 2), c.get(k)],
                         ["none", None, {"a": [1, None]}, False, True, True, False, True, 2])

    def test_set_many_get_many_delete_many(self):
        values = {key: n for n, key in enumerate(self.keys(12))}
        self.assertEqual(self.cache.set_many(values, 60), [])
        self.assertEqual(self.cache.get_many([*values, self.key("absent")]), values)
        self.cache.delete_many(self.keys(5))
        self.assertEqual(self.cache.get_many(values), dict(list(values.items())[5:]))

    def test_set_many_over_providers_in_different_phases(self):
        values = {f"provider:{provider}:{self.unique}:{n}": f"{provider}-{n}" for provider in PHASES for n in range(3)}
        self.assertEqual(self.cache.set_many(values, 60), [])
        self.assertEqual(self.cache.get_many(values), values)
        self.cache.delete_many(values)
        self.assertEqual(self.cache.get_many(values), {})

    def test_incr_decr_and_versions(self):
        c, k = self.cache, self.key("n")
        c.set(k, 10, None)
        self.assertEqual([c.incr(k), c.incr(k, 10), c.decr(k, 2), c.get(k), c.incr_version(k), c.get(k), c.get(k, version=2)],
            [11, 21, 19, 19, 2, None, 19])
        with self.assertRaises(ValueError):
            c.incr(self.key("absent"))

    def test_touch_and_expiry(self):
        c, k = self.cache, self.key("t")
        c.set(k, "v", 60)
        self.assertEqual([c.touch(k, 1), c.touch(self.key("absent")), c.get(k)], [True, False, "v"])
        c.set(self.key("kept"), "v", 1)
        c.touch(self.key("kept"), None)
        c.set(self.key("none"), "v", 0)
        time.sleep(1.2)
        self.assertEqual([c.get(k), c.get(self.key("kept")), c.get(self.key("none"))], [None, "v", None])

    def test_get_or_set(self):
        self.assertEqual([self.cache.get_or_set(self.key("g"), lambda: "made"), self.cache.get_or_set(self.key("g"), "other")],
            ["made", "made"])


@for_each(provider=PHASES)
class DjangoSessions(Keys, unittest.TestCase):
    def test_a_session_is_kept_rotated_and_flushed(self):
        from django.contrib.sessions.backends.cache import SessionStore
        from django.test import override_settings

        with override_settings(SESSION_CACHE_ALIAS=f"of-{self.provider}"):
            session = SessionStore()
            session["user"] = 42
            session.save(must_create=True)
            old = session.session_key
            self.assertEqual(SessionStore(old)["user"], 42)
            session.cycle_key()
            session["steps"] = [1, 2]
            session.save()
            self.assertFalse(SessionStore().exists(old))
            again = SessionStore(session.session_key)
            self.assertEqual([again["user"], again["steps"]], [42, [1, 2]])
            again.flush()
            self.assertFalse(SessionStore().exists(session.session_key))


@for_each(provider=PHASES)
class DjangoRedis(Keys, unittest.TestCase):
    def setUp(self):
        from django.core.cache import caches

        super().setUp()
        self.spread()
        self.cache = caches["django-redis"]

    def test_time_to_live(self):
        c, k = self.cache, self.key("t")
        c.set(k, "v", timeout=100)
        self.assertEqual([c.ttl(k), c.pttl(k) > 99_000, c.expire(k, 50), c.ttl(k), c.persist(k), c.ttl(k),
            c.ttl(self.key("absent"))],
                         [100, True, True, 50, True, None, 0])

    def test_delete_pattern_and_iter_keys(self):
        c = self.cache
        c.set_many({key: "v" for key in self.keys(60)})
        c.set(self.key("other"), "stays")
        self.assertEqual(sorted(c.iter_keys(self.key("*"), itersize=10)), sorted([*self.keys(60), self.key("other")]))
        self.assertEqual(sorted(c.keys(self.key("1?"))), self.keys(20)[10:])
        self.assertEqual(c.delete_pattern(self.key("[0-9]*"), itersize=10), 60)
        self.assertEqual(list(c.iter_keys(self.key("*"))), [self.key("other")])

    def test_lock(self):
        with self.cache.lock(self.key("lock"), timeout=10):
            self.assertFalse(self.cache.lock(self.key("lock"), timeout=10, blocking=False).acquire())
        self.assertTrue(self.cache.lock(self.key("lock"), timeout=10, blocking=False).acquire())

    def test_many_and_nx_and_incr(self):
        c, values = self.cache, {key: n for n, key in enumerate(self.keys(8))}
        c.set_many(values, timeout=60)
        self.assertEqual(c.get_many(values), values)
        self.assertEqual([c.set(self.key("nx"), 5, nx=True), c.set(self.key("nx"), 6, nx=True), c.incr(self.key("nx"), 3),
            c.get(self.key("nx")), c.delete_many(values)],
                         [True, False, 8, 8, 8])
        with self.assertRaises(ValueError):
            c.incr(self.key("absent"))

    def test_sets_and_hashes(self):
        c, s, h = self.cache, self.key("s"), self.key("h")
        self.assertEqual([c.sadd(s, "a", "b"), c.scard(s), c.smembers(s), c.sismember(s, "c"), c.srem(s, "a"),
                          c.hset(h, "f", 1), c.hlen(h), c.hexists(h, "f"), c.hkeys(h)],
                         [2, 2, {"a", "b"}, False, 1, 1, 1, True, ["f"]])


# Channels, kombu, Celery: keys without a provider -----------------------------------------------------------------------


class Channels:
    """What both layers of channels_redis promise."""

    async def asyncSetUp(self):
        self.layer = self.make()

    async def asyncTearDown(self):
        if hasattr(self.layer, "flush"):
            await self.layer.flush()
        if hasattr(self.layer, "close_pools"):
            await self.layer.close_pools()

    async def receive(self, channel, count):
        return [(await asyncio.wait_for(self.layer.receive(channel), 10))["n"] for _ in range(count)]

    async def test_messages_arrive_once_and_in_order(self):
        channel = await self.layer.new_channel()
        waiting = asyncio.create_task(self.receive(channel, 30))
        for n in range(30):
            await self.layer.send(channel, {"type": "test", "n": n})
        self.assertEqual(await waiting, list(range(30)))
        with self.assertRaises(asyncio.TimeoutError):
            await asyncio.wait_for(self.layer.receive(channel), 0.3)

    async def test_a_group_reaches_each_member_once(self):
        members = [await self.layer.new_channel() for _ in range(4)]
        for member in members:
            await self.layer.group_add("provider_62", member)
        await self.layer.group_discard("provider_62", members[3])
        waiting = [asyncio.create_task(self.receive(member, 20)) for member in members[:3]]
        for n in range(20):
            await self.layer.group_send("provider_62", {"type": "test", "n": n})
        self.assertEqual(await asyncio.gather(*waiting), [list(range(20))] * 3)
        with self.assertRaises(asyncio.TimeoutError):
            await asyncio.wait_for(self.layer.receive(members[3]), 0.3)


class ChannelsCore(Channels, unittest.IsolatedAsyncioTestCase):
    def make(self):
        from channels_redis.core import RedisChannelLayer

        return RedisChannelLayer(hosts=[STACK.url()], prefix=self._testMethodName)

    async def test_a_cancelled_receive_loses_nothing(self):
        channel = await self.layer.new_channel()
        waiting = asyncio.create_task(self.layer.receive(channel))
        await asyncio.sleep(0.2)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await self.layer.send(channel, {"type": "test", "n": 1})
        self.assertEqual(await self.receive(channel, 1), [1])


class ChannelsPubSub(Channels, unittest.IsolatedAsyncioTestCase):
    def make(self):
        from channels_redis.pubsub import RedisPubSubChannelLayer

        return RedisPubSubChannelLayer(hosts=[STACK.url()], prefix=self._testMethodName)


class Kombu(unittest.TestCase):
    def test_a_queue_gives_back_what_was_put_in_and_what_was_not_acknowledged(self):
        from kombu import Connection

        with Connection(STACK.url()) as connection, connection.SimpleQueue("kombu-queue") as queue:
            for n in range(10):
                queue.put({"n": n})
            got = [queue.get(timeout=5) for _ in range(10)]
            self.assertEqual([message.payload["n"] for message in got], list(range(10)))
            got[0].requeue()
            [message.ack() for message in got[1:]]
            again = queue.get(timeout=5)
            self.assertEqual(again.payload["n"], 0)
            again.ack()
            with self.assertRaises(queue.Empty):
                queue.get(timeout=1)

    def test_a_broadcast_reaches_every_consumer(self):
        from kombu import Connection, Consumer, Exchange, Producer, Queue

        exchange, got = Exchange("everyone", type="fanout"), []
        with Connection(STACK.url()) as connection:
            for n in range(3):  # a channel each: one channel hears an exchange once
                queue = Queue(f"listener-{n}", exchange)
                Consumer(connection.channel(), queue, callbacks=[lambda body, message: got.append(body)], no_ack=True).consume()
            with contextlib.suppress(TimeoutError):  # it subscribes when it begins to wait
                connection.drain_events(timeout=1)
            with Connection(STACK.url()) as other:
                Producer(other, exchange).publish("hello")
            while len(got) < 3:
                connection.drain_events(timeout=5)
        self.assertEqual(got, ["hello"] * 3)


class Celery(unittest.TestCase):
    """A real worker in a thread; broker in database 0, results in 1, as Celery's own documentation has it."""

    @classmethod
    def setUpClass(cls):
        import celery
        from celery.contrib.testing.worker import start_worker

        app = cls.app = celery.Celery("clients", broker=STACK.url(), backend=STACK.url(db=1), set_as_current=False)
        app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)

        @app.task(name="add")
        def add(a, b):
            return a + b

        @app.task(name="total")
        def total(numbers):
            return sum(numbers)

        @app.task(name="stubborn", bind=True, max_retries=2)
        def stubborn(self):
            if self.request.retries < 2:
                raise self.retry(countdown=0.1)
            return self.request.retries

        cls.add, cls.total, cls.stubborn = staticmethod(add), staticmethod(total), staticmethod(stubborn)
        cls.worker = start_worker(app, pool="threads", concurrency=2, perform_ping_check=False, shutdown_timeout=20)
        cls.worker.__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.worker.__exit__(None, None, None)
        gc.collect()  # a result unsubscribes when it is collected, and tries for 20 s if the proxy has gone by then

    def test_tasks_give_their_results(self):
        results = [self.app.tasks["add"].delay(n, n) for n in range(20)]
        self.assertEqual([result.get(timeout=20) for result in results], [2 * n for n in range(20)])

    def test_a_group_and_a_chord(self):
        import celery

        add, total = self.app.tasks["add"], self.app.tasks["total"]
        self.assertEqual(celery.group(add.s(n, 1) for n in range(5)).apply_async().get(timeout=20), [1, 2, 3, 4, 5])
        self.assertEqual(celery.chord([add.s(n, 1) for n in range(5)], total.s()).apply_async().get(timeout=20), 15)

    def test_a_task_that_retries_and_one_that_is_revoked(self):
        self.assertEqual(self.app.tasks["stubborn"].delay().get(timeout=20), 2)
        late = self.app.tasks["add"].apply_async((1, 1), countdown=2)
        late.revoke()
        with self.assertRaisesRegex(Exception, "revoked"):
            late.get(timeout=20)


SUITE += [ChannelsCore, ChannelsPubSub, Kombu, Celery]

# At last ----------------------------------------------------------------------------------------------------------------


class AtLast(unittest.TestCase):
    """After all of it; in the order of their names."""

    def test_1_both_stores_hold_the_same_of_what_is_in_a_dual_phase(self):
        STACK.cutover("verify", "61", "62", FLIPPING)

    def test_2_each_provider_lives_where_its_phase_says(self):
        on_standalone = set(redis.Redis(port=STACK.stores.standalone_port).scan_iter(match="*provider:6?:*", count=1000))
        # The proxy's own record of its lease is there as well.
        on_cluster = {key for port in STACK.stores.nodes for key in redis.Redis(port=port).scan_iter(match="*", count=1000)
                      if not key.startswith(b"cutover:lease:")}

        def providers(keys):
            return {re.search(rb"provider:(6\d):", key)[1].decode() for key in keys}

        self.assertEqual(providers(on_standalone), {"60", "61", "62", FLIPPING})
        self.assertEqual(providers(on_cluster), {"61", "62", "63", FLIPPING})

    def test_3_clear_takes_the_keys_of_every_provider(self):
        from django.core.cache import cache

        keys = [f"provider:{provider}:last" for provider in PHASES]
        cache.set_many(dict.fromkeys(keys, 1))
        cache.clear()
        self.assertEqual(cache.get_many(keys), {})
        self.assertEqual(list(redis.Redis(port=STACK.port).scan_iter()), [])

    def test_4_the_proxy_has_nothing_to_complain_of(self):
        log = (STACK.folder / "proxy.log").read_text()
        self.assertEqual([line for line in log.splitlines() if " ERROR " in line or "panicked" in line], [])


SUITE.append(AtLast)


def main(words):
    global STACK
    if not BINARY.exists():
        sys.exit(f"{BINARY} is missing: cargo build")
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a test loop is in debug mode, and tells of every slow step
    with tempfile.TemporaryDirectory(prefix="cutover-clients-") as folder:
        stores = Stores(folder)
        try:
            STACK = Proxy(stores, "proxy", {**PHASES, FLIPPING: "dual-standalone"})
            _, STACK.plain_port = stores.redis("plain")  # to compare with
            # As on any stack that has been used: what is in a dual phase is known to be whole.
            STACK.cutover("backfill", "61", "62", FLIPPING)
            configure_django()
            tests = [test for cls in SUITE for test in unittest.defaultTestLoader.loadTestsFromTestCase(cls)]
            # A class of tests may have things to set up: that is done by its suite.
            chosen = [test for test in tests if not words or any(word.lower() in name_of(test).lower() for word in words)]
            result = unittest.TextTestRunner(verbosity=2 if words else 1).run(unittest.TestSuite(chosen))
        finally:
            stores.end()
    failed = len({name_of(test) for test, _ in result.failures + result.errors})
    print(f"{result.testsRun - failed} passed, {failed} failed")
    return 1 if failed or not result.testsRun else 0


def name_of(test):
    return f"{type(test).__name__} {getattr(test, '_testMethodName', test)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
