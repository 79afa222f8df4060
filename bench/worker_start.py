"""How long until a worker consumes: ours beside stock Celery workers, in turns on one private node.

    python bench/worker_start.py

One stock worker has Celery's default, a classic queue, the other a quorum queue on a topic exchange as ours: with
that, Celery declares what delayed delivery needs, 28 queues, at each start.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from proj.broker import Node

ROUNDS = 15
STOCK = """
from celery import Celery
from kombu import Exchange, Queue
app = Celery("stock", broker={url!r})
exchange = Exchange("stock_{kind}", type={exchange!r})
app.conf.task_queues = [Queue("stock_{kind}", exchange, "stock", queue_arguments={{"x-queue-type": {kind!r}}})]
app.conf.task_default_queue = "stock_{kind}"
@app.task
def fake_work(message): pass
"""
KINDS = {"classic": "direct", "quorum": "topic"}


def seconds_until_ready(app: str, folder: Path, url: str) -> float:
    """Start a worker, stop it once it is ready, and return the seconds in between."""
    command = [sys.executable, "-m", "celery", "-A", app, "worker", "-c", "1", "-l", "INFO"]
    environment = {"CELERY_BROKER_URL": url, "PYTHONPATH": str(folder), "PATH": ""}
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as worker:
        next(line for line in worker.stderr or () if b" ready." in line)
        took = time.perf_counter() - started
        worker.terminate()
        for _ in worker.stderr or ():
            pass
    return took


def main() -> None:
    with tempfile.TemporaryDirectory() as name, Node.free(Path(name) / "node") as node:
        folder = Path(name)
        for kind, exchange in KINDS.items():
            text = STOCK.format(url=node.amqp_url, kind=kind, exchange=exchange)
            (folder / f"stock_{kind}.py").write_text(text)
        apps = ("proj", *(f"stock_{kind}" for kind in KINDS))
        rounds = [[seconds_until_ready(app, folder, node.amqp_url) for app in apps] for _ in range(ROUNDS)]
    columns = dict(zip(apps, zip(*rounds, strict=True), strict=True))
    for app, seconds in columns.items():
        ratio = median(ours / theirs for ours, theirs in zip(columns["proj"], seconds, strict=True))
        sys.stdout.write(f"{app:13} ready after {median(seconds):.2f} s; ours takes {ratio:.2f} times that\n")


if __name__ == "__main__":
    main()
