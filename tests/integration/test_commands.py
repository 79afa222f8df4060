"""The commands, by running them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT

import pytest

from proj.processes import Process, Worker
from tests.integration.conftest import Broker, wait_until_done
from tests.waiting import wait_for

pytestmark = pytest.mark.broker

Run = Callable[..., "subprocess.CompletedProcess[str]"]
NOWHERE = {"CELERY_BROKER_URL": "amqp://guest:guest@127.0.0.1:1//", "PROJ_MANAGEMENT_URL": "http://127.0.0.1:1/api/"}


@pytest.mark.parametrize(
    ("words", "message"), [(["First", "message."], "First message."), ([], "Hello World!"), ([""], "Hello World!")]
)
def test_new_task_joins_its_words(words: list[str], message: str, cli: Callable[..., str], broker: Broker) -> None:
    assert cli("new_task", *words) == f"[x] Sent {message!r}\n"
    assert broker.ready() == 1
    with broker.pika() as connection:
        _, _, body = connection.channel().basic_get("task_queue", auto_ack=True)
    assert json.loads(body)[0] == [message]


def test_new_task_leaves_no_reply_queue_behind(cli: Callable[..., str], broker: Broker) -> None:
    cli("new_task", "Hello")
    assert [queue["name"] for queue in broker.management.queues(broker.vhost)] == ["task_queue"]


def test_new_task_waits_for_the_result(cli: Callable[..., str], start_worker: Callable[..., Worker]) -> None:
    start_worker()
    sent, done = cli("new_task", "--wait", "Hello.").splitlines()
    assert sent == "[x] Sent 'Hello.'"
    assert done.startswith("[x] Done in 1 s (")


def test_new_task_reads_lines(cli: Callable[..., str], broker: Broker) -> None:
    printed = cli("new_task", "-", input="First.\n\nÜber das Wetter..\r\nlast")
    assert printed == "[x] Sent 'First.'\n[x] Sent 'Über das Wetter..'\n[x] Sent 'last'\n"
    assert broker.ready() == 3


def test_new_task_refuses_what_is_no_text(broker: Broker) -> None:
    ended = run_bytes(broker, b"good\n\xff\xfe\nnever\n")
    assert ended.returncode == 1
    assert b"line 2 of standard input is not UTF-8" in ended.stderr
    assert b"Traceback" not in ended.stderr
    assert broker.ready() == 1


def run_bytes(broker: Broker, given: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "celery", "-A", "proj", "new_task", "-"]
    return subprocess.run(command, env={**os.environ, **broker.environment}, input=given, capture_output=True)


@pytest.mark.parametrize("command", [["new_task", "Hello"], ["queues"], ["queues", "--json"]])
def test_without_a_broker_a_command_says_what_to_start(command: list[str], run: Run) -> None:
    ended = run(*command, environment=NOWHERE)
    assert ended.returncode == 69
    assert "cannot reach amqp://guest:**@127.0.0.1:1// (connection refused)" in ended.stderr
    assert "celery -A proj broker" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_unreachable_broker_names_the_message_that_was_not_sent(run: Run) -> None:
    assert "0 sent, not sent: 'Hello'" in run("new_task", "Hello", environment=NOWHERE).stderr


def look(cli: Callable[..., str], *options: str) -> dict[str, dict[str, object]]:
    return {queue["name"]: queue for queue in json.loads(cli("queues", "--json", *options))["queues"]}


def test_queues_shows_what_waits_and_what_is_worked_on(
    cli: Callable[..., str], start_worker: Callable[..., Worker], send: Callable[[str], str]
) -> None:
    start_worker()
    for message in ("at work.........", "waits", "waits too"):
        send(message)
    expected = {"name": "task_queue", "ready": 2, "unacknowledged": 1, "consumers": 1, "type": "quorum"}
    wait_for(lambda: look(cli)["task_queue"] == expected, f"{expected}", log=lambda: cli("queues"))
    assert list(look(cli)) == ["task_queue", "task_queue.dead"]
    assert "celery_delayed_0" in look(cli, "--all")


def test_queues_without_management_says_what_it_cannot_know(
    cli: Callable[..., str], send: Callable[[str], str]
) -> None:
    send("waits")
    printed = cli("queues", environment={"PROJ_MANAGEMENT_URL": "http://127.0.0.1:1/api/"})
    assert printed.splitlines()[1].split() == ["task_queue", "1", "?", "0", "quorum"]
    assert "cannot reach the management API" in printed


def test_queues_points_at_a_forgotten_acknowledgement(cli: Callable[..., str], broker: Broker) -> None:
    with broker.pika() as connection:
        channel = connection.channel()
        channel.queue_declare("task_queue", durable=True)
        channel.basic_publish("", "task_queue", b"Hello")
        channel.basic_consume("task_queue", lambda *_: None)

        def pointed_at() -> list[dict[str, object]]:
            connection.process_data_events(time_limit=0)
            return json.loads(cli("queues", "--json", "--patience", "1"))["idle_consumers"]

        idle = wait_for(pointed_at, "the idle consumer to be pointed at")
        assert (idle[0]["queues"], idle[0]["unacknowledged"]) == (["task_queue"], 1)
        assert "an acknowledgement was forgotten" in cli("queues", "--patience", "1")


def test_queues_does_not_point_at_a_worker_at_work(
    cli: Callable[..., str], start_worker: Callable[..., Worker], send: Callable[[str], str], broker: Broker
) -> None:
    worker = start_worker()
    send("at work............")

    def idle() -> list[dict[str, object]]:
        ours = [c for c in broker.management.channels() if c.get("vhost") == broker.vhost]
        return [c for c in ours if c.get("idle_since") and c["messages_unacknowledged"]]

    wait_for(idle, "the worker's channel to be idle")
    assert json.loads(cli("queues", "--json", "--patience", "0"))["idle_consumers"] == []
    wait_until_done(["at work............"], worker)


def test_watch_refreshes_until_it_is_interrupted(broker: Broker, send: Callable[[str], str], tmp_path: Path) -> None:
    with Process("queues", "--watch", log=tmp_path / "watch", environment=broker.environment) as watch:
        wait_for(lambda: "unacknowledged" in watch.text(), "the first look", log=watch.log)
        send("Hello")
        wait_for(lambda: re.search(r"^task_queue +1 ", watch.text(), re.M), "a look with the message", log=watch.log)
        watch.signal(SIGINT)
        wait_for(lambda: not watch.running, "the end", log=watch.log)
        assert "Traceback" not in watch.text()


def test_delay_and_get_from_a_plain_repl(repl: Callable[[str], str], start_worker: Callable[..., Worker]) -> None:
    start_worker()
    assert repl("from proj.tasks import fake_work; print(fake_work.delay('Hello.').get(timeout=20))") == "1\n"


def test_delay_and_get_from_celerys_shell(cli: Callable[..., str], start_worker: Callable[..., Worker]) -> None:
    start_worker()
    assert "1" in cli("shell", "--python", input="fake_work.delay('Hello.').get(timeout=20)\n")


@pytest.mark.parametrize(("wrong", "kind"), [("42", "int"), ("None", "NoneType"), ("['Hello']", "list")])
def test_anything_but_a_string_is_refused(
    wrong: str, kind: str, repl: Callable[[str], str], start_worker: Callable[..., Worker]
) -> None:
    worker = start_worker()
    answer = repl(
        "from proj.tasks import fake_work\n"
        f"try: fake_work.delay({wrong}).get(timeout=20)\n"
        "except TypeError as error: print(error)"
    )
    assert answer == f"expected message to be a string, got {kind}: {wrong}\n"
    assert "Traceback" not in worker.text()
