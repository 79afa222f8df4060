"""Every trouble of publishing, met from a thread pool and from a web server that forks (a REPL is the other tests)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
import requests
from celery import Celery

from proj.broker import Node, free_port
from proj.proxy import Proxy
from proj.publish import PublishError
from tests.publishing import BOUND, GRACE, attempt, publish, send, stuck, take_all, through
from tests.waiting import wait_for

pytestmark = pytest.mark.broker
THREADS = 12  # more than connections


class WebServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def web_server(app: Celery) -> Iterator[str]:
    """A web application that publishes, served as gunicorn does: by a child of the process that loaded it."""

    def handle(_: Any, start_response: Any) -> list[bytes]:
        try:
            status, body = "200 OK", publish(app)
        except PublishError as error:
            status, body = "503 Service Unavailable", type(error).__name__
        start_response(status, [("Content-Type", "text/plain")])
        return [body.encode()]

    with make_server("127.0.0.1", 0, handle, WebServer, Quiet) as server:
        if not (child := os.fork()):
            with suppress(BaseException):
                server.serve_forever()
            os._exit(0)
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@contextmanager
def from_the_web(app: Celery) -> Iterator[Callable[[], tuple[str, float]]]:
    with web_server(app) as url:

        def ask() -> tuple[str, float]:
            start = time.monotonic()
            answer = requests.get(url, timeout=10 * BOUND)
            return ("confirmed" if answer.ok else answer.text), time.monotonic() - start

        yield ask


@contextmanager
def from_threads(app: Celery) -> Iterator[Callable[[], tuple[str, float]]]:
    yield lambda: attempt(app)


TROUBLES = ("no broker", "black hole", "alarm", "full queue")


@contextmanager
def in_trouble(trouble: str, request: pytest.FixtureRequest, broker: Node, network: Proxy) -> Iterator[None]:
    with ExitStack() as stack:
        if trouble == "no broker":
            network.target, reached = free_port(), network.target
            network.cut()
            stack.callback(setattr, network, "target", reached)
        elif trouble == "black hole":
            network.hold()
            stack.callback(network.release)
        elif trouble == "full queue":
            stack.enter_context(limited(broker))
        else:
            alarm = request.getfixturevalue("alarm")
            alarm(True)
            stack.callback(alarm, False)
        yield


@contextmanager
def limited(broker: Node) -> Iterator[None]:
    """All queues refuse what is beyond one message, or a few more at once."""
    definition = {"max-length": 1, "overflow": "reject-publish"}
    body = {"pattern": ".*", "apply-to": "queues", "priority": 99, "definition": definition}
    broker.management.put_policy(name="limit", body=body)
    try:
        yield
    finally:
        requests.delete(f"{broker.management_url}policies/%2F/limit", timeout=30).raise_for_status()


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("alarm", ["disk_free_alarm"], indirect=True)
@pytest.mark.usefixtures("alarm")
def test_every_trouble_reaches_every_caller_in_time(
    trouble: str, request: pytest.FixtureRequest, broker: Node, network: Proxy
) -> None:
    app = through(network)
    send(app)
    with from_threads(app) as thread, from_the_web(app) as web, ThreadPoolExecutor(2 * THREADS) as pool:
        callers = (thread, web)
        assert [call()[0] for call in callers] == ["confirmed"] * 2
        with in_trouble(trouble, request, broker, network):
            outcomes = list(pool.map(lambda call: call(), callers * THREADS))
            if trouble == "full queue":
                wait_for(lambda: {call()[0] for call in callers} == {"NotQueued"}, "the limit to be in force")
        expected = {"NotQueued", "confirmed" if trouble == "full queue" else "Indeterminate"}
        assert {outcome for outcome, _ in outcomes} <= expected
        assert max(seconds for _, seconds in outcomes) < BOUND + GRACE
        take_all(broker.amqp_url)
        for call in callers:
            wait_for(lambda call=call: call()[0] == "confirmed", "publishing to be well again", seconds=10)


def test_a_stuck_connection_of_a_pool_of_one(network: Proxy) -> None:
    app = through(network, broker_pool_limit=1)
    send(app)
    network.hold_present()
    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(lambda _: attempt(app), range(3)))
    assert [outcome for outcome, _ in outcomes].count("Indeterminate") == 1
    assert max(seconds for _, seconds in outcomes) < BOUND + GRACE
    send(app)


@pytest.mark.proof
def test_stock_celery_hangs_on_a_stuck_connection_of_a_pool_of_one(network: Proxy) -> None:
    """Whoever comes after it hangs as well, though RabbitMQ takes new connections."""
    app = through(network, Celery, broker_pool_limit=1, broker_pool_acquire_timeout=None)
    send(app)
    network.hold_present()
    threads = [stuck(app), stuck(app)]
    network.close()
    for thread in threads:
        thread.join(30)
