"""The messages of a proof, and the process that publishes them and writes down what became of each publish."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import monotonic, time
from typing import Any
from uuid import UUID

from proj.history import Attempted, Confirmed, Indeterminate, Record, Refused
from proj.processes import Process
from proj.prove.waiting import Waiting

HEAVIES = 6  # messages of a second each, spread over the run: what a fault finds at work


@dataclass(frozen=True)
class Message:
    """One message of the workload."""

    id: str
    text: str


@dataclass(frozen=True)
class Load:
    """How many messages, and the seed that makes their ids and weights."""

    messages: int
    seed: int
    span: float = 3.0
    """Seconds over which they are published, however many they are."""

    def __iter__(self) -> Iterator[Message]:
        """Yield the messages: light ones without work, and a second's work in each sixth part of the run."""
        random = Random(self.seed)  # noqa: S311 - repeatable, not secret
        block = max(self.messages // HEAVIES, 1)
        heavy: set[int] = set()
        for number in range(self.messages):
            if number % block == 0:
                heavy.add(number + random.randrange(block))
            task_id = str(UUID(int=random.getrandbits(128), version=4))
            yield Message(task_id, f"Message {number + 1}{'.' if number in heavy else ''}")


@dataclass(frozen=True)
class Plan:
    """The choices of one proof."""

    load: Load
    workers: int
    without: str = ""
    proxied: bool = False


class Publisher(Process):
    """The publishing process; what it knows of each message goes to `history`."""

    program = ("-m", __name__)

    def __init__(self, load: Load, first: int, *, history: Path, log: Path, environment: Mapping[str, str]) -> None:
        numbers = [str(number) for number in (load.messages, load.seed, load.span, first)]
        super().__init__(*numbers, str(history), log=log, environment=environment)


def publish(load: Load, first: int, history: Path) -> None:
    """Publish the load's messages from number `first` on, evenly over its span."""
    from proj.ledger import Ledger
    from proj.prove import without
    from proj.tasks import fake_work

    if without.VARIABLE in os.environ and without.app is not fake_work.app:
        raise RuntimeError("the stripped application is not the one that publishes")
    ledger, waiting = Ledger(history), Waiting()
    start, pace = monotonic(), load.span / load.messages
    for number, message in enumerate(list(load)[first:]):
        waiting.pause(max(0.0, start + number * pace - monotonic()))
        ledger.write(Attempted(at=time(), id=message.id, message=message.text))
        ledger.write(_outcome(message, fake_work))


def _outcome(message: Message, task: Any) -> Record:
    from proj.publish import NotQueued

    known = {"id": message.id, "message": message.text}
    try:
        task.apply_async((message.text,), task_id=message.id, ignore_result=True)
    except NotQueued as error:
        return Refused(at=time(), reason=_sentence(error), **known)
    except Exception as error:
        # Whatever it is, the message may have been sent before.
        return Indeterminate(at=time(), reason=_sentence(error), **known)
    return Confirmed(at=time(), **known)


def _sentence(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


if __name__ == "__main__":
    _messages, _seed, _span, _first, _history = sys.argv[1:]
    publish(Load(int(_messages), int(_seed), float(_span)), int(_first), Path(_history))
