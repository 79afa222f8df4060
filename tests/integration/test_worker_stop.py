"""A worker stops in bounded time and comes back by itself; its message is never left waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGCONT, SIGSTOP, SIGTERM

import pytest

from proj import celeryconfig
from proj.broker import Node
from proj.installation import Installation
from proj.processes import Worker
from proj.proxy import Proxy
from tests.consuming import STOCK, Desk
from tests.waiting import ensure_not_for_a_while, wait_for

pytestmark = pytest.mark.broker

HEARTBEAT = 2  # seconds, in place of our own, which the bound below is a function of
REST = 5  # seconds beyond two heartbeats
BACK = 2 * HEARTBEAT + REST
AS_IT_IS = 2 * celeryconfig.broker_heartbeat + REST
GIVEN_BACK = 3 * celeryconfig.broker_heartbeat + REST  # RabbitMQ looks once a heartbeat, and waits for two silent ones


@pytest.fixture
def desk(node: Node, tmp_path: Path) -> Desk:
    return Desk(node.amqp_url, tmp_path)


@pytest.fixture
def busy(desk: Desk) -> Iterator[Worker]:
    """A worker with a long task of the id "long"."""
    with busy_worker(desk) as worker:
        yield worker


def busy_worker(
    desk: Desk,
    *options: str,
    seconds: float = 60,
    settings: tuple[str, ...] = (f"broker.heartbeat=(int){HEARTBEAT}",),
    **more: object,
) -> Worker:
    worker = desk.worker(*options, settings=settings, **more)
    desk.send("noted", "long", seconds, id="long")
    wait_for(lambda: desk.notes()["started long"] == 1, "the task", log=worker.log)
    return worker


def test_sigterm_lets_the_task_finish(desk: Desk) -> None:
    # Longer than two heartbeats, which have to go on meanwhile.
    with busy_worker(desk, seconds=3 * HEARTBEAT) as worker:
        worker.signal(SIGTERM)
        wait_for(lambda: not worker.running, "its end", log=worker.log)
    assert worker.status == 0
    assert desk.notes() == {"started long": 1, "done long": 1}
    assert desk.ready() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_failure_during_the_stop_is_parked(desk: Desk, pool: str) -> None:
    worker = desk.worker("-P", pool)
    desk.send("fail_late", "late", 1, id="late")
    wait_for(lambda: desk.notes()["started late"] == 1, "the task", log=worker.log)
    worker.signal(SIGTERM)
    wait_for(lambda: not worker.running, "its end", log=worker.log)
    assert [letter.parked["cause"] for letter in desk.letters()] == ["failed"]
    assert desk.ready() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_second_sigterm_hands_the_task_to_another_worker_at_once(desk: Desk, pool: str) -> None:
    with busy_worker(desk, "-P", pool) as first, desk.worker() as other:
        other.wait_until_ready()
        first.signal(SIGTERM)
        ensure_not_for_a_while(lambda: not first.running, "the end of the worker", 0.5)
        first.signal(SIGTERM)
        wait_for(lambda: desk.notes()["started long"] == 2, "the second run", 2, other.log)
        wait_for(lambda: not first.running, "the end of the worker", 1, first.log)
        assert "[!] Redelivered tests.chores.noted[long]: attempt 2" in other.text()
        other.kill()
    assert desk.notes() == {"started long": 2}


def test_the_end_of_the_grace_period_hands_it_back(desk: Desk) -> None:
    with busy_worker(desk, environment={"PROJ_STOP_TIMEOUT": "1"}) as worker:
        worker.signal(SIGTERM)
        wait_for(lambda: not worker.running, "the end of the worker", 3, worker.log)
        wait_for(lambda: desk.ready() == 1, "the message", 2)
    assert desk.notes() == {"started long": 1}


def busy_stock_worker(desk: Desk) -> Worker:
    return busy_worker(desk, settings=(*STOCK, "broker.heartbeat=(int)120"))


def test_a_frozen_worker_loses_its_task_and_comes_back(desk: Desk, busy: Worker, node: Node, tmp_path: Path) -> None:
    stock = Desk(node.amqp_url, tmp_path)
    with desk.worker(settings=(f"broker.heartbeat=(int){HEARTBEAT}",)) as other, busy_stock_worker(stock) as frozen:
        other.wait_until_ready()
        for worker in (frozen, busy):
            worker.signal_all(SIGSTOP)
        wait_for(lambda: desk.notes()["started long"] == 2, "the second run", BACK, other.log)
        assert stock.ready() == 0
        frozen.kill()
        other.kill()
        busy.signal_all(SIGCONT)
        wait_for(lambda: desk.notes()["started long"] == 3, "the third run", BACK, busy.log)
        busy.kill()
    assert desk.notes()["done long"] == 0


def test_a_half_open_connection_is_replaced(node: Node, tmp_path: Path) -> None:
    with Proxy(node.port) as proxy:
        desk, stock = (Desk(node.amqp_url.replace(str(node.port), str(proxy.port)), tmp_path) for _ in range(2))
        with busy_worker(desk) as worker, busy_stock_worker(stock) as waiting:
            proxy.hold_present()
            wait_for(lambda: desk.notes()["started long"] == 2, "the second run", BACK, worker.log)
            assert "[!] Redelivered" in worker.text()
            assert (stock.ready(), stock.notes()["started long"]) == (0, 1)
            waiting.kill()
            worker.kill()
    assert desk.notes() == {"started long": 2}


@pytest.mark.proof
def test_a_frozen_and_a_cut_off_worker_with_the_heartbeat_as_it_is(node: Node, tmp_path: Path) -> None:
    with Proxy(node.port) as proxy:
        half_open = Desk(node.amqp_url.replace(str(node.port), str(proxy.port)), tmp_path)
        frozen = Desk(node.amqp_url, tmp_path)
        with (
            busy_worker(half_open, settings=()) as first,
            busy_worker(frozen, settings=()) as second,
            frozen.worker() as other,
        ):
            other.wait_until_ready()
            start = time.monotonic()
            proxy.hold_present()
            second.signal_all(SIGSTOP)
            half_open.send("noted", "fresh")
            wait_for(lambda: half_open.notes()["done fresh"], "the cut off worker at work", AS_IT_IS, first.log)
            for desk in (half_open, frozen):
                left = GIVEN_BACK - (time.monotonic() - start)
                wait_for(lambda desk=desk: desk.notes()["started long"] == 2, "the second run", left, first.log)
            for worker in (first, second, other):
                worker.kill()


def test_a_restarted_broker_is_found_again_within_seconds(own_node: Node, tmp_path: Path) -> None:
    desk = Desk(own_node.amqp_url, tmp_path)
    with desk.worker(settings=(f"broker.heartbeat=(int){HEARTBEAT}",)) as worker:
        worker.wait_until_ready()
        # Killed within the first moments of a queue, 3.10 may take its time to bring the consumers back.
        desk.send("noted", "before", 2)
        wait_for(lambda: desk.notes()["done before"], "the first task", log=worker.log)
        own_node.kill()
        # Long enough for a backoff without a bound to have grown to ten seconds and more.
        ensure_not_for_a_while(lambda: not worker.running, "the end of the worker", 12)
        own_node.start()
        desk.send("noted", "after")
        wait_for(lambda: desk.notes()["done after"], "the task", BACK, worker.log)


@pytest.fixture(scope="module")
def impatient_node(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with a consumer timeout of 3 s that looks every second."""
    options = {"config": {"consumer_timeout": "3000"}, "advanced": {"channel_tick_interval": "1000"}}
    with Node.free(tmp_path_factory.mktemp("impatient"), installation=installation, **options) as node:
        yield node


@pytest.mark.parametrize("told", [True, False])
def test_a_task_longer_than_the_consumer_timeout(impatient_node: Node, tmp_path: Path, told: bool) -> None:
    """It works where the worker can tell the broker (4.3), else it is refused, not run again and again."""
    patience = 86400 if told else 3
    desk = Desk(impatient_node.amqp_url, tmp_path)
    with desk.worker(settings=(f"consumer.timeout=(float){patience}",)) as worker:
        worker.wait_until_ready()
        desk.send("noted", "long", 12, id="long")
        if told and impatient_node.installation.release >= (4, 3):
            wait_for(lambda: desk.notes()["done long"], "its end", 30, worker.log)
            assert desk.notes() == {"started long": 1, "done long": 1}
        else:
            letter = desk.parked("long", 60, worker.log)
            assert letter.parked["cause"] == "consumer-timeout"
            assert "policy install" in letter.parked["reason"]
            assert desk.notes() == {"started long": 1}
        assert worker.running


@pytest.mark.proof
def test_stock_celery_does_not_survive_the_consumer_timeout_or_runs_on(impatient_node: Node, tmp_path: Path) -> None:
    desk = Desk(impatient_node.amqp_url, tmp_path)
    with busy_worker(desk, settings=STOCK, seconds=12) as worker:
        again = lambda: not worker.running or desk.notes()["started long"] > 1  # noqa: E731
        wait_for(again, "its end, or a second run", 60, worker.log)
        worker.kill()
