"""The application's own processes, started as children: workers and Flower."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals, default_int_handler, signal
from types import TracebackType
from typing import ClassVar, Self

from proj import child

READY = "[*] Waiting for messages"
PAUSE = 0.05  # seconds between two looks
LOG_LINES = 20  # of the log, in an error


class NotReady(Exception):
    """A process ended, or took too long, before it was ready; the message has the end of its log."""


def interrupt_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl+C does: through KeyboardInterrupt, with its children stopped first."""
    signal(SIGTERM, default_int_handler)


class Process:
    """`celery -A proj …` in a session of its own, with its output in the file `log`."""

    program: ClassVar[tuple[str, ...]] = ("-m", "celery", "-A", "proj")
    """What Python is to run, before the arguments."""

    def __init__(self, *arguments: str, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.command = [sys.executable, *self.program, *arguments]
        self._process: subprocess.Popen[bytes] = child.start(
            self.command, env={**os.environ, **environment}, folder=Path.cwd(), output=log
        )

    @property
    def pid(self) -> int:
        """Its process id, which is its process group too."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    @property
    def status(self) -> int | None:
        """Exit status; negative for the signal that killed it; None while it runs."""
        return self._process.poll()

    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def wait_until(self, ready: Callable[[], bool], seconds: float = 30) -> None:
        """Return when `ready` holds. Raises NotReady when the process ends first or the time is over."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise self._failed(f"not ready after {seconds:g} s")
            time.sleep(PAUSE)

    def check(self) -> None:
        """Raise NotReady if it has ended."""
        if not self.running:
            raise self._failed(f"ended with status {self.status}")

    def _failed(self, why: str) -> NotReady:
        tail = "\n".join(self.text().splitlines()[-LOG_LINES:])
        return NotReady(f"{' '.join(self.command)}: {why}; the end of {self.log}:\n{tail}")

    def signal(self, number: Signals) -> None:
        """Send a signal to the process alone."""
        self._process.send_signal(number)

    def signal_all(self, number: Signals) -> None:
        """Send a signal to the process and its children, as a terminal does."""
        if self.running:
            os.killpg(self.pid, number)

    def stop(self, seconds: float = 20) -> int:
        """Ask it to stop, kill it when it does not, and return its exit status."""
        self._process.terminate()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def kill(self) -> None:
        """End it and its children at once."""
        self.signal_all(SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()


class Worker(Process):
    """`celery -A proj worker -c 1`, further options behind; `broker` is its AMQP URL, `app` another app's module."""

    def __init__(
        self,
        *options: str,
        broker: str,
        log: Path,
        environment: Mapping[str, str] | None = None,
        app: str = "proj",
    ) -> None:
        environment = {"CELERY_BROKER_URL": broker, **(environment or {})}
        super().__init__("-A", app, "worker", "-c", "1", *options, log=log, environment=environment)

    def wait_until_ready(self, seconds: float = 30) -> None:
        """Return when it consumes. Raises NotReady."""
        self.wait_until(lambda: self.ready, seconds)

    @property
    def ready(self) -> bool:
        """Whether it has begun to consume. Raises NotReady if it has ended."""
        self.check()
        return READY in self.text()

    @property
    def name(self) -> str:
        """Its node name, as its banner shows it."""
        banner = next(line for line in self.text().splitlines() if line.startswith(" ------"))
        return banner.split()[1]
