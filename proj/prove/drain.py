"""The end of a proof: wait until the queue stays empty, then read what lies in the dead queue."""

from __future__ import annotations

from contextlib import suppress
from time import monotonic, time
from typing import Any

from proj.backlog import ready
from proj.history import Drained, Finished, Parked, QueueRead, Started
from proj.management import ManagementError
from proj.prove.stand import DEAD, QUEUE, Stand
from proj.prove.waiting import TookTooLong
from proj.prove.witness import AWAY

# Seconds. A private node refreshes its counts every second and the management API caches them for some more.
LAG = 3.0
DOUBT = 3  # so many times longer while messages are missing: an accusation takes longer than an acquittal
LONGEST = 60.0  # seconds for the queue to become empty
LOOK = 0.3  # seconds between two looks, each of which opens a connection
HEADER = "x-parked"


def silence(stand: Stand) -> float:
    """Return when nothing moves any more: for how many seconds it has been so. Raises TookTooLong."""
    _await_publisher(stand)
    return _await_silence(stand)


def read_out(stand: Stand, seconds: float) -> None:
    """Write down that the queue has been empty for so many seconds, and what lies in the dead queue."""
    with stand.app.connection_for_read() as connection:
        left = ready(connection, QUEUE)
        dead = ready(connection, DEAD)
        stand.record(Drained(at=time(), queue=QUEUE, seconds=round(seconds, 1)))
        for letter in _letters(connection, dead or 0):
            stand.record(letter)
    stand.record(QueueRead(at=time(), queue=QUEUE, ready=left, unacknowledged=stand.held(), dead=dead or 0))


def _await_publisher(stand: Stand) -> None:
    publisher = stand.publisher
    if publisher:
        stand.wait(lambda: not publisher.running, "the publisher to end", LONGEST)
        if publisher.status:
            raise TookTooLong(f"the publisher ended with status {publisher.status}; see {publisher.log}")


def _await_silence(stand: Stand) -> float:
    """Return for how many seconds the queue was empty, nothing unacknowledged and no run begun or ended."""
    deadline, since, before = monotonic() + LONGEST, monotonic(), (-1, "")
    while True:
        runs, state = _runs(stand), _state(stand)
        if (runs, state) != before or state:
            since, before = monotonic(), (runs, state)
        quiet = monotonic() - since
        if quiet >= LAG and (quiet >= LAG * DOUBT or not stand.missing()):
            return quiet
        if monotonic() > deadline:
            raise TookTooLong(f"{QUEUE} was not empty for {LAG:g} s within {LONGEST:g} s: {state or 'work goes on'}")
        stand.waiting.pause(LOOK)


def _runs(stand: Stand) -> int:
    return sum(isinstance(record, Started | Finished) for record in stand.records())


def _state(stand: Stand) -> str:
    """Say what is left in the queue; nothing when it is empty."""
    try:
        left, held = stand.ready(), stand.held()
    except (*AWAY, ManagementError) as error:
        return f"cannot look: {error}"
    if left is None:
        return f"there is no {QUEUE}"
    if held is None:
        return "RabbitMQ does not know its counts yet"
    counts = {"ready": left, "unacknowledged": held}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _letters(connection: Any, count: int) -> list[Parked]:
    """Return what lies in the dead queue; everything stays there."""
    letters = []
    channel = connection.channel()
    for _ in range(count):
        message = channel.basic_get(DEAD)
        if message is None:
            break
        letters.append(_letter(message))
    with suppress(*connection.connection_errors):
        channel.close()
    return letters


def _letter(message: Any) -> Parked:
    headers = message.properties.get("application_headers") or {}
    parked = headers.get(HEADER) or {}
    task_id = parked.get("id") or headers.get("id") or message.properties.get("message_id") or ""
    return Parked(
        at=time(),
        id=str(task_id),
        message=str(headers.get("argsrepr") or parked.get("task") or ""),
        cause=str(parked.get("cause") or headers.get("x-first-death-reason") or ""),
        reason=str(parked.get("reason") or ""),
        deliveries=parked.get("deliveries"),
        queue=DEAD,
    )
