"""Publishing to a RabbitMQ that works, but whose queues are not as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery import Celery, chain, group
from celery.exceptions import Reject
from kombu.exceptions import EncodeError, OperationalError

from proj.broker import Node
from proj.publish import ConfirmedCelery, Mismatch, NotQueued
from tests.integration.conftest import Broker
from tests.publishing import PATIENCE, application, channel, close_all, ready, send, take_all
from tests.waiting import wait_for

pytestmark = pytest.mark.broker
CLASSIC = {"x-queue-type": "classic"}


@pytest.fixture
def url(broker: Broker) -> Iterator[str]:
    yield broker.url
    close_all()


@pytest.fixture
def app(url: str) -> Celery:
    # Time to declare 28 delay queues on a loaded machine; how long a publish may take is tested with the faults.
    return application(url, publish_timeout=PATIENCE)


def test_what_delay_returned_is_in_the_queue(app: Celery, url: str) -> None:
    ids = [app.tasks["proj.tasks.fake_work"].delay(f"{number}").id for number in range(50)]
    assert take_all(url) == ids


def test_publishing_by_name_and_in_groups_is_confirmed_too(app: Celery, url: str) -> None:
    ids = [app.send_task("proj.tasks.fake_work", ("by name",)).id]
    task = app.tasks["proj.tasks.fake_work"]
    ids += [result.id for result in group(task.s("a"), task.s("b")).apply_async()]
    assert take_all(url) == ids


def test_the_bound_of_one_call_does_not_travel(app: Celery, url: str) -> None:
    send(app, task_id="plain")
    send(app, task_id="bounded", confirm_timeout=5)
    with channel(url) as plain:
        one, other = (plain.basic_get("task_queue", no_ack=True) for _ in range(2))
    assert one.headers.keys() == other.headers.keys()
    assert one.properties.keys() == other.properties.keys()


def test_a_vanished_queue_is_declared_again(app: Celery, url: str) -> None:
    send(app)
    with channel(url) as plain:
        plain.queue_delete("task_queue")
    assert take_all_after(url, send(app)) == 1


def take_all_after(url: str, task_id: str) -> int:
    ids = take_all(url)
    assert set(ids) == {task_id}
    return len(ids)


def test_stock_celery_loses_the_message_of_a_vanished_queue(url: str) -> None:
    stock = application(url, Celery)
    send(stock)
    with channel(url) as plain:
        plain.queue_delete("task_queue")
    assert send(stock)
    probe = send(application(url))
    assert take_all(url) == [probe]


def test_a_vanished_exchange_is_declared_again(app: Celery, url: str) -> None:
    send(app)
    with channel(url) as plain:
        plain.exchange_delete("task_exchange")
    task_id = send(app)
    assert take_all(url)[-1] == task_id


def test_each_return_belongs_to_its_own_publish(app: Celery, url: str) -> None:
    """A returned message is acknowledged too: that must not confirm the next one."""
    queue = app.amqp.queues["task_queue"]
    for _ in range(20):
        with pytest.raises(NotQueued):
            send(app, exchange="task_exchange", routing_key="nobody")
        send(app)
        with channel(url) as plain:
            queue(plain).delete()
        with pytest.raises(NotQueued):
            send(app, exchange="task_exchange", routing_key="nobody")
    assert ready(url) == 0


@pytest.mark.parametrize("plain_arguments", [CLASSIC, {"x-queue-type": "quorum", "x-max-length": 7}])
def test_a_queue_with_other_arguments_is_one_clear_error(app: Celery, url: str, plain_arguments: dict) -> None:
    with channel(url) as plain:
        plain.queue_declare("task_queue", durable=True, auto_delete=False, arguments=plain_arguments)
    with pytest.raises(Mismatch) as raised:
        send(app, task_id="the-id")
    message = str(raised.value)
    assert "queue 'task_queue' exists with other arguments" in message
    assert "{'x-queue-type': 'quorum'}" in message
    assert "inequivalent arg" in message
    assert raised.value.task_id == "the-id"
    with channel(url) as plain:
        plain.queue_delete("task_queue")
    assert take_all_after(url, send(app)) == 1


def test_an_exchange_with_another_type_is_one_clear_error(app: Celery, url: str) -> None:
    with channel(url) as plain:
        plain.exchange_declare("task_exchange", "direct", durable=True, auto_delete=False)
    with pytest.raises(Mismatch, match=r"exchange 'task_exchange' .* type=topic.* current is 'direct'"):
        send(app)


def test_a_caller_s_own_mistake_stays_his_and_harms_nobody(app: Celery, url: str) -> None:
    with pytest.raises(EncodeError):
        app.send_task("proj.tasks.fake_work", (object(),))
    with pytest.raises(TypeError):
        app.tasks["proj.tasks.fake_work"].delay(1, 2, 3)
    assert take_all_after(url, send(app)) == 1


@pytest.mark.parametrize(
    "when",
    [
        {"countdown": 1},
        {"countdown": 0.3},
        {"eta": timedelta(seconds=0.5)},
        {"eta": timedelta(seconds=-5)},
    ],
    ids=str,
)
def test_a_delayed_message_arrives_though_no_worker_ever_ran(app: Celery, url: str, when: dict) -> None:
    if "eta" in when:
        when = {"eta": datetime.now(UTC) + when["eta"]}
    task_id = send(app, **when)
    wait_for(lambda: ready(url), "the delayed message", seconds=10)
    assert take_all_after(url, task_id) == 1


def test_a_delayed_message_survives_that_its_queue_vanishes(app: Celery, url: str) -> None:
    send(app, countdown=1)
    wait_for(lambda: ready(url), "the first message", seconds=10)
    with channel(url) as plain:
        plain.queue_delete("task_queue")
        for level in (27, 0):
            plain.queue_delete(f"celery_delayed_{level}")
        plain.exchange_delete("celery_delayed_27")
    task_id = send(app, countdown=1)
    wait_for(lambda: ready(url), "the second message", seconds=10)
    assert take_all_after(url, task_id) == 1


def test_stock_celery_cannot_send_a_delayed_message_before_a_worker_ran(url: str) -> None:
    from amqp.exceptions import NotFound

    with pytest.raises(NotFound):
        send(application(url, Celery), countdown=1)


def limit(node: Node, url: str) -> None:
    """Let the queue hold one message and refuse the others."""
    body = {"pattern": ".*", "apply-to": "queues", "priority": 99}
    body["definition"] = {"max-length": 1, "overflow": "reject-publish"}
    node.management.put_policy(vhost=url.rpartition("/")[2], name="limit", body=body)


def fill(app: Celery) -> NotQueued:
    """Publish until the queue refuses."""
    for _ in range(200):
        try:
            send(app)
        except NotQueued as refused:
            return refused
    raise AssertionError("the queue took 200 messages, expected it to refuse at its length limit of 1")


def test_a_full_queue_refuses_and_the_error_says_so(node: Node, app: Celery, url: str) -> None:
    send(app)
    limit(node, url)
    wait_for(lambda: fill(app), "the limit to be in force")
    refused = fill(app)
    assert "length limit" in str(refused)
    ids = take_all(url)
    assert refused.task_id not in ids
    assert send(app, task_id=refused.task_id) == refused.task_id
    assert take_all_after(url, refused.task_id) == 1


def test_stock_celery_does_not_say_what_a_full_queue_refused(node: Node, app: Celery, url: str) -> None:
    stock = application(url, Celery)
    send(stock)
    limit(node, url)
    wait_for(lambda: fill(app), "the limit to be in force")
    with pytest.raises(OperationalError, match=r"^$"):
        send(stock)


@pytest.mark.parametrize(("kind", "requeued"), [(ConfirmedCelery, True), (Celery, False)])
def test_a_retry_that_cannot_be_published_gives_its_message_back(
    node: Node, url: str, kind: type[Celery], requeued: bool
) -> None:
    """Stock Celery rejects without requeue: the message is gone."""
    app, ours = application(url, kind, task_publish_retry=False), application(url)
    send(ours)
    limit(node, url)
    wait_for(lambda: fill(ours), "the limit to be in force")
    task = app.tasks["proj.tasks.fake_work"]
    task.push_request(id="the-id", args=("",), kwargs={}, called_directly=False, delivery_info={})
    with pytest.raises(Reject) as rejected:
        task.retry(countdown=0)
    assert rejected.value.requeue is requeued


def test_forked_web_workers_and_their_parent_publish_side_by_side(app: Celery, url: str) -> None:
    ids = [f"parent-{number}" for number in range(20)]
    send(app, task_id=ids[0])
    children = [fork(lambda name=name: [send(app, task_id=f"{name}-{n}") for n in range(20)]) for name in "ab"]
    for task_id in ids[1:]:
        send(app, task_id=task_id)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert sorted(take_all(url)) == sorted(ids + [f"{name}-{n}" for name in "ab" for n in range(20)])


def fork(work: object) -> int:
    """Run it in a child as web servers make them, by os.fork; the child ends with 0 if it raised nothing."""
    if pid := os.fork():
        return pid
    try:
        work()  # type: ignore[operator]
        os._exit(0)
    finally:
        os._exit(1)


@pytest.fixture
def worker(url: str, tmp_path: Path) -> Iterator[Path]:
    """A real worker with one process; gives its log."""
    log = tmp_path / "worker.log"
    command = [sys.executable, "-m", "celery", "-A", "proj", "worker", "-c", "1", "-l", "INFO", "-n", "w@%h"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=os.environ | {"CELERY_BROKER_URL": url}, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        wait_for(lambda: "ready." in log.read_text(), "the worker", log=log)
        yield log
    finally:
        process.terminate()
        process.wait(20)


def test_a_waiting_task_does_not_hold_a_worker_and_results_keep_working(url: str, worker: Path) -> None:
    app = application(url, publish_timeout=PATIENCE)
    task = app.tasks["proj.tasks.fake_work"]
    late = task.apply_async(("late",), countdown=3)
    assert task.delay("at once.").get(timeout=10) == 1
    assert not late.ready()
    assert chain(task.si("."), task.si("..")).apply_async().get(timeout=10) == 2
    assert late.get(timeout=10) == 0
    assert app.control.ping(timeout=2)
