"""`celery -A proj queues`: what waits, what is being worked on, and by how many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery
    from rich.console import Console, RenderableType

    from proj.queues import IdleConsumer, QueueState

    Look = tuple[list[QueueState], list[IdleConsumer], str]

REFRESH = 2  # seconds


@click.command()
@click.option("--watch", is_flag=True, help="Refresh every two seconds until Ctrl+C.")
@click.option("--all", "every", is_flag=True, help="Include the empty queues that Celery makes for itself.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts.")
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=60,
    show_default=True,
    help="Seconds without traffic after which an unacknowledged message is pointed at.",
)
@click.pass_context
def queues(ctx: click.Context, watch: bool, every: bool, as_json: bool, patience: float) -> None:
    """Show the queues: messages ready, unacknowledged, consumers, type.

    It asks RabbitMQ's management API (PROJ_MANAGEMENT_URL, else port 15672 on the broker's host), or the
    broker itself where that does not answer. It points at consumers that hold messages without
    acknowledging them though no worker is at work on them. A quorum queue's counts lag by up to five seconds.

    \b
    Examples:
        celery -A proj queues --watch
        celery -A proj queues --json | jq '.queues[] | select(.ready > 100)'
    """
    from rich.console import Console

    def look() -> Look:
        states, idle, note = _look(ctx.obj.app, patience)
        return [state for state in states if every or not state.internal], idle, note

    console = Console(no_color=ctx.obj.no_color, highlight=False, markup=False)
    if as_json:
        ctx.obj.echo(_as_json(*look()))
    elif watch:
        _watch(console, look)
    else:
        console.print(_screen(*look()), soft_wrap=True)


def _look(app: Celery, patience: float) -> Look:
    from kombu.exceptions import OperationalError

    from proj.cli.failure import unreachable
    from proj.management import ManagementError
    from proj.queues import from_amqp, from_management

    try:
        return (*from_management(app, patience), "")
    except ManagementError as error:
        note = f"{error}; asked the broker instead, which tells only this app's queues and nothing of deliveries"
    try:
        return from_amqp(app), [], note
    except OperationalError as error:
        raise unreachable(app.connection_for_read().as_uri(), error) from error


def _as_json(states: list[QueueState], idle: list[IdleConsumer], note: str) -> str:
    import json
    from dataclasses import asdict

    found = {"queues": [asdict(s) for s in states], "idle_consumers": [asdict(i) for i in idle], "note": note}
    return json.dumps(found, indent=2)


def _watch(console: Console, look: Callable[[], Look]) -> None:
    import time

    from rich.live import Live
    from rich.text import Text

    def screen() -> RenderableType:
        try:
            return _screen(*look())
        except click.ClickException as error:
            # A watch outlives a restart of the broker.
            return Text(error.message)

    with Live(console=console, auto_refresh=False) as live:
        while True:
            if console.is_terminal:
                live.update(screen(), refresh=True)
            else:
                console.print(screen(), soft_wrap=True)
            time.sleep(REFRESH)


def _screen(states: list[QueueState], idle: list[IdleConsumer], note: str) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    table = Table("name", box=None, pad_edge=False)
    for column in ("ready", "unacknowledged", "consumers"):
        table.add_column(column, justify="right")
    table.add_column("type")
    for state in states:
        counts = (state.ready, state.unacknowledged, state.consumers)
        table.add_row(state.name, *("?" if n is None else str(n) for n in counts), state.type or "not declared")
    warnings = [f"! {consumer}" for consumer in idle]
    return Group(table, *warnings, *([f"({note})"] if note else []))
