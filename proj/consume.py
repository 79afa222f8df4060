"""The worker's consumer: plain text becomes work, poison is stopped, and nothing is ever discarded."""

from functools import partial
from time import time
from typing import Any

from amqp import ConsumerCancelled, NotFound, RecoverableConnectionError
from celery import signals
from celery.app.task import Context
from celery.concurrency import solo
from celery.exceptions import NotRegistered
from celery.utils.log import get_logger
from celery.worker import consumer, loops
from celery.worker.state import active_requests
from kombu import Queue
from kombu.exceptions import ContentDisallowed

from proj.bounded import secure
from proj.dead_letters import QUEUE_ARGUMENTS
from proj.delivery import Message, Poison, Request, sentence
from proj.idle import Renewal
from proj.letter import RAW, delivery_count
from proj.parking import Parking

__all__ = ["Consumer", "Request"]

logger = get_logger(__name__)

LONGEST_BACKOFF = 3  # seconds between two attempts to reach the broker
BOUND = 5  # seconds that a write of events may take

OVERRAN = (
    "RabbitMQ's consumer timeout ended before the task ({broker}). Set it above the longest task:"
    " the setting consumer_timeout does so on 4.3, `celery -A {app} policy install` on 4.0 to 4.2, and before"
    " only consumer_timeout in rabbitmq.conf"
)


class Consumer(consumer.Consumer):
    """Celery's consumer, with every way out of it that discards a message leading to the dead queue."""

    connection_errors: tuple[type[Exception], ...]

    def __init__(self, *args: Any, **options: Any) -> None:
        if isinstance(options["pool"], solo.TaskPool):
            # It cannot send heartbeats while a task runs, and would lose every long task to another worker.
            options["amqheartbeat"] = 0
        super().__init__(*args, **options)
        # A killed worker takes its control queue along, perhaps just after its successor declared it.
        self.connection_errors = (*self.connection_errors, NotFound)
        self.parking, self._renewal = Parking(self), Renewal(self)
        self._overran: dict[str, str] = {}
        self._queues: dict[str, str] = {}

    # What arrives

    def update_strategies(self) -> None:
        """Let each task's messages be ours, and tell brokers that listen (4.3) how long a task may take."""
        for task in self.app.tasks.values():
            if task.Request == "celery.worker.request:Request":
                task.Request = "proj.consume:Request"
        self._declare_new_queues()
        timeout = {"x-consumer-timeout": int(self.app.conf.consumer_timeout * 1000)}
        for queue in self.app.amqp.queues.consume_from.values():
            if _is_quorum(queue):  # 4.3 refuses it of a classic one
                queue.consumer_arguments = timeout | (queue.consumer_arguments or {})
        super().update_strategies()

    def _declare_new_queues(self) -> None:
        """Declare what is not there yet, dead queues included, so that it survives a kill -9 of its node at once."""
        for queue in self.app.amqp.queues.consume_from.values():
            if queue.durable and not queue.auto_delete:
                dead = Queue(f"{queue.name}.dead", queue_arguments=QUEUE_ARGUMENTS)
                for each in (queue, dead):
                    self._declare_if_new(each)

    def _declare_if_new(self, queue: Queue) -> None:
        channel = self.connection.channel()
        try:
            channel.queue_declare(queue.name, passive=True)
        except NotFound:
            channel = self.connection.channel()
            queue(channel).declare()
            if _is_quorum(queue):
                secure(channel, queue.name)
        channel.close()

    def create_task_handler(self, *args: Any, **options: Any) -> Any:
        """Wrap Celery's handler: whatever it cannot take is parked."""
        handle = super().create_task_handler(*args, **options)
        self.prepare(self.task_consumer.channel)
        # A run that was cancelled with the lost connection cost its process: Celery looks every 5 s only.
        for seconds in (0.2, 1, 2):
            self.timer.call_after(seconds, self.pool.maintain_pool)
        if self.hub:
            self._renewal.start()
        broken = (*self.connection_errors, *self.channel_errors)

        def on_message(message: Message) -> None:
            try:
                if "task" not in message.headers:
                    message.become_task(self.app.conf.plain_text_task)
                if message.delivery_info["redelivered"] and self._is_overrun(message):
                    return
                handle(message)
            except broken:
                raise
            except Exception as error:
                self._refuse(message, error)

        return on_message

    def prepare(self, channel: Any) -> None:
        """Let what arrives on *channel* be ours."""
        channel.Message = self._received
        channel.auto_decode = False  # a body that is parked must not change by a byte

    def _received(self, raw: Any, channel: Any) -> Message:
        message = Message(raw, channel, consumer=self)
        self._renewal.arrived(message)
        return message

    def _is_overrun(self, redelivered: Message) -> bool:
        """Announce a second run; park it instead when the first outlasted the broker's patience."""
        if reason := self._overran.pop(redelivered.id, None):
            self.parking.park(redelivered, "consumer-timeout", reason)
            return True
        # Not every queue counts, but each says whether it is the first time.
        attempt = max(delivery_count(redelivered.headers), redelivered.acquired, 1) + 1
        self.announce("task-redelivered", redelivered, attempt=attempt)
        logger.warning("[!] Redelivered %s: attempt %d", redelivered.label, attempt)
        return False

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Park poison, and bytes that are not what they claim to be."""
        self._refuse(message, exc, "undecodable")

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Park a message whose headers or arguments no task can have."""
        self._refuse(message, exc)

    def on_unknown_message(self, body: object, message: Message) -> None:
        """Park a message that is no task."""
        self.parking.park(message, "malformed", "it is no task message: it has no header named task")

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """Park a message for a task that this worker does not know, and tell who waits for its result."""
        name = str(message.headers.get("task"))
        self.parking.park(message, "unknown-task", f"this worker knows no task named {name}")
        task_id, properties = message.id, message.properties
        request = Context(id=task_id, task=name, errbacks=None, chord=None, **_reply(properties))
        self.app.backend.mark_as_failure(task_id, NotRegistered(name), request=request)
        signals.task_unknown.send(sender=self, message=message, exc=exc, name=name, id=task_id)

    def _refuse(self, message: Message, error: Exception, cause: str = "malformed") -> None:
        if isinstance(error, Poison):
            cause = "poison"
        elif isinstance(error, ContentDisallowed):
            cause = "disallowed"
        elif RAW in message.properties:
            cause = "malformed"
        self.parking.park(message, cause, sentence(error), error)

    def queue_of(self, consumer_tag: str) -> str:
        """Return a delivery's queue: deliveries name only the consumer that was started for it."""
        if consumer_tag not in self._queues:
            # Kept, because a stopping worker's consumer forgets its tags while its last tasks still run.
            self._queues |= {tag: queue for queue, tag in self.task_consumer._active_tags.items()}
        return self._queues[consumer_tag]

    def announce(self, event: str, message: Message, **fields: Any) -> None:
        """Send an event about a message to whoever watches."""
        if self.event_dispatcher and message.id:
            name = str(message.headers.get("task"))
            self.event_dispatcher.send(event, uuid=message.id, name=name, **fields)

    # The connection

    def loop(self, *args: Any) -> None:
        """Celery's event loop; a closed channel costs a reconnect there, and not the worker."""
        try:
            (loops.asynloop if self.hub else loops.synloop)(*args)
        except self.channel_errors as error:
            raise RecoverableConnectionError(str(error)) from error

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, trying again every few seconds for as long as it takes."""
        bounds = {"interval_start": 1, "interval_step": 1, "interval_max": LONGEST_BACKOFF}
        conn.ensure_connection = partial(conn.ensure_connection, **bounds)
        return super().ensure_connected(conn)

    def connection_for_write(self, url: str | None = None, heartbeat: float | None = None) -> Any:
        """Connect for events. Nothing hangs on them, so that the worker must not hang on their confirms."""
        options = {"confirm_publish": False, "write_timeout": BOUND}
        conn = self.app.connection_for_write(url, heartbeat=heartbeat, transport_options=options)
        return self.ensure_connected(conn)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Note which task outlasted the consumer timeout, so that it does not run for ever again."""
        if "delivery acknowledgement" in str(exc) and "timed out" in str(exc):
            self._note_overrun(str(exc))
        elif isinstance(exc, ConsumerCancelled):
            # All that 4.3 says, which does not count it as a delivery either; or the queue was deleted.
            self._note_overrun("it cancelled the consumer", at_least=self.app.conf.consumer_timeout * 0.9)
        if self.event_dispatcher and self.event_dispatcher.connection:
            # Closed politely, as Celery would, a dead connection for events is waited for without end.
            self.event_dispatcher.connection.collect(socket_timeout=BOUND)
        # Remote control publishes over the app's own pool and waits without a bound; it may be as dead as this one.
        self.app.pool.force_close_all(close_pool=False)
        self.app.pool.setup()
        super().on_connection_error_after_connected(exc)

    def _note_overrun(self, said: str, at_least: float = 0) -> None:
        late = [request for request in active_requests if not request.acknowledged]
        longest = min(late, key=lambda request: request.time_start or time(), default=None)
        if longest and time() - (longest.time_start or time()) >= at_least:
            self._overran[longest.id] = OVERRAN.format(broker=said, app=self.app.main)
            logger.error("[!] %s[%s] will be parked: %s", longest.name, longest.id, self._overran[longest.id])

    def on_close(self) -> None:
        """Forget what waits to be parked: it is delivered again."""
        self.parking.forget()
        super().on_close()


def _is_quorum(queue: Queue) -> bool:
    return (queue.queue_arguments or {}).get("x-queue-type") == "quorum"


def _reply(properties: dict[str, Any]) -> dict[str, Any]:
    return {name: properties.get(name) for name in ("reply_to", "correlation_id")}
