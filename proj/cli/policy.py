"""`celery -A proj policy`: what the broker does with task_queue beyond its declaration."""

from __future__ import annotations

import click


@click.group()
def policy() -> None:
    """The policy of task_queue: dead-lettering, delivery limit, consumer timeout."""


@policy.command()
@click.pass_context
def install(ctx: click.Context) -> None:
    """Create the policy on the broker, or bring it up to date.

    It goes through RabbitMQ's management API (PROJ_MANAGEMENT_URL, else port 15672 on the broker's host).

    \b
    Example:
        celery -A proj policy install
    """
    from proj.cli.failure import Unavailable
    from proj.management import POLICY, Management, ManagementError, management_url

    app = ctx.obj.app
    vhost = app.connection_for_write().virtual_host
    api = Management(management_url(app.conf))
    try:
        api.put_policy(vhost)
    except ManagementError as error:
        raise Unavailable(f"policy {POLICY!r} is not installed: {error}") from error
    ctx.obj.echo(f"policy {POLICY!r} is installed on virtual host {vhost!r} of {api.url}")
