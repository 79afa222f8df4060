"""A no-op task's way through the worker, with our consumer and with Celery's, side by side in one run.

    python bench/consume.py amqp://guest:guest@localhost:5672// [TASKS] [ROUNDS]

Each round sends the tasks to a queue of its own, then lets one worker (-c 1) empty it; the kinds of worker
take turns in going first. Printed: tasks per second of each round, the medians and their ratio.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from uuid import uuid4

import amqp
from celery import Celery

STOCK = "worker.consumer=celery.worker.consumer:Consumer"
KINDS = {
    "stock": (STOCK,),
    # Celery's events are confirmed where tasks are; ours are not, which would flatter the comparison.
    "stock, events unconfirmed": (STOCK, 'broker.transport_options=(dict){"confirm_publish": false}'),
    "ours": ("worker.consumer=proj.consume:Consumer",),
}


def fill(app: Celery, queue: str, tasks: int) -> None:
    """Put no-op tasks into a fresh quorum queue."""
    with app.connection_for_write() as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
        for _ in range(tasks):
            headers = {"task": "proj.tasks.fake_work", "id": str(uuid4())}
            properties = {"content_type": "application/json", "content_encoding": "utf-8", "delivery_mode": 2}
            message = amqp.Message('[["no-op"],{},{}]', application_headers=headers, **properties)
            channel.basic_publish(message, exchange="", routing_key=queue)


def rate(app: Celery, url: str, kind: str, tasks: int) -> float:
    """Return the tasks per second at which a worker of this kind empties a queue."""
    queue = f"bench-{uuid4().hex[:8]}"
    fill(app, queue, tasks)
    command = [sys.executable, "-m", "celery", "-A", "proj", "worker", "-c", "1", "-Q", queue, "-l", "ERROR"]
    command += ["--without-mingle", "--without-gossip", "--", *KINDS[kind]]
    quiet = subprocess.DEVNULL
    worker = subprocess.Popen(command, env=os.environ | {"CELERY_BROKER_URL": url}, stdout=quiet, stderr=quiet)
    try:
        with app.connection_for_read() as connection:
            channel = connection.default_channel

            def left() -> int:
                return int(channel.queue_declare(queue, passive=True).message_count)

            # From the first tenth to the last message: a worker's start is not a task's way.
            first = _when(left, tasks * 9 // 10)
            last = _when(left, 0)
            rate = (first[1] - last[1]) / (last[0] - first[0])
            worker.terminate()
            worker.wait()
            channel.queue_delete(queue)
            return rate
    finally:
        worker.kill()
        worker.wait()


def _when(left: Callable[[], int], at_most: int) -> tuple[float, int]:
    while (now := left()) > at_most:
        time.sleep(0.01)
    return time.perf_counter(), now


def main(url: str, tasks: int = 4000, rounds: int = 5) -> None:
    """Measure and print."""
    app = Celery("bench", broker=url)
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(rounds):
        order = list(KINDS) if number % 2 else list(reversed(KINDS))
        for kind in order:
            rates[kind].append(rate(app, url, kind, tasks))
        print(f"round {number + 1}: " + "  ".join(f"{kind} {rates[kind][-1]:.0f}/s" for kind in KINDS))  # noqa: T201
    ours = median(rates["ours"])
    for kind in KINDS:
        more = (median(rates[kind]) / ours - 1) * 100
        print(f"{kind}: median {median(rates[kind]):.0f}/s; ours takes {more:+.1f} % longer")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
