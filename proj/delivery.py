"""One delivery in a worker's hands: its bytes, its task's request, and the cause to park it for."""

import json
from functools import partial
from typing import Any
from uuid import uuid4

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.exceptions import (
    Ignore,
    InvalidTaskError,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    Terminated,
    TimeLimitExceeded,
)
from celery.worker import request
from celery.worker.state import revoked
from kombu.transport import pyamqp

from proj.letter import RAW, delivery_count

PLAIN_TEXT = ("", "text/plain")
UTF_8 = ("", "utf-8", "utf8", "us-ascii", "ascii")

# What a task message's headers must be; anything else would fail later, in a place that cannot park it.
HEADERS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("id", (str,)),
    ("retries", (int, type(None))),
    ("timelimit", (list, tuple, type(None))),
    ("stamped_headers", (list, type(None))),
    ("stamps", (dict, type(None))),
    *((name, (str, type(None))) for name in ("root_id", "parent_id", "group", "shadow", "eta", "expires")),
    *((name, (str, type(None))) for name in ("argsrepr", "kwargsrepr", "origin")),
)


class Poison(Exception):
    """The message was delivered too often."""


class OutOfMemory(Exception):
    """A task's MemoryError, under a name that does not end the worker."""


class Message(pyamqp.Message):
    """A delivery that remembers its consumer, and its bytes as they came."""

    body: bytes
    headers: dict[str, Any]
    parked = False

    def __init__(self, raw: Any, channel: Any = None, *, consumer: Any) -> None:
        self.consumer, self.raw = consumer, raw.body or b""
        self.queue: str = consumer.queue_of(raw.delivery_info["consumer_tag"])
        deliveries = delivery_count(raw.properties.get("application_headers"))
        # An error here keeps kombu from decompressing the body, which may be what kills.
        if RAW in raw.properties:
            self.errors = [_raised(InvalidTaskError(f"unreadable properties: {raw.properties[RAW][1]!r}"))]
        elif deliveries >= consumer.app.conf.delivery_limit:
            self.errors = [_raised(Poison(f"delivered {deliveries} times and never finished"))]
        super().__init__(raw, channel=channel)

    @property
    def id(self) -> str:
        """The task's id, else what the sender calls the message; "" for neither."""
        names = (
            self.headers.get("id"),
            self.properties.get("message_id"),
            self.properties.get("correlation_id"),
        )
        return next((str(name) for name in names if name), "")

    @property
    def label(self) -> str:
        """What it is called in the log."""
        return f"{self.headers.get('task') or 'message'}[{self.id or 'without id'}]"

    @property
    def acquired(self) -> int:
        """How often RabbitMQ 4 handed it out, also where it does not count that as a delivery; else 0."""
        count = self.headers.get("x-acquired-count")
        return count if isinstance(count, int) else 0

    def become_task(self, name: str) -> None:
        """Turn plain text into a message of the task *name*, with the text as its argument.

        Without an id from its sender it gets a random one, so that equal texts stay different tasks; a second
        run is then linked to the first by its log line and event alone.
        """
        if not self._is_plain_text():
            return
        text = self.body.decode()
        task_id = self.id or str(uuid4())
        ours = {"lang": "py", "task": name, "id": task_id, "root_id": task_id, "retries": 0}
        shown = {"argsrepr": repr((text,)), "kwargsrepr": "{}", "origin": "plain text"}
        self.headers = {**self.headers, **ours, **shown}
        self.body = json.dumps([[text], {}, {}]).encode()
        self.content_type, self.content_encoding = "application/json", "utf-8"

    def _is_plain_text(self) -> bool:
        kind, _, _ = (self.content_type or "").partition(";")
        if kind.strip().lower() not in PLAIN_TEXT or (self.content_encoding or "").lower() not in UTF_8:
            return False
        try:
            self.body = bytes(self.body)
            self.body.decode()
        except UnicodeDecodeError:
            return False
        return True


class Request(request.Request):
    """A task's message, parked instead of acknowledged when the task fails for good."""

    _cause: dict[str, Any] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        # Celery writes a faster subclass for each task, which overrides both.
        super().__init_subclass__(**options)
        run, report = cls.execute_using_pool, cls.on_success

        def execute_using_pool(self: Any, pool: Any, **rest: Any) -> Any:
            try:
                return run(self, pool, **rest)
            except (TaskRevokedError, *self.connection_errors):
                raise
            except Exception as error:
                self._cause = {"cause": "malformed", "reason": sentence(error), "error": error}
                self._park()
                # The one exception after which Celery frees the slot in the pool.
                raise TaskRevokedError(self.id) from error

        def on_success(self: Any, outcome: Any, **rest: Any) -> Any:
            # Threads and solo report sys.exit() in a task through the wrong callback, in another shape.
            if isinstance(outcome, ExceptionInfo):
                return self.on_failure(outcome)
            return report(self, outcome, **rest)

        cls.execute_using_pool, cls.on_success = execute_using_pool, on_success

    def __init__(self, message: Message, **options: Any) -> None:
        super().__init__(message, **options)
        if "task" not in message.headers:
            # Celery's first protocol has them in the body.
            message.headers = {**message.headers, "task": self.name, "id": self.id}
        _check(self)

    def on_failure(self, exc_info: ExceptionInfo, *args: Any, **options: Any) -> None:
        """Park the message of a task that failed for good; retried and ignored ones are acknowledged."""
        error = exc_info.exception
        error = error.exc if isinstance(error, ExceptionWithTraceback) else error
        if not isinstance(error, Ignore | Retry | Terminated | SystemExit | KeyboardInterrupt):
            self._fail(error, str(exc_info.traceback))
        if isinstance(error, MemoryError):
            exc_info.exception = OutOfMemory(str(error))
        super().on_failure(exc_info, *args, **options)
        self._park_if_acknowledged_early()

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Park the message of a task whose process is killed for its time limit."""
        if not soft and not self.acknowledged:
            self._fail(TimeLimitExceeded(timeout))
        super().on_timeout(soft, timeout)
        self._park_if_acknowledged_early()

    def acknowledge(self) -> None:
        """Acknowledge, or park where there is a cause."""
        if not self._park():
            super().acknowledge()

    def reject(self, requeue: bool = False) -> None:
        """Give the message back; without *requeue* it is parked."""
        if requeue:
            self._cause = None
        elif not self.acknowledged and not self._cause:
            self._cause = {"cause": "malformed", "reason": "Celery cannot run it"}
        if not self._park():
            super().reject(requeue)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        if not self.acknowledged:
            self._cause = {"cause": "expired" if expired else "revoked", "reason": reason}
        if expired:
            # Celery would revoke the same id again when it is replayed.
            revoked.discard(self.id)
        super()._announce_revoked(reason, terminated, signum, expired)

    def _fail(self, error: BaseException, traceback: str = "") -> None:
        if isinstance(error, Reject):
            cause = "rejected"
        elif not getattr(self.task, "park_failures", self.app.conf.park_failures):
            # Whoever switches it off wants failures forgotten, but not a process that was killed.
            return
        elif isinstance(error, TimeLimitExceeded | SoftTimeLimitExceeded):
            cause = "time-limit"
        else:
            cause = "failed"
        self._cause = {"cause": cause, "reason": sentence(error), "error": error, "traceback": traceback}

    def _park_if_acknowledged_early(self) -> None:
        if not self.task.acks_late:
            self._park()

    def _park(self) -> bool:
        """Hand the message over to be parked if there is a cause."""
        cause, self._cause = self._cause, None
        if cause is None:
            return False
        self.acknowledged = True
        self._message.consumer.call_soon_ack(partial(self._message.consumer.parking.park, self._message, **cause))
        return True


def sentence(error: BaseException) -> str:
    """Return an exception as one line: its class and what it says."""
    return f"{type(error).__name__}: {error}".strip().removesuffix(":").replace("\n", " ")


def _check(request: Request) -> None:
    headers = request.request_dict
    for name, types in HEADERS:
        if not isinstance(headers.get(name), types):
            raise InvalidTaskError(f"header {name} is {headers.get(name)!r:.100}")
    if not isinstance(request.args, list | tuple) or not isinstance(request.kwargs, dict):
        raise InvalidTaskError("expected a list of arguments and an object of keyword arguments")
    limits = headers.get("timelimit") or (None, None)
    if len(limits) != 2 or not all(limit is None or type(limit) in (int, float) for limit in limits):
        raise InvalidTaskError(f"header timelimit is {limits!r:.100}")


def _raised(error: Exception) -> tuple[type[Exception], Exception, None]:
    return type(error), error, None
