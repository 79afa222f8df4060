"""A queue of a test's own: raw messages in, a worker on it, what it did, what it parked."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any
from uuid import uuid4

import pika
from celery import Celery

from proj.dead_letters import DeadLetters
from proj.letter import Letter
from proj.processes import Worker
from tests.waiting import wait_for

STOCK = ("worker.consumer=celery.worker.consumer:Consumer",)
QUICK = ("--without-mingle", "--without-gossip", "-I", "tests.chores")


class Desk:
    """One quorum queue of a node, with everything that a test does around it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.queue = f"desk-{uuid4().hex[:8]}"
        self.record = folder / f"{self.queue}.record"
        self.app = Celery("desk", broker=url, set_as_current=False)
        self.dead = DeadLetters(self.app, self.queue)
        self._workers = 0
        with self.channel() as channel:
            channel.queue_declare(self.queue, durable=True, arguments={"x-queue-type": "quorum"})

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """A channel of another client library than ours, with confirms on."""
        connection = pika.BlockingConnection(pika.URLParameters(self.url[:-1] + "%2F"))
        try:
            channel = connection.channel()
            channel.confirm_delivery()
            yield channel
        finally:
            if connection.is_open:
                connection.close()

    def publish(self, body: bytes, **properties: Any) -> None:
        """Publish raw bytes, confirmed."""
        with self.channel() as channel:
            channel.basic_publish("", self.queue, body, pika.BasicProperties(delivery_mode=2, **properties))

    def send(self, chore: str, *args: Any, id: str | None = None, **headers: Any) -> str:
        """Publish a task message by hand; returns its id."""
        task_id = id or str(uuid4())
        headers |= {"task": chore if "." in chore else f"tests.chores.{chore}", "id": task_id}
        body = json.dumps([args, {}, {}]).encode()
        self.publish(body, content_type="application/json", content_encoding="utf-8", headers=headers)
        return task_id

    def worker(self, *options: str, settings: tuple[str, ...] = (), environment: Any = None) -> Worker:
        """Start a worker on the queue; settings as Celery takes them behind `--`."""
        self._workers += 1
        log = self.folder / f"{self.queue}-{self._workers}.log"
        environment = {"CHORES": str(self.record), **(environment or {})}
        behind = ("--", *settings) if settings else ()
        arguments = ("-Q", self.queue, "-l", "INFO", *QUICK, *options, *behind)
        return Worker(*arguments, broker=self.url, log=log, environment=environment)

    @staticmethod
    def kill_pool_processes(worker: Worker) -> None:
        """End what a worker that was killed alone has left."""
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, SIGKILL)

    def ready(self) -> int:
        """Messages in the queue that no worker holds."""
        with self.channel() as channel:
            return int(channel.queue_declare(self.queue, passive=True).method.message_count)

    def notes(self) -> Counter[str]:
        """What the chores noted, and how often."""
        return Counter(self.record.read_text().splitlines()) if self.record.exists() else Counter()

    def letters(self) -> list[Letter]:
        """What is parked."""
        return [letter for letter, _ in self.dead.each()] if self.dead.count() else []

    def parked(self, task_id: str, seconds: float = 20, log: Path | None = None) -> Letter:
        """Wait for the letter with this id."""
        wait_for(lambda: self.dead.count(), f"a letter in {self.dead.name}", seconds, log)
        return wait_for(
            lambda: next((letter for letter in self.letters() if letter.parked.get("id") == task_id), None),
            f"{task_id} in {self.dead.name}",
            seconds,
            log,
        )
