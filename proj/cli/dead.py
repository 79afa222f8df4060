"""`celery -A proj dead`: the messages that could not be finished, and why."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proj.dead_letters import DeadLetters
    from proj.letter import Letter

REPORT_EVERY = 5000  # letters

queue_option = click.option(
    "--queue",
    "-q",
    metavar="NAME",
    help="Whose letters; by default the app's default queue.",
)


@click.group()
def dead() -> None:
    """The messages that could not be finished, each with its cause, in the dead queue of their queue."""


@dead.command("list")
@queue_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, everything in it.")
@click.pass_context
def list_letters(ctx: click.Context, queue: str | None, as_json: bool) -> None:
    """Show all letters: id, task, cause, deliveries, age, worker. Looking may change their order.

    \b
    Examples:
        celery -A proj dead list
        celery -A proj dead list --json | jq -r 'select(.cause == "failed").id'
    """
    from proj.letter import as_json as in_json

    with _letters(ctx, queue) as letters:
        if not as_json:
            ctx.obj.echo(ROW.format("ID", "TASK", "CAUSE", "DELIVERIES", "AGE", "WORKER"))
        for letter, _ in _reported(letters.each(), letters.count()):
            ctx.obj.echo(in_json(letter) if as_json else _row(letter))


@dead.command()
@click.argument("id")
@queue_option
@click.pass_context
def show(ctx: click.Context, id: str, queue: str | None) -> None:
    """Show everything known about one letter, its traceback and its body included.

    \b
    Example:
        celery -A proj dead show 9b2d8c52-0c9c-4a2e-9f0e-0d2b3c1a4e5f
    """
    with _letters(ctx, queue) as letters:
        for letter, _ in letters.each():
            if letter.parked.get("id") == id:
                ctx.obj.echo(_page(letter))
                return
        raise click.ClickException(f"no letter {id!r} in {letters.name}: see `celery -A {ctx.obj.app.main} dead list`")


@dead.command()
@click.argument("ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All letters.")
@click.option("--cause", multiple=True, metavar="WORD", help="All letters with this cause.")
@queue_option
@click.pass_context
def replay(ctx: click.Context, ids: tuple[str, ...], every: bool, cause: tuple[str, ...], queue: str | None) -> None:
    """Send letters back to their queue: same id, same bytes; deliveries and retries start afresh.

    Each leaves the dead queue when it is confirmed in the other. Killed in between, it is in both.

    \b
    Examples:
        celery -A proj dead replay 9b2d8c52-0c9c-4a2e-9f0e-0d2b3c1a4e5f
        celery -A proj dead replay --cause failed --cause time-limit
    """
    from proj.letter import CAUSES

    if not (ids or every or cause):
        raise click.UsageError("name the letters: their ids, --cause WORD, or --all")
    if strange := set(cause) - set(CAUSES):
        raise click.UsageError(f"unknown cause {min(strange)!r}; expected one of {', '.join(CAUSES)}")

    def chosen(letter: Letter) -> bool:
        return every or letter.parked.get("id") in ids or letter.parked.get("cause") in cause

    with _letters(ctx, queue) as letters:
        count = sum(_reported(letters.replay(chosen), letters.count()))
        if ids and not count:
            raise click.ClickException(f"none of these ids is in {letters.name}: nothing was replayed")
        ctx.obj.echo(f"replayed {count} {_letters_word(count)} of {letters.name}")


@dead.command()
@click.option("--force", "-f", is_flag=True, help="Do not ask.")
@queue_option
@click.pass_context
def purge(ctx: click.Context, force: bool, queue: str | None) -> None:
    """Delete the letters that lie there now, for good. What is parked meanwhile stays.

    \b
    Example:
        celery -A proj dead purge --force
    """
    with _letters(ctx, queue) as letters:
        count = letters.count()
        if not count:
            ctx.obj.echo(f"no letters in {letters.name}")
            return
        if not force:
            click.confirm(f"Delete {count} {_letters_word(count)} in {letters.name}, for good?", abort=True)
        deleted = 0
        for _, remove in _reported(letters.each(count), count):
            remove()
            deleted += 1
        ctx.obj.echo(f"deleted {deleted} {_letters_word(deleted)} of {letters.name}")


ROW = "{:36}  {:28}  {:16}  {:>10}  {:>6}  {}"


@contextmanager
def _letters(ctx: click.Context, queue: str | None) -> Iterator[DeadLetters]:
    import logging

    from kombu.exceptions import OperationalError

    from proj.cli.failure import unreachable
    from proj.dead_letters import DeadLetters, NotParked

    # It warns of deliveries that are still on their way when we stop looking.
    logging.getLogger("amqp").setLevel(logging.ERROR)
    app = ctx.obj.app
    try:
        yield DeadLetters(app, queue or app.conf.task_default_queue)
    except NotParked as error:
        raise click.ClickException(f"{error}; the letter stays where it is") from error
    except (OSError, OperationalError) as error:
        raise unreachable(app.connection_for_read().as_uri(), error, "no letter was touched") from error


def _reported(items: Iterator[Any], total: int) -> Iterator[Any]:
    for number, item in enumerate(items, 1):
        yield item
        if number % REPORT_EVERY == 0:
            click.echo(f"{number} of {total}", err=True)


def _letters_word(count: int) -> str:
    return "letter" if count == 1 else "letters"


def _row(letter: Letter) -> str:
    known = letter.parked
    about = (
        known.get("id") or "-",
        known.get("task") or "-",
        known.get("cause"),
        known.get("deliveries", "-"),
    )
    return ROW.format(*about, _age(known.get("time")), known.get("worker") or "-")


def _age(time: str | None) -> str:
    from datetime import UTC, datetime

    if not time:
        return "-"
    seconds = (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _page(letter: Letter) -> str:
    import json

    from proj.letter import CAUSES, as_json

    known = json.loads(as_json(letter))
    traceback, body = known.pop("traceback", ""), known.pop("body")
    known["cause"] = f"{known['cause']} ({CAUSES.get(known['cause'], '')})"
    known["headers"] = letter.original().properties.get("application_headers")
    lines = [f"{name + ':':14}{value}" for name, value in known.items() if value not in ("", None, {})]
    return "\n".join([*lines, "", body, *(["", traceback] if traceback else [])])
