"""amqp's connection and channel, with every wait bounded by a deadline and every message given its own verdict."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any
from uuid import uuid4

from amqp import spec
from amqp.exceptions import ChannelError, MessageNacked, NotFound
from kombu.transport import pyamqp

PAUSE = 0.2  # seconds between two attempts to connect, and for a goodbye


class OutOfTime(Exception):
    """The deadline has come. No OSError, because the retry loops of kombu and amqp must not catch it."""


def secure(channel: Any, queue: str) -> None:
    """Make a quorum queue that was just declared survive a kill -9 of its node.

    For a second RabbitMQ has not yet written down that it holds the queue, and loses what it confirmed;
    another quorum queue that comes and goes makes it write at once.
    """
    passing = f"{queue}.{uuid4()}"
    arguments = {"x-queue-type": "quorum", "x-expires": 60_000}
    channel.queue_declare(passing, durable=True, auto_delete=False, arguments=arguments)
    channel.queue_delete(passing)


def look_up(host: str, port: int, seconds: float) -> list[str]:
    """Return the addresses of *host*. Raises OSError; the system's own call may take half a minute."""
    answer: SimpleQueue[list[str] | OSError] = SimpleQueue()

    def ask() -> None:
        try:
            answer.put([str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)])
        except OSError as error:
            answer.put(error)

    Thread(target=ask, daemon=True).start()
    try:
        found = answer.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no address of {host} within {seconds:.1f} s") from None
    if isinstance(found, OSError):
        raise found
    return found


class Channel(pyamqp.Channel):
    """A channel that gives each message RabbitMQ's own verdict on it."""

    sent = 0
    settled = True
    error: Exception | None = None

    def open(self) -> None:
        """Open, with confirms. amqp calls it again when RabbitMQ closed the channel because of an error."""
        super().open()
        self.confirm_select()
        self.sent, self.settled, self.error = 0, True, None
        self.events["basic_ack"] = {lambda tag, _: self._settle(tag)}
        self.events["basic_nack"] = {lambda tag, _: self._settle(tag, MessageNacked())}
        # What no queue takes comes back before it is acknowledged like the rest.
        self.events["basic_return"] = {lambda error, *_: setattr(self, "error", error)}
        self.probe()

    def _settle(self, tag: int, error: Exception | None = None) -> None:
        if tag == self.sent:
            self.settled, self.error = True, self.error or error

    def basic_publish_confirm(
        self, message: Any, exchange: str = "", routing_key: str = "", mandatory: bool = False, **_: Any
    ) -> None:
        """Send *message* and, if it is mandatory, wait until RabbitMQ has it safe.

        Celery's events are not mandatory: they go at once or not at all. Raises ChannelError, MessageNacked,
        OutOfTime.
        """
        connection, client = self.connection, self.connection.client
        if client.new_queue:
            # Whoever may declare this queue only has to live with that second.
            with suppress(ChannelError):
                secure(self, client.new_queue)
            client.new_queue = ""
        if not mandatory:
            if not connection.blocked:
                self._send(message, exchange, routing_key)
            return
        connection.wait_until_unblocked()
        with client.in_doubt():
            self._send(message, exchange, routing_key, mandatory)
            while not self.settled:
                connection.drain_events(timeout=connection.remaining())
            if self.error:
                raise self.error

    def queue_declare(self, queue: str = "", passive: bool = False, **options: Any) -> Any:
        """Declare as amqp does, and remember a quorum queue that was not there before."""
        quorum = (options.get("arguments") or {}).get("x-queue-type") == "quorum"
        if quorum and not passive and not self._exists(queue):
            self.connection.client.new_queue = queue
        return super().queue_declare(queue, passive, **options)

    def _exists(self, queue: str) -> bool:
        try:
            super().queue_declare(queue, True)
        except NotFound:
            return False
        return True

    def probe(self) -> None:
        """Send a message to nobody and wait until RabbitMQ has dropped it. Raises OSError, OutOfTime.

        Before a task's message is at stake nothing else finds a connection that died unnoticed; or an alarm,
        which RabbitMQ tells a connection only when it publishes.
        """
        self._send(self.prepare_message(b""))
        while not self.settled:
            self.connection.drain_events()

    def _send(self, message: Any, exchange: str = "", routing_key: str = "", mandatory: bool = False) -> None:
        self.sent, self.settled, self.error = self.sent + 1, False, None
        arguments = (0, exchange, routing_key, mandatory, False)
        self.send_method(spec.Basic.Publish, "Bssbb", arguments, message)


class AMQPConnection(pyamqp.Connection):
    """amqp's connection, with every read and write bounded by the deadline of `client`, its Publisher."""

    Channel = Channel
    connect_timeout: float
    blocked = False

    def __init__(self, **options: Any) -> None:
        options |= {"confirm_publish": True, "on_blocked": self._block, "on_unblocked": self._unblock}
        super().__init__(**options)

    def _block(self, _reason: str) -> None:
        self.blocked = self.client.alarm = True

    def _unblock(self) -> None:
        self.blocked = self.client.alarm = False

    def remaining(self) -> float:
        """Seconds left to the present call. Raises OutOfTime when there are none."""
        # kombu takes the client away before it says goodbye.
        return self.client.remaining() if self.client else PAUSE

    def wait_until_unblocked(self) -> None:
        """Wait while a memory or disk alarm keeps RabbitMQ from taking messages. Raises OutOfTime."""
        while self.blocked or self.unread():
            self.blocking_read(self.remaining())

    def unread(self) -> bool:
        """True when RabbitMQ said something that is not read yet."""
        return bool(self.sock in wait([self.sock], 0) or (self.ssl and self.sock.pending()))

    def connect(self, callback: Callable[[], Any] | None = None) -> Any:
        """Connect within `connect_timeout` seconds for each step. Raises OSError, amqp's errors, OutOfTime."""
        try:
            return super().connect(callback)
        except BaseException:
            self.collect()
            raise

    def Transport(self, *args: Any, **options: Any) -> Any:  # noqa: N802
        """amqp's transport, with bounded writes, and with a bound for each address that a name stands for."""
        transport = super().Transport(*args, **options)
        write, connect = transport.write, transport._connect

        def bounded_connect(host: str, port: int, timeout: float) -> None:
            failure: OSError | None = None
            for address in look_up(host, port, min(timeout, self.remaining())):
                try:
                    connect(address, port, min(timeout, self.remaining()))
                except OSError as error:
                    failure = error
                else:
                    # What is left for TLS to shake hands in.
                    transport.connect_timeout = min(timeout, self.remaining())
                    return
            raise failure or OSError(f"{host} has no address")

        def bounded_write(data: Any) -> None:
            transport.sock.settimeout(self.remaining())
            try:
                write(data)
            except TimeoutError:
                raise OutOfTime from None

        transport.write, transport._connect = bounded_write, bounded_connect
        return transport

    def blocking_read(self, timeout: float | None = None) -> Any:
        """Read a frame. Without a *timeout* it is an answer that RabbitMQ gives at once, unless blocked."""
        left = self.remaining()
        if timeout is None:
            timeout = left if self.blocked else self.connect_timeout
        try:
            return super().blocking_read(min(timeout, left))
        except TimeoutError:
            self.remaining()
            raise
