"""Histories: their lines, the runs in them, and where Celery's events become records."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proj.history import (
    KINDS,
    Attempted,
    BadHistory,
    Confirmed,
    Failed,
    Finished,
    Parked,
    QueueRead,
    Received,
    Record,
    Redelivered,
    Requeued,
    Retried,
    Started,
    WorkerLost,
    WorkerStopped,
    WorkerUp,
    read,
    words,
    write,
)
from proj.recorder import Recorder
from proj.runs import Run, Runs

DOCS = Path(__file__).parent.parent / "docs" / "history.md"
RECORDS = st.one_of([st.from_type(kind) for kind in KINDS.values()]).filter(
    # JSON has neither, and no clock shows them.
    lambda record: all(not isinstance(v, float) or abs(v) < 1e10 for v in vars(record).values())
)


# --- Lines --------------------------------------------------------------------------------------------------


def test_a_line_is_readable_and_leaves_out_what_says_nothing() -> None:
    assert Started(at=12.3456789, id="a1", message="Hello...", worker="w1@h").line() == (
        '{"at": 12.345679, "what": "started", "id": "a1", "message": "Hello...", "worker": "w1@h"}\n'
    )


@given(RECORDS)
def test_every_record_survives_its_line(record: Record) -> None:
    kind = KINDS[record.what]
    back = kind.of(json.loads(record.line()))
    for field in fields(kind):
        value = getattr(record, field.name)
        expected = pytest.approx(value, abs=1e-6) if isinstance(value, float) else value
        assert getattr(back, field.name) == expected


def test_a_message_that_utf_8_cannot_say_survives_a_file(tmp_path: Path) -> None:
    record = Attempted(at=1, id="a", message="caf\u00e9 \udc80")
    write(tmp_path / "h", [record])
    assert read(tmp_path / "h").records == (record,)
    assert "café" in (tmp_path / "h").read_text()


def test_history_is_read_in_the_order_in_which_things_happened(tmp_path: Path) -> None:
    late, early = Finished(at=2, id="a"), Started(at=1, id="a")
    write(tmp_path / "h", [late, early])
    assert read(tmp_path / "h").records == (early, late)


def test_a_half_written_last_line_is_passed_over_and_counted(tmp_path: Path) -> None:
    (tmp_path / "h").write_text(Started(at=1, id="a").line() + Finished(at=2, id="a").line()[:20])
    history = read(tmp_path / "h")
    assert history.records == (Started(at=1, id="a"),)
    assert history.torn == 1


def test_unknown_fields_and_kinds_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "h").write_text(
        '{"at": 1, "what": "confirmed", "id": "a", "colour": "red"}\n{"at": 2, "what": "sung", "id": "a"}\n'
    )
    history = read(tmp_path / "h")
    assert history.records == (Confirmed(at=1, id="a"),)
    assert (history.torn, history.unknown) == (0, 1)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("nonsense", "Expecting value"),
        ("[]", 'expected an object with "at" and "what"'),
        ('{"at": 1, "what": "started"}', "'started' has no id"),
        ('{"at": "noon", "what": "started", "id": "a"}', "expected at to be float, got 'noon'"),
        ('{"at": 1, "what": "queue read", "queue": "q", "ready": true}', "expected ready to be int or null, got True"),
    ],
)
def test_a_line_that_is_no_record_is_named(line: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "h").write_text(Started(at=1, id="a").line() + line + "\n")
    with pytest.raises(BadHistory, match=r"line 2, is no record of a history: " + re.escape(why)):
        read(tmp_path / "h")


def test_two_histories_make_one(tmp_path: Path) -> None:
    write(tmp_path / "publisher", [Attempted(at=1, id="a"), Confirmed(at=3, id="a")])
    write(tmp_path / "ledger", [Started(at=2, id="a")])
    both = read(tmp_path / "publisher") + read(tmp_path / "ledger")
    assert [record.what for record in both.records] == ["attempted", "started", "confirmed"]


def test_every_kind_and_field_is_documented() -> None:
    rows = dict(re.findall(r"^\| `([a-z ]+)` \| (.*?) \|", DOCS.read_text(), re.MULTILINE))
    rows.pop("what")
    assert rows.keys() == KINDS.keys()
    for what, kind in KINDS.items():
        assert re.findall(r"`(\w+)`", rows[what]) == [field.name for field in fields(kind)[1:]], what


def test_words_of_a_message() -> None:
    assert words("proj.tasks.fake_work", ("Hello...",), {}) == "Hello..."
    assert words("add", (1, "b"), {"c": 2}) == "add(1, 'b', c=2)"


# --- Runs ---------------------------------------------------------------------------------------------------


def start(at: float, worker: str = "w1", task: str = "a", **more: Any) -> Started:
    return Started(at=at, id=task, worker=worker, **more)


def outcomes(*records: Record) -> list[tuple[str, str, float | None, int]]:
    return [(run.worker, run.outcome, run.ended, run.attempt) for run in Runs(records).all]


@pytest.mark.parametrize(
    ("end", "outcome"),
    [(Finished, "finished"), (Failed, "failed"), (Retried, "retried"), (Requeued, "requeued")],
)
def test_a_run_ends_by_its_workers_word(end: type[Finished], outcome: str) -> None:
    assert outcomes(start(1), end(at=2, id="a", worker="w1")) == [("w1", outcome, 2, 1)]


@pytest.mark.parametrize(
    "sign",
    [
        Received(at=3, id="a", worker="w2"),
        Redelivered(at=3, id="a", worker="w1", deliveries=2),
        WorkerLost(at=3, worker="w1"),
        WorkerStopped(at=3, worker="w1"),
        WorkerUp(at=3, worker="w1"),
        Parked(at=3, id="a", worker="w2", cause="poison"),
    ],
    ids=lambda sign: sign.what,
)
def test_a_run_is_lost_by_every_sign_of_it(sign: Record) -> None:
    assert outcomes(start(1), sign) == [("w1", "lost", 3, 1)]


@pytest.mark.parametrize(
    "sign",
    [
        WorkerUp(at=3, worker="w1", heard=True),
        WorkerLost(at=3, worker="w2"),
        Received(at=3, id="b", worker="w2"),
        Finished(at=3, id="a", worker="w2"),
        # Read in the dead queue long after: says nothing about when the run ended.
        Parked(at=3, id="a", worker="w1", cause="failed", queue="task_queue.dead"),
    ],
)
def test_a_run_goes_on_through_what_does_not_concern_it(sign: Record) -> None:
    assert outcomes(start(1), sign)[0] == ("w1", "running", None, 1)


def test_a_second_run_is_the_second_attempt() -> None:
    assert outcomes(start(1), WorkerLost(at=2, worker="w1"), start(3, "w2"), Finished(at=4, id="a", worker="w2")) == [
        ("w1", "lost", 2, 1),
        ("w2", "finished", 4, 2),
    ]


def test_a_run_that_ends_after_all_ended_then() -> None:
    frozen = [start(1), WorkerLost(at=2, worker="w1"), start(3, "w2"), Finished(at=9, id="a", worker="w1")]
    assert outcomes(*frozen) == [("w1", "finished", 9, 1), ("w2", "running", None, 2)]


def test_two_processes_of_one_worker_are_kept_apart() -> None:
    first, second = start(1, pid=10), start(3, pid=11)
    assert outcomes(first, second, Finished(at=9, id="a", worker="w1", pid=10)) == [
        ("w1", "finished", 9, 1),
        ("w1", "running", None, 2),
    ]


def test_the_broker_knows_of_deliveries_that_we_did_not_see() -> None:
    assert outcomes(start(1, deliveries=4, retries=1)) == [("w1", "running", None, 5)]


def test_a_run_whose_start_was_not_seen_is_known_by_its_end() -> None:
    (run,) = Runs([Finished(at=9, id="a", worker="w1", seconds=3)]).all
    assert (run.started, run.ended, run.outcome) == (6, 9, "finished")


def test_old_runs_are_forgotten_and_those_under_way_kept() -> None:
    runs = Runs([start(1), Finished(at=2, id="a", worker="w1"), start(1, task="b"), start(5, "w2", "c")])
    runs.forget(3)
    assert [run.id for run in runs.all] == ["b", "c"]
    assert runs.of("a") == []


@given(
    st.lists(
        st.one_of(
            st.builds(
                kind,
                at=st.integers(0, 50),
                id=st.sampled_from("ab"),
                worker=st.sampled_from(["w1", "w2"]),
                pid=st.sampled_from([1, 2, None]),
            )
            for kind in (Started, Received, Finished, Failed, Requeued, Redelivered)
        )
        | st.builds(WorkerLost, at=st.integers(0, 50), worker=st.sampled_from(["w1", "w2"]))
    )
)
def test_whatever_happened_the_runs_add_up(records: list[Record]) -> None:
    records.sort(key=lambda record: record.at)
    runs = Runs(records)
    starts = [record for record in records if isinstance(record, Started)]
    seen = [run for run in runs.all if not (run.outcome == "finished" and run.started == run.ended)]
    assert len(seen) <= len(starts) <= len(runs.all)
    assert all((run.ended is None) == (run.outcome == "running") for run in runs.all)
    assert all(run.ended is None or run.ended >= run.started for run in runs.all)
    running: list[Run] = [run for run in runs.all if run.outcome == "running"]
    assert sorted(map(id, running)) == sorted(id(run) for worker in ("w1", "w2") for run in runs.running(worker))
    # One message is in one pair of hands, as far as anyone can tell.
    assert len({run.id for run in running}) == len(running)


# --- Celery's events ------------------------------------------------------------------------------------------


def event(kind: str, at: float = 100.0, **more: Any) -> dict[str, Any]:
    return {"type": kind, "timestamp": at, "hostname": "w1@h", "pid": 7, **more}


RUN = {"uuid": "a", "name": "proj.tasks.fake_work", "args": "('Hello...',)", "kwargs": "{}"}


def recorded(*events: dict[str, Any]) -> list[Record]:
    """What a recorder that already knows the worker makes of events."""
    recorder = Recorder()
    list(recorder.records(event("worker-online", 1.0), 1.0))
    return [record for each in events for record in recorder.records(each, each["timestamp"])]


OF_A_RUN = {"at": 100.0, "id": "a", "message": "Hello...", "worker": "w1@h", "pid": 7}


@pytest.mark.parametrize(
    ("kind", "more", "record"),
    [
        ("task-started", {}, Started(**OF_A_RUN)),
        ("task-succeeded", {"runtime": 3.0, "result": "3"}, Finished(**OF_A_RUN, seconds=3.0)),
        ("task-failed", {"exception": "ValueError('x')"}, Failed(**OF_A_RUN, reason="ValueError('x')")),
        ("task-retried", {"exception": "OSError()"}, Retried(**OF_A_RUN, reason="OSError()")),
        ("task-revoked", {"expired": True}, Failed(**OF_A_RUN, reason="expired")),
        ("task-revoked", {"expired": False}, Failed(**OF_A_RUN, reason="revoked")),
        ("task-rejected", {"requeue": True}, Requeued(**OF_A_RUN)),
        ("task-rejected", {"requeue": False}, Failed(**OF_A_RUN, reason="rejected")),
        ("task-cancelled", {}, Requeued(**OF_A_RUN, reason="cancelled: its connection was lost")),
        ("task-redelivered", {"attempt": 2}, Redelivered(**OF_A_RUN, deliveries=2)),
        ("task-parked", {"cause": "poison", "reason": "why"}, Parked(**OF_A_RUN, cause="poison", reason="why")),
    ],
)
def test_an_event_is_a_record_with_the_words_of_its_message(kind: str, more: dict[str, Any], record: Record) -> None:
    received, then = recorded(event("task-received", **RUN), event(kind, uuid="a", **more))
    assert received == Received(**OF_A_RUN)
    assert then == record


def test_events_without_a_word_in_a_history_are_passed_over() -> None:
    own = event("task-custom", uuid="a", hostname="client@h"), event("task-custom"), event("something-else")
    assert recorded(*own, event("worker-heartbeat")) == []


def test_a_sent_message_is_attempted_and_its_sender_is_no_worker() -> None:
    sent = event("task-sent", hostname="gen12@h", **RUN)
    assert recorded(sent) == [Attempted(at=100.0, id="a", message="Hello...")]


def test_arguments_that_celery_shortened_are_shown_as_they_are() -> None:
    (received,) = recorded(event("task-received", uuid="a", name="add", args="('aaa', ...", kwargs="{}"))
    assert isinstance(received, Received)
    assert received.message == "add('aaa', ..."


def test_a_silent_worker_is_lost_once_since_its_last_sign_of_life() -> None:
    recorder = Recorder()
    assert list(recorder.records(event("worker-heartbeat", 99.5, freq=2.0), 100)) == [
        WorkerUp(at=99.5, worker="w1@h", pid=7, heard=True)
    ]
    assert list(recorder.silent(103.9)) == []
    assert list(recorder.silent(104.1)) == [WorkerLost(at=100, worker="w1@h", pid=7, reason="no heartbeat for 4 s")]
    assert list(recorder.silent(200)) == []


def test_a_worker_heard_again_is_up_again() -> None:
    recorder = Recorder()
    list(recorder.records(event("worker-online"), 100))
    assert list(recorder.silent(110))
    assert list(recorder.records(event("worker-heartbeat", 111), 111)) == [
        WorkerUp(at=111, worker="w1@h", pid=7, heard=True)
    ]


def test_a_worker_that_said_goodbye_is_not_lost() -> None:
    recorder = Recorder()
    list(recorder.records(event("worker-online"), 100))
    assert list(recorder.records(event("worker-offline", 101), 101)) == [WorkerStopped(at=101, worker="w1@h", pid=7)]
    assert list(recorder.silent(200)) == []


def test_after_our_own_deafness_workers_get_their_time_again() -> None:
    recorder = Recorder()
    list(recorder.records(event("worker-online"), 100))
    recorder.was_deaf(120)
    assert list(recorder.silent(123)) == []
    assert list(recorder.silent(125))


def test_a_heartbeat_says_how_often_it_comes() -> None:
    recorder = Recorder()
    list(recorder.records(event("worker-heartbeat", freq=10.0), 100))
    list(recorder.records(event("task-started", uuid="a"), 101))
    assert list(recorder.silent(115)) == []


def test_a_queue_that_is_not_there_is_unknown_in_a_line() -> None:
    assert json.loads(QueueRead(at=1, queue="q", ready=0).line()) == {
        "at": 1,
        "what": "queue read",
        "queue": "q",
        "ready": 0,
    }
