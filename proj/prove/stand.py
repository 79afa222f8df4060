"""The stand of one proof: a virtual host, workers, a publisher, and the history that they all write."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from signal import SIGSTOP
from threading import Thread
from time import monotonic, time
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import amqp
from celery import Celery
from kombu import Connection

from proj.backlog import ready
from proj.history import Attempted, Confirmed
from proj.ledger import VARIABLE as LEDGER
from proj.management import ManagementError, policy_for
from proj.ports import LOOPBACK
from proj.prove import without
from proj.prove.crew import Crew
from proj.prove.rabbit import OURS, Rabbit, known
from proj.prove.waiting import Waiting
from proj.prove.workload import Plan
from proj.proxy import Proxy

QUEUE = "task_queue"
DEAD = "task_queue.dead"
# Seconds. RabbitMQ may lose a quorum queue that it is killed with within its first second (docs/faults.md).
QUEUE_AGE = 2.0
PATIENCE = 60  # seconds for workers to come back: a lost connection is tried again with growing pauses
CONFIRMED = {"confirm_publish": True}
FRAME = 7  # bytes before an AMQP frame's own


class Stand(Crew):
    """Everything that runs in one proof. A context manager; what is left of it at the end is its folder."""

    def __init__(self, rabbit: Rabbit, vhost: str, folder: Path, plan: Plan, waiting: Waiting) -> None:
        super().__init__(folder, plan, waiting)
        self.rabbit = rabbit
        self.vhost = vhost
        self.app = Celery("proj", set_as_current=False)
        self.app.config_from_object("proj.celeryconfig")
        self.app.conf.update(
            broker_url=self.url,
            management_url=rabbit.management_url(),
            broker_transport_options={"client_properties": {"connection_name": OURS}},
        )
        self._stack = ExitStack()
        self._declared = 0.0

    @property
    def url(self) -> str:
        """The nodes themselves, past the proxies."""
        return self.rabbit.url(self.vhost)

    # Setting up

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _set_up(self) -> None:
        # The management API of a node that has just started answers 500 now and then.
        self.wait(self._add_vhost, "RabbitMQ to make a virtual host", 20, (ManagementError,))
        self._stack.callback(self._delete_vhost)
        if self.plan.proxied:
            self.to_workers = self._stack.enter_context(Proxy(self.rabbit.node.port))
            self.to_publisher = self._stack.enter_context(Proxy(self.rabbit.node.port))
        self._stack.callback(self.end)
        self.declare()
        names = [f"worker{number}@proof" for number in range(1, self.plan.workers + 1)]
        self.wait_until_ready([self.start_worker(name) for name in names])
        self.wait(lambda: monotonic() - self._declared > QUEUE_AGE, "the queue to be older than two seconds")

    def _add_vhost(self) -> bool:
        self.rabbit.api.add_vhost(self.vhost, policy_for(self.rabbit.version))
        return True

    def declare(self) -> None:
        """Declare the queue as the application does, so that its age is known."""
        given = without.PROTECTIONS[self.plan.without].given if self.plan.without else {}
        (queue,) = given.get("task_queues", self.app.conf.task_queues)
        with self.app.connection_for_write() as connection:
            queue(connection.default_channel).declare()
        self._declared = monotonic()

    def url_of(self, proxy: str) -> str:
        """Where workers or publisher connect: through their proxy, where there is one."""
        return self.rabbit.url(self.vhost, getattr(self, proxy).port if self.plan.proxied else None)

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that workers and publisher have besides."""
        return {
            "PROJ_MANAGEMENT_URL": self.rabbit.management_url(),
            LEDGER: str(self.history),
            **({without.VARIABLE: self.plan.without} if self.plan.without else {}),
        }

    def close(self) -> None:
        """End all processes, and take the virtual host away."""
        self._stack.close()

    def _delete_vhost(self) -> None:
        with suppress(ManagementError):
            self.rabbit.api.delete_vhost(self.vhost)

    # Messages of a fault's own

    def send(self, task: str) -> str:
        """Publish a task's message of a fault's own, and return its id."""
        task_id = str(uuid4())
        protocol = self.app.amqp.as_task_v2(task_id, task)
        properties: dict[str, Any] = {
            "application_headers": protocol.headers,
            "correlation_id": task_id,
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "delivery_mode": 2,
        }
        self.post(task_id, task, json.dumps(protocol.body).encode(), **properties)
        return task_id

    def post(self, task_id: str, message: str, body: bytes, **properties: Any) -> None:
        """Publish bytes past the application, confirmed and mandatory, and write that down."""
        self.record(Attempted(at=time(), id=task_id, message=message))
        with self.app.connection_for_write(transport_options=CONFIRMED) as connection:
            parcel = amqp.Message(body, message_id=task_id, **properties)
            connection.default_channel.basic_publish_confirm(parcel, routing_key=QUEUE, mandatory=True)
        self.record(Confirmed(at=time(), id=task_id, message=message))

    # What RabbitMQ knows

    def midst(self) -> None:
        """Return when a third of the messages is confirmed. Raises TookTooLong."""
        third = max(self.plan.load.messages // 3, 1)
        self.wait(lambda: len(self.ids(Confirmed)) >= third, f"{third} messages to be confirmed")

    def consuming(self) -> None:
        """Return when all workers consume. Raises TookTooLong."""
        self.wait(self._all_consume, f"{self.plan.workers} workers to consume", PATIENCE)

    def _all_consume(self) -> bool:
        # Either count can be out of date, but hardly both in the same way.
        return len(self.consumers()) == self.queue().get("consumers") == self.plan.workers

    def connections(self) -> set[str]:
        """Return the names of the client connections, our own left out. Raises ManagementError."""
        return self.rabbit.connections(self.vhost)

    def consumers(self) -> set[str]:
        """Return the connections that RabbitMQ believes to consume. Raises ManagementError."""
        consumers = self.rabbit.api.consumers(self.vhost)
        details = [known(consumer, "channel_details") for consumer in consumers if consumer["queue"]["name"] == QUEUE]
        # Of a channel that has just been opened or closed not everything is known.
        return {detail["connection_name"] for detail in details if detail.get("connection_name")}

    def all_consumers(self) -> set[str]:
        """Return the consuming connections when there is one for each worker that is up, else none."""
        found = self.consumers()
        return found if len(found) == len(self.up()) else set()

    def queue(self) -> dict[str, Any]:
        """Return what the management API knows of the queue. Raises ManagementError."""
        return self.rabbit.api.queue(QUEUE, self.vhost)

    def held(self) -> int | None:
        """Return how many messages are unacknowledged; None while RabbitMQ does not say. Raises ManagementError."""
        known = self.rabbit.queue(QUEUE, self.vhost)
        if "messages_unacknowledged" not in known:
            # RabbitMQ 3 tells it in its statistics only.
            known = self.queue()
        return known.get("messages_unacknowledged")

    def ready(self, queue: str = QUEUE) -> int | None:
        """Return how many messages are ready in a queue, None without it. Raises OSError, OperationalError."""
        with self.app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            return ready(connection, queue)

    def connect(self, proxy: Proxy) -> None:
        """Open a connection through a proxy and close it. Raises OSError, OperationalError."""
        with Connection(self.rabbit.url(self.vhost, proxy.port), connect_timeout=20) as connection:
            connection.ensure_connection(max_retries=1, timeout=20)

    def greeting(self, proxy: Proxy) -> tuple[int, int]:
        """Return of how many bytes RabbitMQ's greeting through a proxy was, and in how many pieces they came.

        Raises OSError.
        """
        with socket.create_connection((LOOPBACK, proxy.port), timeout=20) as client:
            client.sendall(b"AMQP\x00\x00\x09\x01")
            found, pieces = b"", 0
            # A frame is its kind, a channel, a length in four bytes, so many bytes, and one for its end.
            while len(found) < FRAME or len(found) < FRAME + int.from_bytes(found[3:7]) + 1:
                found += client.recv(65536)
                pieces += 1
        return len(found), pieces

    # What else goes on

    def pile_up(self, messages: int) -> int:
        """Freeze all workers until so many messages wait in the queue, and return how many. Raises DidNotLand."""
        self.signal_workers(SIGSTOP)
        return self.expect(lambda: self._at_least(messages), f"{messages} messages to wait in the queue")

    def _at_least(self, messages: int) -> int:
        waiting = self.ready() or 0
        return waiting if waiting >= messages else 0

    def age(self) -> float:
        """Return how many seconds ago the queue was declared."""
        return monotonic() - self._declared

    def beside(self, job: Callable[[], object]) -> Thread:
        """Run something beside the proof."""
        thread = Thread(target=job, daemon=True)
        thread.start()
        return thread
