"""What a proof's history says so far, and waiting for it to say something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import time
from typing import TypeVar

from kombu.exceptions import OperationalError

from proj.history import Attempted, Confirmed, Finished, Indeterminate, OfMessage, Parked, Record, Refused, read
from proj.ledger import Ledger
from proj.management import ManagementError
from proj.prove.waiting import TookTooLong, Waiting
from proj.runs import Run, Runs

T = TypeVar("T")
STUCK = 0.7  # seconds without a confirm
FRESH = 0.7  # seconds into a heavy message's second in which a fault finds it surely at work
AWAY = (OSError, OperationalError)


class DidNotLand(Exception):
    """A fault could not be shown to have struck; the message says what was expected."""


class Witness:
    """Reads and writes the history of one proof, which workers and publishers write, too."""

    def __init__(self, history: Path, waiting: Waiting) -> None:
        self.history = history
        self.waiting = waiting
        self.struck = 0.0
        """When the present fault struck, in epoch seconds."""
        self._ledger = Ledger(history)

    def record(self, record: Record) -> None:
        """Write something down."""
        self._ledger.write(record)

    def records(self) -> tuple[Record, ...]:
        """Return all that has been written down so far."""
        return read(self.history).records

    def ids(self, *kinds: type[OfMessage]) -> set[str]:
        """Return the messages of which there is a record of one of these kinds."""
        return {record.id for record in self.records() if isinstance(record, kinds)}

    def in_flight(self) -> set[str]:
        """Return the messages whose publish has begun and not ended."""
        return self.ids(Attempted) - self.ids(Confirmed, Indeterminate, Refused)

    def missing(self) -> set[str]:
        """Return the confirmed messages that have neither finished nor, by a worker's word, been parked."""
        return self.ids(Confirmed) - self.ids(Finished, Parked)

    def wait(
        self,
        condition: Callable[[], T | None],
        what: str,
        seconds: float = 30,
        but: tuple[type[Exception], ...] = (*AWAY, ManagementError),
    ) -> T:
        """Return the condition's first true value. Raises TookTooLong."""
        return self.waiting.until(condition, what, seconds, but)

    def expect(self, condition: Callable[[], T | None], what: str, seconds: float = 30) -> T:
        """Return the condition's first true value, as the proof that a fault landed. Raises DidNotLand."""
        try:
            return self.wait(condition, what, seconds)
        except TookTooLong as error:
            raise DidNotLand(str(error)) from error

    def busy(self) -> Run:
        """Return a run that has just begun and has most of its second before it: strike now. Raises DidNotLand."""
        run = self.expect(self._fresh, "a worker in the midst of a message", 30)
        self.strikes()
        return run

    def strikes(self) -> None:
        """Note that the fault strikes now, after what had to come before."""
        self.struck = time()

    def _fresh(self) -> Run | None:
        now = time()
        runs = Runs(self.records()).all
        fresh = (r for r in runs if r.outcome == "running" and "." in r.message and now - r.started < FRESH)
        return next(fresh, None)

    def elsewhere(self, run: Run) -> Run | None:
        """Return the run of the same message that another worker has begun since."""
        again = (other for other in Runs(self.records()).of(run.id) if other.started > run.started)
        return next((other for other in again if other.worker != run.worker), None)

    @staticmethod
    def state(pid: int) -> str:
        """Return the state of a process as Linux names it: R, S, T (stopped), Z."""
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]

    def stuck(self) -> str:
        """Return the message whose publish has been waiting for longer than any publish should."""
        now = time()
        flying = self.in_flight()
        waiting = (
            record.message
            for record in self.records()
            if isinstance(record, Attempted) and record.id in flying and now - record.at > STUCK
        )
        return next(waiting, "")

    def done(self) -> set[str]:
        """Return the messages that have finished."""
        return self.ids(Finished)
