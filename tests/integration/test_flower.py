"""Flower: what it shows of a running application, who can see it, and what it remembers."""

from __future__ import annotations

import os
import re
import shelve
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from proj.processes import Worker
from tests.deployment import compose
from tests.flower import Flower
from tests.integration.conftest import Broker
from tests.waiting import wait_for

pytestmark = pytest.mark.broker

StartFlower = Callable[..., Flower]
StartWorkers = Callable[[int], list[Worker]]
CELLS = re.compile(r'<tr id="task_queue">(.*?)</tr>', re.DOTALL)


@pytest.fixture
def start_flower(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartFlower]:
    """Start Flower in a folder that knows nothing of this project, and wait until it answers."""
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        count = iter(range(1, 100))

        def start(**environment: str) -> Flower:
            log = tmp_path / f"flower{next(count)}.log"
            flower = stack.enter_context(Flower(log, {**broker.environment, **environment}))
            wait_for(lambda: flower.page("healthcheck"), "Flower to answer", log=log)
            return flower

        yield start


def listening(flower: Flower) -> set[str]:
    return {c.laddr.ip for c in psutil.Process(flower.pid).net_connections() if c.status == psutil.CONN_LISTEN}


def test_listens_on_this_machine_only(start_flower: StartFlower) -> None:
    assert listening(start_flower()) == {"127.0.0.1"}


def test_listens_where_the_environment_says(start_flower: StartFlower) -> None:
    assert listening(start_flower(FLOWER_ADDRESS="0.0.0.0")) == {"0.0.0.0"}  # noqa: S104 - what a container needs


def test_shows_workers_tasks_and_queue(
    start_flower: StartFlower, start_workers: StartWorkers, send: Callable[[str], str]
) -> None:
    flower = start_flower()
    workers = start_workers(2)
    wait_for(
        lambda: flower.online() == sorted(worker.name for worker in workers), "both workers online", log=flower.log
    )

    light, *heavy = send("First message."), send("Second message" + 20 * "."), send("Third message" + 20 * ".")
    wait_for(lambda: flower.tasks()[light][1] == "SUCCESS", "the light message to be done", log=flower.log)
    arguments, _, worker = flower.tasks()[light]
    assert arguments == "('First message.',)"
    assert worker in flower.online()
    wait_for(
        lambda: {flower.tasks()[uuid][2] for uuid in heavy} == set(flower.online()), "each worker to have a heavy one"
    )

    send("Fourth message.")
    # Name, messages, unacknowledged, ready, consumers; a quorum queue's counts lag.
    wait_for(
        lambda: queue(flower)[1:5] == ["3", "2", "1", "2"], "one message ready, two unacknowledged", 20, flower.log
    )


def queue(flower: Flower) -> list[str]:
    """What the broker page shows of task_queue."""
    row = CELLS.search(flower.page("broker"))
    return [re.sub("<.*?>", "", cell).strip() for cell in re.findall("<td.*?</td>", row[1], re.DOTALL)] if row else []


def saved_state(uuid: str, folder: Path) -> str:
    """A task's state in a copy of what Flower has saved; raises while Flower is writing it."""
    shutil.copytree("var", folder, dirs_exist_ok=True)
    with shelve.open(str(folder / "flower.db"), flag="r") as saved:  # noqa: S301 - Flower, started here, wrote it
        return saved["events"].tasks[uuid].state


def test_remembers_after_kill_9(
    start_flower: StartFlower, start_workers: StartWorkers, send: Callable[[str], str], tmp_path: Path
) -> None:
    flower = start_flower(FLOWER_STATE_SAVE_INTERVAL="1000")
    start_workers(1)
    uuid = send("First message.")
    wait_for(lambda: saved_state(uuid, tmp_path / "copy") == "SUCCESS", "Flower to save the state", log=flower.log)
    seen = flower.tasks()[uuid]
    flower.kill()
    assert start_flower().tasks()[uuid] == seen


def test_health_check_of_the_container(start_flower: StartFlower) -> None:
    kind, _, *arguments = compose()["services"]["flower"]["healthcheck"]["test"]
    assert kind == "CMD"
    flower = start_flower()
    command = [sys.executable, *(word.replace("http://127.0.0.1:5555", flower.url) for word in arguments)]
    assert command[-1] != arguments[-1]
    assert subprocess.run(command, timeout=10).returncode == 0
    flower.stop()
    assert subprocess.run(command, timeout=10, stderr=subprocess.DEVNULL).returncode != 0


def test_login_is_asked_for_where_one_is_set(start_flower: StartFlower) -> None:
    import requests

    flower = start_flower(FLOWER_BASIC_AUTH="proj:secret")
    assert requests.get(f"{flower.url}/workers", timeout=10).status_code == 401
    assert requests.get(f"{flower.url}/workers", auth=("proj", "secret"), timeout=10).status_code == 200


def test_state_that_cannot_be_kept_is_one_clear_sentence(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "var").touch()
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "celery", "-A", "proj", "flower"]
    ended = subprocess.run(
        command, env={**os.environ, **broker.environment}, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 1
    assert "cannot keep Flower's state" in ended.stderr
    assert "Traceback" not in ended.stderr
