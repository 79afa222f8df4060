"""Publishing while RabbitMQ or the network fails: bounded, told apart, and well again afterwards."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import Celery, group
from celery.signals import after_task_publish

from proj.broker import Node
from proj.installation import Installation
from proj.processes import Worker
from proj.proxy import Proxy
from proj.publish import ConfirmedCelery, Indeterminate, NotQueued
from tests.publishing import (
    BOUND,
    GRACE,
    application,
    channel,
    close_all,
    failure,
    publish,
    ready,
    send,
    stuck,
    take_all,
    through,
    url,
)
from tests.waiting import wait_for

pytestmark = pytest.mark.broker
STOCK_CONSUMER = "worker.consumer=celery.worker.consumer:Consumer"


WAYS = {
    "delay": lambda app: app.tasks["proj.tasks.fake_work"].delay("x"),
    "countdown": lambda app: publish(app, countdown=5),
    "send_task": lambda app: app.send_task("a.task.of.another.project"),
    "signature": lambda app: app.tasks["proj.tasks.fake_work"].s("x").apply_async(),
    "group": lambda app: group(app.tasks["proj.tasks.fake_work"].si(n) for n in "ab").apply_async(),
    "explicit producer": lambda app: with_producer(app),
}


def with_producer(app: Celery) -> None:
    with app.producer_pool.acquire() as producer:
        publish(app, producer=producer)


@pytest.mark.parametrize("way", WAYS)
def test_without_a_broker_every_way_to_publish_raises_in_time(way: str, network: Proxy) -> None:
    app = through(network, publish_timeout=0.5)
    network.close()
    error = failure(app, WAYS[way])
    assert isinstance(error, NotQueued)
    assert error.task_id in str(error)
    assert "Connection refused" in str(error)


@pytest.mark.parametrize("directions", [("there", "back"), ("there",), ("back",)], ids="+".join)
def test_a_connection_that_dies_in_use_raises_in_time_and_heals(
    broker: Node, network: Proxy, directions: tuple[Any, ...]
) -> None:
    app = through(network)
    ids = [send(app)]
    network.hold(*directions)
    unknown = failure(app)
    assert isinstance(unknown, Indeterminate)
    # A new connection does not come about: nothing was sent.
    certain = failure(app)
    assert isinstance(certain, NotQueued)
    network.release()
    ids += [send(app), send(app, task_id=unknown.task_id)]
    wait_for(lambda: ready(broker.amqp_url) >= 3, "the messages")
    taken = take_all(broker.amqp_url)
    assert set(taken) == set(ids)
    assert taken.count(unknown.task_id) in (1, 2)
    assert certain.task_id not in taken


@pytest.mark.parametrize("fault", [Proxy.close, Proxy.hold], ids=["refused", "black hole"])
def test_where_the_first_url_fails_the_next_is_used_in_time(
    broker: Node, network: Proxy, fault: Callable[[Proxy], None]
) -> None:
    app = application(f"{url(network)};{broker.amqp_url}", task_ignore_result=True)
    fault(network)
    ids = [publish(app), publish(app)]
    assert not sockets(network)
    assert take_all(broker.amqp_url) == ids


def test_where_the_first_url_fails_in_use_the_next_call_uses_the_next(broker: Node, network: Proxy) -> None:
    app = application(f"{url(network)};{broker.amqp_url}", task_ignore_result=True)
    ids = [send(app)]
    assert len(sockets(network)) == 1
    network.hold()
    unknown = failure(app)
    assert isinstance(unknown, Indeterminate)
    assert f":{network.port}//" in str(unknown)
    ids.append(publish(app, task_id=unknown.task_id))
    assert take_all(broker.amqp_url) == ids


def test_a_name_server_that_does_not_answer_is_waited_for_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def silence(*_: Any, **__: Any) -> None:
        released.wait(30)
        raise socket.gaierror("released")

    monkeypatch.setattr("socket.getaddrinfo", silence)
    try:
        error = failure(application("amqp://broker.example//", task_ignore_result=True))
        assert isinstance(error, NotQueued)
        assert "no address of broker.example" in str(error)
    finally:
        released.set()


def test_the_next_address_of_a_name_is_tried(broker: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def two(host: str, *details: Any, **options: Any) -> list[Any]:
        hosts = ("127.0.0.2", "127.0.0.1") if host == "broker.example" else (host,)
        return [entry for one in hosts for entry in real(one, *details, **options)]

    monkeypatch.setattr("socket.getaddrinfo", two)
    app = application(broker.amqp_url.replace("127.0.0.1", "broker.example"), task_ignore_result=True)
    ids = [send(app)]
    assert take_all(broker.amqp_url) == ids


def test_a_call_may_bring_its_own_bound(network: Proxy) -> None:
    app = through(network, publish_timeout=60)
    send(app)
    network.hold()
    start = time.monotonic()
    with pytest.raises(Indeterminate, match=r"within 0\.3 s \(confirm_timeout\)"):
        publish(app, confirm_timeout=0.3)
    assert time.monotonic() - start < 0.3 + GRACE


def test_a_connection_that_died_while_idle_is_replaced_unnoticed(
    broker: Node, network: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proj.publisher.IDLE", 0)
    app = through(network)
    ids = [send(app)]
    network.hold_present()
    ids.append(publish(app))
    assert take_all(broker.amqp_url) == ids


def test_a_closed_connection_is_replaced_unnoticed(broker: Node, network: Proxy) -> None:
    app = through(network)
    ids = []
    for _ in range(5):
        ids.append(send(app))
        network.cut()
    assert take_all(broker.amqp_url) == ids


def test_closing_leaves_no_socket_though_nobody_answers(network: Proxy) -> None:
    app = through(network)
    send(app)
    network.hold()
    app.close()
    assert not sockets(network)


def sockets(network: Proxy) -> list[Any]:
    """This process's own ends of connections to the proxy."""
    return [one for one in psutil.Process().net_connections("tcp") if one.raddr and one.raddr.port == network.port]


@pytest.mark.parametrize("fault", [Proxy.cut, Proxy.hold])
def test_a_lost_event_is_not_the_message_s_failure(network: Proxy, fault: Callable[[Proxy], None]) -> None:
    """The connection dies after the confirm and before the event, which Celery sends behind it."""
    app = through(network)

    def strike(**_: Any) -> None:
        fault(network)

    after_task_publish.connect(strike)
    try:
        start = time.monotonic()
        assert publish(app, task_id="confirmed") == "confirmed"
        assert time.monotonic() - start < BOUND + GRACE
    finally:
        after_task_publish.disconnect(strike)
    network.release()
    send(app)
    assert len(sockets(network)) == 1


def test_more_threads_than_connections_all_raise_in_time(network: Proxy) -> None:
    app = through(network)
    send(app)
    network.hold()
    with ThreadPoolExecutor(25) as pool:
        errors = list(pool.map(lambda _: failure(app), range(25)))
    assert {type(error) for error in errors} <= {NotQueued, Indeterminate}
    assert sum(isinstance(error, Indeterminate) for error in errors) <= 1
    network.release()
    with ThreadPoolExecutor(25) as pool:
        assert len(set(pool.map(lambda _: send(app), range(100)))) == 100


def test_a_forked_web_worker_raises_in_time(network: Proxy) -> None:
    app = through(network)
    send(app)
    network.hold()
    if not (child := os.fork()):
        try:
            failure(app)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    network.release()
    send(app)


def test_stock_celery_hangs_on_a_connection_that_died(network: Proxy) -> None:
    app = through(network, Celery)
    send(app)
    network.hold()
    thread = stuck(app)
    network.close()
    thread.join(30)


def test_a_frozen_broker_raises_in_time(broker: Node) -> None:
    app = application(broker.amqp_url, task_ignore_result=True)
    send(app)
    process = psutil.Process(broker.pid)
    process.suspend()
    try:
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED, "the broker to stand still")
        assert isinstance(failure(app), Indeterminate)
        assert isinstance(failure(app), NotQueued)
    finally:
        process.resume()
    send(app)


def test_an_alarm_raises_in_time_and_leaves_one_message_at_most(broker: Node, alarm: Callable[[bool], None]) -> None:
    """Stock Celery hangs as long as it lasts."""
    app = application(broker.amqp_url)
    stock = application(broker.amqp_url, Celery)
    before = send(app)
    send(stock)
    alarm(True)
    first, second = failure(app), failure(app)
    assert "alarm" in str(first)
    assert "alarm" in str(second)
    assert isinstance(second, NotQueued)
    thread = stuck(stock)
    alarm(False)
    thread.join(30)
    after = send(app)
    taken = take_all(broker.amqp_url)
    assert {before, after} <= set(taken)
    assert second.task_id not in taken


def test_a_broker_that_restarts_loses_nothing_of_what_was_confirmed(broker: Node) -> None:
    app = application(broker.amqp_url, publish_timeout=60)
    confirmed = [send(app)]
    stop = threading.Event()

    def publish_on() -> None:
        while not stop.is_set():
            confirmed.append(send(app))

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(publish_on) for _ in range(4)]
        for end in (broker.kill, broker.stop):
            target = len(confirmed) + 100
            wait_for(lambda target=target: len(confirmed) > target, "100 more messages")
            end()
            broker.start()
        target = len(confirmed) + 100
        wait_for(lambda: len(confirmed) > target, "100 messages after the restart")
        stop.set()
        for future in running:
            future.result(timeout=60)
    taken = wait_for(lambda: take_all(broker.amqp_url), "the messages")
    taken += take_all(broker.amqp_url)
    assert not set(confirmed) - set(taken)
    assert not set(taken) - set(confirmed)


@pytest.mark.parametrize(
    ("kind", "kept"), [(ConfirmedCelery, True), pytest.param(Celery, False, marks=pytest.mark.proof)]
)
def test_a_kill_right_after_a_queue_s_first_message(
    installation: Installation, tmp_path: Path, kind: type[Celery], kept: bool
) -> None:
    """Stock Celery loses what was confirmed in the first second of a queue."""
    with Node.free(tmp_path, installation=installation) as node:
        app = application(node.amqp_url, kind, task_ignore_result=True, task_send_sent_event=False)
        ids = [send(app) for _ in range(3)]
        node.kill()
        close_all()
        node.start()
        assert (survivors(node) == ids) is kept


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        pytest.param((), 1, id="ours"),
        pytest.param(("--", STOCK_CONSUMER), 0, id="stock", marks=pytest.mark.proof),
    ],
)
def test_a_kill_right_after_a_worker_declared_the_queue(
    installation: Installation, tmp_path: Path, settings: tuple[str, ...], kept: int
) -> None:
    """Whoever declares the queue, the message that is confirmed next is safe."""
    if not kept and installation.release < (4, 0):
        pytest.skip("RabbitMQ 3 may keep it, by luck")
    with Node.free(tmp_path / "node", installation=installation) as node:
        # A node in use: on a new one the queues for delays, declared next, happen to protect the first.
        with Worker("-Q", "other", broker=node.amqp_url, log=tmp_path / "other") as other:
            other.wait_until_ready()
        with Worker(*settings, broker=node.amqp_url, log=tmp_path / "log") as worker:
            # Ours must have the time to make it safe; stock is caught in the act.
            wait_for(lambda: consumers(node) >= kept, "the worker to declare the queue", log=worker.log)
            worker.kill()
            send(application(node.amqp_url, Celery, task_ignore_result=True, task_send_sent_event=False))
        node.kill()
        close_all()
        node.start()
        assert len(survivors(node)) == kept


def consumers(node: Node) -> int:
    with channel(node.amqp_url) as plain:
        return int(plain.queue_declare("task_queue", passive=True).consumer_count)


def survivors(node: Node) -> list[str]:
    """The ids of what is left in task_queue, none where it cannot even be opened any more."""
    try:
        wait_for(lambda: ready(node.amqp_url), "messages", seconds=3)
    except AssertionError:
        return []
    return take_all(node.amqp_url)
