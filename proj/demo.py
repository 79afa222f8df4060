"""The tutorial on one screen: a private RabbitMQ, two workers and Flower, five messages, and who received what."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from celery import Celery

from proj.broker import Node, PortInUse
from proj.history import Failed, Finished, Parked, Received, Record, Redelivered, Retried, Started, WorkerLost
from proj.ports import LOOPBACK, free_port, is_free
from proj.processes import NotReady, Process, Worker
from proj.timeline import Events

MESSAGES = tuple(
    f"{word} message{'.' * dots}" for dots, word in enumerate(("First", "Second", "Third", "Fourth", "Fifth"), 1)
)
WORKERS = 2
PATIENCE = 60  # seconds for all five messages; two workers need nine
LOOK = 1  # second to wait for an event, between two looks at the processes

Say = Callable[[str], None]


@dataclass
class Work:
    """What happened to one message: times are seconds since it was sent, and of work."""

    message: str
    sent: float
    worker: str = ""
    started: float | None = None
    took: float | None = None


class Feed:
    """Tells what workers do with which message, from Celery's events."""

    def __init__(self, say: Say) -> None:
        self.works: dict[str, Work] = {}
        self._say = say

    def sent(self, uuid: str, message: str, at: float) -> None:
        """Take note of a message of ours, sent at the epoch second `at`."""
        self.works[uuid] = Work(message, at)
        self._say(f"[x] Sent {message!r}")

    @property
    def finished(self) -> bool:
        """Whether every message noted is done."""
        return all(work.took is not None for work in self.works.values())

    def take(self, record: Record) -> None:
        """Take one record of what a worker did."""
        if isinstance(record, WorkerLost):
            self._say(f"{short(record.worker)}  [!] Lost: {record.reason}")
            return
        if isinstance(record, Received) and record.id not in self.works:
            self.works[record.id] = Work(record.message, record.at)
        if not (work := self.works.get(getattr(record, "id", ""))):
            return
        match record:
            case Started():
                work.worker, work.started = short(record.worker), record.at - work.sent
                self._say(f"{work.worker}  [x] Received {work.message!r}")
            case Finished():
                work.took = record.seconds
                self._say(f"{short(record.worker)}  [x] Done {work.message!r} in {work.took:.1f} s")
            case Redelivered():
                self._say(f"{short(record.worker)}  [!] Redelivered {work.message!r}: attempt {record.deliveries}")
            case Failed() | Retried() | Parked():
                self._say(f"{short(record.worker)}  [!] {type(record).__name__} {work.message!r}: {record.reason}")


def short(worker: str) -> str:
    """Return a worker's name without its host: they are all on this one."""
    return worker.partition("@")[0]


@dataclass(frozen=True)
class Stand:
    """What runs: the broker's addresses, Flower's, and the processes."""

    broker: str
    management: str
    flower: str
    processes: tuple[Process, ...]

    def check(self) -> None:
        """Raise NotReady when one of the processes has ended."""
        for process in self.processes:
            process.check()


@contextmanager
def stand(node: Node, folder: Path, flower_port: int, say: Say) -> Iterator[Stand]:
    """Run broker, workers and Flower, and stop them in the opposite order. Logs and states go to `folder`.

    Raises NodeFailed, NotInstalled, PortInUse, FolderInUse, NotReady.
    """
    with ExitStack() as stack:
        broker, management = _broker(stack, node, say)
        environment = {
            "CELERY_BROKER_URL": broker,
            "CELERY_RESULT_BACKEND": "rpc://",
            "PROJ_MANAGEMENT_URL": management,
            "FLOWER_DB": str(folder / "flower.db"),
        }
        workers = [
            stack.enter_context(Worker(broker=broker, log=folder / f"worker{n}.log", environment=environment))
            for n in range(1, WORKERS + 1)
        ]
        flower = f"http://{LOOPBACK}:{flower_port}"
        monitor = stack.enter_context(
            Process("flower", f"--port={flower_port}", log=folder / "flower.log", environment=environment)
        )
        for worker in workers:
            worker.wait_until_ready()
        for name in sorted(worker.name for worker in workers):
            say(f"{name} waits for messages")
        monitor.wait_until(lambda: _answers(flower))
        say(f"Flower shows them on {flower}")
        os.environ.update(environment)
        yield Stand(broker, management, flower, (*workers, monitor))


def run(app: Celery, running: Stand, feed: Feed) -> None:
    """Send the tutorial's messages and follow them. Raises NotReady when they are not done in time."""
    from proj.tasks import fake_work

    with _events(app, feed) as look:
        for message in MESSAGES:
            sent = time.time()
            feed.sent(fake_work.apply_async((message,), ignore_result=True).id, message, sent)
        deadline = time.monotonic() + PATIENCE
        while not feed.finished:
            if time.monotonic() > deadline:
                raise NotReady(f"expected five messages to be done in {PATIENCE} s; the logs: {_logs(running)}")
            look()
            running.check()


def stay(app: Celery, running: Stand, feed: Feed) -> None:
    """Follow whatever is sent until a process ends (NotReady) or Ctrl+C (KeyboardInterrupt)."""
    with _events(app, feed) as look:
        while True:
            look()
            running.check()


def free_or(port: int) -> int:
    """Return `port` where nobody listens on it, else a free one."""
    return port if is_free(port) else free_port()


def _broker(stack: ExitStack, node: Node, say: Say) -> tuple[str, str]:
    try:
        stack.enter_context(node)
    except PortInUse as error:
        if not error.is_broker:
            raise
        say(f"uses the broker that already answers on port {node.port}")
    else:
        say(f"RabbitMQ {node.installation.version} answers on {node.amqp_url}")
    say(f"its pages are on http://{LOOPBACK}:{node.management_port} (guest, guest)")
    return node.amqp_url, node.management_url


@contextmanager
def _events(app: Celery, feed: Feed) -> Iterator[Callable[[], None]]:
    """Give a function that passes on, for a moment, what workers say. Raises NotReady without a connection."""
    events = Events(app)

    def look() -> None:
        for record in events.records(LOOK):
            feed.take(record)

    with events.running():
        if not events.connected.wait(PATIENCE):
            raise NotReady(f"no connection for events within {PATIENCE} s")
        yield look


def _answers(flower: str) -> bool:
    try:
        return requests.get(f"{flower}/healthcheck", timeout=2).ok
    except requests.RequestException:
        return False


def _logs(running: Stand) -> str:
    return ", ".join(str(process.log) for process in running.processes)
