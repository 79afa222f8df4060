"""`celery -A proj new_task`: the tutorial's producer."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

PATIENCE = 1  # second without an end before a progress bar appears


@click.command(name="new_task")
@click.argument("words", nargs=-1)
@click.option("--wait", is_flag=True, help="Wait until a worker has done it, and say how long it took.")
@click.pass_context
def new_task(ctx: click.Context, words: tuple[str, ...], wait: bool) -> None:
    """Send a message to the workers: WORDS joined by blanks, or Hello World! without any.

    A worker works for one second per dot in it. With - the messages come from standard input, one a line;
    empty lines are passed over.

    \b
    Examples:
        celery -A proj new_task First message.
        celery -A proj new_task --wait Hello...
        seq -f 'Message %g.' 20 | celery -A proj new_task -
    """
    awaited: list[Any] = []
    for sent, message in enumerate(_with_progress(ctx, _messages(words))):
        result = _send(ctx, message, wait, sent)
        ctx.obj.echo(f"[x] Sent {message!r}")
        if wait:
            awaited.append(result)
    for result in awaited:
        _wait(ctx, result)


def _messages(words: tuple[str, ...]) -> Iterator[str]:
    if words != ("-",):
        yield " ".join(words) or "Hello World!"
        return
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            message = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise click.ClickException(
                f"line {number} of standard input is not UTF-8 ({error.reason}); "
                "the lines before it were sent, from here on none was"
            ) from error
        if message:
            yield message


def _with_progress(ctx: click.Context, messages: Iterable[str]) -> Iterator[str]:
    import time

    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    # Lines of output rise above the bar only where both go to the same terminal.
    shared = sys.stdout.isatty()
    console = Console(stderr=not shared, no_color=ctx.obj.no_color)
    progress = Progress(
        SpinnerColumn(),
        TextColumn("sending"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=shared,
        disable=not console.is_terminal,
    )
    task = progress.add_task("sending", total=None)
    started = time.monotonic()
    try:
        for message in messages:
            yield message
            progress.advance(task)
            if time.monotonic() - started > PATIENCE:
                progress.start()
    finally:
        progress.stop()


def _send(ctx: click.Context, message: str, wait: bool, sent: int) -> Any:
    from proj.cli.failure import Unavailable
    from proj.publish import PublishError
    from proj.tasks import fake_work

    if not sent:
        _check_broker(ctx.obj.app, message)
    try:
        # A result that nobody reads would keep a reply queue of this short-lived process.
        return fake_work.apply_async((message,), ignore_result=not wait)
    except PublishError as error:
        raise Unavailable(f"{error}; {sent} sent before it, the message was {message!r}") from error


def _check_broker(app: Any, message: str) -> None:
    """Say at once that there is none; a publish would hope for one until its bound."""
    from kombu.exceptions import OperationalError

    from proj.cli.failure import unreachable

    with app.connection_for_write() as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)
        except OperationalError as error:
            raise unreachable(connection.as_uri(), error, f"0 sent, not sent: {message!r}") from error


def _wait(ctx: click.Context, result: Any) -> None:
    from kombu.exceptions import OperationalError

    from proj.cli.failure import Unavailable

    try:
        seconds = result.get()
    except OperationalError as error:
        raise Unavailable(f"lost the broker while waiting for {result.id} ({error}); it is still queued") from error
    except Exception as error:
        raise click.ClickException(f"{result.id} failed: {error}") from error
    ctx.obj.echo(f"[x] Done in {seconds} s ({result.id})")
