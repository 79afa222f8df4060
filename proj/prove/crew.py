"""The processes of one proof: its workers and its publisher, started, signalled, and started again."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL, Signals
from time import time

from proj.history import Attempted, WorkerLost
from proj.processes import Process, Worker
from proj.prove.waiting import Waiting
from proj.prove.witness import Witness
from proj.prove.workload import Plan, Publisher
from proj.proxy import Proxy

MODULES = "proj.ledger,proj.prove.tasks"


class Crew(Witness, ABC):
    """Starts and ends workers and publisher; all that they write goes to `folder`."""

    to_workers: Proxy
    to_publisher: Proxy

    def __init__(self, folder: Path, plan: Plan, waiting: Waiting) -> None:
        folder.mkdir(parents=True)
        super().__init__(folder / "history.jsonl", waiting)
        self.folder = folder
        self.plan = plan
        self.workers: dict[str, Worker] = {}
        self.publisher: Publisher | None = None
        self.killed: set[int] = set()
        """The process ids of workers whose end has been written down."""
        self._started: list[Process] = []

    @abstractmethod
    def url_of(self, proxy: str) -> str:
        """Where workers (`to_workers`) or publisher (`to_publisher`) connect."""

    @property
    @abstractmethod
    def environment(self) -> Mapping[str, str]:
        """The variables that they have besides."""

    def start_worker(self, name: str) -> Worker:
        """Start a worker of that name; it is not ready yet."""
        worker = Worker(
            *("-n", name, "--include", MODULES),
            broker=self.url_of("to_workers"),
            log=self._log(name.partition("@")[0]),
            environment=self.environment,
            app="proj.prove.without" if self.plan.without else "proj",
        )
        self._started.append(worker)
        self.workers[name] = worker
        return worker

    def revive(self) -> None:
        """Start the workers that have ended, as a supervisor does, and wait until they are ready.

        Raises NotReady, TookTooLong.
        """
        self.wait_until_ready([self.start_worker(name) for name, worker in self.workers.items() if not worker.running])

    def wait_until_ready(self, workers: Iterable[Worker]) -> None:
        """Return when all these consume. Raises NotReady, TookTooLong."""
        for worker in workers:
            self.wait(lambda: worker.ready, f"the worker of {worker.log} to be ready", 60)  # noqa: B023 - called at once

    def ended(self, name: str) -> str:
        """Return the proof that a worker has ended, and write down if it was killed. Raises DidNotLand."""
        worker = self.workers[name]
        self.expect(lambda: not worker.running, f"{name} to end", 30)
        status = worker.status or 0
        if status < 0:
            self.killed.add(worker.pid)
            reason = f"ended by {Signals(-status).name}"
            self.record(WorkerLost(at=time(), worker=name, pid=worker.pid, reason=reason))
        return f"{name} (pid {worker.pid}) ended with status {status}"

    def start_publisher(self) -> None:
        """Publish the plan's messages, those that an earlier publisher has attempted left out."""
        attempted = self.ids(Attempted)
        self.publisher = Publisher(
            self.plan.load,
            sum(message.id in attempted for message in self.plan.load),
            history=self.history,
            log=self._log("publisher"),
            environment={"CELERY_BROKER_URL": self.url_of("to_publisher"), **self.environment},
        )
        self._started.append(self.publisher)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}-{len(self._started) + 1}.log"

    def up(self) -> list[str]:
        """Return the workers that have neither ended nor been stopped by a signal."""
        return [name for name, worker in self.workers.items() if worker.running and self.state(worker.pid) != "T"]

    def pause_publisher(self, number: Signals) -> None:
        """Stop the publisher where it is, or let it go on."""
        if self.publisher:
            self.publisher.signal_all(number)

    def signal_workers(self, number: Signals) -> None:
        """Send a signal to all workers and their pools."""
        for worker in self.workers.values():
            worker.signal_all(number)

    def end(self) -> None:
        """Kill all processes that were ever started, paused ones as well."""
        for process in self._started:
            # The pool of a main process that was killed alone may live on; its group has the dead one's id.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, SIGCONT)
                os.killpg(process.pid, SIGKILL)
