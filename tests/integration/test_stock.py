"""What Celery's own consumer does where ours parks: the same tasks, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from signal import SIGTERM

import pytest

from proj.broker import Node
from tests.consuming import STOCK, Desk
from tests.waiting import ensure_not_for_a_while, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.proof]

SEVERAL = 4  # deliveries; ours stops at the second in the tests beside these


@pytest.fixture
def desk(node: Node, tmp_path: Path) -> Desk:
    return Desk(node.amqp_url, tmp_path)


def test_a_message_that_kills_its_process_runs_again_and_again(desk: Desk) -> None:
    with desk.worker(settings=STOCK) as worker:
        worker.wait_until_ready()
        desk.send("kill_process", "word")
        wait_for(lambda: desk.notes()["started word"] >= SEVERAL, "one run after another", log=worker.log)
        worker.kill()
    assert desk.dead.count() == 0


def test_a_message_that_kills_its_process_is_lost_with_all_of_stock(desk: Desk) -> None:
    settings = (*STOCK, "task.reject_on_worker_lost=False")
    with desk.worker(settings=settings) as worker:
        worker.wait_until_ready()
        desk.send("kill_process", "word")
        desk.send("noted", "next")
        wait_for(lambda: desk.notes()["done next"], "the next task", log=worker.log)
        # Not killed: what it has done, it has to acknowledge before the queue is looked at.
        worker.stop()
    assert desk.notes()["started word"] == 1
    assert (desk.ready(), desk.dead.count()) == (0, 0)


def test_a_message_that_kills_its_worker_kills_the_next(desk: Desk) -> None:
    desk.send("kill_worker", "word")
    for number in range(1, SEVERAL):
        worker = desk.worker(settings=STOCK)
        wait_for(lambda worker=worker: not worker.running, "the worker's end", log=worker.log)
        desk.kill_pool_processes(worker)
        assert desk.notes() == {"started word": number}
    assert desk.dead.count() == 0


def test_a_memory_error_ends_the_worker(desk: Desk) -> None:
    desk.send("eat_memory", "word")
    worker = desk.worker(settings=STOCK)
    wait_for(lambda: not worker.running, "the worker's end", log=worker.log)
    assert desk.notes() == {"started word": 1}


def test_a_second_sigterm_is_ignored(desk: Desk) -> None:
    worker = desk.worker("-I", "tests.stock", settings=STOCK)
    try:
        desk.send("noted", "long", 60)
        wait_for(lambda: desk.notes()["started long"], "the task", log=worker.log)
        for _ in range(2):
            worker.signal(SIGTERM)
            ensure_not_for_a_while(lambda: desk.ready() or not worker.running, "the message handed back", 1.5)
    finally:
        worker.kill()


def test_a_control_queue_that_vanishes_ends_the_worker(desk: Desk) -> None:
    worker = desk.worker("-I", "tests.vanishing", settings=STOCK)
    wait_for(lambda: not worker.running, "the worker's end", log=worker.log)
