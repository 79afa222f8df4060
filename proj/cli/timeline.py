"""`celery -A proj timeline`: who is at which message, what waits, and what went wrong."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from proj.history import History, Record
    from proj.timeline import Feed, Timeline

    Show = Callable[[Timeline, list[Record]], object]


@click.command()
@click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep what happens in this new file, a line a record (docs/history.md).",
)
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Show a recording instead of what happens now.",
)
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the recording into this file, .svg or .png.",
)
@click.option("--title", default="", help="What stands above the picture.")
@click.pass_context
def timeline(ctx: click.Context, record: Path | None, source: Path | None, picture: Path | None, title: str) -> None:
    """Show a lane per worker and the queue beside them, until Ctrl+C.

    It lives on the events of the app's workers (worker_send_task_events). What they do can be recorded, and
    a recording be drawn; the same recording gives the same picture, byte for byte.

    \b
    Examples:
        celery -A proj timeline
        celery -A proj timeline --record run.jsonl --picture run.svg
        celery -A proj timeline --from run.jsonl --picture run.png
    """
    from rich.console import Console

    if record and source:
        raise click.UsageError("--record keeps what happens now and --from shows what happened before: name one")
    if picture and not (record or source):
        raise click.UsageError("--picture draws a recording: name it with --from FILE, or make one with --record FILE")
    if picture:
        _check_picture(picture)
    console = Console(no_color=ctx.obj.no_color, highlight=False, markup=False)
    if source is None:
        _live(ctx, console, record)
        source = record if picture else None
    if source:
        _recorded(ctx, console, source, picture, title)


def _check_picture(path: Path) -> None:
    from proj.picture import NoPicture, check

    try:
        check(path)
    except NoPicture as error:
        raise click.ClickException(str(error)) from error


def _live(ctx: click.Context, console: Console, record: Path | None) -> None:
    from proj.processes import interrupt_on_sigterm
    from proj.timeline import Feed, follow

    interrupt_on_sigterm()
    feed = Feed(ctx.obj.app)
    try:
        with _shown(ctx, console, feed, record) as show:
            follow(feed, record, show)
    except KeyboardInterrupt:
        # The way to end it.
        pass
    except FileExistsError as error:
        raise click.ClickException(f"{record} exists, and no recording is overwritten; name another file") from error
    except OSError as error:
        raise click.ClickException(f"cannot write {record}: {error.strerror}") from error


@contextmanager
def _shown(ctx: click.Context, console: Console, feed: Feed, record: Path | None) -> Iterator[Show]:
    """Where the timeline goes: a screen that is drawn anew, or, for pipes and files, a line a record."""
    import time

    from rich.live import Live

    from proj.timeline import sentence
    from proj.timeline_terminal import clock, screen

    if not console.is_terminal:
        yield lambda _, news: [ctx.obj.echo(f"{clock(record.at)} {sentence(record)}") for record in news]
        return

    def note() -> str:
        parts = [f"no events and no counts: {feed.trouble}; trying again"] if feed.trouble else []
        return "\n".join([*parts, *([f"recording to {record}"] if record else []), "Ctrl+C ends it"])

    with Live(console=console, auto_refresh=False) as live:
        yield lambda timeline, _: live.update(
            screen(timeline, time.time(), ctx.obj.app.main, note(), width=console.width, heard=feed.heard),
            refresh=True,
        )


def _recorded(ctx: click.Context, console: Console, source: Path, picture: Path | None, title: str) -> None:
    from proj.history import BadHistory, read

    try:
        history = read(source)
    except (BadHistory, OSError) as error:
        raise click.ClickException(str(error)) from error
    if not history.records:
        raise click.ClickException(f"{source} holds no record: nothing happened while it was made")
    if picture is None:
        _summary(console, history, source)
        return
    from proj.picture import draw

    try:
        draw(history.records, picture, title)
    except OSError as error:
        raise click.ClickException(f"cannot write {picture}: {error.strerror}") from error
    ctx.obj.echo(f"{picture}: {len(history.records)} records of {source}")


def _summary(console: Console, history: History, source: Path) -> None:
    from proj.timeline import Timeline
    from proj.timeline_terminal import screen

    first, last = history.records[0].at, history.records[-1].at
    cut = f", {history.torn} line cut short" if history.torn else ""
    note = f"{source}: {len(history.records)} records{cut}"
    past = max(last - first, 1)
    console.print(screen(Timeline(history.records), last, "recording", note, past, console.width))
