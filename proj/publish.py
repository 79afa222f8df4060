"""Publishing: confirmed, mandatory and bounded in time, whoever sends a task and however."""

from __future__ import annotations

import os
import re
from math import ceil
from time import monotonic
from types import SimpleNamespace
from typing import Any

from amqp.exceptions import ChannelError, ConnectionError, MessageNacked, NotFound, PreconditionFailed
from celery import Celery, Task, uuid
from celery.exceptions import Reject
from celery.utils.time import maybe_iso8601, subtract_datetimes
from kombu.common import Broadcast
from kombu.exceptions import OperationalError
from kombu.transport.native_delayed_delivery import (
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
)

from proj.bounded import OutOfTime
from proj.publisher import Publisher, Publishers

NO_ROUTE = 312  # RabbitMQ's reply code: no queue takes the message
LOST = (OSError, ConnectionError)
FAILURES = (OutOfTime, OperationalError, ChannelError, MessageNacked, *LOST)


class PublishError(OperationalError):
    """A publish without a confirm. The way on is `apply_async(..., task_id=error.task_id)`."""

    def __init__(self, message: str, task_id: str = "") -> None:
        super().__init__(message, task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return str(self.args[0])


class NotQueued(PublishError):
    """The message is certainly in no queue."""


class Mismatch(NotQueued):
    """A queue or an exchange of that name exists with other arguments than ours."""


class Indeterminate(PublishError):
    """The message was sent and its fate is unknown: sent again it may run twice, otherwise perhaps never."""


class ConfirmedTask(Task):
    """A task whose retry is not lost when it cannot be published."""

    abstract = True

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """Retry as Celery does; when that cannot be published, this message is delivered again."""
        try:
            return super().retry(*args, **kwargs)
        except Reject as rejected:
            if not isinstance(rejected.reason, PublishError):
                raise
            # Celery would discard the message whose successor it could not send.
            raise Reject(rejected.reason, requeue=True) from rejected


class ConfirmedCelery(Celery):
    """An application whose tasks, however they are sent, are confirmed by RabbitMQ when the call returns.

    All ways (delay, apply_async, retry, chains, groups, beat) lead through `send_task`.
    """

    task_cls = "proj.publish:ConfirmedTask"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._publishers: dict[int, Publishers] = {}  # by process id: a child inherits its parent's
        super().__init__(*args, **kwargs)
        self.loader.override_backends = {"rpc": "proj.results:RPCBackend"}

    @property
    def publishers(self) -> Publishers:
        """The publishing connections of this process; those of its parent are no use after a fork."""
        try:
            return self._publishers[os.getpid()]
        except KeyError:
            for inherited in list(self._publishers.values()):
                inherited.disown()
            # The first of several threads decides.
            return self._publishers.setdefault(os.getpid(), Publishers(self))

    def close(self) -> None:
        """Close the publishing connections, too."""
        if publishers := self._publishers.pop(os.getpid(), None):
            publishers.close()
        super().close()

    def send_task(
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        connection: Any = None,
        **options: Any,
    ) -> Any:
        """Send a task and return when RabbitMQ has it safe, within *confirm_timeout* seconds.

        Without that option `publish_timeout` bounds the call, all of it: connecting, declaring, confirming.
        Raises NotQueued, Indeterminate. *producer* and *connection* are not used: they wait without bounds.
        """
        start, publisher = monotonic(), None
        seconds = options.pop("confirm_timeout", None)
        seconds = self.conf.publish_timeout if seconds is None else seconds
        options["task_id"] = task_id = task_id or uuid()
        options["countdown"], options["eta"] = _whole_seconds(self, countdown, eta)
        options |= {"mandatory": True, "retry": False, "event_dispatcher": self.publishers.events}
        try:
            with self.publishers.take(start + seconds) as publisher:
                return self._publish(publisher, name, args, kwargs, **options)
        except FAILURES as error:
            reason = _late(self, seconds, publisher) if isinstance(error, OutOfTime) else _reason(self, error)
            raise _explain(error, name, task_id, reason, publisher) from error

    def _publish(self, publisher: Publisher, *args: Any, **options: Any) -> Any:
        delayed = bool(options["countdown"])
        vanished = False
        while True:
            try:
                publisher.prove()
                if vanished:
                    _declare_queues(self, publisher)
                if delayed and not publisher.delays_declared:
                    _declare_delays(self, publisher, all_of_them=vanished)
                return super().send_task(*args, producer=publisher.producer, **options)
            except FAILURES as raised:
                # kombu wraps what it considers recoverable.
                error = raised.__cause__ if isinstance(raised, OperationalError) else raised
                if _vanished(error) and not vanished:
                    vanished, publisher.delays_declared = True, False
                    publisher.declared_entities.clear()
                elif isinstance(error, LOST):
                    publisher.lose(error)
                else:
                    raise (error or raised) from None


def _vanished(error: BaseException | None) -> bool:
    """True when RabbitMQ knows no queue for the message, or not even its exchange."""
    return isinstance(error, NotFound) or (isinstance(error, ChannelError) and error.reply_code == NO_ROUTE)


def _declare_queues(app: Celery, publisher: Publisher) -> None:
    for queue in app.amqp.queues.values():
        if not isinstance(queue, Broadcast):
            queue(publisher.default_channel).declare()


def _declare_delays(app: Celery, publisher: Publisher, all_of_them: bool) -> None:
    """Declare what a delayed message needs: the queues in which it waits, and its way from there to ours."""
    # kombu opens a channel for every declaration and closes none.
    one_channel = SimpleNamespace(channel=lambda: publisher.default_channel)
    _declare_queues(app, publisher)
    if all_of_them:
        declare_native_delayed_delivery_exchanges_and_queues(
            one_channel, app.conf.broker_native_delayed_delivery_queue_type
        )
    for queue in app.amqp.queues.values():
        if not isinstance(queue, Broadcast):
            bind_queue_to_native_delayed_delivery_exchange(one_channel, queue)
    publisher.delays_declared = True


def _whole_seconds(app: Celery, countdown: float | None, eta: Any) -> tuple[int | None, Any]:
    """Round a delay up to what RabbitMQ keeps: a part of a second would be spent in a worker, blocking it."""
    if eta and countdown is None:
        countdown = subtract_datetimes(maybe_iso8601(eta), app.now()).total_seconds()
        if countdown > 0:
            eta = None
    return (ceil(countdown) if countdown and countdown > 0 else None), eta


def _explain(error: BaseException, name: str, task_id: str, reason: str, publisher: Publisher | None) -> PublishError:
    task = f"{name}[{task_id}]"
    if publisher and publisher.in_flight:
        return Indeterminate(f"it is unknown whether {task} is queued: {reason}", task_id)
    kind = Mismatch if isinstance(error, PreconditionFailed) and "inequivalent" in str(error) else NotQueued
    return kind(f"{task} is not queued: {reason}", task_id)


def _late(app: Celery, seconds: float, publisher: Publisher | None) -> str:
    setting = "publish_timeout" if seconds == app.conf.publish_timeout else "confirm_timeout"
    within = f"within {seconds:g} s ({setting})"
    if publisher is None:
        return f"no connection of {app.conf.broker_pool_limit} (broker_pool_limit) was free {within}"
    if publisher.alarm:
        return f"{publisher.as_uri()} took no messages {within}: it has a memory or disk alarm"
    return f"{publisher.as_uri()} did not confirm {within}: {publisher.problem or 'no answer'}"


def _reason(app: Celery, error: BaseException) -> str:
    if isinstance(error, MessageNacked):
        return "RabbitMQ refused it (nack), as a queue does at its length limit"
    if isinstance(error, PreconditionFailed):
        return _compare(app, error)
    return f"{error}"


def _compare(app: Celery, error: PreconditionFailed) -> str:
    """Say what we declare, what RabbitMQ has, and the way out."""
    theirs = str(error.reply_text)
    found = re.search(r"for (queue|exchange) '([^']*)'", theirs)
    if not found:
        return theirs
    kind, name = found.groups()
    ours = "its arguments"
    for queue in app.amqp.queues.values():
        if kind == "queue" and queue.name == name:
            ours = f"durable={queue.durable}, {queue.queue_arguments or {}}"
        elif kind == "exchange" and queue.exchange.name == name:
            ours = f"type={queue.exchange.type}, durable={queue.exchange.durable}"
    return (
        f"{kind} {name!r} exists with other arguments. We declare {ours}; RabbitMQ says: {theirs}. "
        f"Empty and delete that {kind}, or give task_queues in celeryconfig.py what it has"
    )
