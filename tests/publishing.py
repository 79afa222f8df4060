"""What the tests of publishing share: applications to publish with, and a look into their queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, pools

import proj.tasks  # noqa: F401 - every application shares fake_work
from proj.proxy import Proxy
from proj.publish import ConfirmedCelery, PublishError
from tests.waiting import ensure_not_for_a_while

BOUND = 1.5  # seconds, publish_timeout in most tests
_applications: list[Celery] = []
GRACE = 2.0  # seconds that a loaded machine may add
PATIENCE = 60.0  # seconds


def application(url: str, kind: type[Celery] = ConfirmedCelery, **settings: Any) -> Celery:
    """An application with our settings and tasks; `kind=Celery` is the stock."""
    app = kind("publishing", config_source="proj.celeryconfig", set_as_current=False)
    bounds = {"publish_timeout": BOUND, "broker_connection_timeout": BOUND / 2.5}
    app.conf.update(broker_url=url, imports=(), **bounds | settings)
    _applications.append(app)
    return app


def close_all() -> None:
    """Close the connections of all applications of a test."""
    while _applications:
        app = _applications.pop()
        if app.backend.result_consumer._consumer:
            app.backend.result_consumer.stop()
        app.close()
    pools.reset()


def publish(app: Celery, message: str = "", **options: Any) -> str:
    """Publish fake_work and return its id."""
    return str(app.tasks["proj.tasks.fake_work"].apply_async((message,), **options).id)


def send(app: Celery, message: str = "", **options: Any) -> str:
    """Publish as above where all is well, however slow the machine."""
    patience = {"confirm_timeout": PATIENCE} if isinstance(app, ConfirmedCelery) else {}
    return publish(app, message, **patience | options)


@contextmanager
def channel(url: str) -> Iterator[Any]:
    """A plain channel, for what an operator does to queues."""
    with Connection(url, connect_timeout=5, transport_options={"read_timeout": 5}) as connection:
        yield connection.channel()


def take_all(url: str, queue: str = "task_queue") -> list[str]:
    """Remove what is ready in the queue; returns the task ids in their order."""
    ids = []
    with channel(url) as plain:
        while message := plain.basic_get(queue, no_ack=True):
            ids.append(message.headers["id"])
    return ids


def ready(url: str, queue: str = "task_queue") -> int:
    """How many messages wait in the queue."""
    with channel(url) as plain:
        return int(plain.queue_declare(queue, passive=True).message_count)


def through(network: Proxy, kind: type[Celery] = ConfirmedCelery, **settings: Any) -> Celery:
    """An application behind the proxy. Without results nothing but the message itself asks for an answer."""
    return application(url(network), kind, task_ignore_result=True, **settings)


def url(network: Proxy) -> str:
    """The broker behind the proxy."""
    return f"amqp://guest:guest@127.0.0.1:{network.port}//"


def failure(app: Celery, way: Callable[..., Any] = publish) -> PublishError:
    """Publish, and return the error that has to come within the bound."""
    start = time.monotonic()
    with pytest.raises(PublishError) as raised:
        way(app)
    assert time.monotonic() - start < app.conf.publish_timeout + GRACE
    return raised.value


def attempt(app: Celery) -> tuple[str, float]:
    """Publish; returns "confirmed" or the kind of error, and the seconds it took."""
    start = time.monotonic()
    try:
        publish(app)
        return "confirmed", time.monotonic() - start
    except PublishError as error:
        return type(error).__name__, time.monotonic() - start


def stuck(app: Celery) -> threading.Thread:
    """Publish in a thread and see that it does not come back in the time that we allow ourselves."""

    def run() -> None:
        with suppress(Exception):
            publish(app)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ensure_not_for_a_while(lambda: not thread.is_alive(), "stock Celery to come back", seconds=BOUND + GRACE)
    return thread
