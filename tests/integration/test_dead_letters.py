"""Letters are listed, shown, replayed and purged; none is lost on the way, at worst it is there twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL

import pytest

from proj.broker import Node
from proj.dead_letters import PAGE
from proj.letter import HEADER, Letter, Outgoing
from tests.consuming import Desk
from tests.waiting import wait_for

pytestmark = pytest.mark.broker

Command = Callable[..., subprocess.CompletedProcess]
LOOKS = 25  # more than the 20 deliveries after which RabbitMQ 4 drops a message


@pytest.fixture
def desk(node: Node, tmp_path: Path) -> Desk:
    return Desk(node.amqp_url, tmp_path)


def start(desk: Desk, *arguments: str, app: str = "proj") -> subprocess.Popen:
    command = [sys.executable, "-m", "celery", "-A", app, "dead", *arguments, "--queue", desk.queue]
    env = os.environ | {"CELERY_BROKER_URL": desk.url}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def dead(desk: Desk) -> Command:
    def run(*arguments: str, answer: str = "", app: str = "proj") -> subprocess.CompletedProcess:
        process = start(desk, *arguments, app=app)
        out, err = process.communicate(answer, timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


def park(desk: Desk, number: int, cause: str = "failed", body: bytes = b'[["word"],{},{}]') -> None:
    """Put letters into the dead queue as the worker does, quickly."""
    from kombu import Connection

    headers = {"task": "tests.chores.noted", "retries": 3}
    with Connection(desk.url) as connection:
        channel = connection.channel()
        channel.queue_declare(desk.dead.name, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
        channel.confirm_select()
        for index in range(number):
            properties = {
                "content_type": "application/json",
                "content_encoding": "utf-8",
                "expiration": "600000",
                "application_headers": {**headers, "id": f"id-{index}"},
            }
            known = {"id": f"id-{index}", "task": headers["task"], "cause": cause, "traceback": "T\n" * 9}
            known |= {"worker": "w@h", "deliveries": 1, "reason": "no luck"}
            letter = Letter.of(desk.queue, body, properties, known)
            message = Outgoing(letter.body, **letter.properties)
            channel.basic_publish(message, exchange="", routing_key=letter.queue)
        channel.queue_declare(desk.dead.name, passive=True)  # answered after all that was published before
    wait_for(lambda: desk.dead.count() == number, f"{number} letters")


def ids(desk: Desk) -> Counter[str]:
    return Counter(letter.parked["id"] for letter in desk.letters())


def test_list_and_show_name_what_is_known(desk: Desk, dead: Command) -> None:
    park(desk, 2)
    listed = dead("list").stdout.splitlines()
    assert listed[0].split() == ["ID", "TASK", "CAUSE", "DELIVERIES", "AGE", "WORKER"]
    assert sorted(line.split()[:4] for line in listed[1:]) == [
        [f"id-{index}", "tests.chores.noted", "failed", "1"] for index in range(2)
    ]
    records = [json.loads(line) for line in dead("list", "--json").stdout.splitlines()]
    assert {record["id"] for record in records} == {"id-0", "id-1"}
    assert records[0]["body"] == '[["word"],{},{}]'
    shown = dead("show", "id-1").stdout
    assert "no luck" in shown
    assert "T\nT\n" in shown
    assert '[["word"],{},{}]' in shown


def test_looking_often_loses_nothing(desk: Desk) -> None:
    park(desk, 30)
    for _ in range(LOOKS):
        assert sum(ids(desk).values()) == 30
    assert ids(desk) == {f"id-{index}": 1 for index in range(30)}


def test_looking_often_without_renewal_loses_all(desk: Desk, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    if node.installation.release < (4, 0):
        pytest.skip(f"RabbitMQ {node.installation.version} has no delivery limit by default")
    monkeypatch.setattr("proj.dead_letters.RENEW_AT", 1000)
    park(desk, 3)
    for _ in range(LOOKS):
        desk.letters()
    assert desk.dead.count() == 0


def test_replay_sends_the_very_message_back_and_starts_afresh(desk: Desk, dead: Command) -> None:
    park(desk, 3)
    done = dead("replay", "id-1")
    assert (done.returncode, done.stdout) == (0, f"replayed 1 letter of {desk.dead.name}\n")
    assert ids(desk) == {"id-0": 1, "id-2": 1}
    with desk.channel() as channel:
        _, properties, body = channel.basic_get(desk.queue, auto_ack=True)
    assert body == b'[["word"],{},{}]'
    properties.headers.pop("x-delivery-count", None)  # 3.10 counts the first one too
    assert properties.headers == {"id": "id-1", "task": "tests.chores.noted", "retries": 0}
    assert HEADER not in properties.headers
    assert properties.expiration == "600000"


def test_a_replayed_task_runs_under_its_old_id(desk: Desk, dead: Command) -> None:
    with desk.worker(settings=("plain_text_task=(string)no.such",)) as worker:
        desk.publish(b"word", message_id="mine")
        assert desk.parked("mine", log=worker.log).parked["cause"] == "unknown-task"
    assert dead("replay", "--cause", "unknown-task").stdout.startswith("replayed 1 letter")
    with desk.worker() as worker:
        wait_for(lambda: "proj.tasks.fake_work[mine] succeeded" in worker.text(), "the task", log=worker.log)
    assert desk.dead.count() == 0


def test_replay_and_purge_say_what_they_cannot_do(desk: Desk, dead: Command) -> None:
    park(desk, 1)
    assert "name the letters" in dead("replay").stderr
    assert "unknown cause 'typo'" in dead("replay", "--cause", "typo").stderr
    assert "none of these ids" in dead("replay", "nix").stderr
    assert "no letter 'nix'" in dead("show", "nix").stderr
    asked = dead("purge", answer="n\n")
    assert f"Delete 1 letter in {desk.dead.name}, for good?" in asked.stdout
    assert asked.returncode == 1
    with desk.channel() as channel:
        channel.queue_delete(desk.queue)
    refused = dead("replay", "--all")
    assert refused.returncode == 1
    assert "the letter stays where it is" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert ids(desk) == {"id-0": 1}


def test_purge_deletes_what_it_named(desk: Desk, dead: Command) -> None:
    park(desk, 3)
    done = dead("purge", "--force")
    assert done.stdout == f"deleted 3 letters of {desk.dead.name}\n"
    assert desk.dead.count() == 0


@pytest.mark.parametrize("command", [("replay", "--all"), ("list",)])
def test_killed_half_way_nothing_is_missing(desk: Desk, command: tuple[str, ...]) -> None:
    number = 5000
    park(desk, number)
    process = start(desk, *command)
    if command[0] == "replay":
        wait_for(desk.ready, "the first replayed message", 20)
    else:
        process.stdout.readline()
    process.kill()
    process.communicate()
    replayed: Counter[str] = Counter()
    with desk.channel() as channel:
        while (found := channel.basic_get(desk.queue, auto_ack=True))[0]:
            replayed[found[1].headers["id"]] += 1
    kept = wait_for(lambda: (left := ids(desk)).total() + replayed.total() >= number and left, "all", 20)
    both = kept + replayed
    assert set(both) == {f"id-{index}" for index in range(number)}
    # RabbitMQ may not have read the last acknowledgements when the connection was reset.
    assert both.total() <= number + PAGE
    if command[0] == "replay":
        assert 0 < replayed.total() < number


DYING = """
import os, signal
from celery import Celery
from proj.dead_letters import _Removal

app, remove, removed = Celery(broker={url!r}), _Removal.__call__, []

def dying(removal):
    remove(removal)
    removed.append(removal)
    if len(removed) == {half}:
        os.kill(os.getpid(), signal.SIGKILL)

_Removal.__call__ = dying
"""


def test_a_purge_killed_half_way_leaves_the_rest(
    desk: Desk, dead: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, half = 1000, 500
    (tmp_path / "dying_app.py").write_text(DYING.format(url=desk.url, half=half))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    park(desk, number)
    assert dead("purge", "--force", app="dying_app").returncode == -SIGKILL
    # What was removed last may not have been sent.
    kept = wait_for(lambda: (left := ids(desk)).total() >= number - half and left, "the rest", 20)
    assert number - half <= kept.total() < number
    assert set(kept.values()) == {1}


@pytest.mark.parametrize("removed", [False, True])
def test_letters_are_not_held_in_memory(desk: Desk, monkeypatch: pytest.MonkeyPatch, removed: bool) -> None:
    monkeypatch.setattr("proj.dead_letters.PAGE", 200)
    size, number = 30_000, 1000
    park(desk, number, body=b"x" * size)
    tracemalloc.start()
    try:
        seen = 0
        for _, remove in desk.dead.each():
            seen += 1
            if removed:
                remove()
        assert seen == number
        assert tracemalloc.get_traced_memory()[1] < size * number / 5
    finally:
        tracemalloc.stop()


def test_it_works_for_any_app(desk: Desk, dead: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other_app.py").write_text(f"from celery import Celery\napp = Celery(broker={desk.url!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    park(desk, 1)
    assert "id-0" in dead("list", app="other_app").stdout


def test_a_page_is_not_the_limit(desk: Desk, dead: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proj.dead_letters.PAGE", 100)
    park(desk, 1050)
    assert ids(desk) == {f"id-{index}": 1 for index in range(1050)}


def test_what_the_broker_dead_lettered_is_shown_and_replayed(desk: Desk, dead: Command) -> None:
    arguments = {"x-queue-type": "quorum"}
    with desk.channel() as channel:
        channel.queue_declare(desk.dead.name, durable=True, arguments=arguments)
        through = {**arguments, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": desk.dead.name}
        channel.queue_delete(desk.queue)
        channel.queue_declare(desk.queue, durable=True, arguments=through)
    desk.send("noted", "word", id="by-broker")
    with desk.channel() as channel:
        tag = channel.basic_get(desk.queue)[0].delivery_tag
        channel.basic_reject(tag, requeue=False)
    letter = desk.parked("by-broker")
    assert (letter.parked["cause"], letter.parked["queue"]) == ("broker", desk.queue)
    assert dead("replay", "--all").returncode == 0
    with desk.channel() as channel:
        _, properties, _ = channel.basic_get(desk.queue, auto_ack=True)
    assert set(properties.headers) - {"x-delivery-count"} == {"id", "task"}
