"""The runs in a history: when which worker was at which message, and how that ended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from proj.history import (
    Failed,
    Finished,
    OfRun,
    OfWorker,
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
)

Outcome = Literal["running", "finished", "failed", "retried", "requeued", "lost"]

# What a run may yet turn out to have been: nothing has been heard of it, or it was only thought to be over.
OPEN = ("running", "lost")


@dataclass(eq=False)
class Run:
    """One worker at one message; times are epoch seconds, and `ended` is None while it runs."""

    id: str
    message: str
    worker: str
    pid: int | None
    started: float
    attempt: int = 1
    ended: float | None = None
    outcome: Outcome = "running"
    reason: str = ""

    def end(self, at: float, outcome: Outcome, reason: str = "") -> None:
        """Close the run."""
        self.ended, self.outcome, self.reason = max(at, self.started), outcome, reason


class Runs:
    """Collects the runs from records that come roughly in order.

    A run is thought lost when its worker is, when that worker comes up anew, or when its message is seen in
    other hands; if it ends after all (a frozen worker, a lost connection), it ended then.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.all: list[Run] = []
        self._of: defaultdict[str, list[Run]] = defaultdict(list)
        self._running: list[Run] = []
        for record in records:
            self.take(record)

    def of(self, task_id: str) -> list[Run]:
        """Return the runs of one message, first to last."""
        return self._of.get(task_id, [])

    def running(self, worker: str) -> list[Run]:
        """Return what a worker is at."""
        return [run for run in self._running if run.worker == worker]

    def forget(self, before: float) -> None:
        """Drop the runs that ended before that epoch second."""
        self.all = [run for run in self.all if run.ended is None or run.ended >= before]
        self._of.clear()
        for run in self.all:
            self._of[run.id].append(run)

    def take(self, record: Record) -> None:
        """Take the next record; those that say nothing of a run are passed over."""
        match record:
            case Started():
                self._begin(record)
            case Finished():
                self._end(record, "finished", seconds=record.seconds or 0)
            case Failed():
                self._end(record, "failed", record.reason)
            case Retried():
                self._end(record, "retried", record.reason)
            case Requeued():
                self._end(record, "requeued", record.reason)
            case Received() | Redelivered():
                self._lose(record.at, self._at(record.id), "redelivered")
            case Parked(queue=""):
                self._lose(record.at, self._at(record.id), "parked")
            case WorkerLost() | WorkerStopped() | WorkerUp(heard=False):
                self._lose(record.at, self._left_by(record), record.what)

    def _begin(self, record: Started) -> None:
        before = self._of[record.id]
        self._lose(record.at, self._at(record.id), "started again")
        attempt = max(len(before) + 1, (record.deliveries or 1) + (record.retries or 0))
        run = Run(record.id, record.message, record.worker, record.pid, record.at, attempt)
        self._add(run)
        self._running.append(run)

    def _add(self, run: Run) -> None:
        self.all.append(run)
        self._of[run.id].append(run)

    def _end(self, record: OfRun, outcome: Outcome, reason: str = "", seconds: float = 0) -> None:
        run = next((run for run in reversed(self._of[record.id]) if _is_its(record, run)), None)
        if not run:
            if self._of[record.id] or outcome != "finished":
                return
            # Its start was not seen: the history begins in the middle.
            run = Run(record.id, record.message, record.worker, record.pid, record.at - seconds)
            self._add(run)
        run.end(record.at, outcome, reason)
        self._running = [other for other in self._running if other is not run]

    def _at(self, task_id: str) -> list[Run]:
        return [run for run in self._running if run.id == task_id]

    def _left_by(self, record: OfWorker) -> list[Run]:
        return [run for run in self._running if run.worker == record.worker and run.started <= record.at]

    def _lose(self, at: float, runs: list[Run], reason: str) -> None:
        for run in runs:
            run.end(at, "lost", reason)
        if runs:
            self._running = [run for run in self._running if run.ended is None]


def _is_its(record: OfRun, run: Run) -> bool:
    same_process = None in (record.pid, run.pid) or record.pid == run.pid
    return run.outcome in OPEN and run.worker == record.worker and same_process
