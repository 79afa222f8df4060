"""`celery -A proj demo`: the whole tutorial, live, by itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Celery
    from rich.table import Table

    from proj.demo import Say, Work


@click.command()
@click.option("--stay", is_flag=True, help="Use the usual ports and keep data in ./var; run until Ctrl+C.")
@click.pass_context
def demo(ctx: click.Context, stay: bool) -> None:
    """Run a private RabbitMQ, two workers and Flower; send the tutorial's five messages; say who did what.

    It takes free ports, leaves nothing behind and ends by itself. With --stay it takes the usual ports and
    goes on until Ctrl+C, so that other shells can send messages and start workers.

    \b
    Examples:
        celery -A proj demo
        celery -A proj demo --stay
    """
    from rich.console import Console

    from proj.broker import FolderInUse, NodeFailed, PortInUse
    from proj.installation import NotInstalled
    from proj.processes import NotReady, interrupt_on_sigterm

    console = Console(no_color=ctx.obj.no_color, highlight=False, markup=False, soft_wrap=True)
    interrupt_on_sigterm()
    try:
        if stay:
            _stay(ctx.obj.app, console.print)
        else:
            console.print(_table(_once(ctx.obj.app, console.print)))
    except (NotInstalled, PortInUse, FolderInUse, NodeFailed, NotReady) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        console.print("stopped")
        ctx.exit(0 if stay else 130)


def _once(app: Celery, say: Say) -> Iterable[Work]:
    from tempfile import TemporaryDirectory

    from proj.broker import Node
    from proj.demo import Feed, run, stand
    from proj.ports import free_port

    feed = Feed(say)
    with TemporaryDirectory(prefix="proj-demo-") as name:
        folder = Path(name)
        with stand(Node.free(folder / "broker"), folder, free_port(), say) as running:
            run(app, running, feed)
    return feed.works.values()


def _stay(app: Celery, say: Say) -> None:
    from proj.broker import Node
    from proj.demo import Feed, free_or, run, stand, stay

    feed = Feed(say)
    # The folder of `celery -A proj broker`: the same data.
    with stand(Node(Path("var/broker")), Path("var"), free_or(5555), say) as running:
        run(app, running, feed)
        say("In another shell: celery -A proj new_task Hello...   (Ctrl+C here ends it all)")
        stay(app, running, feed)


def _table(works: Iterable[Work]) -> Table:
    from rich.table import Table

    table = Table("message", "worker")
    table.add_column("started", justify="right")
    table.add_column("took", justify="right")
    for work in works:
        table.add_row(work.message, work.worker, f"+{work.started:.1f} s", f"{work.took:.1f} s")
    return table
