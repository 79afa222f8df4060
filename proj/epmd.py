"""Erlang's port mapper, without which RabbitMQ does not start."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from . import child, ports
from .broker_errors import NodeFailed
from .installation import Installation
from .ports import LOOPBACK, free_port

PAUSE = 0.05  # seconds between two looks at what is starting


class Epmd:
    """Erlang's port mapper on loopback, in the foreground so that it ends with us. A cluster's nodes share one."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, where: Installation, folder: Path, timeout: float = 10) -> None:
        """Start it unless it runs, and wait until it listens. Its log goes to `folder`. Raises NodeFailed."""
        if self.pid:
            return
        folder.mkdir(parents=True, exist_ok=True)
        command = [str(where.epmd), "-port", str(self.port), "-address", LOOPBACK]
        log = folder / "epmd.log"
        log.write_bytes(b"")
        self._process = child.start(command, env=dict(os.environ), folder=folder, output=log)
        deadline = time.monotonic() + timeout
        while not ports.accepts(self.port):
            if not self.pid or time.monotonic() > deadline:
                self.stop()
                raise NodeFailed.with_log("epmd did not start", command, log)
            time.sleep(PAUSE)

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Epmd:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
