"""Loaded into a worker, takes our handling of its stop away: what is left is Celery's own."""

from celery.signals import worker_shutting_down

import tests.chores  # noqa: F401 - a worker's last -I counts
from proj.worker import bound_the_stop

worker_shutting_down.disconnect(bound_the_stop)
