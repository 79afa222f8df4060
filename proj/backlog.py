"""What waits in an app's queues: now, how that changes, and when it will be empty."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Event
from time import time
from typing import Any

from celery import Celery

from proj.history import QueueRead
from proj.management import Management, ManagementError, management_url
from proj.recorder import broken

EVERY = 1  # second between two looks
WINDOW = 15  # seconds that a trend looks back
MEMORY = 3  # seconds that an answer of the management API serves: it is not fresher itself
PATIENCE = 2  # seconds for the management API
FORGIVEN = 5  # seconds until a missing queue is asked after again, where nobody lists them
CONNECT = 5  # seconds for one attempt


class Backlog:
    """One queue's last readings."""

    def __init__(self) -> None:
        self._reads: deque[QueueRead] = deque()

    def take(self, read: QueueRead) -> None:
        """Take the next reading."""
        self._reads.append(read)
        while self._reads[0].at < read.at - WINDOW:
            self._reads.popleft()

    @property
    def last(self) -> QueueRead:
        """The newest reading."""
        return self._reads[-1]

    @property
    def rate(self) -> float | None:
        """Messages a second by which the queue grows (or shrinks, below zero); None while that is unknown."""
        known = [(read.at, read.ready) for read in self._reads if read.ready is not None]
        if len(known) < 2 or known[-1][0] - known[0][0] < 2 * EVERY:
            return None
        (first, before), (last, after) = known[0], known[-1]
        return (after - before) / (last - first)

    @property
    def seconds_to_empty(self) -> float | None:
        """Seconds until nothing is ready if it goes on like this; None when it does not shrink."""
        if self.last.ready == 0:
            return 0
        if self.last.ready is None or not self.rate or self.rate > 0:
            return None
        return self.last.ready / -self.rate


def watch(app: Celery, on_read: Callable[[QueueRead], None], stop: Event) -> None:
    """Pass on a reading of each of the app's queues every second until `stop` is set.

    While the broker is away there are none.
    """
    reader = Reader(app)
    while not stop.is_set():
        with suppress(*broken(app)):
            reader.read_on(on_read, stop)
        stop.wait(EVERY)


def dead_queue(queue: Any) -> str:
    """Return the name of a queue's dead queue: where its arguments send dead letters, else by our custom."""
    arguments = queue.queue_arguments or {}
    return str(arguments.get("x-dead-letter-routing-key") or f"{queue.name}.dead")


def ready(connection: Any, name: str) -> int | None:
    """Return how many messages are ready in a queue; None where there is no such queue."""
    # A passive declaration of a missing queue closes the channel, so each has its own.
    channel = connection.channel()
    try:
        count: int = channel.queue_declare(name, passive=True).message_count
    except connection.channel_errors:
        return None
    channel.close()
    return count


class Reader:
    """Reads an app's queues: the ready counts from the queues themselves, as those of the management API lag."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._api = Management(management_url(app.conf), timeout=PATIENCE)
        self._vhost = app.connection_for_read().virtual_host
        self._asked = 0.0
        self._listed: dict[str, int | None] | None = None
        self._missed: dict[str, float] = {}

    def read_on(self, on_read: Callable[[QueueRead], None], stop: Event) -> None:
        """Pass on a reading a second over one connection. Raises what a broken connection raises."""
        with self._app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=max(1, len(connection.alt)), timeout=CONNECT)
            # A broker that vanishes without a word must not hold us for ever.
            connection.connection.sock.settimeout(CONNECT)
            while not stop.is_set():
                for queue in self._app.amqp.queues.values():
                    on_read(self.read(connection, queue))
                stop.wait(EVERY)

    def read(self, connection: Any, queue: Any) -> QueueRead:
        """Return what there is in a queue and its dead queue."""
        if time() - self._asked > MEMORY:
            self._listed, self._asked = self._ask(), time()
        ready, dead = (self._ready(connection, name) for name in (queue.name, dead_queue(queue)))
        held = (self._listed or {}).get(queue.name)
        return QueueRead(at=time(), queue=queue.name, ready=ready, unacknowledged=held, dead=dead)

    def _ready(self, connection: Any, name: str) -> int | None:
        # The broker logs an error for each question after a queue that is not there.
        if self._listed is not None and name not in self._listed:
            return None
        if time() - self._missed.get(name, 0) < FORGIVEN and not self._listed:
            return None
        count = ready(connection, name)
        if count is None:
            self._missed[name] = time()
        return count

    def _ask(self) -> dict[str, int | None] | None:
        try:
            queues = self._api.queues(self._vhost)
        except ManagementError:
            return None
        return {queue["name"]: queue.get("messages_unacknowledged") for queue in queues}
