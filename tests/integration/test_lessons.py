"""The lessons of the tutorial, each with the proof that it needs our setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from signal import SIGINT, SIGKILL

import psutil
import pytest

from proj.broker import Node, free_port
from proj.celery import app
from proj.processes import Worker
from proj.proxy import Proxy
from proj.tasks import fake_work
from tests.integration.conftest import DONE, Broker, done, forget_connections, received, wait_until_done
from tests.waiting import ensure_not_for_a_while, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.lesson]

Send = Callable[[str], str]
StartWorker = Callable[..., Worker]
StartWorkers = Callable[..., list[Worker]]


def pool_process(worker: Worker) -> psutil.Process:
    return wait_for(lambda: psutil.Process(worker.pid).children(), "a pool process", log=worker.log)[0]


# --- Round-robin dispatch ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
def test_round_robin(count: int, start_workers: StartWorkers, send: Send) -> None:
    workers = start_workers(count)
    messages = [f"Message {number}." for number in range(2 * count)]
    for message in messages:
        send(message)
    wait_until_done(messages, *workers)
    assert [len(received(worker)) for worker in workers] == [2] * count
    # A round: each of the first messages went to another worker.
    assert {received(worker)[0] for worker in workers} == set(messages[:count])


# --- Acknowledgement ---------------------------------------------------------------------------------------


def kill_everything(worker: Worker) -> None:
    worker.signal_all(SIGKILL)


def kill_main_process(worker: Worker) -> None:
    worker.signal(SIGKILL)


def kill_pool_process(worker: Worker) -> None:
    pool_process(worker).kill()


def press_ctrl_c_twice(worker: Worker) -> None:
    worker.signal_all(SIGINT)
    wait_for(lambda: "Warm shutdown" in worker.text(), "the first Ctrl+C to be heard", log=worker.log)
    worker.signal_all(SIGINT)


def busy_and_free(workers: list[Worker], send: Send, message: str = "Important..") -> tuple[Worker, Worker]:
    """Send a message; return the worker that has begun it, and the other one."""
    send(message)
    busy = wait_for(lambda: [w for w in workers if received(w)], "a worker to begin", log=workers[0].log)[0]
    return busy, next(worker for worker in workers if worker is not busy)


@pytest.mark.parametrize("kill", [kill_everything, kill_main_process, kill_pool_process, press_ctrl_c_twice])
def test_message_of_a_killed_worker_is_done_by_another(
    kill: Callable[[Worker], None], start_workers: StartWorkers, send: Send, broker: Broker
) -> None:
    workers = start_workers(2)
    busy, free = busy_and_free(workers, send)
    kill(busy)
    # A worker whose pool process was killed lives on and may get its message back.
    wait_until_done(["Important.."], *(workers if kill is kill_pool_process else [free]))
    assert len(received(busy)) + len(received(free)) == 2
    assert broker.ready() == 0


def test_one_ctrl_c_lets_the_work_be_finished(start_worker: StartWorker, send: Send, broker: Broker) -> None:
    worker = start_worker()
    send("Important..")
    wait_for(lambda: received(worker), "the work to begin", log=worker.log)
    worker.signal_all(SIGINT)
    wait_for(lambda: not worker.running, "the worker to end", log=worker.log)
    assert done(worker) == ["Important.."]
    assert broker.ready() == 0


def acknowledged(worker: Worker) -> list[str]:
    """The messages that a worker runs and has acknowledged."""
    active = app.control.inspect([worker.name], timeout=2, limit=1).active()
    return [task["id"] for task in active[worker.name] if task["acknowledged"]]


@pytest.mark.parametrize(
    ("kill", "setting"),
    [
        (kill_main_process, "task.acks_late=False"),
        (kill_pool_process, "task.reject_on_worker_lost=False"),
    ],
)
def test_without_the_setting_a_killed_worker_loses_its_message(
    kill: Callable[[Worker], None], setting: str, start_workers: StartWorkers, send: Send, broker: Broker
) -> None:
    # Longer than the look at the other worker: a pool process without its main process works on.
    busy, free = busy_and_free(start_workers(2, "--", setting), send, "Important......")
    if kill is kill_main_process:
        # The pool process says that it has begun before the main process acknowledges.
        wait_for(lambda: acknowledged(busy), "the early acknowledgement", log=busy.log)
    kill(busy)
    ensure_not_for_a_while(lambda: received(free), "the message to come back", log=free.log)
    assert broker.ready() == 0
    assert not done(busy)


@pytest.mark.parametrize(
    ("options", "runs_to_the_end"),
    [((), 1), (("--", "worker.cancel_long_running_tasks_on_connection_loss=False"), 2)],
    ids=["ours", "stock"],
)
def test_lost_connection_stops_the_run_that_can_no_longer_be_acknowledged(
    options: tuple[str, ...], runs_to_the_end: int, start_worker: StartWorker, send: Send, broker: Broker
) -> None:
    with Proxy(broker.node.port) as proxy:
        worker = start_worker(*options, url=broker.url.replace(str(broker.node.port), str(proxy.port)))
        send("Important...")
        wait_for(lambda: received(worker), "the work to begin", log=worker.log)
        proxy.cut()
        wait_for(lambda: len(received(worker)) == 2, "the message to be redelivered", log=worker.log)
        second = lambda: worker.text().rpartition("[x] Received")[2]  # noqa: E731
        wait_for(lambda: DONE.search(second()), "its second run to end", log=worker.log)
        assert done(worker) == ["Important..."] * runs_to_the_end


# --- Durability --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [Node.kill, Node.stop])
def test_queue_and_messages_survive_the_broker(
    end: Callable[[Node], None], own_node: Node, start_worker: StartWorker, monkeypatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", own_node.amqp_url)
    forget_connections()
    # A queue in use, not one declared milliseconds ago: RabbitMQ itself forgets such a one (docs/faults.md).
    start_worker(url=own_node.amqp_url).stop()
    messages = [f"Message {number}" for number in range(5)]
    for message in messages:
        fake_work.apply_async((message,), ignore_result=True)
    end(own_node)
    own_node.start()
    worker = start_worker(url=own_node.amqp_url)
    wait_until_done(messages, worker)
    forget_connections()


def test_message_is_persistent(send: Send, broker: Broker) -> None:
    send("Hello")
    with broker.pika() as connection:
        _, properties, _ = connection.channel().basic_get("task_queue", auto_ack=True)
    assert properties.delivery_mode == 2


def test_publishes_are_confirmed(send: Send, broker: Broker) -> None:
    send("Hello")

    def confirmed() -> list[bool]:
        return [c["confirm"] for c in broker.management.channels() if c.get("vhost") == broker.vhost]

    wait_for(lambda: confirmed() == [True], "the publishing channel to show, with confirms")


def test_worker_waits_for_a_broker_that_comes_later(broker: Broker, start_worker: StartWorker) -> None:
    port = free_port()
    worker = start_worker(url=broker.url.replace(str(broker.node.port), str(port)), ready=False)
    wait_for(lambda: "Cannot connect" in worker.text(), "the worker to find no broker", log=worker.log)
    with Proxy(broker.node.port, port):
        worker.wait_until_ready(60)
    assert "Deprecat" not in worker.text()


# --- Fair dispatch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--prefetch-multiplier", "4")], ids=["ours", "stock"])
def test_light_messages_do_not_wait_behind_a_heavy_one(
    options: tuple[str, ...], start_workers: StartWorkers, send: Send
) -> None:
    workers = start_workers(2, *options)
    messages = ["heavy....", *(f"light {number}" for number in range(5))]
    for message in messages:
        send(message)
    wait_until_done(messages, *workers)
    with_the_heavy_one = next(received(worker) for worker in workers if "heavy...." in received(worker))
    # With Celery's multiplier of 4 some lights lie, prefetched, with the worker that has the heavy one.
    assert (with_the_heavy_one == ["heavy...."]) is (not options)


# --- Several shells ----------------------------------------------------------------------------------------


def test_plain_workers_in_several_shells_have_names_of_their_own(
    start_workers: StartWorkers, cli: Callable[..., str]
) -> None:
    workers = start_workers(3)
    names = {worker.name for worker in workers}
    assert len(names) == 3
    status = cli("status")
    assert all(f"{name}: OK" in status for name in names), status
    assert "3 nodes online" in status


@pytest.mark.parametrize("how", ["-n", "CELERY_WORKER_HOSTNAME"])
def test_a_given_name_wins(how: str, start_worker: StartWorker) -> None:
    given = "mine@%h"
    worker = start_worker("-n", given) if how == "-n" else start_worker(**{how: given})
    assert worker.name.startswith("mine@")


def test_worker_says_what_the_tutorials_worker_says(start_worker: StartWorker, send: Send) -> None:
    worker = start_worker()
    uuid = send("Hello")
    wait_until_done(["Hello"], worker)
    lines = [line.partition("] ")[2] for line in worker.text().splitlines() if "/" in line and "[x]" in line]
    assert lines == [f"[x] Received 'Hello' (proj.tasks.fake_work[{uuid}])", f"[x] Done (proj.tasks.fake_work[{uuid}])"]
    assert "[*] Waiting for messages. To exit press CTRL+C" in worker.text()
    # Celery's own lines stay away until somebody asks for them with -l INFO.
    assert "succeeded in" not in worker.text()


# --- What else a setting promises ---------------------------------------------------------------------------


def test_heartbeat_is_ten_seconds(start_worker: StartWorker, broker: Broker) -> None:
    start_worker()

    def heartbeats() -> Counter[int]:
        return Counter(c["timeout"] for c in broker.management.connections() if c.get("vhost") == broker.vhost)

    assert wait_for(lambda: heartbeats()[10], "a connection with a heartbeat of 10 s")


def test_control_queue_outlives_a_half_open_connection(start_worker: StartWorker, broker: Broker) -> None:
    worker = start_worker()
    queue = wait_for(lambda: broker.queue(f"{worker.name}.celery.pidbox"), "the control queue to show")
    assert (queue["durable"], queue["exclusive"]) == (True, False)


def test_countdown_leaves_the_worker_free(start_worker: StartWorker, send: Send) -> None:
    worker = start_worker()
    fake_work.apply_async(("later",), countdown=2, ignore_result=True)
    send("now")
    wait_until_done(["now", "later"], worker)
    assert received(worker) == ["now", "later"]


def test_queue_named_on_the_command_line_is_as_safe(start_worker: StartWorker, broker: Broker) -> None:
    start_worker("-Q", "other")
    assert broker.queue("other")["type"] == "quorum"
    # Delayed delivery needs a topic exchange for this queue too.
    assert broker.exchange("other")["type"] == "topic"


def declare_as_the_tutorial_does(broker: Broker, **arguments: object) -> None:
    with broker.pika() as connection:
        connection.channel().queue_declare("task_queue", durable=True, **arguments)


def test_tutorials_own_clients_can_declare_the_queue(start_worker: StartWorker, broker: Broker) -> None:
    declare_as_the_tutorial_does(broker, arguments={"x-queue-type": "quorum"})
    start_worker()
    declare_as_the_tutorial_does(broker, arguments={"x-queue-type": "quorum"})


def test_older_tutorials_own_clients_can_declare_the_queue(start_worker: StartWorker, broker: Broker) -> None:
    declare_as_the_tutorial_does(broker)
    start_worker()
    declare_as_the_tutorial_does(broker)


def test_unread_results_go_after_an_hour(broker: Broker, repl: Callable[[str], str]) -> None:
    repl("from proj.tasks import fake_work; fake_work.delay('Hello')")

    def replies() -> list[int]:
        queues = broker.management.queues(broker.vhost)
        return [q["arguments"]["x-expires"] for q in queues if "x-expires" in q["arguments"]]

    assert wait_for(replies, "the reply queue to show") == [3600_000]


def test_every_task_is_seen_from_the_first_one_on(start_worker: StartWorker, send: Send, broker: Broker) -> None:
    seen: set[str] = set()
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": lambda event: seen.add(event["type"])})
        with receiver.consumer_context(wakeup=False) as (consuming, _, _):
            start_worker()
            send("Hello")

            def drained() -> bool:
                with suppress(TimeoutError):
                    consuming.drain_events(timeout=0.1)
                return "task-succeeded" in seen

            wait_for(drained, "the task to succeed")
    assert {"task-sent", "task-received", "task-started", "task-succeeded"} <= seen
