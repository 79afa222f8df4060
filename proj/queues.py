"""Queue lengths and forgotten acknowledgements: the tutorial's `rabbitmqctl list_queues` and more."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from celery import Celery
from dateutil.parser import parse

from proj.management import Management, Record, management_url

# Control, events, and the results that a client process waits for.
REPLIES = re.compile(r"\.pidbox$|^celeryev\.|^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
INSPECT_TIMEOUT = 1  # second, for the workers to say what they hold


@dataclass(frozen=True)
class QueueState:
    """One queue; None is what could not be known. A quorum queue's counts lag by some seconds."""

    name: str
    ready: int | None
    unacknowledged: int | None
    consumers: int | None
    type: str | None

    @property
    def internal(self) -> bool:
        """Whether Celery made it for its own ends: no task waits in it to be run."""
        return bool(REPLIES.search(self.name)) or (self.name.startswith("celery_delayed_") and not self.ready)


@dataclass(frozen=True)
class IdleConsumer:
    """A channel that has held deliveries unacknowledged without any traffic for `idle` seconds."""

    connection: str
    queues: tuple[str, ...]
    unacknowledged: int
    idle: float

    def __str__(self) -> str:
        count = f"{self.unacknowledged} message{'s' if self.unacknowledged != 1 else ''}"
        return (
            f"{', '.join(self.queues)}: {count} unacknowledged for {self.idle:.0f} s by {self.connection}, "
            "and no worker says that it runs them: an acknowledgement was forgotten, or the consumer hangs; "
            "closing that connection gives them back"
        )


def from_management(app: Celery, patience: float) -> tuple[list[QueueState], list[IdleConsumer]]:
    """Return all queues of the app's virtual host, and who sits on deliveries for over `patience` seconds.

    Raises ManagementError.
    """
    api = Management(management_url(app.conf), timeout=5)
    vhost = app.connection_for_read().virtual_host
    states = [_state(queue) for queue in api.queues(vhost)]
    return sorted(states, key=lambda state: state.name), list(_idle(api, app, vhost, patience))


def from_amqp(app: Celery) -> list[QueueState]:
    """Return the app's own queues as AMQP alone can tell: not the unacknowledged messages.

    Raises kombu.exceptions.OperationalError where the broker cannot be reached.
    """
    with app.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, timeout=5)
        return [_declared(connection, queue) for queue in app.amqp.queues.values()]


def _state(queue: Record) -> QueueState:
    return QueueState(
        queue["name"],
        queue.get("messages_ready"),
        queue.get("messages_unacknowledged"),
        queue.get("consumers"),
        queue.get("type"),
    )


def _declared(connection: Any, queue: Any) -> QueueState:
    kind = (queue.queue_arguments or {}).get("x-queue-type", "classic")
    # A passive declaration of a missing queue closes the channel, so each has its own.
    channel = connection.channel()
    try:
        found = channel.queue_declare(queue.name, passive=True)
    except connection.channel_errors:
        return QueueState(queue.name, None, None, None, None)
    channel.close()
    return QueueState(queue.name, found.message_count, None, found.consumer_count, kind)


def _idle(api: Management, app: Celery, vhost: str, patience: float) -> Iterable[IdleConsumer]:
    channels = [
        channel
        for channel in api.channels()
        if channel.get("vhost") == vhost
        and channel.get("messages_unacknowledged")
        and _seconds_idle(channel) >= patience
    ]
    if not channels:
        return
    queues_of = _queues_by_channel(api, vhost)
    at_work = _held_by_workers(app)
    for channel in sorted(channels, key=_seconds_idle):
        held = channel["messages_unacknowledged"]
        if held <= at_work:
            at_work -= held
            continue
        yield IdleConsumer(
            channel["connection_details"]["name"],
            queues_of.get(channel["name"], ("?",)),
            held,
            _seconds_idle(channel),
        )


def _seconds_idle(channel: Record) -> float:
    since = channel.get("idle_since")
    if not since:
        return 0
    started: datetime = parse(since)
    return (datetime.now(UTC) - started.replace(tzinfo=started.tzinfo or UTC)).total_seconds()


def _queues_by_channel(api: Management, vhost: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for consumer in api.consumers(vhost):
        channel = consumer["channel_details"].get("name")
        found[channel] = (*found.get(channel, ()), consumer["queue"]["name"])
    return found


def _held_by_workers(app: Celery) -> int:
    """How many messages the workers that answer say they run or hold: those are slow, not forgotten."""
    inspect = app.control.inspect(timeout=INSPECT_TIMEOUT)
    answers = [inspect.active() or {}, inspect.reserved() or {}]
    return sum(len(tasks) for answer in answers for tasks in answer.values())
