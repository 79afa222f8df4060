"""Results over RabbitMQ for which no worker waits without a bound: the truth about a task is its message."""

from __future__ import annotations

from time import monotonic
from typing import Any

from amqp.exceptions import ChannelError
from celery.backends import rpc
from celery.utils.log import get_logger

from proj.publish import FAILURES, LOST
from proj.publisher import Publisher

logger = get_logger(__name__)


class RPCBackend(rpc.RPCBackend):
    """Celery's `rpc://`, sending over the publishing connections of the app.

    Celery's own waits for a dead connection for ever, and when its process is told to end, for its goodbye.
    """

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **_: Any
    ) -> Any:
        """Send a result within `publish_timeout`, to whoever still waits. One that cannot be sent is let go."""
        queue, correlation_id = self.destination_for(task_id, request)
        if queue:
            meta = self._to_result(task_id, state, result, traceback, request)
            if error := self._try(meta, queue, correlation_id):
                reason = f"{type(error).__name__} {error}".strip()
                logger.warning("[!] The result of %s could not be sent: %s", task_id, reason)
        return result

    def _try(self, *message: Any) -> Exception | None:
        """Twice, as a result may come twice: the first connection may be dead. Returns what went wrong."""
        conf = self.app.conf
        last: Exception | None = None
        deadline = monotonic() + conf.publish_timeout
        for until in (monotonic() + conf.broker_connection_timeout, deadline):
            try:
                with self.app.publishers.take(min(until, deadline)) as publisher:
                    self._send(publisher, *message)
                    return None
            except ChannelError:
                return None  # nobody waits for it any more
            except FAILURES as error:
                last = error
        return last

    def _send(self, publisher: Publisher, meta: Any, queue: str, correlation_id: str) -> None:
        while True:
            try:
                publisher.prove()
                publisher.producer.publish(
                    meta,
                    exchange=self.exchange,
                    routing_key=queue,
                    correlation_id=correlation_id,
                    serializer=self.serializer,
                    delivery_mode=self.delivery_mode,
                    mandatory=True,
                )
            except LOST as error:
                publisher.lose(error)
            else:
                return
