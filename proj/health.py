"""A file whose age says whether a worker lives: no message has to travel, so load cannot make it look dead."""

import os
from pathlib import Path
from typing import Any

from celery.signals import heartbeat_sent, worker_init

VARIABLE = "PROJ_HEALTH_FILE"


@worker_init.connect
def check_health_file(**_: Any) -> None:
    """Refuse to start where the file that was asked for could never be written."""
    name = os.environ.get(VARIABLE)
    if name and not os.access(Path(name).absolute().parent, os.W_OK):
        raise SystemExit(
            f"cannot write {VARIABLE}={name}: its folder is missing or not ours; make it or unset {VARIABLE}"
        )


@heartbeat_sent.connect
def touch_health_file(**_: Any) -> None:
    """Touch the file with every heartbeat: each 2 s while the event loop turns and the broker is connected."""
    if name := os.environ.get(VARIABLE):
        Path(name).touch()
