"""What an idle worker does on RabbitMQ 3: every few seconds it consumes anew."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from amqp import RecoverableConnectionError
from celery.worker.state import reserved_requests
from kombu.utils.text import version_string_as_tuple

from proj.delivery import Message

PERIOD = 5  # seconds
BOUND = 5  # seconds that an answer may take
TELLS = (4, 0)  # the first RabbitMQ that cancels the consumers of a deleted queue in any case


class Renewal:
    """Replaces the channel of a consumer to which nothing was delivered for a while.

    When a quorum queue is deleted and declared again at once, RabbitMQ 3.10 counts its old consumers as consumers of
    the new queue, sends them nothing and tells nobody. What it holds for them comes back when their channel is closed.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def start(self) -> None:
        """Begin with the connection that the consumer has now."""
        self._held: WeakSet[Message] = WeakSet()
        self._arrived = False
        connection = self._consumer.connection.connection
        if version_string_as_tuple(connection.server_properties["version"])[:2] < TELLS:
            self._consumer.timer.call_repeatedly(PERIOD, self._renew_if_idle)

    def arrived(self, message: Message) -> None:
        """Note a delivery."""
        self._arrived = True
        self._held.add(message)

    def _renew_if_idle(self) -> None:
        arrived, self._arrived = self._arrived, False
        # A stopping worker has no tags any more.
        if not arrived and self._consumer.task_consumer._active_tags and not self._holds():
            try:
                with self._bounded():
                    self._renew()
            except self._consumer.channel_errors as error:
                raise RecoverableConnectionError(str(error)) from error

    def _holds(self) -> bool:
        return bool(reserved_requests) or not all(message.acknowledged for message in self._held)

    def _renew(self) -> None:
        task_consumer = self._consumer.task_consumer
        task_consumer.cancel()
        if not self._holds():  # what was on its way has arrived by now
            task_consumer.channel.close()
            channel = self._consumer.connection.channel()
            channel.basic_qos(0, self._consumer.qos.value, self._consumer.qos_global)
            task_consumer.revive(channel)
            self._consumer.prepare(channel)
        task_consumer.consume()

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        sock = self._consumer.connection.connection.sock
        before = sock.gettimeout()
        sock.settimeout(BOUND)
        try:
            yield
        finally:
            sock.settimeout(before)
