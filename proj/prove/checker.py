"""The checker: a pure function from a history to a verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from proj.history import (
    Attempted,
    Confirmed,
    Drained,
    FaultHealed,
    FaultInjected,
    Finished,
    Parked,
    QueueRead,
    Record,
    Refused,
    Started,
    in_order,
)


@dataclass(frozen=True)
class Verdict:
    """What became of the messages (each counted once, by its id), and what follows from it."""

    verdict: Literal["valid", "invalid", "unknown"]
    reason: str
    attempted: int
    confirmed: int
    finished: int
    parked: int
    lost: tuple[str, ...]
    """Confirmed, neither finished nor parked."""
    unexpected: tuple[str, ...]
    """Finished or parked, though never attempted, or certainly refused."""
    duplicated: tuple[str, ...]
    """Finished or parked more than once in all; allowed, and never hidden."""
    both: tuple[str, ...]
    """Of the duplicated, those that finished and were parked too."""
    recovered: tuple[str, ...]
    """Finished or parked, though the publisher could not tell whether they were queued."""
    rerun: tuple[str, ...]
    """Started more than once."""
    seconds_to_recover: float | None
    """From the moment at which the first fault struck until the last one had healed and each message that was
    attempted before that had finished or was parked. None: a fault did not heal, or such a message is lost."""


def check(history: Iterable[Record]) -> Verdict:
    """Return the verdict on a history, in whatever order its records come.

    Parked counts only where the letter was read in the dead queue: a worker's word for it is no proof.
    """
    records = in_order(history)
    attempts = Counter(r.id for r in records if isinstance(r, Attempted))
    refusals = Counter(r.id for r in records if isinstance(r, Refused))
    starts = Counter(r.id for r in records if isinstance(r, Started))
    finishes = Counter(r.id for r in records if isinstance(r, Finished))
    letters = Counter(r.id for r in records if isinstance(r, Parked) and r.queue)
    confirmed = {r.id for r in records if isinstance(r, Confirmed)}
    # A message may be published again under its id: it is refused only if each attempt was.
    expected = {i for i in attempts if i in confirmed or attempts[i] > refusals[i]}
    ended = finishes + letters
    lost = _sorted(confirmed - ended.keys())
    unexpected = _sorted(ended.keys() - expected)
    verdict, reason = _judge(records, confirmed, lost, unexpected)
    return Verdict(
        verdict,
        reason,
        attempted=len(attempts),
        confirmed=len(confirmed),
        finished=len(finishes),
        parked=len(letters),
        lost=lost,
        unexpected=unexpected,
        duplicated=_sorted(i for i, times in ended.items() if times > 1),
        both=_sorted(finishes.keys() & letters.keys()),
        recovered=_sorted((expected - confirmed) & ended.keys()),
        rerun=_sorted(i for i, times in starts.items() if times > 1),
        seconds_to_recover=_seconds_to_recover(records, confirmed, lost, ended),
    )


def _sorted(ids: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(ids))


def _judge(
    records: tuple[Record, ...], confirmed: set[str], lost: tuple[str, ...], unexpected: tuple[str, ...]
) -> tuple[Literal["valid", "invalid", "unknown"], str]:
    if reason := _unread(records):
        return "unknown", reason
    # Before asking about the fault: a message is gone, whatever made it go.
    if lost:
        return "invalid", f"{_messages(lost)} confirmed, and neither finished nor parked"
    if unexpected:
        return "invalid", f"{_messages(unexpected)} finished or parked, and never attempted or certainly refused"
    if not confirmed:
        return "unknown", "no publish was confirmed, so nothing was promised"
    if reason := _unproven(records):
        return "unknown", reason
    return "valid", f"each of {len(confirmed)} confirmed messages finished or was parked"


def _messages(ids: tuple[str, ...]) -> str:
    return f"{len(ids)} message{'s were' if len(ids) > 1 else ' was'}"


def _unread(records: tuple[Record, ...]) -> str:
    """Why this history cannot tell what became of its messages."""
    if not any(isinstance(r, Attempted) for r in records):
        return "the history is empty: nothing was attempted"
    last_change = max(r.at for r in records if isinstance(r, Attempted | FaultInjected | FaultHealed))
    drained = [r for r in records if isinstance(r, Drained) and r.at >= last_change]
    if not drained:
        return "the drain did not end: nobody saw the queue stay empty after the last message and the last fault"
    reads = [r for r in records if isinstance(r, QueueRead) and r.at >= drained[-1].at]
    if not reads or reads[-1].ready is None:
        return "the queue was not read after the drain"
    last = reads[-1]
    if last.dead is None:
        return "the dead queue was never read"
    if last.ready or last.unacknowledged:
        return f"the drain did not end: {last.ready} ready and {last.unacknowledged} unacknowledged in {last.queue}"
    letters = sum(isinstance(r, Parked) and bool(r.queue) for r in records)
    if letters != last.dead:
        return f"the dead queue holds {last.dead} letters, and {letters} were read"
    return ""


def _unproven(records: tuple[Record, ...]) -> str:
    """Why this history cannot tell whether the fault was survived."""
    injected = [r for r in records if isinstance(r, FaultInjected)]
    if not injected:
        return "no fault was injected"
    if missed := next((r for r in injected if not r.proof), None):
        return f"the fault {missed.fault} did not land{f' on {missed.target}' * bool(missed.target)}"
    healed = Counter(r.fault for r in records if isinstance(r, FaultHealed))
    struck = Counter(r.fault for r in injected)
    if unhealed := _sorted(struck - healed):
        return f"the fault {unhealed[0]} did not heal"
    return ""


def _seconds_to_recover(
    records: tuple[Record, ...], confirmed: set[str], lost: tuple[str, ...], ended: Iterable[str]
) -> float | None:
    struck = [r.at for r in records if isinstance(r, FaultInjected)]
    healed = [r.at for r in records if isinstance(r, FaultHealed)]
    if not struck or len(healed) < len(struck):
        return None
    # What was neither confirmed nor ever seen was not promised: nobody waits for it.
    waiting = {r.id for r in records if isinstance(r, Attempted) and r.at <= max(healed)} & (confirmed | {*ended})
    if waiting & {*lost}:
        return None
    first = {r.id: r.at for r in reversed(records) if isinstance(r, Finished | Parked)}
    return round(max(*healed, *(first[i] for i in waiting), struck[0]) - struck[0], 3)
