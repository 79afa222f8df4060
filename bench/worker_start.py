"""How long until a worker consumes: ours beside a stock Celery worker, in turns on one private node."""

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
from kombu import Queue
app = Celery("stock", broker={url!r})
app.conf.task_queues = [Queue("celery", queue_arguments={{"x-queue-type": "classic"}})]
@app.task
def fake_work(message): pass
"""


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
        (folder / "stock.py").write_text(STOCK.format(url=node.amqp_url))
        rounds = [[seconds_until_ready(app, folder, node.amqp_url) for app in ("stock", "proj")] for _ in range(ROUNDS)]
    stock, ours = (median(column) for column in zip(*rounds, strict=True))
    ratio = median(ours / stock for stock, ours in rounds)
    sys.stdout.write(f"ready after: stock {stock:.2f} s, ours {ours:.2f} s, ratio {ratio:.2f} ({ROUNDS} rounds)\n")


if __name__ == "__main__":
    main()
