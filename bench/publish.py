"""What our confirmed publish costs beside Celery's own: both in one run, in turns, ratio by ratio.

    python bench/publish.py [--rounds 30] [--calls 100]

Starts a private RabbitMQ. Times are of `delay()`, in milliseconds; below 1.1 the promise of 10 % is kept.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from celery import Celery

from proj.broker import Node
from proj.publish import ConfirmedCelery

say = print

VARIANTS = {
    "as configured (results, sent events)": {},
    "no results": {"task_ignore_result": True},
    "no results, no sent events": {"task_ignore_result": True, "task_send_sent_event": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="pairs of measurements (default 30)")
    parser.add_argument("--calls", type=int, default=100, help="calls of delay() in a measurement (default 100)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Node.free(Path(folder)) as node:
        say(f"RabbitMQ {node.installation.version}, {options.rounds} rounds of {options.calls} calls")
        for title, settings in VARIANTS.items():
            compare(title, node, settings, options.rounds, options.calls)


def compare(title: str, node: Node, settings: dict[str, object], rounds: int, calls: int) -> None:
    """Measure both in turns and print medians and the median ratio."""
    celerys = task_of(Celery, node, settings)
    ours = task_of(ConfirmedCelery, node, settings)
    for task in (celerys, ours):
        measure(task, calls)
    pairs = [(measure(celerys, calls), measure(ours, calls)) for _ in range(rounds)]
    ratios = sorted(mine / theirs for theirs, mine in pairs)
    theirs, mine = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(ratios)
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    say(f"{title:40} Celery {theirs:.3f} ms, ours {mine:.3f} ms, ratio {ratio:.3f} ({low:.2f} to {high:.2f})")


def task_of(kind: type[Celery], node: Node, settings: dict[str, object]) -> object:
    """Return a no-op task of a new application of that kind, with our settings."""
    app = kind("bench", config_source="proj.celeryconfig", set_as_current=False)
    app.conf.update(broker_url=node.amqp_url, imports=(), **settings)
    return app.task(noop, name="bench.noop")


def noop() -> None:
    """Do nothing."""


def measure(task: object, calls: int) -> float:
    """Return milliseconds for one call of delay()."""
    start = time.perf_counter()
    for _ in range(calls):
        task.delay()  # type: ignore[attr-defined]
    return (time.perf_counter() - start) * 1000 / calls


if __name__ == "__main__":
    main()
