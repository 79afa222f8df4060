"""An idle worker is not forgotten: a queue that is replaced under it feeds it again, and nothing else changes."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from proj.broker import Node
from proj.idle import PERIOD
from proj.processes import Worker
from tests.consuming import STOCK, Desk
from tests.waiting import ensure_not_for_a_while, wait_for

pytestmark = pytest.mark.broker

QUORUM = {"x-queue-type": "quorum"}


def replace(desk: Desk) -> None:
    with desk.channel() as channel:
        channel.queue_delete(desk.queue)
        channel.queue_declare(desk.queue, durable=True, arguments=QUORUM)


def is_fed(desk: Desk, word: str) -> bool:
    """Whether the task that is sent right after its queue was replaced runs at once."""
    replace(desk)
    desk.send("noted", word)
    with suppress(AssertionError):
        return bool(wait_for(lambda: desk.notes()[f"done {word}"], word, 3))
    return False


def disturbed(worker: Worker) -> bool:
    return "onnection to broker lost" in worker.text() or "[!]" in worker.text()


def test_a_queue_that_is_replaced_feeds_its_idle_workers_again(node: Node, tmp_path: Path) -> None:
    """Two workers, so that RabbitMQ 3.10 can mistake one message for each as delivered."""
    desk = Desk(node.amqp_url, tmp_path)
    with desk.worker() as first, desk.worker() as second:
        for worker in (first, second):
            worker.wait_until_ready()
        replace(desk)
        words = [f"word-{number}" for number in range(4)]
        for word in words:
            desk.send("noted", word)
        wait_for(lambda: all(desk.notes()[f"done {word}"] for word in words), "them all", 3 * PERIOD + 5, first.log)
        assert desk.notes() == Counter(f"{what} {word}" for what in ("started", "done") for word in words)


@pytest.mark.proof
def test_stock_celery_is_forgotten_with_its_queue(node: Node, tmp_path: Path) -> None:
    if node.installation.release >= (4, 0):
        pytest.skip(f"RabbitMQ {node.installation.version} tells its consumers")
    desk = Desk(node.amqp_url, tmp_path)
    with desk.worker(settings=STOCK) as worker:
        worker.wait_until_ready()
        # RabbitMQ loses this race against itself most of the time, not always.
        assert not all(is_fed(desk, f"word-{attempt}") for attempt in range(8))


def test_an_idle_worker_stays_as_it_is(node: Node, tmp_path: Path) -> None:
    """Neither a reconnect nor a redelivery while another works, and no message against an operator's word."""
    desk = Desk(node.amqp_url, tmp_path)
    with desk.worker() as busy, desk.worker() as idle, desk.worker() as cancelled:
        desk.send("noted", "long", 60)
        for worker in (busy, idle, cancelled):
            worker.wait_until_ready()
        wait_for(lambda: desk.notes()["started long"], "the long task", log=busy.log)
        free = [worker for worker in (busy, idle, cancelled) if "received" not in worker.text()]
        desk.app.control.cancel_consumer(desk.queue, destination=[free[0].name], reply=True, timeout=2)
        ensure_not_for_a_while(lambda: any(map(disturbed, (busy, idle, cancelled))), "a reconnect", 2 * PERIOD + 1)
        desk.send("noted", "next", 60)
        wait_for(lambda: desk.notes()["started next"], "a task on the idle worker", 3, free[1].log)
        desk.send("noted", "late")
        ensure_not_for_a_while(lambda: desk.notes()["started late"], "a task on the cancelled consumer", 2)
        for worker in (busy, idle, cancelled):
            worker.kill()
        assert desk.notes() == {"started long": 1, "started next": 1}
