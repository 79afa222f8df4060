"""The tasks: replace `fake_work` with your own."""

import time

from celery.utils.log import get_task_logger

from proj.celery import app

logger = get_task_logger(__name__)


@app.task(throws=(TypeError,))
def fake_work(message: str = "Hello World!") -> int:
    """Sleep one second per dot in *message* and return the seconds.

    Raises TypeError for anything but a string.
    """
    if not isinstance(message, str):
        raise TypeError(f"expected message to be a string, got {type(message).__name__}: {message!r}")
    logger.info("[x] Received %r", message)
    seconds = message.count(".")
    time.sleep(seconds)
    logger.info("[x] Done")
    return seconds
