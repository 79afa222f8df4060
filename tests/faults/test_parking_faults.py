"""Parking where the broker refuses: an alarm, and messages as large as it takes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from amqp import Connection, Message

from proj.broker import Node
from proj.installation import Installation
from proj.letter import LEAN
from proj.processes import Worker
from tests.consuming import Desk
from tests.waiting import ensure_not_for_a_while, wait_for

pytestmark = pytest.mark.broker

LARGEST = 200_000  # bytes of a body
# Flags: headers only; one header t of type T, the year 584 billion.
UNREADABLE = b"\x20\x00\x00\x00\x00\x0b\x01tT" + b"\xff" * 8


@pytest.fixture(scope="module")
def small_node(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    config = {"max_message_size": str(LARGEST)}
    with Node.free(tmp_path_factory.mktemp("parking"), installation=installation, config=config) as node:
        yield node


@pytest.fixture(scope="module")
def desk(small_node: Node, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(small_node.amqp_url, tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def worker(desk: Desk) -> Iterator[Worker]:
    with desk.worker("-c", "2") as worker:
        worker.wait_until_ready()
        yield worker
        worker.kill()


@pytest.fixture(autouse=True)
def clear(desk: Desk) -> Iterator[None]:
    yield
    for _, remove in desk.dead.each():
        remove()


def test_a_body_as_large_as_the_broker_takes_is_parked(desk: Desk, worker: Worker) -> None:
    body, headers = b"\xff" * LARGEST, {"big": "x" * 60_000}
    desk.publish(body, headers=headers, message_id="large")
    letter = desk.parked("large", log=worker.log)
    assert letter.parked["cause"] == "undecodable"
    assert letter.parked["reason"].startswith(LEAN + "DecodeError")
    original = letter.original()
    assert (original.body, original.properties["application_headers"]) == (body, headers)


def test_the_same_with_properties_that_cannot_be_read(desk: Desk, worker: Worker) -> None:
    class Raw(Message):
        def _serialize_properties(self) -> bytes:
            return UNREADABLE

    connection = Connection(desk.url.split("@")[1].rstrip("/"))
    connection.connect()
    connection.channel().basic_publish(Raw(b"\xff" * LARGEST), "", desk.queue)
    connection.close()
    wait_for(lambda: desk.dead.count() == 1, "one letter", log=worker.log)
    (letter,) = desk.letters()
    assert letter.parked["cause"] == "malformed"
    assert letter.original().body == b"\xff" * LARGEST
    assert letter.original().properties["unreadable"][0] == UNREADABLE


def test_parking_waits_for_the_end_of_an_alarm(desk: Desk, worker: Worker, small_node: Node) -> None:
    now = desk.folder / "now"
    task_id = desk.send("fail_when", "alarm", str(now))
    wait_for(lambda: desk.notes()["started alarm"], "the task", log=worker.log)
    small_node.ctl("set_vm_memory_high_watermark", "0.000001")
    try:
        now.touch()
        wait_for(lambda: "memory or disk alarm" in worker.text(), "a refusal", log=worker.log)
        ensure_not_for_a_while(lambda: desk.dead.count() or desk.ready(), "a parked or requeued message", 2)
    finally:
        small_node.ctl("set_vm_memory_high_watermark", "0.4")
    desk.parked(task_id, log=worker.log)
    assert [letter.parked["id"] for letter in desk.letters()] == [task_id]
    assert desk.notes()["started alarm"] == 1
    assert "Redelivered" not in worker.text()


def test_what_cannot_be_parked_at_all_is_kept_and_stands_in_nobody_s_way(desk: Desk, worker: Worker) -> None:
    """Headers that fill their frame and a body that fills a message leave no room for a cause."""
    desk.publish(b"\xff" * LARGEST, headers={"big": "x" * 130_800}, message_id="full")
    refused = "message[full]: cannot publish"
    wait_for(lambda: refused in worker.text(), "a refusal", log=worker.log)
    desk.parked(desk.send("fail", "next"), log=worker.log)
    desk.send("noted", "last")
    wait_for(lambda: desk.notes()["done last"], "the next task", log=worker.log)
    worker.kill()
    # Besides, perhaps, the last task, which was done and not acknowledged yet.
    wait_for(lambda: "full" in taken(desk), "the message in its queue")


def taken(desk: Desk) -> list[str | None]:
    with desk.channel() as channel:
        replies = iter(lambda: channel.basic_get(desk.queue, auto_ack=True), (None, None, None))
        return [properties.message_id for _, properties, _ in replies]
