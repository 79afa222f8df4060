"""A letter: a message in a dead queue, byte for byte, with the cause that brought it there."""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import amqp
from amqp import serialization, spec

CAUSES = {
    "undecodable": "its bytes are not what its content type says",
    "disallowed": "its content type is not one that this worker accepts",
    "malformed": "it is not a task message, or has headers or arguments that no task can have",
    "unknown-task": "no worker of its queue knows its task",
    "poison": "it was delivered too often without being finished",
    "consumer-timeout": "its task takes longer than RabbitMQ's consumer timeout",
    "time-limit": "its task ran longer than its time limit",
    "failed": "its task raised an exception",
    "rejected": "its task rejected it",
    "expired": "it was delivered after its time of expiry",
    "revoked": "an operator revoked or terminated it",
    "broker": "RabbitMQ dead-lettered it by policy",
    "unknown": "it was put here by someone else",
}

HEADER = "x-parked"

# Bytes. Properties travel in one frame of at most 131,072: headers beyond the limit go in front of the body.
HEADERS_LIMIT, TRACEBACK_LIMIT, TEXT_LIMIT = 48_000, 32_000, 2_000
LEAN_LIMIT = 200
LEAN = "known only in part, because the message is as large as RabbitMQ takes: "

# Set by RabbitMQ on its way to us. A message that is published with them looks older than it is.
COUNTS = ("x-delivery-count", "x-acquired-count")
BROKER_HEADERS = (*COUNTS, "x-death", "x-first-death", "x-last-death")

# Properties that RabbitMQ would act on: a letter must not expire, and may come from another user.
KEPT_ASIDE = ("expiration", "delivery_mode", "user_id", "cluster_id")
RAW = "unreadable"

Fields = dict[str, Any]


def read_properties(buffer: bytes, offset: int) -> tuple[Fields, int]:
    """Decode a message's properties; those that the library cannot decode are kept as bytes."""
    try:
        properties: Fields
        properties, offset = serialization.decode_properties_basic(buffer, offset)
    except Exception as error:
        return {RAW: (bytes(buffer[offset:]), error)}, len(buffer)
    return properties, offset


# An impossible timestamp or text would otherwise end every worker that the message is delivered to.
serialization.PROPERTY_CLASSES[spec.Basic.CLASS_ID] = read_properties


@dataclass(frozen=True, eq=False)
class Letter:
    """A message in a dead queue: where it lies, its bytes and properties, and what is known about it.

    `parked` has id, task, cause, reason, exception, traceback, worker, time (ISO, UTC), deliveries, queue,
    exchange and routing_key.
    """

    queue: str
    body: bytes
    properties: Fields
    parked: Fields

    @classmethod
    def of(cls, queue: str, body: bytes, properties: Fields, parked: Fields, front: bool = True) -> "Letter":
        """The letter for a message that came from *queue*; its bytes stay as they are."""
        parked = {name: _bounded(value) for name, value in parked.items()}
        parked |= {"queue": queue, "time": datetime.now(UTC).isoformat(timespec="milliseconds")}
        carried = {name: value for name, value in properties.items() if name not in (*KEPT_ASIDE, RAW)}
        parked["properties"] = {name: properties[name] for name in KEPT_ASIDE if name in properties}
        headers = carried.pop("application_headers", None) or {}
        whole, kept = ("properties", properties[RAW][0]) if RAW in properties else ("headers", _encoded(headers))
        if front and (RAW in properties or len(kept) > HEADERS_LIMIT):
            parked |= {"front": len(kept), "front_is": whole}
            headers, body = {}, kept + body
        elif RAW in properties:
            parked[RAW] = b64encode(kept).decode()
        carried |= {"application_headers": {**headers, HEADER: parked}, "delivery_mode": 2}
        return cls(f"{queue}.dead", body, carried, parked)

    @classmethod
    def lean(cls, queue: str, body: bytes, properties: Fields, parked: Fields) -> "Letter":
        """The same for a broker that takes no larger body: the headers stay where they are, the cause is cut short."""
        left_out = ("traceback", "front", "front_is")
        parked = {name: _bounded(value, LEAN_LIMIT) for name, value in parked.items() if name not in left_out}
        parked["reason"] = LEAN + parked["reason"]
        return cls.of(queue, body, properties, parked, front=False)

    @classmethod
    def read(cls, queue: str, message: amqp.Message) -> "Letter":
        """The letter that was delivered from the dead queue *queue*."""
        headers = message.properties.get("application_headers") or {}
        parked = headers.get(HEADER)
        if not isinstance(parked, dict):
            parked = _parked_by_others(headers, queue)
        return cls(queue, message.body or b"", message.properties, parked)

    @property
    def deliveries(self) -> int:
        """How often it was delivered from the dead queue before."""
        return delivery_count(self.properties.get("application_headers"))

    def renewed(self) -> "Letter":
        """The same letter, as if it had never been looked at."""
        headers = _without(self.properties.get("application_headers"), COUNTS)
        return Letter(self.queue, self.body, {**self.properties, "application_headers": headers}, self.parked)

    def original(self) -> "Letter":
        """The message as it was, for its own queue; its id stays, deliveries and retries start afresh."""
        properties, body = dict(self.properties), self.body
        properties.pop("delivery_mode", None)
        headers = _without(properties.pop("application_headers", None), (HEADER, *BROKER_HEADERS))
        if front := self.parked.get("front"):
            encoded, body = body[:front], body[front:]
            if self.parked["front_is"] == "properties":
                return Letter(self.parked["queue"], body, {RAW: (encoded, None)}, {})
            headers = _without(serialization.loads("F", encoded, 0)[0][0], BROKER_HEADERS)
        elif RAW in self.parked:
            return Letter(self.parked["queue"], body, {RAW: (b64decode(self.parked[RAW]), None)}, {})
        if "retries" in headers:
            headers["retries"] = 0
        if self.parked.get("cause") == "expired":
            headers.pop("expires", None)
        elif "id" not in headers and self.parked.get("id"):
            properties.setdefault("message_id", self.parked["id"])
        aside = self.parked.get("properties", {})
        properties |= {name: aside[name] for name in ("expiration", "delivery_mode") if name in aside}
        return Letter(self.parked["queue"], body, {**properties, "application_headers": headers}, {})


class Outgoing(amqp.Message):
    """A message to publish, with the properties of a letter."""

    def _serialize_properties(self) -> bytes:
        encoded: bytes = self.properties[RAW][0] if RAW in self.properties else super()._serialize_properties()
        return encoded


def delivery_count(headers: object) -> int:
    """How often a message with these headers was delivered before; 0 where its queue does not count."""
    count = headers.get("x-delivery-count", 0) if isinstance(headers, Mapping) else 0
    return count if isinstance(count, int) else 0


def as_json(letter: Letter) -> str:
    """Return what is known about a letter as one line of JSON; the body as text."""
    body = letter.body[letter.parked.get("front", 0) :].decode("utf-8", "backslashreplace")
    return json.dumps({**letter.parked, "body": body}, default=str)


def _encoded(headers: Fields) -> bytes:
    encoded: bytes = serialization.dumps("F", [headers])
    return encoded


def _bounded(value: Any, limit: int = 0) -> Any:
    if not isinstance(value, str):
        return value
    limit = limit or (TRACEBACK_LIMIT if "\n" in value else TEXT_LIMIT)
    return value.encode("utf-8", "replace")[-limit:].decode("utf-8", "ignore")


def _without(headers: Mapping[str, Any] | None, names: tuple[str, ...]) -> Fields:
    return {key: value for key, value in (headers or {}).items() if not str(key).startswith(names)}


def _parked_by_others(headers: Fields, dead_queue: str) -> Fields:
    reason = headers.get("x-first-death-reason")
    return {
        "id": headers.get("id", ""),
        "task": headers.get("task", ""),
        "cause": "broker" if reason else "unknown",
        "reason": f"dead-lettered by RabbitMQ: {reason}" if reason else "",
        "queue": headers.get("x-first-death-queue") or dead_queue.removesuffix(".dead"),
    }
