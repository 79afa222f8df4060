"""What tests on a broker share: a virtual host of their own, workers, and messages to them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import kombu
import pika
import pytest
import requests

from proj.broker import Node
from proj.management import Management
from proj.processes import Worker
from proj.tasks import fake_work
from tests.waiting import wait_for

DONE = re.compile(r"\[x\] Done .*\[([0-9a-f-]{36})\]")
RECEIVED = re.compile(r"\[x\] Received '(.*)' .*\[([0-9a-f-]{36})\]")


@dataclass(frozen=True)
class Broker:
    """A virtual host of a node, empty at the start of a test."""

    node: Node
    vhost: str

    @property
    def url(self) -> str:
        return f"{self.node.amqp_url.removesuffix('//')}/{self.vhost}"

    @property
    def management(self) -> Management:
        return self.node.management

    @property
    def environment(self) -> dict[str, str]:
        return {"CELERY_BROKER_URL": self.url, "PROJ_MANAGEMENT_URL": self.node.management_url}

    def pika(self) -> pika.BlockingConnection:
        """A connection as the tutorial's own clients make it."""
        return pika.BlockingConnection(pika.URLParameters(self.url))

    def ready(self, queue: str = "task_queue") -> int:
        """Messages ready, as the queue itself says: the counts of the management API lag."""
        with kombu.Connection(self.url) as connection:
            return connection.default_channel.queue_declare(queue, passive=True).message_count

    def queue(self, name: str) -> dict[str, Any]:
        """A queue as the management API shows it."""
        return self.management.queue(name, self.vhost)

    def exchange(self, name: str) -> dict[str, Any]:
        """An exchange as the management API shows it."""
        return requests.get(f"{self.node.management_url}exchanges/{self.vhost}/{name}", timeout=30).json()


@pytest.fixture
def broker(node: Node) -> Iterator[Broker]:
    with virtual_host(node) as name:
        yield Broker(node, name)


class virtual_host:  # noqa: N801 - used as a function
    """A virtual host as the node's own is: quorum by default, our policy in force."""

    def __init__(self, node: Node) -> None:
        self.name = f"test-{uuid4().hex[:8]}"
        self._node = node
        self._url = f"{node.management_url}vhosts/{self.name}"

    def __enter__(self) -> str:
        # RabbitMQ 3.10 spells the key without underscores.
        quorum = dict.fromkeys(("default_queue_type", "defaultqueuetype"), "quorum")
        requests.put(self._url, json=quorum, timeout=30).raise_for_status()
        self._node.management.put_policy(self.name)
        return self.name

    def __exit__(self, *_: object) -> None:
        requests.delete(self._url, timeout=30)


@pytest.fixture
def start_worker(broker: Broker, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Start `celery -A proj worker -c 1 OPTIONS`; `ready=False` does not wait for it."""
    with ExitStack() as stack:
        count = iter(range(1, 100))

        def start(*options: str, ready: bool = True, url: str = broker.url, **environment: str) -> Worker:
            log = tmp_path / f"worker{next(count)}.log"
            worker = Worker(*options, broker=url, log=log, environment=environment)
            stack.callback(worker.kill)
            if ready:
                worker.wait_until_ready()
            return worker

        yield start


@pytest.fixture
def start_workers(start_worker: Callable[..., Worker]) -> Callable[..., list[Worker]]:
    """Start several of one command line at once, and wait for all."""

    def start(count: int, *options: str) -> list[Worker]:
        workers = [start_worker(*options, ready=False) for _ in range(count)]
        for worker in workers:
            worker.wait_until_ready()
        return workers

    return start


@pytest.fixture
def run(broker: Broker) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `celery -A proj ARGUMENTS` as a user does, on this test's broker."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **broker.environment, **options.pop("environment", {})}
        command = [sys.executable, "-m", "celery", "-A", "proj", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, **options)

    return run


@pytest.fixture
def cli(run: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., str]:
    """As `run`, for commands that succeed: what they print."""

    def cli(*arguments: str, **options: Any) -> str:
        ended = run(*arguments, **options)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    return cli


@pytest.fixture
def repl(broker: Broker) -> Callable[[str], str]:
    """Type lines into a plain Python on this test's broker, and return what it prints."""

    def repl(lines: str) -> str:
        environment = {**os.environ, **broker.environment}
        command = [sys.executable, "-c", lines]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout

    return repl


@pytest.fixture
def send(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Send a message to this test's broker as `fake_work.delay` does, and return its task id."""
    monkeypatch.setenv("CELERY_BROKER_URL", broker.url)
    forget_connections()
    yield lambda message: fake_work.apply_async((message,), ignore_result=True).id
    forget_connections()


def forget_connections() -> None:
    """Let the app connect anew: each test has a broker of its own."""
    kombu.pools.reset()
    fake_work.app.close()


def received(worker: Worker) -> list[str]:
    """The messages that a worker started on, in order."""
    return [message for message, _ in RECEIVED.findall(worker.text())]


def done(*workers: Worker) -> list[str]:
    """The messages that workers finished."""
    names = {uuid: message for worker in workers for message, uuid in RECEIVED.findall(worker.text())}
    return [names[uuid] for worker in workers for uuid in DONE.findall(worker.text())]


def wait_until_done(messages: list[str], *workers: Worker, seconds: float = 30) -> None:
    """Wait until the workers together have finished exactly these messages, in any order."""
    wait_for(
        lambda: sorted(done(*workers)) == sorted(messages),
        f"exactly {messages} to be done",
        seconds,
        lambda: "\n".join(worker.text() for worker in workers),
    )
