"""What a timeline shows of a history: the screen, the picture, and the command's own sentences."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from proj.backlog import Backlog, dead_queue
from proj.history import (
    Attempted,
    Confirmed,
    Failed,
    FaultHealed,
    FaultInjected,
    Finished,
    Indeterminate,
    Parked,
    QueueRead,
    Record,
    RunBegan,
    Started,
    WorkerLost,
    WorkerStopped,
    WorkerUp,
    write,
)
from proj.picture import LOOKS, MARKS, check, draw
from proj.picture_layout import alike, cut, levels, rows, short
from proj.timeline import Fault, Timeline, sentence
from proj.timeline_terminal import screen

ZERO = 1_700_000_000.0


def story() -> list[Record]:
    """Two workers and four messages; one worker is killed over the second message, and comes back."""

    def of(kind: type[Any], at: float, task: str, worker: str = "", **more: Any) -> Record:
        where = {"worker": f"{worker}@box"} if worker else {}
        return kind(at=ZERO + at, id=task, message=f"Message {task}..", **where, **more)

    return [
        RunBegan(at=ZERO, title="kill_worker", fault="kill_worker", messages=4, workers=2),
        WorkerUp(at=ZERO, worker="w1@box"),
        WorkerUp(at=ZERO, worker="w2@box"),
        *(of(Attempted, 1, task) for task in "abcd"),
        *(of(Confirmed, 1.1, task) for task in "abc"),
        of(Indeterminate, 1.1, "d"),
        of(Started, 1.2, "a", "w1"),
        of(Started, 1.2, "b", "w2"),
        QueueRead(at=ZERO + 2, queue="task_queue", ready=2, unacknowledged=2, dead=0),
        FaultInjected(at=ZERO + 2.5, fault="kill_worker", target="w2", proof="gone"),
        WorkerLost(at=ZERO + 2.5, worker="w2@box"),
        of(Finished, 3.2, "a", "w1", seconds=2.0),
        of(Started, 3.3, "b", "w1", deliveries=2),
        FaultHealed(at=ZERO + 4, fault="kill_worker", target="w2"),
        WorkerUp(at=ZERO + 4, worker="w2@box"),
        of(Started, 4.1, "c", "w2"),
        of(Failed, 5, "c", "w2", reason="ValueError"),
        of(Parked, 5.1, "c", "w2", cause="failed"),
        of(Finished, 5.3, "b", "w1", seconds=2.0),
        QueueRead(at=ZERO + 6, queue="task_queue", ready=1, unacknowledged=0, dead=1),
    ]


def shown(timeline: Timeline, now: float, **options: Any) -> str:
    """The screen as plain text."""
    console = Console(width=120, no_color=True, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(screen(timeline, ZERO + now, "proj", **options))
    return capture.get()


def until(at: float) -> Timeline:
    return Timeline(record for record in story() if record.at <= ZERO + at)


# --- The screen -------------------------------------------------------------------------------------------------


def test_a_lane_says_message_elapsed_and_attempt() -> None:
    assert re.search(r"^w1 +Message b\.\. +1\.2 s +2 again +1 ", shown(until(4.2), 4.5), re.MULTILINE)
    assert re.search(r"^w2 +Message c\.\. +0\.4 s +1 +0 ", shown(until(4.2), 4.5), re.MULTILINE)


def test_a_worker_that_died_says_when() -> None:
    text = shown(until(3.5), 12.5)
    assert re.search(r"^w2 +lost at \d\d:\d\d:\d\d, 10 s ago", text, re.MULTILINE)
    assert re.search(r"^w2 left 'Message b\.\.' at \d\d:\d\d:\d\d \(worker lost\)", text, re.MULTILINE)


def test_a_worker_lost_twice_without_coming_back_was_lost_once() -> None:
    lane = Timeline([WorkerUp(at=1, worker="w"), WorkerLost(at=5, worker="w"), WorkerLost(at=5.2, worker="w")]).lanes[
        "w"
    ]
    assert (lane.spans, lane.losses) == ([(1, 5)], [5])


def test_a_worker_that_was_thought_lost_is_there_again_when_it_begins_to_work() -> None:
    history = [WorkerUp(at=1, worker="w"), WorkerLost(at=5, worker="w"), Started(at=30, id="a", worker="w")]
    lane = Timeline([*history, Finished(at=31, id="a", worker="w", seconds=1)]).lanes["w"]
    assert lane.up
    assert lane.spans == [(1, 5), (30, None)]


def test_what_the_pool_of_a_lost_worker_finishes_does_not_bring_it_back() -> None:
    begun = [WorkerUp(at=1, worker="w"), Started(at=4, id="a", worker="w"), WorkerLost(at=5, worker="w")]
    assert Timeline([*begun, Finished(at=5.5, id="a", worker="w", seconds=1)]).lanes["w"].lost


def test_a_worker_that_stopped_is_not_called_lost() -> None:
    text = shown(Timeline([WorkerUp(at=ZERO, worker="w1@box"), WorkerStopped(at=ZERO + 1, worker="w1@box")]), 3)
    assert "stopped at" in text
    assert "lost at" not in text


def test_the_past_of_a_lane_tells_runs_apart_without_colour() -> None:
    table = shown(until(6), 6, past=6.0).partition("█ at work")[0]
    lanes = {line[:2]: line for line in table.splitlines()}
    assert re.search(r"█+▒+", lanes["w1"])
    assert re.search(r"█+x +─*█+!", lanes["w2"])


def test_the_queue_stands_beside_the_lanes() -> None:
    text = shown(until(6), 6)
    assert re.search(r"^task_queue +1 +0 +1 +down 0\.2/s +4\.0 s", text, re.MULTILINE)
    assert "w2 parked 1 message" in text


def test_a_fault_under_way_is_named() -> None:
    assert "fault kill_worker w2 since" in shown(until(3), 3)
    assert "fault kill_worker" not in shown(until(4), 4)


def test_the_age_of_the_last_event_is_not_that_of_the_last_look_at_the_queue() -> None:
    assert "last event 0.7 s ago" in shown(until(6), 6)
    assert "no event yet" in shown(Timeline(), 6)


def test_while_nothing_happens_the_last_heartbeat_says_that_somebody_is_there() -> None:
    assert "last event 10 s ago, last heartbeat 0.5 s ago" in shown(until(6), 15.3, heard=ZERO + 14.8)
    assert "last heartbeat" not in shown(until(6), 6, heard=ZERO + 5.5)


def test_two_hosts_keep_their_names() -> None:
    assert short(["w1@a", "w2@a"]) == {"w1@a": "w1", "w2@a": "w2"}
    assert short(["w1@a", "w1@b"]) == {"w1@a": "w1@a", "w1@b": "w1@b"}


def test_a_worker_with_several_processes_shows_each_message() -> None:
    records = [Started(at=ZERO, id=task, message=task * 5, worker="w1@box", pid=1) for task in "ab"]
    assert re.search(r"^w1 +aaaaa .*\n +bbbbb ", shown(Timeline(records), 1), re.MULTILINE)


def test_what_is_over_for_long_is_forgotten() -> None:
    timeline = until(3.5)
    timeline.forget(ZERO + 300)
    assert [run.outcome for run in timeline.runs.all] == ["running"]
    assert list(timeline.lanes) == ["w1@box", "w2@box"]
    timeline.forget(ZERO + 4000)
    assert list(timeline.lanes) == ["w1@box"]


def test_a_record_as_a_sentence() -> None:
    record = Finished(at=ZERO, id="a", message="Hello..", worker="w1@box", seconds=2.5)
    assert sentence(record) == "finished 'Hello..' w1@box seconds=2.5"


# --- The queue --------------------------------------------------------------------------------------------------


def backlog(*counts: int | None) -> Backlog:
    """Readings, two seconds apart."""
    found = Backlog()
    for number, count in enumerate(counts):
        found.take(QueueRead(at=ZERO + 2 * number, queue="q", ready=count))
    return found


@pytest.mark.parametrize(
    ("counts", "rate", "seconds"),
    [
        ((10,), None, None),
        ((10, 6), -2, 3),
        ((6, 10), 2, None),
        ((6, 6), 0, None),
        ((4, 0), -2, 0),
        ((None, None), None, None),
        # Only what lies within the last quarter of a minute.
        ((100, 0, 0, 0, 0, 0, 0, 0, 0, 0), 0, 0),
    ],
)
def test_trend_and_time_to_empty(counts: tuple[int | None, ...], rate: float | None, seconds: float | None) -> None:
    assert (backlog(*counts).rate, backlog(*counts).seconds_to_empty) == (rate, seconds)


def test_the_dead_queue_is_the_one_that_the_queue_names() -> None:
    class Queue:
        name = "work"
        queue_arguments: dict[str, str] | None = None

    assert dead_queue(Queue) == "work.dead"
    Queue.queue_arguments = {"x-dead-letter-routing-key": "morgue"}
    assert dead_queue(Queue) == "morgue"


def test_only_a_change_of_the_queue_is_worth_keeping() -> None:
    timeline = until(6)
    again = QueueRead(at=ZERO + 7, queue="task_queue", ready=1, unacknowledged=0, dead=1)
    assert not timeline.is_news(again)
    assert timeline.is_news(QueueRead(at=ZERO + 7, queue="task_queue", ready=0, unacknowledged=0, dead=1))
    assert timeline.is_news(QueueRead(at=ZERO + 7, queue="other"))
    assert timeline.is_news(WorkerLost(at=ZERO + 7, worker="w1@box"))


# --- The picture ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_same_history_is_the_same_picture_elsewhere_and_later(kind: str, tmp_path: Path) -> None:
    write(tmp_path / "h", story())
    draw(story(), tmp_path / f"here.{kind}")
    program = (
        "import sys; from pathlib import Path; from proj.history import read; from proj.picture import draw;"
        "import matplotlib; matplotlib.rcParams['font.size'] = 30;"
        "draw(read(Path(sys.argv[1])).records, Path(sys.argv[2]))"
    )
    environment = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1"}
    there = tmp_path / f"there.{kind}"
    subprocess.run([sys.executable, "-c", program, tmp_path / "h", there], env=environment, check=True)
    assert there.read_bytes() == (tmp_path / f"here.{kind}").read_bytes()


def test_another_history_is_another_picture(tmp_path: Path) -> None:
    draw(story(), tmp_path / "whole.svg")
    draw(story()[:-3], tmp_path / "part.svg")
    assert (tmp_path / "whole.svg").read_bytes() != (tmp_path / "part.svg").read_bytes()


def test_outcomes_differ_without_colour() -> None:
    marks = [(look.get("hatch"), str(look.get("linestyle"))) for look in LOOKS.values()]
    assert len(set(marks)) == len(LOOKS)
    assert len({(look["marker"], look["markersize"]) for name, look in MARKS.items() if name != "attempted"}) == 5


@pytest.mark.parametrize("records", [[], story()[:1], story()[:3], [Started(at=ZERO, id="a", worker="w1")]])
def test_little_is_drawn_too(records: list[Record], tmp_path: Path) -> None:
    draw(records, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_words_that_the_font_or_the_library_would_stumble_over(tmp_path: Path) -> None:
    odd = Started(at=ZERO, id="a", message="$x^ 仕事 🐇 <b>&", worker="w1@box")
    draw([odd, Finished(at=ZERO + 9, id="a", worker="w1@box")], tmp_path / "p.svg")
    assert (tmp_path / "p.svg").stat().st_size > 1000


def test_runs_side_by_side_have_a_line_each() -> None:
    records = [Started(at=ZERO + n, id=task, worker="w1", pid=1) for n, task in enumerate("abc")]
    (row,) = rows(Timeline([*records[:2], Finished(at=ZERO + 1.5, id="a", worker="w1", pid=1), records[2]]))
    assert [(line, run.id) for line, run in row.runs] == [(0, "a"), (1, "b"), (0, "c")]
    assert row.lines == 2


def test_worker_10_stands_below_worker_9() -> None:
    timeline = Timeline(WorkerUp(at=ZERO, worker=f"worker{n}@box") for n in (10, 9, 1))
    assert [row.lane.name for row in rows(timeline)] == ["worker1@box", "worker9@box", "worker10@box"]


def test_names_of_faults_at_the_same_time_stand_above_each_other() -> None:
    faults = [Fault("kill_worker", "w1", 0), Fault("kill_broker", "", 1), Fault("none", "", 90)]
    assert levels(faults, 100) == [0, 1, 0]


def test_labels_leave_out_what_all_messages_share() -> None:
    assert alike({"Message 1.", "Message 2.", "Message 3."}) == "Message "
    assert alike({"Message 1.", "Other 2.", "Message 3."}) == ""
    assert alike({"same"}) == ""
    assert cut("Message", 4) == "Mes…"


# --- The command ------------------------------------------------------------------------------------------------


def timeline(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "celery", "-A", "proj", "timeline", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)


@pytest.fixture
def recording(tmp_path: Path) -> str:
    write(tmp_path / "run.jsonl", story())
    return str(tmp_path / "run.jsonl")


def test_a_recording_is_shown_and_drawn(recording: str, tmp_path: Path) -> None:
    shown = timeline("--from", recording)
    assert shown.returncode == 0, shown.stderr
    assert f"{recording}: {len(story())} records" in shown.stdout.replace("\n", "")
    drawn = timeline("--from", recording, "--picture", str(tmp_path / "p.svg"))
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--picture", "p.svg"], "--picture draws a recording: name it with --from FILE"),
        (["--from", "RECORDING", "--record", "x"], "--record keeps what happens now and --from shows what happened"),
        (["--from", "RECORDING", "--picture", "p.jpg"], "to end in .svg or .png, got 'p.jpg'"),
        (["--from", "RECORDING", "--picture", "/nowhere/p.png"], "cannot write /nowhere/p.png: No such file"),
        (["--record", "RECORDING"], "exists, and no recording is overwritten; name another file"),
        (["--record", "/nowhere/h"], "cannot write /nowhere/h: No such file or directory"),
        (["--from", __file__], "line 1, is no record of a history"),
        (["--from", os.devnull], f"{os.devnull} holds no record"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], says: str, recording: str) -> None:
    ended = timeline(*(recording if argument == "RECORDING" else argument for argument in arguments))
    assert ended.returncode in (1, 2)
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_matplotlib_a_picture_names_the_way_to_it(recording: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfound = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'matplotlib' else found(name, *rest)\n"
    )
    ended = timeline("--from", recording, "--picture", "p.svg", PYTHONPATH=str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr.strip() == (
        "Error: pictures need matplotlib, which is not installed: pip install 'proj[pictures]'"
    )
    # The rest does without.
    assert timeline("--from", recording, PYTHONPATH=str(tmp_path)).returncode == 0


def test_a_picture_that_can_be_drawn_passes_the_check() -> None:
    check(Path("p.SVG"))
