"""Notes the serial number of each message whose task finished, in the pool process that ran it."""

from typing import Any

from celery.signals import task_success

from tests.chores import note


@task_success.connect
def finished(sender: Any, **_: Any) -> None:
    # A message of Celery's first protocol has its headers in the body, and its number in its id.
    request = sender.request
    note(f"finished {request.serial if hasattr(request, 'serial') else request.id}")
