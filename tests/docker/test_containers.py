"""Our image in containers, by pytest-celery: on a machine with a Docker engine only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_celery import CeleryTestContainer, RabbitMQContainer
from pytest_docker_tools import build, container, fxtr, network

from tests.deployment import compose
from tests.waiting import wait_for

pytestmark = pytest.mark.docker

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """Skip where no Docker engine answers, unless PROJ_REQUIRE lists `docker`."""
    # In a process of its own: the failed attempt leaves a socket open, which is an error here.
    command = [sys.executable, "-c", "import docker; docker.from_env().ping()"]
    attempt = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if attempt.returncode == 0:
        return
    missing = f"no Docker engine answers: {attempt.stderr.splitlines()[-1]}"
    if "docker" in os.environ.get("PROJ_REQUIRE", "").split(","):
        pytest.fail(missing)
    pytest.skip(missing)


class WorkerContainer(CeleryTestContainer):
    """The image as it is, with its own command."""

    @property
    def ready_prompt(self) -> str:
        return "[*] Waiting for messages"

    def received(self) -> list[str]:
        return re.findall(r"\[x\] Received '(.*)'", self.output())

    def output(self) -> str:
        # Its own logs() shows only the first text for ever once the container is gone.
        return self._container.logs().decode()


@pytest.fixture
def worker_environment(rabbitmq: RabbitMQContainer) -> dict[str, str]:
    return {"CELERY_BROKER_URL": rabbitmq.url}


image = build(path=str(ROOT), tag="proj:test")
neighbourhood = network(scope="function")
rabbitmq = container(
    image=compose()["services"]["rabbitmq"]["image"],
    ports={"5672/tcp": None},
    network="{neighbourhood.name}",
    wrapper_class=RabbitMQContainer,
    timeout=120,
)
worker, other_worker = (
    container(
        image="{image.id}",
        environment=fxtr("worker_environment"),
        network="{neighbourhood.name}",
        wrapper_class=WorkerContainer,
        timeout=60,
    )
    for _ in range(2)
)


@pytest.fixture
def new_task(rabbitmq: RabbitMQContainer) -> Callable[..., str]:
    """Run `celery -A proj new_task` here, on the container's broker."""
    # Not its host_url, which says localhost even where the tests run in a container themselves.
    host, port = rabbitmq.get_addr("5672/tcp")

    def new_task(*words: str) -> str:
        command = [sys.executable, "-m", "celery", "-A", "proj", "new_task", *words]
        environment = {**os.environ, "CELERY_BROKER_URL": f"amqp://{host}:{port}//"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return new_task


def test_message_is_done_in_a_container(worker: WorkerContainer, new_task: Callable[..., str]) -> None:
    assert "[x] Done in 1 s" in new_task("--wait", "First message.")
    assert worker.received() == ["First message."]


def test_killed_container_loses_no_message(
    worker: WorkerContainer, other_worker: WorkerContainer, new_task: Callable[..., str]
) -> None:
    message = "Heavy message....."
    new_task(message)
    both = {worker, other_worker}
    holder = wait_for(lambda: next((w for w in both if w.received()), None), "a worker to start on it")
    holder.kill()
    (survivor,) = both - {holder}
    wait_for(lambda: survivor.received() == [message], "the other worker to start on it", log=survivor.output)
    wait_for(lambda: "[x] Done" in survivor.output(), "the other worker to finish it", log=survivor.output)
