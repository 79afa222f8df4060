"""Tasks that end in every way a task can end; each run leaves a line in the file $CHORES."""

import os
import signal
import sys
import time
from pathlib import Path

from celery.exceptions import Ignore, Reject

from proj.celery import app


def note(word: str) -> None:
    """Add a line to the record of what really happened."""
    with Path(os.environ["CHORES"]).open("a") as record:
        record.write(f"{word}\n")


@app.task
def noted(word: str, seconds: float = 0) -> str:
    """Work for some seconds between two notes."""
    note(f"started {word}")
    time.sleep(seconds)
    note(f"done {word}")
    return word


@app.task
def fail(word: str) -> None:
    note(f"started {word}")
    raise ValueError(f"no luck with {word}")


@app.task(park_failures=False)
def fail_unparked(word: str) -> None:
    note(f"started {word}")
    raise ValueError(f"no luck with {word}")


@app.task(bind=True, max_retries=2)
def fail_retried(self, word: str) -> None:
    note(f"started {word}")
    raise self.retry(exc=ValueError(f"no luck with {word}"), countdown=0)


@app.task(soft_time_limit=1)
def too_long(word: str) -> None:
    note(f"started {word}")
    time.sleep(30)


@app.task(time_limit=1)
def far_too_long(word: str) -> None:
    note(f"started {word}")
    time.sleep(30)


@app.task
def eat_memory(word: str) -> None:
    note(f"started {word}")
    raise MemoryError(word)


@app.task
def allocate(word: str, size: int) -> None:
    """Use *size* bytes of memory, truly."""
    note(f"started {word}")
    memory = bytearray(size)
    memory[::4096] = b"x" * len(memory[::4096])
    note(f"done {word}")


@app.task
def reject(word: str, requeue: bool = False) -> None:
    note(f"started {word}")
    raise Reject(f"not {word}", requeue=requeue)


@app.task
def ignore(word: str) -> None:
    note(f"started {word}")
    raise Ignore


@app.task
def exit_process(word: str) -> None:
    note(f"started {word}")
    sys.exit(3)


@app.task
def kill_process(word: str) -> None:
    note(f"started {word}")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def kill_worker(word: str) -> None:
    note(f"started {word}")
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(30)


@app.task
def fail_late(word: str, seconds: float) -> None:
    note(f"started {word}")
    time.sleep(seconds)
    raise ValueError(f"no luck with {word}")


@app.task
def fail_when(word: str, path: str) -> None:
    """Fail as soon as there is such a file."""
    note(f"started {word}")
    while not Path(path).exists():
        time.sleep(0.05)
    raise ValueError(f"no luck with {word}")


@app.task
def nothing(*_: object, **__: object) -> None:
    """Take anything."""
