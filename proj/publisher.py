"""A publishing connection on which nothing waits beyond its caller's deadline, and the pool of them."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, LifoQueue
from time import monotonic, sleep
from typing import Any

import kombu
from amqp.exceptions import ChannelError, MessageNacked
from celery.events import EventDispatcher

from proj.bounded import PAUSE, AMQPConnection, OutOfTime

IDLE = 5  # seconds unused, after which a connection is probed before a task's message goes out on it
POOL_LIMIT = 10  # connections, where broker_pool_limit says none


class Publisher(kombu.Connection):
    """A publishing connection, lent to one call at a time. It connects by itself, each time to the next URL."""

    deadline = used = 0.0  # seconds of the monotonic clock
    new_queue = ""  # the last one that we were the first to declare and did not secure yet
    tried = False  # to connect, ever
    in_flight = False  # a message was sent and nothing is known of it
    refused = False  # a queue at its length limit did not take the last message
    delays_declared = False
    alarm = False  # RabbitMQ said that it takes no messages, for lack of memory or disk
    problem: Exception | None = None
    _producer: Any = None

    @property
    def producer(self) -> Any:
        """A producer on this connection. It connects, and connects again, when it is used."""
        if not (self._producer and self.connected):
            self._producer = kombu.Producer(self, auto_declare=False)
        return self._producer

    def remaining(self) -> float:
        """Seconds left to the present call. Raises OutOfTime when there are none."""
        left = self.deadline - monotonic()
        if left <= 0:
            raise OutOfTime
        return left

    def begin(self, deadline: float) -> None:
        """Start a call that has to end at *deadline*."""
        self.deadline, self.in_flight, self.alarm, self.problem = deadline, False, False, None

    def prove(self) -> None:
        """After some idleness find out whether this connection still is one; after a refusal change the channel."""
        if self.connected and (self.refused or monotonic() - self.used > IDLE):
            self.default_channel.probe()
            self.used = monotonic()
        if self.connected and self.refused:
            # RabbitMQ 3 may go on refusing a channel when the queue takes messages again.
            self.default_channel.close()
            self._default_channel, self._producer, self.refused = None, None, False

    @contextmanager
    def in_doubt(self) -> Iterator[None]:
        """Between sending and the verdict a message is in flight, and stays so when no verdict comes."""
        before, self.in_flight = self.in_flight, True
        try:
            yield
        except (ChannelError, MessageNacked):
            self.in_flight = before
            raise
        self.in_flight = before

    def create_transport(self) -> Any:
        transport = super().create_transport()
        transport.Connection = AMQPConnection
        return transport

    def ensure(self, obj: Any, fun: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        """Return *fun* itself: kombu's retries know no deadline, so there shall be none."""
        return fun

    def _ensure_connection(self, *_: Any, **__: Any) -> Any:
        while not self.connected:
            # kombu would forget a connection that has ended, and leave its socket open.
            self.collect()
            if self.tried:
                self.maybe_switch_next()
            self.tried = True
            try:
                self._connection_factory()
            except self.recoverable_connection_errors as error:
                self.lose(error)
        return self._connection

    def lose(self, problem: Exception) -> None:
        """Drop the connection because of *problem* and wait a little. Raises OutOfTime."""
        self.drop()
        self.problem = problem
        sleep(min(PAUSE, self.remaining()))

    def drop(self) -> None:
        """Forget the connection without a word to RabbitMQ, which may not be listening."""
        self.delays_declared, self._producer, self.refused = False, None, False
        if self.connected:
            self._connection.sock.settimeout(PAUSE)
        self.collect()

    def disown(self) -> None:
        """In a forked child: close our copy of the socket and leave the parent's connection alone."""
        transport = self._connection and self._connection._transport
        if transport and transport.sock:
            transport.sock.close()


class Events(EventDispatcher):
    """Sends the event of a message that is safe already, so that nobody waits for it or hears of its failure."""

    def publish(self, type: str, fields: dict[str, Any], producer: Any, **_: Any) -> None:
        """Send it, or drop the connection. Celery's way is one lock for all threads, kept while it waits."""
        try:
            self._publish(self._prepare_event(type, fields), producer, type.replace("-", "."))
        except Exception:
            producer.connection.drop()


class Publishers:
    """The publishing connections of this process, as many as `broker_pool_limit` says."""

    def __init__(self, app: Any) -> None:
        self.pid = os.getpid()
        self.idle: LifoQueue[Publisher] = LifoQueue()
        info = app.connection_for_write().info()
        for _ in range(app.conf.broker_pool_limit or POOL_LIMIT):
            self.idle.put(Publisher(**info))
        self.events = Events(app=app, enabled=False, buffer_while_offline=False)
        self.close = weakref.finalize(self, _close, self.idle.queue, self.pid)

    def disown(self) -> None:
        """In a forked child: leave the connections to the parent."""
        for publisher in self.idle.queue:
            publisher.disown()

    @contextmanager
    def take(self, deadline: float) -> Iterator[Publisher]:
        """Lend a connection. Raises OutOfTime when none is free before *deadline*."""
        try:
            publisher = self.idle.get(timeout=max(0.0, deadline - monotonic()))
        except Empty:
            raise OutOfTime from None
        try:
            publisher.begin(deadline)
            yield publisher
        except ChannelError:
            raise
        except MessageNacked:
            publisher.refused = True
            raise
        except BaseException:
            # An answer may still be under way; the next message must not take it for its own.
            publisher.drop()
            raise
        finally:
            publisher.used = monotonic()
            self.idle.put(publisher)


def _close(publishers: Iterable[Publisher], pid: int) -> None:
    """Say goodbye to RabbitMQ at the end of the process: unannounced ends fill its log with warnings."""
    deadline = monotonic() + PAUSE
    for publisher in publishers if pid == os.getpid() else ():
        publisher.deadline = deadline
        if publisher.connected:
            with suppress(Exception):
                # What the events are answered with has to come before the goodbye.
                publisher.default_channel.probe()
            with suppress(Exception):
                publisher.release()
        # Where nobody says goodbye in time, the socket is closed all the same.
        publisher.drop()
