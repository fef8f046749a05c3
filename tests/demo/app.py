"""The demo's application: a Django project that serves several providers and keeps all it knows at REDIS_URL.

The first part of a path is the provider (`/7/cart`). A middleware remembers it, and the caches' KEY_FUNCTION puts it into
every key, those of sessions and locks included, so all of it moves with the provider. Channels and Celery name their keys
themselves: those belong to no provider and stay where they are.
"""

import os
from contextvars import ContextVar

import django
from django.conf import settings

URL = os.environ["REDIS_URL"]
provider = ContextVar("provider")


def key_with_provider(key, prefix, version):
    return f"provider:{provider.get()}:{prefix}:{version}:{key}"


def remember_provider(get_response):
    def middleware(request):
        provider.set(request.path.split("/")[1])
        return get_response(request)

    return middleware


CACHE = {"LOCATION": URL, "KEY_FUNCTION": key_with_provider, "TIMEOUT": 600}
settings.configure(
    SECRET_KEY="of a demo, on loopback",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["daphne", "channels", "django.contrib.sessions"],
    MIDDLEWARE=["app.remember_provider", "django.contrib.sessions.middleware.SessionMiddleware"],
    SESSION_ENGINE="django.contrib.sessions.backends.cache",
    SESSION_COOKIE_AGE=600,
    CACHES={
        "default": {**CACHE, "BACKEND": "django.core.cache.backends.redis.RedisCache", "KEY_PREFIX": "app"},
        "locks": {**CACHE, "BACKEND": "django_redis.cache.RedisCache", "KEY_PREFIX": "locks"},
    },
    CHANNEL_LAYERS={"default": {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": [URL]}}},
)
django.setup()

# These need the settings.
from asgiref.sync import async_to_sync  # noqa: E402
from celery import Celery  # noqa: E402
from channels.generic.websocket import AsyncJsonWebsocketConsumer  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.core.cache import cache, caches  # noqa: E402
from django.http import JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402

celery = Celery("app", broker=URL, backend=URL)
celery.conf.update(broker_connection_retry_on_startup=True, result_expires=600)


@celery.task
def invoice(of_provider, user, number):
    """Reads the order that the web process left, and leaves an invoice for it to find."""
    provider.set(of_provider)
    cache.set(f"invoice:{user}", number)
    return cache.get(f"order:{user}")


def login(request, pid):
    request.session.flush()
    request.session.update({"user": request.GET["user"], "steps": 0})
    return JsonResponse({"user": request.GET["user"]})


def step(request, pid):
    if "user" not in request.session:
        return JsonResponse({"lost": True})
    request.session["steps"] += 1
    return JsonResponse(dict(request.session))


def cart(request, pid):
    """Read, change, write back with a TTL, read again."""
    key = f"cart:{request.GET['user']}"
    if "empty" in request.GET:
        cache.delete(key)
    else:
        cache.set(key, (cache.get(key, []) + [request.GET["add"]])[-20:], 300)
    return JsonResponse({"cart": cache.get(key, [])})


def hit(request, pid):
    """SET NX, EXISTS and INCRBY."""
    key = f"hits:{request.GET['user']}"
    cache.add(key, 0)
    return JsonResponse({"hits": cache.incr(key)})


def page(request, pid):
    """Fragments of a page: a MULTI with MSET, an MGET, a DEL of several keys."""
    keys = [f"page:{request.GET['user']}:{part}" for part in "abcd"]
    cache.set_many(dict.fromkeys(keys, request.GET["text"]), 120)
    shown = cache.get_many(keys)
    cache.delete_many(keys[:2])
    return JsonResponse({"shown": list(shown.values()), "left": list(cache.get_many(keys).values())})


def checkout(request, pid):
    """One user of a provider at a time: a lock (its release is a script), notes, and their deletion by a pattern."""
    locks, user = caches["locks"], request.GET["user"]
    with locks.lock("checkout", timeout=20, blocking_timeout=15, sleep=0.01):
        locks.set("owner", user)
        locks.set_many({f"note:{user}:{n}": "x" * 2000 for n in range(3)})
        deleted = locks.delete_pattern(f"note:{user}:*", itersize=1000)
        return JsonResponse({"alone": locks.get("owner") == user, "deleted": deleted})


def order(request, pid):
    user, number = request.GET["user"], int(request.GET["number"])
    cache.set(f"order:{user}", number)
    seen = invoice.delay(pid, user, number).get(timeout=20)
    return JsonResponse({"seen": seen, "invoice": cache.get(f"invoice:{user}")})


def say(request, pid):
    async_to_sync(get_channel_layer().group_send)(f"room_{pid}", {"type": "said", "id": request.GET["id"]})
    return JsonResponse({"said": request.GET["id"]})


class Room(AsyncJsonWebsocketConsumer):
    async def connect(self):
        self.groups = [f"room_{self.scope['url_route']['kwargs']['pid']}"]
        await self.channel_layer.group_add(self.groups[0], self.channel_name)
        await self.accept()

    async def said(self, event):
        await self.send_json(event["id"])


urlpatterns = [path(f"<pid>/{view.__name__}", view) for view in (login, step, cart, hit, page, checkout, order, say)]
application = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": URLRouter([path("<pid>/room", Room.as_asgi())])})
