"""The checker on histories written by hand, lossy ones included."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proj.history import (
    Attempted,
    Confirmed,
    Drained,
    Failed,
    FaultHealed,
    FaultInjected,
    Finished,
    Indeterminate,
    Parked,
    QueueRead,
    Record,
    Refused,
    Requeued,
    Started,
    WorkerLost,
)
from proj.prove.checker import check

DEAD = "task_queue.dead"


def published(task: str, at: float = 1) -> list[Record]:
    return [Attempted(at=at, id=task), Confirmed(at=at + 0.1, id=task)]


def ran(task: str, at: float = 2, worker: str = "w1") -> list[Record]:
    return [Started(at=at, id=task, worker=worker), Finished(at=at + 1, id=task, worker=worker, seconds=1)]


def letter(task: str, at: float = 20) -> Parked:
    """A letter as it is read in the dead queue."""
    return Parked(at=at, id=task, cause="failed", queue=DEAD)


def fault(at: float = 5, healed: float = 6, proof: str = "process 12 is gone") -> list[Record]:
    return [FaultInjected(at=at, fault="kill_worker", proof=proof), FaultHealed(at=healed, fault="kill_worker")]


def end(dead: int | None = 0, ready: int | None = 0, unacknowledged: int = 0) -> list[Record]:
    read = QueueRead(at=19, queue="task_queue", ready=ready, unacknowledged=unacknowledged, dead=dead)
    return [Drained(at=18, queue="task_queue", seconds=6), read]


GOOD = [*published("a"), *published("b"), *ran("a"), *ran("b", 3), *fault(), *end()]


def test_a_good_run_is_valid() -> None:
    verdict = check(GOOD)
    assert (verdict.verdict, verdict.reason) == ("valid", "each of 2 confirmed messages finished or was parked")
    assert (verdict.attempted, verdict.confirmed, verdict.finished, verdict.parked) == (2, 2, 2, 0)
    assert not verdict.lost + verdict.unexpected + verdict.duplicated + verdict.recovered + verdict.rerun


# --- Invalid --------------------------------------------------------------------------------------------------


def test_a_confirmed_message_that_never_ended_is_lost() -> None:
    verdict = check([*GOOD, *published("gone")])
    assert verdict.lost == ("gone",)
    assert (verdict.verdict, verdict.reason) == (
        "invalid",
        "1 message was confirmed, and neither finished nor parked",
    )


@pytest.mark.parametrize(
    "trace",
    [
        [Started(at=2, id="c", worker="w1")],
        [Started(at=2, id="c", worker="w1"), Failed(at=3, id="c", worker="w1", reason="ValueError")],
        [Parked(at=3, id="c", worker="w1", cause="failed")],
    ],
    ids=["begun", "failed", "parked by a worker's word alone"],
)
def test_what_does_not_save_a_message(trace: list[Record]) -> None:
    assert check([*GOOD, *published("c"), *trace]).lost == ("c",)


def test_a_message_that_nobody_sent_is_unexpected() -> None:
    verdict = check([*GOOD, *ran("stranger")])
    assert verdict.unexpected == ("stranger",)
    assert verdict.verdict == "invalid"


def test_a_letter_that_nobody_sent_is_unexpected() -> None:
    assert check([*published("a"), *ran("a"), *fault(), *end(dead=1), letter("stranger")]).unexpected == ("stranger",)


def test_a_refused_message_that_ran_is_unexpected() -> None:
    refused = [Attempted(at=1, id="c"), Refused(at=1.1, id="c", reason="no such queue")]
    verdict = check([*GOOD, *refused, *ran("c")])
    assert verdict.unexpected == ("c",)
    assert verdict.recovered == ()


def test_a_loss_counts_though_the_fault_did_not_land() -> None:
    assert check([*published("a"), *fault(proof=""), *end()]).verdict == "invalid"


# --- Allowed, and never hidden ----------------------------------------------------------------------------------


def test_a_message_parked_is_not_lost() -> None:
    verdict = check([*GOOD[:-2], *published("c"), *end(dead=1), letter("c")])
    assert (verdict.verdict, verdict.parked, verdict.lost) == ("valid", 1, ())


def test_a_message_finished_twice_is_duplicated() -> None:
    verdict = check([*GOOD, *ran("a", 8, "w2")])
    assert (verdict.verdict, verdict.duplicated, verdict.rerun) == ("valid", ("a",), ("a",))
    assert verdict.finished == 2


def test_a_message_finished_and_parked_is_duplicated_not_lost() -> None:
    verdict = check([*GOOD[:-2], *end(dead=1), letter("a")])
    assert (verdict.verdict, verdict.duplicated, verdict.both) == ("valid", ("a",), ("a",))


def test_a_message_parked_twice_is_duplicated() -> None:
    verdict = check([*GOOD[:-2], *published("c"), *end(dead=2), letter("c"), letter("c")])
    assert (verdict.verdict, verdict.parked, verdict.duplicated, verdict.both) == ("valid", 1, ("c",), ())


@pytest.mark.parametrize(
    "outcome", [[], [Indeterminate(at=1.1, id="c", reason="timed out")]], ids=["publisher killed", "timed out"]
)
def test_a_message_of_unknown_fate_that_ran_is_recovered(outcome: list[Record]) -> None:
    verdict = check([*GOOD, Attempted(at=1, id="c"), *outcome, *ran("c")])
    assert (verdict.verdict, verdict.recovered, verdict.unexpected) == ("valid", ("c",), ())


def test_a_message_of_unknown_fate_that_never_ran_was_not_promised() -> None:
    verdict = check([*GOOD, Attempted(at=1, id="c"), Indeterminate(at=1.1, id="c")])
    assert (verdict.verdict, verdict.lost) == ("valid", ())


def test_a_message_refused_and_then_confirmed_under_its_id_is_expected() -> None:
    again = [Attempted(at=1, id="c"), Refused(at=1.1, id="c"), *published("c", 2)]
    assert check([*GOOD, *again, *ran("c", 3)]).unexpected == ()
    assert check([*GOOD, *again]).lost == ("c",)


def test_a_message_refused_once_and_once_of_unknown_fate_may_run() -> None:
    again = [Attempted(at=1, id="c"), Refused(at=1.1, id="c"), Attempted(at=2, id="c"), Indeterminate(at=3, id="c")]
    assert check([*GOOD, *again, *ran("c", 3)]).recovered == ("c",)


# --- Unknown ----------------------------------------------------------------------------------------------------


def without(kind: type[Record]) -> list[Record]:
    return [record for record in GOOD if not isinstance(record, kind)]


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        ([], "the history is empty: nothing was attempted"),
        (end(), "the history is empty: nothing was attempted"),
        (without(Drained), "the drain did not end: nobody saw the queue stay empty after the last message"),
        ([*GOOD, FaultHealed(at=18.5, fault="kill_worker")], "the drain did not end: nobody saw"),
        ([*GOOD, *published("late", 18.5)], "the drain did not end: nobody saw"),
        ([*GOOD, FaultInjected(at=18.5, fault="late", proof="yes")], "the drain did not end: nobody saw"),
        (without(QueueRead), "the queue was not read after the drain"),
        ([*GOOD[:-2], *(replace(r, at=37 - r.at) for r in end())], "the queue was not read after the drain"),
        ([*GOOD[:-2], *end(ready=None)], "the queue was not read after the drain"),
        ([*GOOD[:-2], *end(dead=None)], "the dead queue was never read"),
        ([*GOOD[:-2], *end(ready=1)], "the drain did not end: 1 ready and 0 unacknowledged in task_queue"),
        ([*GOOD[:-2], *end(unacknowledged=2)], "the drain did not end: 0 ready and 2 unacknowledged in task_queue"),
        ([*GOOD[:-2], *end(dead=1)], "the dead queue holds 1 letters, and 0 were read"),
        ([Attempted(at=1, id="a"), *fault(), *end()], "no publish was confirmed, so nothing was promised"),
        (without(FaultInjected), "no fault was injected"),
        ([*published("a"), *ran("a"), *fault(proof=""), *end()], "the fault kill_worker did not land"),
        (without(FaultHealed), "the fault kill_worker did not heal"),
    ],
)
def test_what_cannot_be_told_is_unknown(history: list[Record], reason: str) -> None:
    verdict = check(history)
    assert verdict.verdict == "unknown"
    assert verdict.reason.startswith(reason)


def test_of_two_faults_both_must_land_and_heal() -> None:
    second = FaultInjected(at=7, fault="pause_worker", target="w2", proof="")
    assert check([*GOOD, second]).reason == "the fault pause_worker did not land on w2"
    assert check([*GOOD, replace(second, proof="state T")]).reason == "the fault pause_worker did not heal"
    healed = FaultHealed(at=8, fault="pause_worker", target="w2")
    assert check([*GOOD, replace(second, proof="state T"), healed]).verdict == "valid"


# --- Seconds to recover -------------------------------------------------------------------------------------------


def unfinished(task: str = "a", at: float = 4.5, lost: float = 5) -> list[Record]:
    """A run that a fault cuts short."""
    return [Started(at=at, id=task, worker="w1"), WorkerLost(at=lost, worker="w1")]


RECOVERIES: dict[str, tuple[float | None, list[Record]]] = {
    "nothing was in its way: until it had healed": (1, [*published("a"), *ran("a"), *fault(5, 6)]),
    "nothing to heal and nothing in its way": (0, [*published("a"), *ran("a"), *fault(5, 5)]),
    "until the run that it cut short was done elsewhere": (
        4.5,
        [*published("a"), *unfinished(), *ran("a", 8.5, "w2"), *fault(5, 6)],
    ),
    "until work that was given back was done": (
        5,
        [*published("a"), Started(at=4, id="a"), Requeued(at=5.5, id="a"), *ran("a", 9), *fault(5, 6)],
    ),
    "until what had waited in the queue was done": (
        7,
        [*published("a"), *published("b"), *ran("a", 9), *ran("b", 11), *fault(5, 9)],
    ),
    "until what was published meanwhile was done": (6, [*published("a", 7), *ran("a", 10), *fault(5, 8)]),
    "what is published later is not its business": (3, [*published("a", 8.5), *ran("a", 12), *fault(5, 8)]),
    "a frozen run that ended first counts, the second one does not": (
        4,
        [*published("a"), *ran("a", 8), *ran("a", 11, "w2"), *fault(5, 7)],
    ),
    "until a message was parked, by the worker's word": (
        2,
        [*published("a"), *unfinished(), Parked(at=7, id="a", cause="poison"), letter("a"), *fault(5, 6)],
    ),
    "until a message was parked, as it was read": (15, [*published("a"), *unfinished(), letter("a", 20), *fault(5, 6)]),
    "a message of unknown fate that ran": (
        3,
        [
            *published("b"),
            *ran("b"),
            Attempted(at=5.5, id="a"),
            Indeterminate(at=6, id="a"),
            *ran("a", 7),
            *fault(5, 6),
        ],
    ),
    "a message of unknown fate that never came": (
        1,
        [*published("b"), *ran("b"), Attempted(at=5.5, id="a"), Indeterminate(at=6, id="a"), *fault(5, 6)],
    ),
    "from the first of two faults until the second has healed": (
        6,
        [
            *published("a"),
            *ran("a"),
            *fault(5, 8),
            FaultInjected(at=6, fault="rubbish", proof="confirmed"),
            FaultHealed(at=11, fault="rubbish"),
        ],
    ),
    "one of two did not heal": (
        None,
        [*published("a"), *ran("a"), *fault(5, 8), FaultInjected(at=6, fault="rubbish", proof="confirmed")],
    ),
    "it did not heal": (None, [*published("a"), *ran("a"), FaultInjected(at=5, fault="kill_worker", proof="dead")]),
    "a message in its way is lost": (None, [*published("a"), *unfinished(), *fault(5, 6)]),
    "no fault": (None, [*published("a"), *ran("a")]),
}


@pytest.mark.parametrize("name", RECOVERIES)
def test_seconds_to_recover(name: str) -> None:
    seconds, history = RECOVERIES[name]
    dead = sum(isinstance(r, Parked) and bool(r.queue) for r in history)
    assert check([*history, *end(dead)]).seconds_to_recover == seconds


def test_a_message_lost_later_does_not_hide_the_recovery() -> None:
    verdict = check([*GOOD, *published("c", 8), *unfinished("c", 8.5, 9)])
    assert (verdict.verdict, verdict.seconds_to_recover) == ("invalid", 1)


# --- Whatever happened ----------------------------------------------------------------------------------------------

IDS = st.sampled_from("abcde")
TIMES = st.floats(0, 17)
HAPPENED = st.lists(
    st.one_of(
        *(st.builds(kind, at=TIMES, id=IDS) for kind in (Attempted, Confirmed, Indeterminate, Refused)),
        st.builds(Started, at=TIMES, id=IDS, worker=st.just("w1")),
        st.builds(Finished, at=TIMES, id=IDS, worker=st.just("w1")),
        st.builds(letter, IDS),
    ),
    max_size=40,
)


@given(HAPPENED, st.randoms())
def test_the_verdict_does_not_hang_on_the_order_of_the_lines(happened: list[Record], chance: random.Random) -> None:
    # No two at the same moment: the order of those is all that a file could say.
    spread = [replace(record, at=record.at + number / 1e6) for number, record in enumerate(happened)]
    mixed = [*spread, *fault(), *end()]
    chance.shuffle(mixed)
    assert check(mixed) == check([*spread, *fault(), *end()])


@given(HAPPENED)
def test_the_counts_add_up(happened: list[Record]) -> None:
    attempted = {r.id for r in happened if isinstance(r, Attempted)}
    confirmed = {r.id for r in happened if isinstance(r, Confirmed)}
    ended = {r.id for r in happened if isinstance(r, Finished | Parked)}
    dead = sum(isinstance(r, Parked) for r in happened)
    verdict = check([*happened, *fault(), *end(dead)])
    assert set(verdict.lost) == confirmed - ended
    assert set(verdict.unexpected) | set(verdict.recovered) | (confirmed & ended & attempted) == ended
    assert not set(verdict.unexpected) & set(verdict.recovered)
    assert set(verdict.both) <= set(verdict.duplicated) <= ended
    if verdict.verdict == "valid":
        assert not verdict.lost + verdict.unexpected


@given(HAPPENED, IDS)
def test_taking_all_traces_of_the_end_away_loses_the_message(happened: list[Record], task: str) -> None:
    rest = [r for r in happened if not (isinstance(r, Finished | Parked) and r.id == task)]
    dead = sum(isinstance(r, Parked) for r in rest)
    verdict = check([*rest, *published(task), *fault(), *end(dead)])
    assert task in verdict.lost
    assert verdict.verdict == "invalid"


@given(HAPPENED)
def test_a_second_end_never_changes_a_verdict(happened: list[Record]) -> None:
    again = [replace(r, at=r.at + 0.5) for r in happened if isinstance(r, Finished)]
    dead = sum(isinstance(r, Parked) for r in happened)
    once, twice = (check([*h, *fault(), *end(dead)]) for h in (happened, [*happened, *again]))
    assert (once.verdict, once.lost, once.unexpected) == (twice.verdict, twice.lost, twice.unexpected)
    assert set(twice.duplicated) >= {r.id for r in again}
