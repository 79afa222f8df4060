"""What arrives is run or parked with its cause: nothing is discarded, and poison stops."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from amqp import Connection, Message
from celery.events.state import State

from proj.broker import Node
from proj.processes import Worker
from proj.proxy import Proxy
from tests.consuming import STOCK, Desk
from tests.waiting import ensure_not_for_a_while, wait_for

pytestmark = pytest.mark.broker

FAKE_WORK = "proj.tasks.fake_work"
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}
TASK = {"task": FAKE_WORK, "id": "the-id"}


@pytest.fixture(scope="module")
def desk(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(node.amqp_url, tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def worker(desk: Desk) -> Iterator[Worker]:
    """One worker for all that a worker must survive."""
    with desk.worker() as worker:
        worker.wait_until_ready()
        yield worker


@pytest.fixture(autouse=True)
def clear(desk: Desk) -> Iterator[None]:
    """Leave no letter to the next test."""
    yield
    for _, remove in desk.dead.each():
        remove()


@pytest.fixture
def own_desk(node: Node, tmp_path: Path) -> Desk:
    return Desk(node.amqp_url, tmp_path)


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"content_type": "text/plain"},
        {"content_type": "text/plain; charset=utf-8"},
        {"content_type": "text/plain", "content_encoding": "utf-8", "headers": {"traceparent": "00-1-2-3"}},
    ],
)
def test_plain_text_is_run_as_the_configured_task(desk: Desk, worker: Worker, properties: dict) -> None:
    text = f"text with {len(properties)} properties, ünd Ümlaut"
    desk.publish(text.encode(), message_id=f"plain-{len(properties)}", **properties)
    wait_for(lambda: f"[x] Received {text!r}" in worker.text(), text, log=worker.log)
    wait_for(lambda: f"{FAKE_WORK}[plain-{len(properties)}] succeeded" in worker.text(), "its end", log=worker.log)


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


REFUSED = {
    "bytes that are no text": ("undecodable", b"\xff\xfe", {}),
    "bytes that are not their encoding": ("undecodable", b"\xff", {**JSON, "headers": TASK}),
    "broken JSON": ("undecodable", b"{", {**JSON, "headers": TASK}),
    "JSON too deep": ("undecodable", deep(100_000), {**JSON, "headers": TASK}),
    "not compressed as it says": ("undecodable", b"[]", {**JSON, "headers": {**TASK, "compression": "zlib"}}),
    "a hundred megabytes of zeros, compressed": (
        "undecodable",
        lambda: zlib.compress(bytes(100_000_000)),  # not before it is needed: every process collects every test
        {**JSON, "headers": {**TASK, "compression": "zlib"}},
    ),
    "pickle": ("disallowed", b"x", {"content_type": "application/x-python-serialize", "headers": TASK}),
    "an unknown content type": ("disallowed", b"x", {"content_type": "image/png"}),
    "an unknown task": ("unknown-task", b"[[],{},{}]", {**JSON, "headers": {**TASK, "task": "no.such"}}),
    "no task at all": ("malformed", b"{}", JSON),
    "a task that is no name": ("malformed", b"[[],{},{}]", {**JSON, "headers": {**TASK, "task": ["a"]}}),
    "no id": ("malformed", b"[[],{},{}]", {**JSON, "headers": {"task": FAKE_WORK}}),
    "an id that is none": ("malformed", b"[[],{},{}]", {**JSON, "headers": {**TASK, "id": 7}}),
    "no arguments": ("malformed", b"[]", {**JSON, "headers": TASK}),
    "arguments that are no list": ("malformed", b'["x",{},{}]', {**JSON, "headers": TASK}),
    "an impossible time limit": (
        "malformed",
        b"[[],{},{}]",
        {**JSON, "headers": {**TASK, "timelimit": ["x", 1]}},
    ),
    "an impossible eta": ("malformed", b"[[],{},{}]", {**JSON, "headers": {**TASK, "eta": "soon"}}),
    "an expired one": (
        "expired",
        b"[[],{},{}]",
        {**JSON, "headers": {**TASK, "expires": "2001-01-01T00:00:00"}},
    ),
    "arguments that do not fit": ("failed", b"[[1,2,3],{},{}]", {**JSON, "headers": TASK}),
    "properties that are no text": ("malformed", b"body", {"content_type": b"\xff"}),
    "headers as large as a frame": ("undecodable", b"\xff", {"headers": {"big": "x" * 125_000}}),
    "a large body": ("undecodable", b"\xff" * 10_000_000, {}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_run_is_parked_with_its_cause(desk: Desk, worker: Worker, what: str) -> None:
    cause, given, properties = REFUSED[what]
    body = given() if callable(given) else given
    desk.publish(body, **properties)
    wait_for(lambda: desk.dead.count() == 1, "one letter", log=worker.log)
    (letter,) = desk.letters()
    assert letter.parked["cause"] == cause, letter.parked
    assert letter.parked["queue"] == desk.queue
    assert letter.parked["worker"] == worker.name
    assert letter.parked["deliveries"] == 1
    original = letter.original()
    assert original.body == body
    headers = dict(properties.get("headers", {}))
    headers.pop("expires", None)  # or a replay would expire again
    assert (original.properties.get("application_headers") or {}) == headers
    desk.publish(b"next", message_id=what)
    wait_for(lambda: f"{FAKE_WORK}[{what}] succeeded" in worker.text(), "the next message", 5, worker.log)


def test_celery_s_first_protocol_is_understood(desk: Desk, worker: Worker) -> None:
    for chore in ("noted", "fail"):
        known = {"task": f"tests.chores.{chore}", "id": f"first-{chore}", "args": ["first"], "kwargs": {}}
        desk.publish(json.dumps(known).encode(), **JSON)
    letter = desk.parked("first-fail", log=worker.log)
    assert (letter.parked["task"], letter.parked["cause"]) == ("tests.chores.fail", "failed")
    assert desk.notes()["done first"] == 1
    assert desk.ready() == 0


def test_an_impossible_timestamp_is_parked(desk: Desk, worker: Worker) -> None:
    class Raw(Message):
        def _serialize_properties(self) -> bytes:
            # flags: headers only; one header t of type T, the year 584 billion
            return b"\x20\x00\x00\x00\x00\x0b\x01tT" + b"\xff" * 8

    connection = Connection(desk.url.split("@")[1].rstrip("/"), userid="guest", password="guest")  # noqa: S106
    connection.connect()
    connection.channel().basic_publish(Raw("when?"), "", desk.queue)
    connection.close()
    wait_for(lambda: desk.dead.count() == 1, "one letter", log=worker.log)
    (letter,) = desk.letters()
    assert letter.parked["cause"] == "malformed"
    assert letter.original().body == b"when?"


@pytest.mark.parametrize(
    ("chore", "cause", "exception"),
    [
        ("fail", "failed", "ValueError: no luck"),
        ("too_long", "time-limit", "SoftTimeLimitExceeded"),
        ("far_too_long", "time-limit", "TimeLimitExceeded"),
        ("eat_memory", "failed", "MemoryError"),
        ("reject", "rejected", "Reject"),
    ],
)
def test_a_task_that_fails_for_good_is_parked(
    desk: Desk, worker: Worker, chore: str, cause: str, exception: str
) -> None:
    task_id = desk.send(chore, "word")
    known = desk.parked(task_id, log=worker.log).parked
    assert known["cause"] == cause
    assert known["exception"].startswith(exception)
    assert exception.split(":")[0] in known["traceback"]
    assert (known["worker"], known["deliveries"]) == (worker.name, 1)
    assert worker.running


def test_a_task_is_parked_when_its_retries_are_exhausted(desk: Desk, worker: Worker) -> None:
    task_id = desk.send("fail_retried", "again")
    letter = desk.parked(task_id, log=worker.log)
    assert (letter.parked["cause"], letter.parked["exception"]) == ("failed", "ValueError: no luck with again")
    assert letter.properties["application_headers"]["retries"] == 2
    assert desk.notes()["started again"] == 3
    assert desk.dead.count() == 1


def test_a_revoked_task_is_parked(desk: Desk, worker: Worker) -> None:
    control = desk.app.control
    control.revoke("before", reply=True, timeout=2, limit=1)
    desk.send("noted", "before", id="before")
    assert desk.parked("before", log=worker.log).parked["cause"] == "revoked"
    desk.send("noted", "while", 60, id="while")
    wait_for(lambda: desk.notes()["started while"], "the task", log=worker.log)
    control.terminate("while", reply=True, timeout=2, limit=1)
    assert desk.parked("while", log=worker.log).parked["cause"] == "revoked"
    assert not {"started before", "done while"} & set(desk.notes())


def test_a_failure_is_not_parked_where_that_is_switched_off(desk: Desk, worker: Worker) -> None:
    task_id = desk.send("fail_unparked", "off")
    desk.send("noted", "after")
    wait_for(lambda: desk.notes()["done after"], "the next task", log=worker.log)
    assert task_id not in {letter.parked["id"] for letter in desk.letters()}
    assert desk.notes()["started off"] == 1


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_other_pools_park_too(own_desk: Desk, pool: str) -> None:
    with own_desk.worker("-P", pool) as worker:
        worker.wait_until_ready()
        failed, exited = own_desk.send("fail", "word"), own_desk.send("exit_process", "word")
        assert own_desk.parked(failed, log=worker.log).parked["cause"] == "failed"
        assert own_desk.parked(exited, log=worker.log).parked["cause"] == "poison"
        assert worker.running


def test_a_message_that_kills_its_process_is_parked_at_the_limit(own_desk: Desk) -> None:
    with own_desk.worker(settings=("delivery.limit=(int)2",)) as worker:
        worker.wait_until_ready()
        letter = own_desk.parked(own_desk.send("kill_process", "word"), 30, worker.log)
    assert (letter.parked["cause"], letter.parked["deliveries"]) == ("poison", 3)
    assert own_desk.notes() == {"started word": 2}


def test_a_message_that_kills_its_worker_is_parked_at_the_limit(own_desk: Desk) -> None:
    task_id = own_desk.send("kill_worker", "word")
    for _ in range(2):
        worker = own_desk.worker(settings=("delivery.limit=(int)2",))
        wait_for(lambda worker=worker: not worker.running, "the worker's end", log=worker.log)
        own_desk.kill_pool_processes(worker)
    with own_desk.worker(settings=("delivery.limit=(int)2",)) as worker:
        letter = own_desk.parked(task_id, log=worker.log)
        assert worker.running
    assert (letter.parked["cause"], letter.parked["deliveries"]) == ("poison", 3)
    assert own_desk.notes() == {"started word": 2}
    assert "[!] Redelivered" in (own_desk.folder / f"{own_desk.queue}-2.log").read_text()


def test_a_control_queue_that_vanishes_costs_a_reconnect(own_desk: Desk) -> None:
    with own_desk.worker("-I", "tests.vanishing") as worker:
        own_desk.send("noted", "word")
        wait_for(lambda: own_desk.notes()["done word"], "a task", log=worker.log)
        assert own_desk.app.control.ping(timeout=2, limit=1)
    assert "NOT_FOUND" in worker.text()


def test_a_second_run_and_a_parked_message_are_events(own_desk: Desk) -> None:
    """Flower keeps its tasks in the same State; the timeline draws the same events."""
    with own_desk.channel() as channel:
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.exchange_declare("celeryev", "topic", durable=True)
        channel.queue_bind(queue, "celeryev", "task.#")
        with own_desk.worker(settings=("delivery.limit=(int)2",)) as worker:
            task_id = own_desk.send("kill_process", "word")
            own_desk.parked(task_id, 30, worker.log)
            failed = own_desk.send("fail", "word")
            own_desk.parked(failed, log=worker.log)
        state, seen = State(), []
        for _, _, body in iter(lambda: channel.basic_get(queue, auto_ack=True), (None, None, None)):
            for event in [sent] if isinstance(sent := json.loads(body), dict) else sent:
                state.event(event | {"local_received": event["timestamp"]})
                if event["uuid"] == task_id:
                    seen.append({name: event.get(name) for name in ("type", "attempt", "cause", "hostname")})
    redelivered = {"type": "task-redelivered", "attempt": 2, "cause": None, "hostname": worker.name}
    assert redelivered in seen
    assert {**redelivered, "type": "task-parked", "attempt": None, "cause": "poison"} == seen[-1]
    assert (state.tasks[task_id].state, state.tasks[failed].state) == ("PARKED", "FAILURE")


def test_what_cannot_be_parked_is_not_acknowledged(own_desk: Desk) -> None:
    full = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    with own_desk.channel() as channel:
        channel.queue_declare(own_desk.dead.name, durable=True, arguments=full)
        for _ in range(2):  # the limit of a quorum queue is not to the letter
            channel.basic_publish("", own_desk.dead.name, b"in the way")
    with own_desk.worker() as worker:
        worker.wait_until_ready()
        task_id = own_desk.send("fail", "word")
        wait_for(lambda: "[!] Not parked" in worker.text(), "a refusal", log=worker.log)
        assert "at its length limit" in worker.text()
        ensure_not_for_a_while(lambda: "[!] Parked" in worker.text(), "a parked message", 1)
        with own_desk.channel() as channel:
            channel.queue_purge(own_desk.dead.name)
        own_desk.parked(task_id, log=worker.log)
    assert own_desk.notes() == {"started word": 1}
    assert own_desk.ready() == 0


def test_stock_celery_loses_all_of_these(own_desk: Desk) -> None:
    with own_desk.worker(settings=STOCK) as worker:
        worker.wait_until_ready()
        for what in ("bytes that are no text", "broken JSON", "pickle", "an unknown task", "no arguments"):
            _, body, properties = REFUSED[what]
            own_desk.publish(body, **properties)
        own_desk.publish(b"plain text", content_type="text/plain")
        own_desk.send("fail", "word")
        own_desk.send("noted", "last")
        wait_for(lambda: own_desk.notes()["done last"] or not worker.running, "the last message", log=worker.log)
    assert own_desk.dead.count() == 0
    assert own_desk.ready() < 8


def test_a_lost_connection_cancels_the_run_and_the_second_is_announced(node: Node, tmp_path: Path) -> None:
    with Proxy(node.port) as proxy:
        desk = Desk(node.amqp_url.replace(str(node.port), str(proxy.port)), tmp_path)
        with desk.worker() as worker:
            worker.wait_until_ready()
            task_id = desk.send("noted", "word", 2)
            wait_for(lambda: desk.notes()["started word"] == 1, "the first run", log=worker.log)
            proxy.cut()
            announced = f"[!] Redelivered tests.chores.noted[{task_id}]: attempt 2"
            wait_for(lambda: announced in worker.text(), "the announcement", log=worker.log)
            wait_for(lambda: desk.notes()["done word"], "the second run", log=worker.log)
            assert desk.notes() == {"started word": 2, "done word": 1}
            assert desk.ready() == 0
