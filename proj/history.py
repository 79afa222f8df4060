"""What happened to which message, where and when: one typed record a line (JSON Lines).

`docs/history.md` describes the format.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Self, get_type_hints

WORDS = 80  # characters of a message that are kept

KINDS: dict[str, type[Record]] = {}


class BadHistory(Exception):
    """A file cannot be read as a history; the message names the line and what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One thing that happened, at the epoch second `at`."""

    what: ClassVar[str]
    at: float

    def __init_subclass__(cls, what: str = "") -> None:
        if what:
            cls.what, KINDS[what] = what, cls

    def line(self) -> str:
        """Return the record as one line of JSON, without the fields that say nothing."""
        found = {"at": round(self.at, 6), "what": self.what}
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                found[field.name] = round(value, 6) if isinstance(value, float) else value
        return json.dumps(found, ensure_ascii=False) + "\n"

    def bytes(self) -> bytes:
        """Return the line as it stands in a file; what UTF-8 cannot say is escaped."""
        return self.line().encode(errors="backslashreplace")

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Return the record of these fields; unknown ones are left out. Raises ValueError."""
        known = {
            name: _fitting(name, values[name], types) for name, types in _types(cls.what).items() if name in values
        }
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in known]
        if missing:
            raise ValueError(f"{cls.what!r} has no {', '.join(missing)}")
        return cls(**known)


@cache
def _types(what: str) -> dict[str, Any]:
    hints = get_type_hints(KINDS[what])
    return {field.name: hints[field.name] for field in fields(KINDS[what])}


def _fitting(name: str, value: Any, types: Any) -> Any:
    if isinstance(value, bool):
        # Python takes it for a number.
        fits = types is bool
    elif isinstance(value, int) and isinstance(0.0, types):
        return float(value)
    else:
        fits = isinstance(value, types)
    if not fits:
        raise ValueError(f"expected {name} to be {_name(types)}, got {value!r}")
    return value


def _name(types: Any) -> str:
    members = getattr(types, "__args__", (types,))
    return " or ".join("null" if member is NoneType else member.__name__ for member in members)


@dataclass(frozen=True, kw_only=True)
class RunBegan(Record, what="run began"):
    """A proof begins: what was to be tried."""

    title: str = ""
    fault: str = ""
    messages: int | None = None
    workers: int | None = None
    seed: int | None = None
    without: str = ""


# --- What the publisher knows -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OfMessage(Record):
    """About one message: `id` is its task's id, `message` its words for the reader."""

    id: str
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Attempted(OfMessage, what="attempted"):
    """A publish begins."""


@dataclass(frozen=True, kw_only=True)
class Confirmed(OfMessage, what="confirmed"):
    """The broker has the message safe."""


@dataclass(frozen=True, kw_only=True)
class Indeterminate(OfMessage, what="indeterminate"):
    """The publish failed, and the message may be queued all the same."""

    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Refused(OfMessage, what="refused"):
    """The publish failed, and the message is certainly not queued."""

    reason: str = ""


# --- What the workers do ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OfRun(OfMessage):
    """About a message in a worker's hands; `pid` is the process that runs it, or the worker's."""

    worker: str = ""
    pid: int | None = None


@dataclass(frozen=True, kw_only=True)
class Received(OfRun, what="received"):
    """A worker has the message; it may have to wait there."""


@dataclass(frozen=True, kw_only=True)
class Redelivered(OfRun, what="redelivered"):
    """A worker has a message that was delivered before, for the `deliveries`-th time."""

    deliveries: int | None = None


@dataclass(frozen=True, kw_only=True)
class Started(OfRun, what="started"):
    """A run begins: of the `deliveries`-th delivery of the message, after so many `retries` of the task."""

    deliveries: int | None = None
    retries: int | None = None


@dataclass(frozen=True, kw_only=True)
class Finished(OfRun, what="finished"):
    """The task returned, after `seconds` of work."""

    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Failed(OfRun, what="failed"):
    """The task ended without a result."""

    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Retried(OfRun, what="retried"):
    """The task asked to be run again later, in a message of its own."""

    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Requeued(OfRun, what="requeued"):
    """The worker gave the message back to the queue."""

    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Parked(OfRun, what="parked"):
    """The message went to the dead queue. `queue` names it where the letter was read there, by whoever looks."""

    cause: str = ""
    reason: str = ""
    deliveries: int | None = None
    queue: str = ""


@dataclass(frozen=True, kw_only=True)
class OfWorker(Record):
    """About one worker."""

    worker: str
    pid: int | None = None


@dataclass(frozen=True, kw_only=True)
class WorkerUp(OfWorker, what="worker up"):
    """A worker came, or came back; `heard` where it only made itself heard and may have been there before."""

    heard: bool = False


@dataclass(frozen=True, kw_only=True)
class WorkerStopped(OfWorker, what="worker stopped"):
    """A worker said goodbye."""


@dataclass(frozen=True, kw_only=True)
class WorkerLost(OfWorker, what="worker lost"):
    """A worker vanished without a word; `at` is its last sign of life where that is known."""

    reason: str = ""


# --- What is done to them, and what is seen of the queue ----------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FaultInjected(Record, what="fault injected"):
    """A fault struck `target`. `proof` says how we know that it landed; empty when we do not."""

    fault: str
    target: str = ""
    proof: str = ""


@dataclass(frozen=True, kw_only=True)
class FaultHealed(Record, what="fault healed"):
    """What the fault broke is whole again."""

    fault: str
    target: str = ""


@dataclass(frozen=True, kw_only=True)
class QueueRead(Record, what="queue read"):
    """A look at a queue and at its dead letters; null is what could not be known."""

    queue: str
    ready: int | None = None
    unacknowledged: int | None = None
    dead: int | None = None


@dataclass(frozen=True, kw_only=True)
class Drained(Record, what="drained"):
    """The queue has been empty, with nothing unacknowledged, for `seconds`: longer than its counts lag."""

    queue: str
    seconds: float


def words(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return what a message says to a reader: its one string, or the call that it stands for."""
    if len(args) == 1 and isinstance(args[0], str) and not kwargs:
        return args[0][:WORDS]
    said = [*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())]
    return f"{name}({', '.join(said)})"[:WORDS]


# --- Files ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """Records in the order in which they happened, and how many lines were cut short or of unknown kinds."""

    records: tuple[Record, ...] = ()
    torn: int = 0
    unknown: int = 0

    def __add__(self, other: History) -> History:
        both = in_order((*self.records, *other.records))
        return History(both, self.torn + other.torn, self.unknown + other.unknown)


def in_order(records: Iterable[Record]) -> tuple[Record, ...]:
    """Return records by time; those of the same moment stay as they came."""
    return tuple(sorted(records, key=lambda record: record.at))


def write(path: Path, records: Iterable[Record]) -> None:
    """Write a history, replacing what the file held."""
    path.write_bytes(b"".join(record.bytes() for record in records))


def read(path: Path) -> History:
    """Return the history in a file. A last line that its writer did not live to finish counts as torn.

    Raises BadHistory, OSError.
    """
    *lines, rest = path.read_bytes().split(b"\n")
    records = [_record(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    known = [record for record in records if record]
    return History(in_order(known), torn=bool(rest), unknown=len(records) - len(known))


def _record(path: Path, number: int, line: bytes) -> Record | None:
    try:
        values = json.loads(line)
        if not isinstance(values, dict) or "what" not in values:
            raise ValueError('expected an object with "at" and "what"')
        kind = KINDS.get(str(values["what"]))
        return kind.of(values) if kind else None
    except ValueError as error:
        text = line[:80].decode(errors="replace")
        raise BadHistory(f"{path}, line {number}, is no record of a history: {error}: {text!r}") from error
