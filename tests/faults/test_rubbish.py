"""Thousands of arbitrary messages at one worker: it survives, and finished plus parked is what was sent."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import amqp
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from proj.broker import Node
from proj.letter import BROKER_HEADERS, HEADER
from proj.processes import Worker
from tests.consuming import Desk
from tests.waiting import ensure_not_for_a_while, wait_for

pytestmark = pytest.mark.broker

MESSAGES = 2000
FEW = 10  # bodies, headers and properties, of which all combinations are sent
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}
SANE = {"task": "tests.chores.nothing", "id": "sane"}
SERIAL = "serial"  # the header that tells one message from another

shorts = st.text(st.characters(codec="utf-8"), max_size=40)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | shorts
    | st.binary(max_size=40)
    | st.decimals(-10_000, 10_000, allow_nan=False, places=2)
    | st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1))
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(shorts, inner, max_size=3),
    max_leaves=4,
)
NAMES = (
    "id task root_id parent_id group shadow eta expires argsrepr kwargsrepr retries timelimit lang origin"
    " stamped_headers stamps ignore_result replaced_task_nesting delivery_info hostname compression x-death"
    " x-delivery-count x-parked properties args kwargs errbacks callbacks chord is_eager"
)
# What Celery itself would look at: each wrong in a way of its own.
times = st.sampled_from(["", "soon", "2001-01-01", "1-1-1", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"])
wrong = st.fixed_dictionaries(
    {},
    optional={
        "eta": times,
        "expires": times,
        "compression": st.sampled_from(["gzip", "zlib", "application/x-bz2", "lzma", "klingon"]),
        "timelimit": st.lists(values, max_size=3),
        "retries": st.integers(-(2**31), 2**31 - 1) | shorts,
        "stamped_headers": st.lists(shorts, max_size=2) | values,
        "huge": st.just("x" * 50_000),
    },
)
tasks = st.sampled_from(["tests.chores.nothing", "tests.chores.fail", "no.such"])
names = st.sampled_from(NAMES.split())
known = st.dictionaries(names, values, max_size=3)
headers = st.dictionaries(names | shorts, values, max_size=6) | st.builds(
    lambda plain, task, more, odd: {**more, **odd, "id": plain, "task": task}, shorts, tasks, known, wrong
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | shorts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(shorts, inner, max_size=3),
    max_leaves=5,
)
task_bodies = st.tuples(
    st.lists(json_values, max_size=2), st.dictionaries(shorts, json_values, max_size=1), json_values
)
compressed = st.builds(
    lambda pack, text: pack(text), st.sampled_from([gzip.compress, zlib.compress]), st.binary(max_size=200)
)
bodies = (
    st.binary(max_size=200)
    | compressed
    | st.just(b"[" * 100_000)
    | shorts.map(lambda text: text.encode())
    | (json_values | task_bodies).map(lambda value: json.dumps(value).encode())
)
kinds = [
    "application/json",
    "text/plain",
    "application/x-python-serialize",
    "application/data",
    "application/yaml",
]
encodings = ["utf-8", "binary", "latin-1", "utf-16", "klingon"]


# Celery's first protocol: everything in the body.
firsts = st.builds(
    lambda task, args, kwargs, odd: {"task": task, "args": args, "kwargs": kwargs, **odd},
    tasks | json_values,
    st.lists(json_values, max_size=2) | json_values,
    st.dictionaries(shorts, json_values, max_size=1),
    st.dictionaries(
        st.sampled_from(["retries", "eta", "expires", "utc", "timelimit", "taskset"]), json_values, max_size=1
    ),
)


properties = st.fixed_dictionaries(
    {},
    optional={
        "content_type": st.sampled_from(kinds) | shorts,
        "content_encoding": st.sampled_from(encodings) | shorts,
        "priority": st.integers(0, 255),
        "correlation_id": shorts,
        "message_id": shorts,
        "timestamp": st.integers(0, 2**64 - 1),
        "type": shorts,
        "app_id": shorts,
        "reply_to": st.sampled_from(["nobody", "amq.rabbitmq.reply-to.x", "ü" * 100]),
        "expiration": st.just("600000"),
    },
)


def few(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(strategy, min_size=FEW, max_size=FEW)


@pytest.fixture(scope="module")
def desk(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(node.amqp_url, tmp_path_factory.mktemp("rubbish"))


@pytest.fixture(scope="module")
def worker(desk: Desk) -> Iterator[Worker]:
    with desk.worker("-I", "tests.serials", settings=("plain_text_task=(string)tests.chores.nothing",)) as worker:
        worker.wait_until_ready()
        yield worker


class Sender:
    """Publishes batches, then waits for their confirms; what RabbitMQ cannot read it answers by closing."""

    def __init__(self, url: str) -> None:
        self._address = url.split("@")[1].rstrip("/")
        self._connection: amqp.Connection | None = None
        self._unconfirmed: dict[int, int] = {}
        self.confirmed: set[int] = set()

    def send(self, queue: str, batch: list[amqp.Message]) -> None:
        try:
            if self._connection is None:
                self._open()
            for message in batch:
                self._tag += 1
                self._unconfirmed[self._tag] = message.properties["application_headers"][SERIAL]
                self._channel.basic_publish(message, exchange="", routing_key=queue)
            while self._unconfirmed:
                self._connection.drain_events(timeout=10)
        except (amqp.AMQPError, OSError):
            self.close()

    def _open(self) -> None:
        self._connection, self._tag = amqp.Connection(self._address), 0
        self._connection.connect()
        self._channel = self._connection.channel()
        self._channel.confirm_select()
        self._channel.events["basic_ack"].add(self._acked)

    def _acked(self, tag: int, multiple: bool) -> None:
        for each in [each for each in self._unconfirmed if each == tag or (multiple and each < tag)]:
            self.confirmed.add(self._unconfirmed.pop(each))

    def close(self) -> None:
        if self._connection:
            self._connection.collect()
        self._connection = None
        self._unconfirmed.clear()


def test_finished_plus_parked_is_what_was_sent(desk: Desk, worker: Worker) -> None:
    sender = Sender(desk.url)
    sent: list[tuple[bytes, dict[str, Any]]] = []

    def numbered(body: bytes, properties: dict[str, Any]) -> amqp.Message:
        properties["application_headers"][SERIAL] = len(sent)
        sent.append((body, properties["application_headers"]))
        return amqp.Message(body, **properties)

    @settings(
        max_examples=MESSAGES // FEW**2,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(few(bodies), few(headers), few(properties), st.lists(firsts, min_size=2, max_size=2))
    def publish(bodies: list[bytes], headers: list[Any], properties: list[Any], firsts: list[Any]) -> None:
        for row, body in enumerate(bodies):
            batch = [
                numbered(body, {**properties[(row + column) % FEW], "application_headers": dict(each)})
                for column, each in enumerate(headers)
            ]
            sender.send(desk.queue, batch)
        for first in firsts:
            body = json.dumps({**first, "id": str(len(sent))}).encode()
            sender.send(desk.queue, [numbered(body, {**JSON, "application_headers": {}})])
        # Some that can run, so that the worker has to go on working between the others.
        sender.send(desk.queue, [numbered(b"[[1],{},{}]", {**JSON, "application_headers": dict(SANE)})])

    publish()
    # One at a time is delivered: this one when all before it are finished or parked.
    last = len(sent)
    sender.send(desk.queue, [numbered(b"[[1],{},{}]", {**JSON, "application_headers": dict(SANE)})])
    sender.close()
    wait_for(lambda: done(desk)[last], "the last message", 90, worker.log)
    ensure_not_for_a_while(lambda: desk.ready() or not worker.running, "messages left or a dead worker", 1)

    finished, letters = done(desk), found(desk)
    assert len(sender.confirmed) > MESSAGES / 2
    ended = finished + Counter({serial: len(those) for serial, those in letters.items()})
    assert set(ended.values()) == {1}
    # What was sent behind a message that RabbitMQ cannot read may have arrived or not.
    assert sender.confirmed <= set(ended) <= set(range(len(sent)))
    assert finished.total() > MESSAGES / 100
    assert {letter.parked["cause"] for (letter,) in letters.values()} >= {
        "malformed",
        "undecodable",
        "disallowed",
    }
    for serial, (letter,) in letters.items():
        body, given_headers = sent[serial]
        assert letter.original().body == body
        kept = {name for name in given_headers if not name.startswith((HEADER, *BROKER_HEADERS))}
        assert set(letter.original().properties["application_headers"]) >= kept - {"expires"}


def done(desk: Desk) -> Counter[int]:
    return Counter(int(line.split()[1]) for line in desk.notes().elements() if line.startswith("finished "))


def found(desk: Desk) -> dict[int, list[Any]]:
    letters: dict[int, list[Any]] = {}
    for letter in desk.letters():
        letters.setdefault(letter.original().properties["application_headers"][SERIAL], []).append(letter)
    return letters
