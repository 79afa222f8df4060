"""How a command fails: one sentence with the cause and the remedy, and an exit status."""

import click

START = "start one: celery -A proj broker"


class Unavailable(click.ClickException):
    """The broker, or what else a command needs, is not there."""

    exit_code = 69  # EX_UNAVAILABLE of sysexits.h, as Celery's own commands


def unreachable(url: str, error: Exception, state: str = "") -> Unavailable:
    """The broker at `url` cannot be reached: how things stand then, and the command that starts one."""
    reason = (str(error).partition("] ")[2] or str(error)).lower()
    return Unavailable("; ".join(filter(None, (f"cannot reach {url} ({reason})", state, START))))
