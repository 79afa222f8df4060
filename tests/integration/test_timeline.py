"""The timeline and the ledger on real workers: what they do, and what becomes of it when they are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGQUIT, SIGSTOP
from threading import Event, Thread

import pytest
from celery import Celery

from proj import recorder
from proj.broker import Node
from proj.history import (
    Attempted,
    Failed,
    Finished,
    History,
    QueueRead,
    Received,
    Record,
    Started,
    WorkerLost,
    WorkerStopped,
    WorkerUp,
    read,
)
from proj.processes import Process, Worker
from proj.runs import Runs
from tests.integration.conftest import Broker, received
from tests.waiting import ensure_not_for_a_while, wait_for

pytestmark = pytest.mark.broker

Send = Callable[[str], str]
StartWorker = Callable[..., Worker]


@pytest.fixture
def recording(broker: Broker, tmp_path: Path) -> Iterator[Callable[..., History]]:
    """`celery -A proj timeline --record` on this test's broker: what it has recorded so far."""
    path, log = tmp_path / "recording.jsonl", tmp_path / "timeline.log"
    command = ("timeline", "--record", str(path))
    with Process(*command, log=log, environment=broker.environment) as process:
        # It listens before its first look at the queue is written down.
        process.wait_until(lambda: path.exists() and bool(listeners(broker.node, broker.vhost)))
        yield lambda: read(path)
        process.check()


def listeners(node: Node, vhost: str = "/") -> list[str]:
    """Those who listen to events."""
    return [queue["name"] for queue in node.management.queues(vhost) if queue["name"].startswith("celeryev.")]


def of(history: History, kind: type[Record], **fields: object) -> list[Record]:
    """The records of a kind with these fields."""
    found = [record for record in history.records if isinstance(record, kind)]
    return [record for record in found if all(getattr(record, name) == value for name, value in fields.items())]


def test_what_happens_to_a_message_is_recorded(
    recording: Callable[[], History], start_worker: StartWorker, send: Send
) -> None:
    worker = start_worker()
    uuid = send("Recorded.")
    wait_for(lambda: of(recording(), Finished, id=uuid), "the end of the task in the recording", log=worker.log)
    for kind in (Attempted, Received, Started, Finished):
        (record,) = of(recording(), kind, id=uuid)
        assert record.message == "Recorded."
    (finished,) = of(recording(), Finished)
    assert finished.worker == worker.name
    assert finished.seconds == pytest.approx(1, abs=0.5)
    assert of(recording(), WorkerUp, worker=worker.name)
    wait_for(lambda: of(recording(), QueueRead, queue="task_queue", ready=0), "a look at the queue")
    worker.stop()
    wait_for(lambda: of(recording(), WorkerStopped, worker=worker.name), "the worker's goodbye", log=worker.log)


def test_a_killed_worker_and_the_second_run_are_seen(
    recording: Callable[[], History], start_workers: Callable[[int], list[Worker]], send: Send
) -> None:
    workers = start_workers(2)
    uuid = send("Killed...")
    busy = wait_for(lambda: [w for w in workers if received(w)], "a worker to begin", log=workers[0].log)[0]
    other = next(worker for worker in workers if worker is not busy)
    wait_for(lambda: of(recording(), Started, id=uuid), "its start in the recording")
    busy.signal_all(SIGKILL)
    wait_for(lambda: of(recording(), Finished, id=uuid), "the second run's end", log=other.log)
    wait_for(lambda: of(recording(), WorkerLost, worker=busy.name), "the loss of the worker")
    first, second = Runs(recording().records).of(uuid)
    assert (first.worker, first.outcome, first.attempt) == (busy.name, "lost", 1)
    assert (second.worker, second.outcome, second.attempt) == (other.name, "finished", 2)
    assert not of(recording(), WorkerLost, worker=other.name)


def test_a_frozen_worker_is_lost_and_comes_back(recording: Callable[[], History], start_worker: StartWorker) -> None:
    worker = start_worker()
    wait_for(lambda: of(recording(), WorkerUp, worker=worker.name), "the worker", log=worker.log)
    worker.signal_all(SIGSTOP)
    wait_for(lambda: of(recording(), WorkerLost, worker=worker.name), "the worker to count as lost", 10)
    worker.signal_all(SIGCONT)
    wait_for(lambda: of(recording(), WorkerUp, worker=worker.name, heard=True), "the worker to be heard again", 10)


def test_a_run_that_began_before_is_seen(start_worker: StartWorker, send: Send, broker: Broker, tmp_path: Path) -> None:
    worker = start_worker()
    # Long enough for a slow start of the timeline; the worker is killed in the end.
    message = "Long" + 40 * "."
    uuid = send(message)
    wait_for(lambda: received(worker), "the work to begin", log=worker.log)
    path = tmp_path / "late.jsonl"
    command = ("timeline", "--record", str(path))
    with Process(*command, log=tmp_path / "late.log", environment=broker.environment):
        (started,) = wait_for(lambda: of(read(path), Started, id=uuid), "the run in the recording")
    assert (started.message, started.worker) == (message, worker.name)


def test_a_worker_in_another_time_zone_is_not_hours_away(
    recording: Callable[[], History], start_worker: StartWorker, send: Send
) -> None:
    worker = start_worker(TZ="Asia/Tokyo")
    uuid = send("Elsewhere")
    (finished,) = wait_for(lambda: of(recording(), Finished, id=uuid), "its end", log=worker.log)
    (attempted,) = of(recording(), Attempted, id=uuid)
    # A quick task may end before its publisher has told that it was sent.
    assert abs(finished.at - attempted.at) < 30


def test_a_quiet_connection_is_kept(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    # In the same proportion, so that a connection without heartbeats ends within the test.
    monkeypatch.setattr(recorder, "HEARTBEAT", 1)
    monkeypatch.setattr(recorder, "DRAIN", 0.1)
    states: list[str] = []
    stop = Event()
    app = Celery("watcher", broker=broker.url)
    listener = Thread(target=recorder.listen, args=(app, states.append, states.append, stop))
    listener.start()
    try:
        wait_for(lambda: states, "the connection")
        ensure_not_for_a_while(lambda: any(states), "the connection to end", 5)
    finally:
        stop.set()
        listener.join(10)
    assert not listener.is_alive()


def test_ctrl_c_ends_it_and_leaves_a_picture(
    broker: Broker, start_worker: StartWorker, send: Send, tmp_path: Path
) -> None:
    worker = start_worker()
    path, picture = tmp_path / "h.jsonl", tmp_path / "h.svg"
    command = ("timeline", "--record", str(path), "--picture", str(picture))
    process = Process(*command, log=tmp_path / "timeline.log", environment=broker.environment)
    try:
        wait_for(lambda: of(read(path), WorkerUp, worker=worker.name), "the worker in the recording", log=process.log)
        uuid = send("Drawn")
        wait_for(lambda: of(read(path), Finished, id=uuid), "the end of the task", log=process.log)
        process.signal(SIGINT)
        wait_for(lambda: not process.running, "the timeline to end", log=process.log)
    finally:
        process.kill()
    assert process.status == 0, process.text()
    assert f"finished 'Drawn' {worker.name}" in process.text()
    assert "<svg" in picture.read_text()


def test_it_outlives_a_restart_of_the_broker(own_node: Node, tmp_path: Path) -> None:
    path, log = tmp_path / "h.jsonl", tmp_path / "timeline.log"
    environment = {"CELERY_BROKER_URL": own_node.amqp_url, "PROJ_MANAGEMENT_URL": own_node.management_url}
    with (
        Process("timeline", "--record", str(path), log=log, environment=environment) as process,
        Worker(broker=own_node.amqp_url, log=tmp_path / "worker.log") as worker,
    ):
        worker.wait_until_ready()
        wait_for(lambda: of(read(path), WorkerUp, worker=worker.name), "the worker", log=log)
        # Nobody to take the message away before it was counted.
        worker.kill()
        own_node.kill()
        own_node.start()
        wait_for(lambda: listeners(own_node), "the timeline to listen again", log=log)
        send_to(own_node.amqp_url, "After all")
        wait_for(lambda: of(read(path), Attempted, message="After all"), "events to flow again", log=log)
        wait_for(lambda: of(read(path), QueueRead, queue="task_queue", ready=1), "counts to flow again", log=log)
        process.check()


def send_to(url: str, message: str) -> None:
    program = f"from proj.tasks import fake_work; fake_work.delay({message!r})"
    environment = {**os.environ, "CELERY_BROKER_URL": url}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)


OTHER_APP = """
from celery import Celery
from kombu import Queue
app = Celery("other", broker={url!r})
app.conf.update(worker_send_task_events=True, broker_connection_retry_on_startup=True)
# Said, because the node's default is quorum, and RabbitMQ 3 and 4.0 refuse those Celery's global prefetch.
queue = Queue("other_queue", queue_arguments={{"x-queue-type": "classic"}})
app.conf.update(task_default_queue=queue.name, task_queues=[queue])

@app.task
def add(x, y=1):
    return x + y
"""


def test_any_celery_app_can_be_watched_and_keep_a_ledger(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(OTHER_APP.format(url=broker.url))
    path, ledger = tmp_path / "h.jsonl", tmp_path / "ledger.jsonl"
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "PROJ_LEDGER": str(ledger),
        "PROJ_MANAGEMENT_URL": broker.node.management_url,
    }
    celery = [sys.executable, "-m", "celery", "-A", "other"]
    with (tmp_path / "log").open("wb") as log:
        options = {"env": environment, "stdout": log, "stderr": log}
        processes = [
            subprocess.Popen([*celery, "timeline", "--record", str(path)], **options),
            subprocess.Popen([*celery, "worker", "-c", "1", "--include", "proj.ledger"], **options),
        ]
    try:
        wait_for(lambda: of(read(path), WorkerUp), "the worker", log=tmp_path / "log")
        call = "from other import add; add.delay(3, y=4)"
        subprocess.run([sys.executable, "-c", call], env=environment, check=True, timeout=60)
        (finished,) = wait_for(lambda: of(read(path), Finished), "the end of the task", log=tmp_path / "log")
        assert finished.message == "other.add(3, y=4)"
        wait_for(lambda: of(read(path), QueueRead, queue="other_queue", ready=0), "a look at its queue")
        (ours,) = of(read(ledger), Finished)
        assert (ours.id, ours.message, ours.worker) == (finished.id, finished.message, finished.worker)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)


# --- The ledger -------------------------------------------------------------------------------------------------


def test_the_ledger_survives_kill_9(start_worker: StartWorker, send: Send, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    options = ("--include", "proj.ledger")
    first = start_worker(*options, PROJ_LEDGER=str(path))
    uuid = send("Killed..")
    wait_for(lambda: of(read(path), Started, id=uuid), "the start in the ledger", log=first.log)
    first.signal_all(SIGKILL)
    second = start_worker(*options, PROJ_LEDGER=str(path))
    wait_for(lambda: of(read(path), Finished, id=uuid), "the end in the ledger", log=second.log)
    history = read(path)
    assert [(run.deliveries, run.worker) for run in of(history, Started)] == [(1, first.name), (2, second.name)]
    assert [run.outcome for run in Runs(history.records).of(uuid)] == ["lost", "finished"]
    assert len(of(history, WorkerUp)) == 2
    assert history.torn == 0
    second.stop()
    assert of(read(path), WorkerStopped, worker=second.name)


def test_the_ledger_says_how_a_task_failed(start_worker: StartWorker, send: Send, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    worker = start_worker("--include", "proj.ledger", PROJ_LEDGER=str(path))
    uuid = send(42)  # type: ignore[arg-type]
    (failed,) = wait_for(lambda: of(read(path), Failed, id=uuid), "the failure in the ledger", log=worker.log)
    assert failed.reason == "TypeError: expected message to be a string, got int: 42"
    assert failed.message == "proj.tasks.fake_work(42)"


def test_a_run_that_is_told_to_end_has_no_end(start_worker: StartWorker, send: Send, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    worker = start_worker("--include", "proj.ledger", PROJ_LEDGER=str(path))
    uuid = send("Interrupted.....")
    wait_for(lambda: of(read(path), Started, id=uuid), "the start in the ledger", log=worker.log)
    worker.signal_all(SIGQUIT)
    wait_for(lambda: not worker.running, "the worker to end", log=worker.log)
    history = read(path)
    assert [record.what for record in history.records if getattr(record, "id", "") == uuid] == ["started"]
    assert [run.outcome for run in Runs(history.records).of(uuid)] in (["running"], ["lost"])


def test_without_its_variable_the_ledger_writes_nothing(start_worker: StartWorker, send: Send, tmp_path: Path) -> None:
    worker = start_worker("--include", "proj.ledger", PROJ_LEDGER="")
    send("Nowhere")
    wait_for(lambda: received(worker), "the work to begin", log=worker.log)
    ensure_not_for_a_while(lambda: list(tmp_path.glob("*.jsonl")), "a ledger", 1)


def test_a_ledger_that_cannot_be_written_is_one_sentence(start_worker: StartWorker) -> None:
    worker = start_worker("--include", "proj.ledger", ready=False, PROJ_LEDGER="/nowhere/ledger.jsonl")
    wait_for(lambda: not worker.running, "the worker to refuse", log=worker.log)
    assert worker.status == 1
    assert "cannot write PROJ_LEDGER=/nowhere/ledger.jsonl: No such file or directory" in worker.text()
    assert "Traceback" not in worker.text()
