"""A history as a timeline: who was at which message when, which workers came and went, where faults struck."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from time import time
from typing import Any

from celery import Celery

from proj.backlog import Backlog, watch
from proj.history import (
    FaultHealed,
    FaultInjected,
    Finished,
    OfMessage,
    OfRun,
    Parked,
    QueueRead,
    Record,
    RunBegan,
    Started,
    WorkerLost,
    WorkerStopped,
    WorkerUp,
)
from proj.recorder import Recorder, at_work, broken, listen
from proj.runs import Run, Runs

LOOK = 0.25  # seconds between two looks at what has come in
REFRESH = 0.5  # seconds between two screens
RUNS_KEPT = 90  # seconds that a live timeline keeps runs that are over: more than it shows
WORKERS_KEPT = 3600  # seconds that it keeps workers that are gone

Job = tuple[Callable[..., None], tuple[Any, ...]]  # for a thread: a function and its arguments


@dataclass
class Lane:
    """One worker: the spans in which it was up (None: still is), and how the last one ended."""

    name: str
    spans: list[tuple[float, float | None]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    finished: int = 0

    @property
    def up(self) -> bool:
        """Whether it is there, as far as we know."""
        return not self.spans or self.spans[-1][1] is None

    @property
    def lost(self) -> bool:
        """Whether it went without a word."""
        return not self.up and bool(self.losses) and self.losses[-1] == self.spans[-1][1]

    @property
    def gone(self) -> float | None:
        """When it went, in epoch seconds."""
        return self.spans[-1][1] if self.spans else None

    def came(self, at: float) -> None:
        """Note that it is there."""
        if not self.spans or self.spans[-1][1] is not None:
            self.spans.append((at, None))

    def went(self, at: float, lost: bool) -> None:
        """Note that it is gone."""
        if lost and not self.up:
            # Who killed it and who missed its heartbeats say the same.
            return
        begin = self.spans.pop()[0] if self.spans and self.up else at
        self.spans.append((begin, max(begin, at)))
        if lost:
            self.losses.append(max(begin, at))


@dataclass
class Fault:
    """One fault: from when to when (None: not healed)."""

    name: str
    target: str
    begin: float
    end: float | None = None


class Timeline:
    """What there is to show of a history. Records come roughly in order."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.title = ""
        self.runs = Runs()
        self.lanes: dict[str, Lane] = {}
        self.faults: list[Fault] = []
        self.backlogs: dict[str, Backlog] = {}
        self.parked: dict[str, int] = {}
        self.last_event: float | None = None
        for record in records:
            self.take(record)

    def take(self, record: Record) -> None:
        """Take the next record."""
        self.runs.take(record)
        match record:
            case RunBegan():
                self.title = record.title
            case QueueRead():
                self.backlogs.setdefault(record.queue, Backlog()).take(record)
                return
            case WorkerUp():
                self._lane(record.worker).came(record.at)
            case WorkerLost() | WorkerStopped():
                self._lane(record.worker).went(record.at, isinstance(record, WorkerLost))
            case OfRun(worker=str(name)) if name:
                self._of_run(record, self._lane(name))
            case FaultInjected():
                self.faults.append(Fault(record.fault, record.target, record.at))
            case FaultHealed():
                self._heal(record)
        self.last_event = max(self.last_event or 0, record.at)

    def _lane(self, name: str) -> Lane:
        return self.lanes.setdefault(name, Lane(name))

    def _of_run(self, record: OfRun, lane: Lane) -> None:
        if isinstance(record, Started):
            # Whoever begins to work is there, though nobody could hear it.
            lane.came(record.at)
        if isinstance(record, Finished):
            lane.finished += 1
        if isinstance(record, Parked) and not record.queue:
            self.parked[record.worker] = self.parked.get(record.worker, 0) + 1

    def _heal(self, record: FaultHealed) -> None:
        for fault in self.faults:
            if fault.name == record.fault and fault.end is None and record.target in ("", fault.target):
                fault.end = record.at

    def is_news(self, record: Record) -> bool:
        """Whether a record is worth keeping: a queue that is as it was is not."""
        if not isinstance(record, QueueRead) or record.queue not in self.backlogs:
            return True
        last = self.backlogs[record.queue].last
        return (record.ready, record.unacknowledged, record.dead) != (last.ready, last.unacknowledged, last.dead)

    def forget(self, now: float) -> None:
        """Drop the runs and workers that have been over for long, at the epoch second `now`."""
        self.runs.forget(now - RUNS_KEPT)
        gone = [lane.name for lane in self.lanes.values() if lane.gone and lane.gone < now - WORKERS_KEPT]
        for name in gone:
            del self.lanes[name]

    def current(self, worker: str) -> list[Run]:
        """Return what a worker is at."""
        return self.runs.running(worker)


def sentence(record: Record) -> str:
    """Return a record as a line for people: what, who, which message."""
    words = [record.what]
    if isinstance(record, OfMessage):
        words.append(repr(record.message or record.id))
    for name in ("worker", "fault", "target", "queue"):
        words += [str(getattr(record, name, ""))] if getattr(record, name, "") else []
    for name in ("ready", "unacknowledged", "dead", "deliveries", "seconds", "cause", "reason", "proof"):
        value = getattr(record, name, None)
        words += [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"] * (value not in (None, ""))
    return " ".join(words)


# --- Live -------------------------------------------------------------------------------------------------


class Events:
    """What an app's workers and clients say now, gathered in the background."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._inbox: SimpleQueue[tuple[float, dict[str, Any] | Record]] = SimpleQueue()
        self._recorder = Recorder()
        self._stop = Event()
        self.connected = Event()
        """Set once events have begun to come."""
        self.trouble = ""
        self.heard: float | None = None
        """When anything was last heard of a worker or client, heartbeats included, in epoch seconds."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Gather until the block ends."""
        threads = [Thread(target=job, args=arguments, daemon=True) for job, arguments in self._jobs()]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()

    def records(self, wait: float = LOOK) -> Iterator[Record]:
        """Return what has come in, after waiting up to so many seconds for the first of it."""
        with suppress(Empty):
            now, news = self._inbox.get(timeout=wait)
            while True:
                self.heard = self.heard if isinstance(news, Record) else now
                yield from [news] if isinstance(news, Record) else self._recorder.records(news, now)
                now, news = self._inbox.get_nowait()
        if not self.trouble:
            yield from self._recorder.silent(time())

    def _jobs(self) -> list[Job]:
        return [(listen, (self._app, self._put, self._on_connection, self._stop))]

    def _put(self, news: dict[str, Any] | Record) -> None:
        self._inbox.put((time(), news))

    def _on_connection(self, trouble: str) -> None:
        if self.trouble and not trouble:
            self._recorder.was_deaf(time())
        self.trouble = trouble
        if not trouble:
            self.connected.set()


class Feed(Events):
    """What happens to an app's messages now: its events, its queues, and what its workers were at before."""

    def _jobs(self) -> list[Job]:
        return [*super()._jobs(), (watch, (self._app, self._put, self._stop)), (self._ask_workers, ())]

    def _ask_workers(self) -> None:
        # Whatever has gone wrong: they will make themselves heard.
        with suppress(*broken(self._app)):
            for started in at_work(self._app):
                self._put(started)


def follow(feed: Feed, record_to: Path | None, show: Callable[[Timeline, list[Record]], object]) -> None:
    """Show an app's timeline until Ctrl+C, and write what happens to a new file.

    Raises KeyboardInterrupt; OSError (FileExistsError) where the file cannot be made or written.
    """
    timeline, news = Timeline(), list[Record]()
    shown = forgot = 0.0
    with _file(record_to) as write, feed.running():
        try:
            while True:
                for record in feed.records():
                    if timeline.is_news(record):
                        news.append(record)
                        write(record.bytes())
                    timeline.take(record)
                if time() > forgot + RUNS_KEPT / 10:
                    # Memory stays bounded, however long somebody watches.
                    forgot = time()
                    timeline.forget(forgot)
                if time() > shown + REFRESH:
                    shown = time()
                    show(timeline, news)
                    news.clear()
        finally:
            show(timeline, news)


@contextmanager
def _file(path: Path | None) -> Iterator[Callable[[bytes], object]]:
    if path is None:
        yield lambda _: None
        return
    # Never over another recording.
    with path.open("xb", buffering=0) as file:
        yield file.write
