"""Waiting for conditions: the only place in the proofs that lets time pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Event
from time import monotonic
from typing import TypeVar

T = TypeVar("T")
PAUSE = 0.05  # seconds between two looks


class TookTooLong(Exception):
    """A condition did not come true in time; the message names it."""


class Cancelled(Exception):
    """The proofs are to end now."""


class Waiting:
    """Waits that `cancel` ends, from whatever thread."""

    def __init__(self) -> None:
        self._cancelled = Event()

    def cancel(self) -> None:
        """End all waits, present and future ones."""
        self._cancelled.set()

    def pause(self, seconds: float = PAUSE) -> None:
        """Let a moment pass. Raises Cancelled."""
        if self._cancelled.wait(seconds):
            raise Cancelled

    def until(
        self,
        condition: Callable[[], T | None],
        what: str,
        seconds: float = 30,
        but: tuple[type[Exception], ...] = (),
    ) -> T:
        """Return the condition's first true value; the exceptions `but` count as "not yet".

        Raises TookTooLong, Cancelled.
        """
        deadline = monotonic() + seconds
        while True:
            with suppress(*but):
                if value := condition():
                    return value
            if monotonic() > deadline:
                raise TookTooLong(f"waited {seconds:g} s for {what}")
            self.pause()
