"""Parking: a message that cannot be finished goes to the dead queue with its cause, and is then acknowledged."""

from collections import deque
from typing import Any
from uuid import uuid4

from celery.utils.log import get_logger

from proj.dead_letters import NotParked, Post, Refused, TooLarge
from proj.delivery import Message, sentence
from proj.letter import Letter, delivery_count

logger = get_logger(__name__)

RETRY = 2  # seconds until a letter that could not be parked is tried again


class Parking:
    """What a consumer has to park: each message is tried again until it is done or the connection is lost."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._post = Post(consumer.app)
        self._unparked: deque[tuple[Message, Letter]] = deque()
        self._busy = self._waits = False

    def park(
        self,
        message: Message,
        cause: str,
        reason: str,
        error: BaseException | None = None,
        traceback: str = "",
    ) -> None:
        """Park *message*, then acknowledge it."""
        parked = {
            "id": message.id or str(uuid4()),
            "task": str(message.headers.get("task") or ""),
            "cause": cause,
            "reason": reason,
            "exception": sentence(error) if error else "",
            "traceback": traceback,
            "worker": self._consumer.hostname,
            "deliveries": delivery_count(message.headers) + 1,
            "exchange": message.delivery_info["exchange"],
            "routing_key": message.delivery_info["routing_key"],
        }
        self._unparked.append((message, Letter.of(message.queue, message.raw, message.properties, parked)))
        if not self._waits:
            self._park_all()

    def forget(self) -> None:
        """Forget what waits: it is delivered again."""
        self._unparked.clear()

    def _park_all(self) -> None:
        """Park what waits, in its turn; what is refused goes to the end, so that it does not stand in the way."""
        self._waits = False
        refused = []
        while self._unparked and not self._busy:
            message, letter = self._unparked[0]
            try:
                letter = self._put(message, letter)
            except NotParked as why:
                logger.error("[!] Not parked, next attempt in %d s: %s: %s", RETRY, message.label, why)
                if not isinstance(why, Refused):
                    break
                refused.append(self._unparked.popleft())
                continue
            # Empty when the connection was lost meanwhile: the message will come again, and is there twice.
            if self._unparked:
                self._unparked.popleft()
                self._settle(message, letter)
        self._unparked.extend(refused)
        if self._unparked and not self._busy:
            self._waits = True
            self._consumer.timer.call_after(RETRY, self._park_all)

    def _put(self, message: Message, letter: Letter) -> Letter:
        self._busy = True
        try:
            self._post.put(letter)
        except TooLarge:
            letter = Letter.lean(message.queue, message.raw, message.properties, letter.parked)
            self._post.put(letter)
        finally:
            self._busy = False
        return letter

    def _settle(self, message: Message, letter: Letter) -> None:
        if not message.acknowledged:
            consumer = self._consumer
            message.ack_log_error(logger, (*consumer.connection_errors, *consumer.channel_errors))
        cause, reason = letter.parked["cause"], letter.parked["reason"]
        logger.error("[!] Parked %s in %s: %s (%s)", message.label, letter.queue, cause, reason)
        self._consumer.announce("task-parked", message, cause=cause, reason=reason)
