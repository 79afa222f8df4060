"""What a worker process needs beside Celery's own: a name per shell, the tutorial's words, a bounded stop."""

import fcntl
import logging
import os
import signal
import tempfile
import threading
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import billiard
import click
from celery import current_app
from celery.signals import after_setup_task_logger, celeryd_init, worker_ready, worker_shutting_down
from celery.utils.log import get_logger, task_logger
from celery.utils.nodenames import gethostname
from click.core import ParameterSource

logger = get_logger(__name__)

NAMES_FOLDER = Path(tempfile.gettempdir()) / "celery-node-names"


def claim_node_name(folder: Path = NAMES_FOLDER) -> str:
    """Return the first of worker1@HOST, worker2@HOST, … that no live worker of this host holds.

    The name is held by a file lock, which the system releases with this process however it ends. Where no
    lock can be had the process id makes the name.
    """
    try:
        name = next(name for name in map("worker{}".format, count(1)) if _lock(folder / name))
    except OSError:
        name = f"worker-{os.getpid()}"
    return f"{name}@{gethostname()}"


def _lock(path: Path) -> bool:
    """Lock *path* for the life of this process; False where another process holds it."""
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        # Workers of all users on this host share the names.
        if path.parent.stat().st_uid == os.getuid():
            path.parent.chmod(0o1777)
        path.touch(mode=0o644)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    # A pool process that outlives a killed worker must not keep the name.
    os.register_at_fork(after_in_child=partial(os.close, descriptor))
    return True


def _is_default(option: str) -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(option) is ParameterSource.DEFAULT


@celeryd_init.connect
def name_the_node(instance: Any, **_: Any) -> None:
    """Give each plain `celery -A proj worker` its own name: two of one name share a control queue."""
    if _is_default("hostname"):
        instance.hostname = claim_node_name()


@after_setup_task_logger.connect
def show_our_own_lines(**_: Any) -> None:
    """Log what tasks say without `-l INFO`, which would bring Celery's own lines too."""
    if _is_default("loglevel"):
        for ours in (task_logger, logger):
            ours.setLevel(logging.INFO)


@worker_ready.connect
def say_that_we_wait(**_: Any) -> None:
    """Say what the tutorial's worker says."""
    logger.info("[*] Waiting for messages. To exit press CTRL+C")


@worker_shutting_down.connect
def bound_the_stop(how: str, **_: Any) -> None:
    """After a first SIGTERM or Ctrl+C let a second one, or the setting `stop_timeout` (s), hand work back."""
    if how != "Warm":
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_back)
    if seconds := current_app.conf.get("stop_timeout"):
        timer = threading.Timer(seconds, hand_back)
        timer.daemon = True
        timer.start()


def hand_back(*_: Any) -> None:
    """End this worker and its pool at once; RabbitMQ gives what it ran to another worker in the same moment.

    Celery ignores a second SIGTERM, and its SIGQUIT takes seconds with prefork and fails with other pools.
    """
    os.write(2, b"worker: handing back what runs\n")
    for process in billiard.active_children():
        os.kill(process.pid, signal.SIGKILL)
    os._exit(1)
