"""Celery's events as the records of a history."""

from __future__ import annotations

import ast
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any

from celery import Celery
from kombu import Consumer
from kombu.exceptions import OperationalError

from proj.history import (
    Attempted,
    Failed,
    Finished,
    Parked,
    Received,
    Record,
    Redelivered,
    Requeued,
    Retried,
    Started,
    WorkerLost,
    WorkerStopped,
    WorkerUp,
    words,
)

MISSED = 2  # heartbeats after which a worker counts as lost
KEPT = 10_000  # messages whose words are remembered: only the first event of a message has them
DRAIN = 1  # second between two looks at the connection
PAUSE = 1  # second between two attempts to connect
HEARTBEAT = 10  # seconds; without it a dead network looks like a quiet one
CONNECT = 5  # seconds for one attempt

CANCELLED = "cancelled: its connection was lost"


@dataclass
class Life:
    """When a worker was last heard, and how often (in seconds) it should be."""

    heard: float
    every: float = 2
    pid: int | None = None


class Recorder:
    """Turns Celery's events into records, and notices workers that fall silent.

    It judges silence by the clock of this machine: `now` is when an event arrived, in epoch seconds.
    """

    def __init__(self) -> None:
        self._words: OrderedDict[str, str] = OrderedDict()
        self._alive: dict[str, Life] = {}

    def records(self, event: dict[str, Any], now: float) -> Iterator[Record]:
        """Return what an event says; none for those that a history has no word for."""
        if event["type"].startswith("worker-"):
            yield from self._of_worker(event, now)
        elif event["type"] == "task-sent":
            # Its sender is a client, not a worker.
            yield Attempted(at=event["timestamp"], id=event["uuid"], message=self._message(event))
        elif "uuid" in event and (record := self._of_task(event)):
            yield from self._heard(event, now)
            yield record

    def silent(self, now: float) -> Iterator[WorkerLost]:
        """Return the workers that have not been heard for two heartbeats, once each."""
        for name, life in list(self._alive.items()):
            if now - life.heard > MISSED * life.every:
                del self._alive[name]
                reason = f"no heartbeat for {MISSED * life.every:g} s"
                yield WorkerLost(at=life.heard, worker=name, pid=life.pid, reason=reason)

    def was_deaf(self, now: float) -> None:
        """Begin to listen for heartbeats anew: the silence so far was ours."""
        for life in self._alive.values():
            life.heard = now

    def _of_worker(self, event: dict[str, Any], now: float) -> Iterator[Record]:
        name = event["hostname"]
        if event["type"] == "worker-offline":
            self._alive.pop(name, None)
            yield WorkerStopped(at=event["timestamp"], worker=name, pid=event.get("pid"))
        elif event["type"] == "worker-online":
            self._alive[name] = _life(event, now)
            yield WorkerUp(at=event["timestamp"], worker=name, pid=event.get("pid"))
        else:
            yield from self._heard(event, now)

    def _heard(self, event: dict[str, Any], now: float) -> Iterator[Record]:
        name = event.get("hostname", "")
        if name not in self._alive:
            yield WorkerUp(at=event["timestamp"], worker=name, pid=event.get("pid"), heard=True)
        known = self._alive.get(name)
        self._alive[name] = _life(event, now, known.every if known else 2)

    def _of_task(self, event: dict[str, Any]) -> Record | None:
        run = {
            "at": event["timestamp"],
            "id": event["uuid"],
            "message": self._message(event),
            "worker": event.get("hostname", ""),
            "pid": event.get("pid"),
        }
        match event["type"]:
            case "task-received":
                return Received(**run)
            case "task-redelivered":
                return Redelivered(**run, deliveries=event.get("attempt"))
            case "task-started":
                return Started(**run)
            case "task-succeeded":
                return Finished(**run, seconds=event.get("runtime"))
            case "task-failed":
                return Failed(**run, reason=str(event.get("exception", "")))
            case "task-retried":
                return Retried(**run, reason=str(event.get("exception", "")))
            case "task-revoked":
                return Failed(**run, reason="expired" if event.get("expired") else "revoked")
            case "task-rejected":
                return Requeued(**run) if event.get("requeue") else Failed(**run, reason="rejected")
            case "task-cancelled":
                return Requeued(**run, reason=CANCELLED)
            case "task-parked":
                return Parked(**run, cause=event.get("cause", ""), reason=event.get("reason", ""))
            case _:
                # Of an app's own making.
                return None

    def _message(self, event: dict[str, Any]) -> str:
        uuid = event["uuid"]
        if event.get("name") and "args" in event:
            self._words[uuid] = _words(event)
            if len(self._words) > KEPT:
                self._words.popitem(last=False)
        return self._words.get(uuid, event.get("name") or "")


def _life(event: dict[str, Any], now: float, every: float = 2) -> Life:
    return Life(now, event.get("freq") or every, event.get("pid"))


def _words(event: dict[str, Any]) -> str:
    args, kwargs = event["args"] or "()", event.get("kwargs") or "{}"
    with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return words(event["name"], ast.literal_eval(args), ast.literal_eval(kwargs))
    # Celery shortens long arguments; what is left is no Python.
    return words(f"{event['name']}{args}", (), {}).removesuffix("()")


def listen(
    app: Celery, on_event: Callable[[dict[str, Any]], None], on_connection: Callable[[str], None], stop: Event
) -> None:
    """Pass an app's events on until `stop` is set, over any number of lost connections.

    `on_connection` is told each change: nothing when events flow, else why they do not.
    """
    while not stop.is_set():
        try:
            for _ in _events(app, on_event):
                on_connection("")
                if stop.is_set():
                    return
        except Exception as error:
            if not isinstance(error, broken(app)):
                raise
            on_connection(str(error) or type(error).__name__)
        stop.wait(PAUSE)


def broken(app: Celery) -> tuple[type[Exception], ...]:
    """Return what a connection raises that is lost, or that the broker has ended or never allowed."""
    connection = app.connection_for_read()
    return OSError, OperationalError, *connection.connection_errors, *connection.channel_errors


def _events(app: Celery, on_event: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Pass events on, and return now and then as long as the connection holds."""
    with app.connection_for_read(heartbeat=HEARTBEAT) as connection:
        connection.ensure_connection(max_retries=max(1, len(connection.alt)), timeout=CONNECT)
        receiver = app.events.Receiver(connection, handlers={"*": on_event})
        # Celery shifts timestamps by the difference in time zones, and epoch seconds know none.
        plain = receiver.event_from_message
        receiver.event_from_message = lambda body: plain(body, localize=False)
        channel = connection.default_channel
        # Its own way to consume opens a second connection and leaves the first one without heartbeats.
        (consumer,) = receiver.get_consumers(partial(Consumer, channel), channel)
        with consumer:
            # So that each worker makes itself heard at once.
            receiver.wakeup_workers(channel)
            while True:
                with suppress(TimeoutError):
                    connection.drain_events(timeout=DRAIN)
                connection.heartbeat_check()
                yield


def at_work(app: Celery, seconds: float = 2) -> Iterable[Started]:
    """Return what workers say within so many seconds that they are at: runs that began before we listened."""
    active = app.control.inspect(timeout=seconds).active() or {}
    for worker, tasks in active.items():
        for task in tasks:
            if task.get("time_start"):
                message = words(task["name"], task["args"], task["kwargs"])
                yield Started(at=task["time_start"], id=task["id"], message=message, worker=worker)
