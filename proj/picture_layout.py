"""Where things stand on a picture: which runs lie side by side, what fits into a bar, which names collide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from proj.runs import Run
from proj.timeline import Fault, Lane, Timeline


@dataclass
class Row:
    """A lane on the picture: its place from the top, and over how many lines its runs lie side by side."""

    lane: Lane
    runs: list[tuple[int, Run]]
    top: int = 0

    @property
    def lines(self) -> int:
        """How many lines it needs."""
        return max((line for line, _ in self.runs), default=0) + 1


def rows(timeline: Timeline) -> list[Row]:
    """Return a row per worker, by name, with each run on the first line that is free."""
    found = []
    for name in sorted(timeline.lanes, key=natural):
        ends: list[float] = []
        placed: list[tuple[int, Run]] = []
        for run in sorted((run for run in timeline.runs.all if run.worker == name), key=lambda run: run.started):
            line = next((i for i, end in enumerate(ends) if end <= run.started), len(ends))
            ends[line : line + 1] = [float("inf") if run.ended is None else run.ended]
            placed.append((line, run))
        found.append(Row(timeline.lanes[name], placed))
    return found


def natural(name: str) -> tuple[Any, ...]:
    """Return a sort key by which worker 10 comes after worker 9."""
    digits = "".join(letter for letter in name.partition("@")[0] if letter.isdigit())
    return name.partition("@")[0].rstrip("0123456789"), int(digits or 0), name


def short(names: Sequence[str]) -> dict[str, str]:
    """Return workers' names, without the host where all share one."""
    hosts = {name.partition("@")[2] for name in names}
    return {name: name.partition("@")[0] if len(hosts) == 1 else name for name in names}


def many(count: int, thing: str) -> str:
    """Return a count with its noun."""
    return f"{count} {thing}{'s' * (count != 1)}"


def alike(messages: set[str]) -> str:
    """Return the words that all messages begin with: they tell none from another."""
    if len(messages) < 3:
        return ""
    columns = takewhile(
        lambda column: len(set(column)) == 1, zip(*(text.split(" ") for text in messages), strict=False)
    )
    return "".join(f"{column[0]} " for column in columns)


def cut(text: str, letters: int) -> str:
    """Return at most so many letters of a text, and a sign where something is missing."""
    return text if len(text) <= letters else f"{text[: max(letters - 1, 0)]}…"


def fault_name(fault: Fault) -> str:
    """Return what stands above a fault's span."""
    return f"{fault.name} ({fault.target})" if fault.target else fault.name


def levels(faults: Sequence[Fault], whole: float) -> list[int]:
    """Return on which level each fault's name stands, so that neighbours do not overlap."""
    ends: list[float] = []
    found = []
    for fault in faults:
        level = next((i for i, end in enumerate(ends) if end <= fault.begin), len(ends))
        ends[level : level + 1] = [fault.begin + 0.0075 * whole * (len(fault_name(fault)) + 2)]
        found.append(level)
    return found
