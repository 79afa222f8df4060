"""Waiting for conditions: the only place in the tests that lets time pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Log = Path | Callable[[], str] | None

PAUSE = 0.1  # seconds between two looks at a condition: many open a connection for it
TAIL = 30  # lines of the log that a failed wait shows


def wait_for(condition: Callable[[], T], what: str, seconds: float = 30, log: Log = None) -> T:
    """Return the first true value of `condition`, or fail after `seconds` saying what was waited for.

    An exception counts as "not yet"; the last one is shown. `log` is a file, or a function giving its text.
    """
    __tracebackhide__ = True
    deadline = time.monotonic() + seconds
    while True:
        value, last = _look(condition)
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s for {what}; last: {last}{_tail(log)}")
        time.sleep(PAUSE)


def ensure_not_for_a_while(condition: Callable[[], object], what: str, seconds: float = 2, log: Log = None) -> None:
    """Fail as soon as `condition` becomes true within `seconds`. An exception in it is a failure too."""
    __tracebackhide__ = True
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            raise AssertionError(f"did not expect {what} within {seconds:g} s; got: {value!r}{_tail(log)}")
        time.sleep(PAUSE)


def _look(condition: Callable[[], T]) -> tuple[T | None, str]:
    try:
        value = condition()
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    return value, repr(value)


def _tail(log: Log) -> str:
    if log is None:
        return ""
    text = log() if callable(log) else _read(log)
    return "\n--- end of the log ---\n" + "\n".join(text.splitlines()[-TAIL:])


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        return f"({path}: {error.strerror})"
