"""A history as a picture: bars per worker, re-runs, lost runs, and the shaded span of a fault."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proj.history import Attempted, Confirmed, Indeterminate, Parked, QueueRead, Record, Refused, in_order
from proj.picture_layout import Row, alike, cut, fault_name, levels, many, rows, short
from proj.runs import Run
from proj.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png")
WIDTH = 12.0  # inches, as all sizes here
ROW = 0.42
HEAD, FOOT, BACKLOG = 0.75, 1.05, 1.1
LEFT, RIGHT = 1.45, 0.25
DPI = 120

# Okabe and Ito's colours, which colour-blind readers can tell apart; hatches and edges say the same without colour.
LOOKS: dict[str, dict[str, Any]] = {
    "finished": {"facecolor": "#56B4E9", "edgecolor": "#1F4E79"},
    "finished, run again": {"facecolor": "#F0C64B", "edgecolor": "#5B4500", "hatch": "////"},
    "run lost": {"facecolor": "white", "edgecolor": "#B22222", "hatch": "xxxx", "linestyle": (0, (3, 2))},
    "given back": {"facecolor": "white", "edgecolor": "#B22222", "hatch": "....", "linestyle": (0, (3, 2))},
    "failed": {"facecolor": "#E8A0A0", "edgecolor": "#7A0000", "hatch": "\\\\\\\\"},
    "to be retried": {"facecolor": "#D9C7E8", "edgecolor": "#4B2E6B", "hatch": "--"},
    "still running": {"facecolor": "#E6E6E6", "edgecolor": "#555555", "linestyle": ":"},
}
MARKS: dict[str, dict[str, Any]] = {
    "worker lost": {"marker": "X", "color": "#B22222", "markersize": 10, "markeredgecolor": "black"},
    "confirmed": {"marker": "|", "color": "#1F4E79", "markersize": 9},
    "attempted": {"marker": "|", "color": "#999999", "markersize": 9},
    "indeterminate": {"marker": "D", "color": "#F0C64B", "markersize": 6, "markeredgecolor": "black"},
    "refused": {"marker": "x", "color": "#7A0000", "markersize": 6},
    "parked": {"marker": "v", "color": "#4B2E6B", "markersize": 8, "markeredgecolor": "black"},
}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "proj",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,
}
SHADE: dict[str, Any] = {"facecolor": "#B22222", "alpha": 0.13, "linewidth": 0}


class NoPicture(Exception):
    """No picture can be drawn; the message says why and what to do."""


def check(path: Path) -> None:
    """Raise NoPicture where a picture cannot be drawn into that file."""
    if path.suffix.lower() not in FORMATS:
        raise NoPicture(f"expected a picture's name to end in {' or '.join(FORMATS)}, got {path.name!r}")
    if not find_spec("matplotlib"):
        raise NoPicture("pictures need matplotlib, which is not installed: pip install 'proj[pictures]'")


def draw(records: Iterable[Record], path: Path, title: str = "") -> None:
    """Draw a history into a .svg or .png file: the same history, the same bytes. Raises NoPicture, OSError."""
    check(path)
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # Neither the user's own style nor a character that the font lacks has a say.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Picture(in_order(records), title).figure
        # Without the dates and versions that would make each drawing another file.
        metadata = {"Date": None, "Creator": None} if path.suffix.lower() == ".svg" else {"Software": None}
        figure.savefig(path, dpi=DPI, metadata=metadata)


class Picture:
    """The drawing of one history."""

    def __init__(self, records: Sequence[Record], title: str) -> None:
        self._records = records
        self._timeline = Timeline(records)
        self._zero = records[0].at if records else 0.0
        self._end = max((r.at for r in records), default=0.0) - self._zero or 1.0
        self._used: dict[str, Any] = {}
        self._publishes = [r for r in records if isinstance(r, Attempted | Confirmed | Indeterminate | Refused)]
        self._letters = [r for r in records if isinstance(r, Parked) and r.queue]
        self._reads = [r for r in records if isinstance(r, QueueRead)]
        self._rows: list[Row] = rows(self._timeline)
        self._alike = alike({run.message for run in self._timeline.runs.all})
        self.figure = self._figure(title or self._timeline.title)

    def _figure(self, title: str) -> Figure:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        lines = bool(self._publishes) + sum(row.lines for row in self._rows) + bool(self._letters)
        head = HEAD + 0.16 * (1 + max(levels(self._timeline.faults, self._end), default=0))
        backlog = BACKLOG if self._reads else 0.0
        lanes = max(lines, 1) * ROW
        height = head + lanes + backlog + FOOT
        figure = Figure(figsize=(WIDTH, height), facecolor="white")
        FigureCanvasAgg(figure)

        def axes(bottom: float, tall: float, **options: Any) -> Axes:
            box = (LEFT / WIDTH, bottom / height, 1 - (LEFT + RIGHT) / WIDTH, tall / height)
            return figure.add_axes(box, **options)

        top = axes(FOOT + backlog, lanes)
        self._draw_lanes(top, lines)
        bottom = top
        if self._reads:
            bottom = axes(FOOT, backlog - 0.15, sharex=top)
            self._draw_backlog(bottom)
            top.tick_params(axis="x", labelbottom=False)
        began = datetime.fromtimestamp(self._zero, UTC).strftime("%Y-%m-%d %H:%M:%S")
        bottom.set_xlabel(f"seconds since {began} UTC")
        self._draw_faults(top, bottom)
        figure.text(0.012, 1 - 0.28 / height, title or "Who did what when", size=13, weight="bold", va="center")
        figure.text(0.012, 1 - 0.52 / height, self._summary(), size=9, color="#444444", va="center")
        handles = list(self._used.values())
        figure.legend(
            handles=handles,
            loc="lower center",
            ncols=min(len(handles), 6),
            frameon=False,
            handlelength=2.4,
            fontsize=8.5,
        )
        return figure

    # The lanes

    def _draw_lanes(self, axes: Axes, lines: int) -> None:
        axes.set_xlim(-0.01 * self._end, 1.02 * self._end)
        axes.set_ylim(max(lines, 1) - 0.5, -0.5)
        axes.grid(axis="x", color="#E3E3E3", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        names = short([row.lane.name for row in self._rows])
        ticks: list[tuple[float, str]] = []
        line = 0
        if self._publishes:
            self._draw_publishes(axes, line)
            ticks.append((line, "publisher"))
            line += 1
        for row in self._rows:
            row.top = line
            self._draw_row(axes, row)
            ticks.append((line + (row.lines - 1) / 2, cut(names[row.lane.name], 20)))
            line += row.lines
        if self._letters:
            self._draw_letters(axes, line)
            ticks.append((line, cut(self._letters[0].queue, 20)))
        self._draw_reruns(axes)
        axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])

    def _draw_publishes(self, axes: Axes, line: int) -> None:
        settled = {r.id for r in self._publishes if not isinstance(r, Attempted)}
        for record in self._publishes:
            if not isinstance(record, Attempted) or record.id not in settled:
                self._mark(axes, record.at, line, record.what)

    def _draw_letters(self, axes: Axes, line: int) -> None:
        for letter in self._letters:
            self._mark(axes, letter.at, line, "parked")
        count = many(len(self._letters), "message")
        axes.text(self._letters[0].at - self._zero, line, f"{count}   ", ha="right", va="center", size=8)

    def _draw_row(self, axes: Axes, row: Row) -> None:
        middle = row.top + (row.lines - 1) / 2
        for begin, end in row.lane.spans:
            until = self._end if end is None else end - self._zero
            axes.plot([begin - self._zero, until], [middle, middle], color="#AAAAAA", linewidth=1.2, zorder=1)
        for line, run in row.runs:
            self._draw_run(axes, row.top + line, run)
        for at in row.lane.losses:
            self._mark(axes, at, middle, "worker lost")
        for record in self._records:
            if isinstance(record, Parked) and not record.queue and record.worker == row.lane.name:
                self._mark(axes, record.at, middle, "parked")

    def _draw_run(self, axes: Axes, line: int, run: Run) -> None:
        from matplotlib.patches import Patch, Rectangle

        begin = run.started - self._zero
        width = (self._end if run.ended is None else run.ended - self._zero) - begin
        look = _look(run)
        shown = LOOKS[look]
        axes.add_patch(Rectangle((begin, line - 0.34), width, 0.68, linewidth=1, zorder=2, **shown))
        self._used.setdefault(look, Patch(label=look, **shown))
        again = f" (run {run.attempt})" if run.attempt > 1 else ""
        self._label(axes, begin, width, line, run.message or run.id[:8], again)

    def _label(self, axes: Axes, begin: float, width: float, line: float, message: str, again: str) -> None:
        """Write a message into its bar as far as it fits."""
        inches = width / (1.03 * self._end) * (WIDTH - LEFT - RIGHT)
        letters = int(inches / 0.075) - 1
        own = message.removeprefix(self._alike)
        # Dots at the end look like something cut off.
        choices = (message + again, own + again, message, own, own.rstrip("."), cut(own, letters))
        text = next(text for text in choices if len(text) <= max(letters, 1))
        if letters < 2:
            return
        paper = {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 0.8}
        axes.text(begin + width / 2, line, text, ha="center", va="center", size=8, zorder=4, bbox=paper, clip_on=True)

    def _draw_reruns(self, axes: Axes) -> None:
        """Point from each run that came to nothing to the next run of its message."""
        place = {id(run): row.top + line for row in self._rows for line, run in row.runs}
        for run in self._timeline.runs.all:
            runs = self._timeline.runs.of(run.id)
            following = runs[runs.index(run) + 1 :]
            if not following or run.ended is None:
                continue
            begin = (min(run.ended, following[0].started) - self._zero, place[id(run)])
            end = (following[0].started - self._zero, place[id(following[0])])
            arrow = {"arrowstyle": "-|>", "color": "#333333", "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", end, begin, arrowprops=arrow, zorder=5)

    def _mark(self, axes: Axes, at: float, line: float, what: str) -> None:
        from matplotlib.lines import Line2D

        look = {**MARKS[what], "linestyle": "none"}
        axes.plot([at - self._zero], [line], zorder=6, clip_on=False, **look)
        self._used.setdefault(what, Line2D([], [], label=what, **look))

    # What is around them

    def _draw_backlog(self, axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        lines = {"ready": "-", "unacknowledged": "--", "dead": ":"}
        for queue in sorted({read.queue for read in self._reads}):
            reads = [read for read in self._reads if read.queue == queue]
            name = f" in {queue}" if len(self._timeline.backlogs) > 1 else ""
            for what, style in lines.items():
                known = [(r.at - self._zero, getattr(r, what)) for r in reads if getattr(r, what) is not None]
                if known and (what == "ready" or any(count for _, count in known)):
                    times, counts = zip(*known, strict=True)
                    axes.step(times, counts, style, where="post", linewidth=1.3, color="#333333", label=what + name)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.set_ylabel("messages\nin the queue", size=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#E3E3E3", linewidth=0.6)
        axes.legend(loc="upper right", frameon=False, fontsize=8, ncols=3)

    def _draw_faults(self, top: Axes, bottom: Axes) -> None:
        from matplotlib.patches import Patch

        for fault, level in zip(self._timeline.faults, levels(self._timeline.faults, self._end), strict=True):
            begin = fault.begin - self._zero
            end = max((self._end if fault.end is None else fault.end - self._zero), begin + 0.003 * self._end)
            for axes in dict.fromkeys((top, bottom)):
                axes.axvspan(begin, end, zorder=0, **SHADE)
                axes.axvline(begin, color="#B22222", linewidth=1, linestyle="--", zorder=1)
            late = begin > 0.75 * self._end
            top.annotate(
                fault_name(fault),
                (begin, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-3 if late else 3, 3 + 12 * level),
                textcoords="offset points",
                ha="right" if late else "left",
                size=8.5,
                color="#8B0000",
                weight="bold",
            )
            self._used.setdefault("fault", Patch(label="fault, until healed", **SHADE))

    def _summary(self) -> str:
        runs = self._timeline.runs.all
        done = {run.id for run in runs if run.outcome == "finished"}
        again = {run.id for run in runs if run.attempt > 1}
        lost = sum(run.outcome == "lost" for run in runs)
        known = {run.id for run in runs} | {record.id for record in self._publishes} | {r.id for r in self._letters}
        parts = [
            many(len(known), "message"),
            f"{len(done)} finished",
            f"{len(again)} run again",
            f"{many(lost, 'run')} lost",
        ]
        if parked := {r.id for r in self._records if isinstance(r, Parked)}:
            parts.append(f"{len(parked)} parked")
        return ", ".join(parts)


def _look(run: Run) -> str:
    if run.outcome == "finished":
        return "finished, run again" if run.attempt > 1 else "finished"
    names = {"lost": "run lost", "running": "still running", "requeued": "given back", "retried": "to be retried"}
    return names.get(run.outcome, run.outcome)
