"""What can keep a private RabbitMQ node from running, each as one error that says what to do about it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from .ports import LOOPBACK

FIRST_ERRORS, LAST_LINES, LINE = 5, 15, 240  # lines and their length, of the log in an error


class PortInUse(Exception):
    """A port that the node needs is taken.

    `purpose` is AMQP, management or Prometheus; `is_broker` says whether AMQP 0-9-1 is spoken there.
    """

    def __init__(self, purpose: str, port: int, is_broker: bool) -> None:
        self.purpose = purpose
        self.port = port
        self.is_broker = is_broker
        what = "a broker answers there" if is_broker else "something that is no AMQP broker listens there"
        super().__init__(f"port {port} of {LOOPBACK}, wanted for {purpose}, is in use: {what}")


class FolderInUse(Exception):
    """Another node runs in the same folder."""


class NodeFailed(Exception):
    """The node did not start; the message has the reason, the command line and the end of the log."""

    @classmethod
    def with_log(cls, reason: str, command: Sequence[str], log: Path, start: int = 0) -> NodeFailed:
        """Return the error for *command*, whose output is in *log* from byte *start* on."""
        with log.open("rb") as file:
            file.seek(start)
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return cls("\n".join([reason, f"command: {shlex.join(command)}", f"log: {log}", *_excerpt(lines)]))


def _excerpt(lines: Sequence[str]) -> Iterator[str]:
    """The first errors, which name the cause, and the end, which buries it under Erlang's own reports."""
    end = max(len(lines) - LAST_LINES, 0)
    errors = [line for line in lines[:end] if "[error]" in line][:FIRST_ERRORS]
    for line in [*errors, *lines[end:]]:
        yield line if len(line) <= LINE else f"{line[:LINE]}..."
