"""`celery -A proj broker`: a private RabbitMQ node in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from proj.broker import Node

PORT = click.IntRange(1, 65535)
PATIENCE = 60  # seconds that --wait waits when it is not told
OPTIONS = {"AMQP": "--port", "management": "--management-port", "Prometheus": "--prometheus-port"}


@click.command()
@click.option("--port", type=PORT, default=5672, show_default=True, help="For AMQP.")
@click.option("--management-port", type=PORT, default=15672, show_default=True, help="For its pages and API.")
@click.option("--prometheus-port", type=PORT, help="For metrics.  [default: the management port + 20]")
# In the working folder: every checkout has a broker of its own, and whoever looks for the data finds it.
@click.option("--folder", default="var/broker", show_default=True, help="Keeps its data, configuration and log.")
@click.option("--rabbitmq", metavar="FOLDER", envvar="PROJ_RABBITMQ", show_envvar=True, help="The RabbitMQ to run.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    is_flag=False,
    flag_value=PATIENCE,
    metavar="[SECONDS]",
    help=f"Start nothing; return once the application's broker answers, or fail after SECONDS ({PATIENCE}).",
)
@click.pass_context
def broker(
    ctx: click.Context,
    port: int,
    management_port: int,
    prometheus_port: int | None,
    folder: str,
    rabbitmq: str | None,
    wait: float | None,
) -> None:
    """Run a RabbitMQ of your own, on this machine only, until Ctrl+C. Its data survive.

    A broker that already answers on the port is used as it is, and never stopped.

    \b
    Examples:
        celery -A proj broker
        celery -A proj broker --port 5673 --management-port 15673 --folder var/second
        celery -A proj broker --wait 30 && celery -A proj worker
    """
    from pathlib import Path

    from proj.broker import Node, answers_amqp
    from proj.cli.failure import Unavailable
    from proj.installation import NotInstalled, find

    if wait is not None:
        _wait_for_broker(ctx.obj.app, wait)
        ctx.obj.echo(f"{ctx.obj.app.connection_for_write().as_uri()} answers")
        return
    _stop_like_ctrl_c()
    if answers_amqp(port):
        _use_the_other(ctx, port)
        return
    try:
        found = find(Path(rabbitmq) if rabbitmq else None)
    except NotInstalled as error:
        raise Unavailable(str(error)) from error
    _run(ctx, Node(Path(folder), port, management_port, prometheus_port=prometheus_port, installation=found))


def _run(ctx: click.Context, node: Node) -> None:
    from proj.broker import FolderInUse, NodeFailed, PortInUse
    from proj.cli.failure import Unavailable

    try:
        with node:
            _say_ready(ctx, node)
            status = node.wait()
            raise node.failure(f"it ended by itself with exit status {status}")
    except KeyboardInterrupt:
        ctx.obj.echo(f"stopped; the data stay in {node.folder}")
    except PortInUse as error:
        raise Unavailable(f"{error}; choose another one with {OPTIONS[error.purpose]}") from error
    except OSError as error:
        raise Unavailable(f"cannot use {node.folder}: {error.strerror}; choose another one with --folder") from error
    except (FolderInUse, NodeFailed) as error:
        raise Unavailable(str(error)) from error


def _say_ready(ctx: click.Context, node: Node) -> None:
    ctx.obj.echo(
        f"[*] RabbitMQ {node.installation.version} is ready. To stop it press CTRL+C\n"
        f"    AMQP        {node.amqp_url}\n"
        f"    management  {node.management_url}\n"
        f"    data        {node.data}"
    )


def _use_the_other(ctx: click.Context, port: int) -> None:
    """Stay, so that a process manager that started us among others does not end them all."""
    import signal

    ctx.obj.echo(
        f"[*] A broker already answers on port {port}: it is used as it is, and goes on when this command ends. "
        "To exit press CTRL+C"
    )
    try:
        signal.pause()
    except KeyboardInterrupt:
        ctx.obj.echo(f"the broker on port {port} goes on")


def _stop_like_ctrl_c() -> None:
    import signal

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


def _wait_for_broker(app: Any, seconds: float) -> None:
    from amqp.exceptions import AccessRefused, NotAllowed

    from proj.cli.failure import Unavailable, unreachable

    def give_up_on_refusal(error: Exception, _: float) -> None:
        # Time does not mend a wrong password or virtual host.
        if isinstance(error, (AccessRefused, NotAllowed)):
            raise error

    with app.connection_for_write() as connection:
        try:
            connection.ensure_connection(
                give_up_on_refusal,
                interval_start=0.1,
                interval_step=0.1,
                interval_max=1,
                timeout=seconds,
                reraise_as_library_errors=False,
            )
        except (AccessRefused, NotAllowed) as error:
            raise Unavailable(f"{connection.as_uri()} refused us: {error.reply_text}") from error
        except (*connection.connection_errors, *connection.channel_errors) as error:
            raise unreachable(connection.as_uri(), error, f"waited {seconds:g} s") from error
