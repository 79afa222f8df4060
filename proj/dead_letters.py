"""Dead letters: parked with a confirm, listed, replayed to their queue."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

import amqp
from amqp import spec
from celery import Celery

from proj.bounded import secure
from proj.letter import Letter, Outgoing

QUEUE_ARGUMENTS = {"x-queue-type": "quorum"}
PAGE = 5000  # letters per consumer: a quorum queue gives one consumer 65,535 unacknowledged messages at most
RENEW_AT = 10  # deliveries; RabbitMQ 4 drops a message at the 20th, also one that was only looked at
BOUND = 4  # seconds that one step of a publish may take
IDLE = 2  # seconds without a delivery: what is left is held by someone else


class NotParked(Exception):
    """A publish is not confirmed: the message that it stands for must not be acknowledged."""


class Refused(NotParked):
    """RabbitMQ said no to this very letter; it may take others."""


class TooLarge(Refused):
    """The letter is larger than RabbitMQ's max_message_size."""


class Post:
    """Publishes letters over a connection of its own, one at a time, mandatory and confirmed."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection: Any = None
        self._channel: Any = None
        self._known: set[str] = set()
        self._unconfirmed: Letter | None = None
        self._blocked = False

    def put(self, letter: Letter) -> None:
        """Return when the letter is safe in its queue. Raises NotParked, Refused, TooLarge.

        Called again with a letter whose confirm an alarm holds back, it waits on instead of publishing twice.
        """
        try:
            if self._unconfirmed is not letter:
                self._publish(letter)
            bound = 0.1 if self._blocked else BOUND
            self._channel.wait([spec.Basic.Ack, spec.Basic.Nack], callback=_check, timeout=bound)
            self._unconfirmed = None
        except NotParked:
            self.close()
            raise
        except Exception as error:
            if self._blocked and isinstance(error, TimeoutError):
                raise NotParked("RabbitMQ holds back publishers: memory or disk alarm") from error
            self.close()
            kind = NotParked
            if isinstance(error, amqp.ChannelError | amqp.IrrecoverableConnectionError):
                kind = TooLarge if "message size" in str(error) else Refused
            raise kind(f"cannot publish to {letter.queue}: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Close the connection; the next letter opens another."""
        connection, self._connection, self._unconfirmed, self._blocked = self._connection, None, None, False
        self._known.clear()
        if connection:
            with suppress(Exception):
                connection.collect(socket_timeout=1)

    def _publish(self, letter: Letter) -> None:
        if self._unconfirmed:
            self.close()
        if not self._connection:
            self._open()
        if letter.queue not in self._known and letter.queue.endswith(".dead"):
            self._declare(letter.queue)
        message = Outgoing(letter.body, **letter.properties)
        self._channel.basic_publish(message, exchange="", routing_key=letter.queue, mandatory=True)
        self._unconfirmed = letter

    def _open(self) -> None:
        bounds = {"confirm_publish": False, "read_timeout": BOUND, "write_timeout": BOUND}
        alarms = {
            "on_blocked": lambda _: self._set_blocked(True),
            "on_unblocked": lambda: self._set_blocked(False),
        }
        self._connection = self._app.connection_for_write(connect_timeout=BOUND, transport_options=bounds | alarms)
        self._channel = self._connection.channel()
        self._channel.confirm_select()

    def _set_blocked(self, blocked: bool) -> None:
        self._blocked = blocked

    def _declare(self, queue: str) -> None:
        # Whatever arguments an existing queue has, letters can lie in it.
        try:
            self._connection.channel().queue_declare(queue, passive=True)
        except amqp.NotFound:
            channel = self._connection.channel()
            channel.queue_declare(queue, durable=True, auto_delete=False, arguments=QUEUE_ARGUMENTS)
            secure(channel, queue)
        self._known.add(queue)


class DeadLetters:
    """The letters of one queue of an app. Looking at letters may change their order."""

    def __init__(self, app: Celery, queue: str) -> None:
        self._app = app
        self.name = f"{queue}.dead"

    def count(self) -> int:
        """How many letters lie there; 0 where there is no such queue. Raises OSError without a broker."""
        with self._app.connection_for_read() as connection:
            try:
                return int(connection.default_channel.queue_declare(self.name, passive=True).message_count)
            except amqp.NotFound:
                return 0

    def each(self, at_most: int | None = None) -> Iterator[tuple[Letter, Callable[[], None]]]:
        """Yield each letter with the function that removes it; what is not removed goes back at the end."""
        at_most = self.count() if at_most is None else at_most
        post, kept, deliveries = Post(self._app), 0, deque[amqp.Message]()
        with self._app.connection_for_read() as connection:
            channel = connection.default_channel
            channel.auto_decode = False  # bodies stay as they are
            channel.basic_qos(0, PAGE, False)
            consumers = 0
            try:
                for _ in range(at_most):
                    # Each holds a page of letters unacknowledged; more of them would only fill our memory.
                    if kept >= consumers * PAGE:
                        channel.basic_consume(self.name, callback=deliveries.append)
                        consumers += 1
                    if not (message := self._next(connection, deliveries)):
                        break
                    letter, removal = Letter.read(self.name, message), _Removal(message)
                    kept += 1
                    yield letter, removal
                    if not removal.done and letter.deliveries >= RENEW_AT:
                        post.put(letter.renewed())
                        message.channel.basic_ack(message.delivery_tag)
                    kept -= removal.done
            finally:
                post.close()
        self._await(kept)

    def _next(self, connection: Any, deliveries: deque[amqp.Message]) -> amqp.Message | None:
        try:
            while not deliveries:
                connection.drain_events(timeout=IDLE)
        except TimeoutError:
            return None
        return deliveries.popleft()

    def _await(self, kept: int) -> None:
        # RabbitMQ takes a moment to put back what a closed connection held; who looks next must see it.
        deadline = monotonic() + BOUND
        while self.count() < kept and monotonic() < deadline:
            sleep(0.05)

    def replay(self, chosen: Callable[[Letter], bool]) -> Iterator[bool]:
        """Send the chosen letters to their queue, each confirmed before it leaves; yields once per letter.

        Raises NotParked; the letter then stays where it is.
        """
        post = Post(self._app)
        for letter, remove in self.each():
            take = chosen(letter)
            if take:
                post.put(letter.original())
                remove()
            yield take
        post.close()


class _Removal:
    def __init__(self, message: amqp.Message) -> None:
        self._message, self.done = message, False

    def __call__(self) -> None:
        self._message.channel.basic_ack(self._message.delivery_tag)
        self.done = True


def _check(method: tuple[int, int], *_: Any) -> None:
    if method == spec.Basic.Nack:
        raise Refused("RabbitMQ refused the message: is the queue at its length limit?")
