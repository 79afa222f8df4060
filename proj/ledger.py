"""A worker's own account of its runs, which survives `kill -9`: a line before and one after each.

Import it into the workers of any app and name the file, which several workers may share:

    PROJ_LEDGER=ledger.jsonl celery -A proj worker --include proj.ledger
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from celery import signals

from proj.history import Failed, Finished, OfRun, Record, Retried, Started, WorkerStopped, WorkerUp, words

VARIABLE = "PROJ_LEDGER"
DONE = ("SUCCESS", "IGNORED")  # a task that raises Ignore has settled its message by its own decision


class Ledger:
    """Appends records to a file, each in one system call: no line is torn by a kill between two."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, record: Record) -> None:
        """Append one record. What the system has taken survives this process, not the machine."""
        os.write(self._file, record.bytes())

    def connect(self) -> None:
        """Write down what this worker and its pool processes do from now on."""
        signals.task_prerun.connect(self.started, weak=False)
        signals.task_postrun.connect(self.ended, weak=False)
        signals.worker_ready.connect(self.up, weak=False)
        signals.worker_shutdown.connect(self.stopped, weak=False)

    def started(self, task_id: str, task: Any, args: Any, kwargs: Any, **_: Any) -> None:
        """Write down that a run begins."""
        request = task.request
        run = _run(task_id, task, args, kwargs)
        self.write(Started(**run, deliveries=_deliveries(request), retries=request.retries or None))
        request.ledger_started = time.monotonic()

    def ended(self, task_id: str, task: Any, args: Any, kwargs: Any, state: str | None, retval: Any, **_: Any) -> None:
        """Write down how a run ended."""
        if state is None:
            # The process is told to end in mid-task: this run has no end, and its message goes back.
            return
        run = _run(task_id, task, args, kwargs)
        if state in DONE:
            seconds = time.monotonic() - task.request.ledger_started
            self.write(Finished(**run, seconds=round(seconds, 6)))
        else:
            self.write(_unfinished(state, run, _sentence(retval)))

    def up(self, sender: Any, **_: Any) -> None:
        """Write down that the worker consumes."""
        self.write(WorkerUp(at=time.time(), worker=sender.hostname, pid=os.getpid()))

    def stopped(self, sender: Any, **_: Any) -> None:
        """Write down that the worker ends in an orderly way."""
        self.write(WorkerStopped(at=time.time(), worker=sender.hostname, pid=os.getpid()))


def _run(task_id: str, task: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    worker = task.request.hostname or socket.gethostname()
    return {
        "at": time.time(),
        "id": task_id,
        "message": words(task.name, args, kwargs),
        "worker": worker,
        "pid": os.getpid(),
    }


def _deliveries(request: Any) -> int | None:
    """How often the broker has delivered the message; a classic queue only tells the first time from the rest."""
    count = request.get("x-delivery-count")
    if isinstance(count, int):
        return count + 1
    return None if (request.delivery_info or {}).get("redelivered") else 1


def _unfinished(state: str, run: dict[str, Any], reason: str) -> OfRun:
    kind = Retried if state == "RETRY" else Failed
    return kind(**run, reason=reason or state or "")


def _sentence(value: Any) -> str:
    text = f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else ""
    return " ".join(text.split())[:200]


if _path := os.environ.get(VARIABLE):
    try:
        Ledger(Path(_path)).connect()
    except OSError as _error:
        sys.exit(f"cannot write {VARIABLE}={_path}: {_error.strerror}; make its folder or unset {VARIABLE}")
