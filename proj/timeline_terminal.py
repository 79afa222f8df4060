"""A timeline on a terminal: a lane per worker, and beside them the queues."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from proj.backlog import Backlog
from proj.picture_layout import natural, short
from proj.runs import Run
from proj.timeline import Lane, Timeline

PAST = 60  # seconds that a lane looks back
BESIDE = 56  # columns of a lane beside the picture of that past, which takes the rest
MARKS = {"lost": "x", "requeued": "x", "failed": "!", "retried": "~"}
STYLES = {"█": "cyan", "▒": "yellow", "x": "bold red", "!": "bold red", "~": "yellow"}
MEANING = "█ at work  ▒ again  x run lost  ! failed  ~ retried  ─ idle"


def screen(
    timeline: Timeline,
    now: float,
    name: str,
    note: str = "",
    past: float = PAST,
    width: int = 100,
    heard: float | None = None,
) -> RenderableType:
    """Return the whole screen as of the epoch second `now`, so many columns wide.

    `name` is the app's, `note` stands below, lanes look `past` seconds back, and `heard` is when anything was last
    heard, were it a heartbeat.
    """
    head = Text(f"{name}  {clock(now)}  {_age(timeline.last_event, heard, now)}", style="bold")
    lanes = _lanes(timeline, now, past, width) if timeline.lanes else Text("no worker has been heard yet")
    parts: list[RenderableType] = [head, Text(), lanes, Text(MEANING, style="dim"), Text()]
    if timeline.backlogs:
        parts += [_queues(timeline.backlogs), Text()]
    parts += [Text(line, style="yellow") for line in _notes(timeline, now)]
    if note:
        parts.append(Text(note, style="dim"))
    return Group(*parts)


def clock(at: float) -> str:
    """Return the time of day of an epoch second, here."""
    return datetime.fromtimestamp(at).strftime("%H:%M:%S")


def duration(seconds: float) -> str:
    """Return a span of time in the unit that fits it."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _age(last: float | None, heard: float | None, now: float) -> str:
    age = "no event yet" if last is None else f"last event {duration(now - last)} ago"
    return age + (f", last heartbeat {duration(now - heard)} ago" if heard and heard > (last or 0) + 1 else "")


def _lanes(timeline: Timeline, now: float, past: float, width: int) -> Table:
    table = Table("worker", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("message", min_width=26, no_wrap=True)
    for column in ("for", "attempt", "done"):
        table.add_column(column, justify="right")
    table.add_column(f"last {duration(past)}", no_wrap=True)
    names = short(list(timeline.lanes))
    runs = defaultdict[str, list[Run]](list)
    for past_run in timeline.runs.all:
        runs[past_run.worker].append(past_run)
    cells = min(max(width - BESIDE - max(map(len, names.values())), 10), PAST)
    for lane in sorted(timeline.lanes.values(), key=lambda lane: natural(lane.name)):
        strip = _strip(lane, runs[lane.name], now, past, cells)
        for number, run in enumerate(timeline.current(lane.name) or [None]):
            first = number == 0
            table.add_row(
                escape(names[lane.name]) if first else "",
                *_now(lane, run, now),
                str(lane.finished) if first else "",
                strip if first else "",
            )
    return table


def _now(lane: Lane, run: Run | None, now: float) -> tuple[Text, str, str]:
    if lane.gone is not None:
        how = "lost" if lane.lost else "stopped"
        text = Text(f"{how} at {clock(lane.gone)}, {duration(now - lane.gone)} ago")
        text.stylize("bold red" if lane.lost else "dim")
        return text, "", ""
    if run is None:
        return Text("idle", style="dim"), "", ""
    message = Text(run.message or run.id, no_wrap=True, overflow="ellipsis")
    message.truncate(26, overflow="ellipsis")
    attempt = f"{run.attempt}" if run.attempt == 1 else f"{run.attempt} again"
    return message, duration(now - run.started), attempt


def _strip(lane: Lane, runs: list[Run], now: float, past: float, width: int) -> Text:
    begin, step = now - past, past / width
    cells = [
        "─" if any(b < begin + (i + 1) * step and (e is None or e > begin + i * step) for b, e in lane.spans) else " "
        for i in range(width)
    ]
    marks = {}
    for run in runs:
        end = now if run.ended is None else run.ended
        if end < begin:
            continue
        first, last = int(max(run.started - begin, 0) / step), min(int((end - begin) / step), width - 1)
        cells[first : last + 1] = ["█" if run.attempt == 1 else "▒"] * (last + 1 - first)
        if mark := MARKS.get(run.outcome):
            marks[last] = mark
    # Last, so that what follows does not hide them.
    for place, mark in marks.items():
        cells[place] = mark
    return Text.assemble(*((cell, STYLES.get(cell, "dim")) for cell in cells))


def _queues(backlogs: dict[str, Backlog]) -> Table:
    table = Table("queue", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("ready", "unacknowledged", "dead", "trend", "empty in"):
        table.add_column(column, justify="right")
    for name, backlog in backlogs.items():
        last = backlog.last
        counts = ("?" if n is None else str(n) for n in (last.ready, last.unacknowledged))
        dead = "-" if last.dead is None else str(last.dead)
        table.add_row(escape(name), *counts, dead, _trend(backlog.rate), _empty_in(backlog))
    return table


def _trend(rate: float | None) -> str:
    if rate is None:
        return "?"
    if abs(rate) < 0.05:
        return "steady"
    return f"{'up' if rate > 0 else 'down'} {abs(rate):.1f}/s"


def _empty_in(backlog: Backlog) -> str:
    seconds = backlog.seconds_to_empty
    if seconds == 0:
        return "empty"
    return "not yet in sight" if seconds is None else duration(seconds)


def _notes(timeline: Timeline, now: float) -> list[str]:
    notes = [
        f"fault {fault.name} {fault.target} since {clock(fault.begin)}" for fault in timeline.faults if not fault.end
    ]
    names = short(list(timeline.lanes))
    notes += [
        f"{names[run.worker]} left {run.message or run.id!r} at {clock(run.ended)} ({run.reason})"
        for run in timeline.runs.all
        if run.outcome == "lost" and run.ended and run.ended > now - PAST
    ][-5:]
    return notes + [f"{names[worker]} parked {n} message{'s' * (n > 1)}" for worker, n in timeline.parked.items()]
