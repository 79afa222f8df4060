"""The protections that `--without` takes away, and the application stripped of one of them.

A worker or publisher with this module as its app runs without the protection that _PROJ_WITHOUT names.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

from celery import Celery
from kombu import Exchange, Queue

VARIABLE = "_PROJ_WITHOUT"

Cost = Literal["messages", "a second try", "time", "double work"]

CLASSIC = Queue(
    "task_queue",
    Exchange("task_exchange", type="topic"),
    routing_key="task_queue",
    queue_arguments={"x-queue-type": "classic"},
)


def _plain_publishing(app: Celery) -> None:
    # Whatever the application does about it, Celery's own way comes back.
    app.send_task = MethodType(Celery.send_task, app)


@dataclass(frozen=True)
class Protection:
    """One protection: what the settings are without it, what that costs, and under which fault one sees it."""

    settings: dict[str, Any]
    cost: Cost
    fault: str
    lesson: int | None = None
    note: str = ""
    strip: Callable[[Celery], None] | None = None
    classic: bool = False
    """Whether the queue has to be a classic one for the difference to show."""

    @property
    def given(self) -> dict[str, Any]:
        """The settings, the queue included."""
        return self.settings | ({"task_queues": (CLASSIC,)} if self.classic else {})


PROTECTIONS: dict[str, Protection] = {
    "task_acks_late": Protection({"task_acks_late": False}, "messages", "kill_worker", 2),
    "task_reject_on_worker_lost": Protection(
        {"task_reject_on_worker_lost": False},
        "a second try",
        "kill_child",
        2,
        "the message is not run again: our consumer parks it, Celery's own discards it",
    ),
    "broker_heartbeat": Protection(
        {"broker_heartbeat": 0}, "time", "pause_worker", 2, "a frozen worker keeps its message"
    ),
    "worker_cancel_long_running_tasks_on_connection_loss": Protection(
        {"worker_cancel_long_running_tasks_on_connection_loss": False}, "double work", "close_connections", 2
    ),
    "task_default_delivery_mode": Protection(
        # Our consumer asks for a consumer timeout, which RabbitMQ 4.3 refuses for classic queues.
        {"task_default_delivery_mode": "transient", "worker_consumer": "celery.worker.consumer:Consumer"},
        "messages",
        "stop_broker",
        3,
        "the queue is a classic one, because a quorum queue writes transient messages to disk all the same",
        classic=True,
    ),
    "confirm_publish": Protection(
        {"broker_transport_options": {}},
        "messages",
        "delete_queue",
        3,
        "a publish returns when the message has left the process",
        strip=_plain_publishing,
    ),
    "worker_prefetch_multiplier": Protection(
        {"worker_prefetch_multiplier": 8}, "time", "none", 4, "light messages wait behind a heavy one"
    ),
    "worker_consumer": Protection(
        {"worker_consumer": "celery.worker.consumer:Consumer"},
        "messages",
        "rubbish",
        None,
        "Celery's own consumer discards what it cannot read",
    ),
}


def stripped(name: str) -> Celery:
    """Return the application without that protection."""
    from proj.celery import app

    protection = PROTECTIONS[name]
    app.conf.update(protection.given)
    if protection.strip:
        protection.strip(app)
    return app


if VARIABLE in os.environ:
    app = stripped(os.environ[VARIABLE])
