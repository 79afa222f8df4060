"""Dead letters at scale: how long `celery -A proj dead` takes over many letters, and how much memory.

    python bench/dead_letters.py amqp://guest:guest@localhost:5672// [LETTERS]

Parks the letters in the dead queue of a queue of its own, then lists, replays and purges them, each as a
process of its own. Printed: seconds, letters per second and the peak of the process's resident memory.
"""

import os
import subprocess
import sys
import time
from multiprocessing import get_context
from uuid import uuid4

from celery import Celery

from proj.letter import Letter, Outgoing

QUORUM = {"x-queue-type": "quorum"}


def letter(queue: str, number: int) -> Letter:
    """A failed task's letter, with a traceback of two kilobytes."""
    headers = {"task": "proj.tasks.fake_work", "id": f"id-{number}", "retries": 0}
    properties = {"content_type": "application/json", "content_encoding": "utf-8", "application_headers": headers}
    known = {"id": headers["id"], "task": headers["task"], "cause": "failed", "reason": "ValueError: no luck"}
    known |= {"traceback": "  File x, line 1\n" * 120, "worker": "worker1@host", "deliveries": 1}
    return Letter.of(queue, b'[["word"], {}, {}]', properties, known)


def park(url: str, queue: str, letters: int) -> None:
    """Put letters into the dead queue and wait until all are there."""
    app = Celery("bench", broker=url)
    with app.connection_for_write() as connection:
        channel = connection.channel()
        for name in (queue, f"{queue}.dead"):
            channel.queue_declare(name, durable=True, auto_delete=False, arguments=QUORUM)
        for number in range(letters):
            parked = letter(queue, number)
            message = Outgoing(parked.body, **parked.properties)
            channel.basic_publish(message, exchange="", routing_key=parked.queue)
        while ready(app, f"{queue}.dead") < letters:
            time.sleep(0.1)


def fill(url: str, queue: str, letters: int) -> None:
    """Park in another process: what this one uses would count as the memory of the commands that it starts."""
    process = get_context("spawn").Process(target=park, args=(url, queue, letters))
    process.start()
    process.join()


def ready(app: Celery, queue: str) -> int:
    """Messages ready in a queue."""
    with app.connection_for_read() as connection:
        return int(connection.default_channel.queue_declare(queue, passive=True).message_count)


def measure(url: str, queue: str, letters: int, *command: str) -> None:
    """Run `celery -A proj dead COMMAND` and print what it took."""
    arguments = [sys.executable, "-m", "celery", "-A", "proj", "dead", *command, "--queue", queue]
    began = time.perf_counter()
    process = subprocess.Popen(arguments, env=os.environ | {"CELERY_BROKER_URL": url}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    took = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    rate, memory = letters / took, usage.ru_maxrss / 1024
    print(f"{' '.join(command):16} {took:6.1f} s  {rate:6.0f}/s  {memory:4.0f} MB  exit {process.returncode}")  # noqa: T201


def main(url: str, letters: int = 100_000) -> None:
    """Measure and print."""
    app, queue = Celery("bench", broker=url), f"bench-{uuid4().hex[:8]}"
    fill(url, queue, letters)
    measure(url, queue, letters, "list")
    measure(url, queue, letters, "list", "--json")
    measure(url, queue, letters, "replay", "--all")
    assert (ready(app, queue), ready(app, f"{queue}.dead")) == (letters, 0)  # noqa: S101
    with app.connection_for_write() as connection:
        connection.default_channel.queue_delete(queue)
    fill(url, queue, letters)
    measure(url, queue, letters, "purge", "--force")
    assert ready(app, f"{queue}.dead") == 0  # noqa: S101
    with app.connection_for_write() as connection:
        for name in (queue, f"{queue}.dead"):
            connection.default_channel.queue_delete(name)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
