"""Flower as a child of the tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from proj.ports import LOOPBACK, free_port
from proj.processes import Process


class Flower(Process):
    """`celery -A proj flower` on a free port, started in the current folder; options go through the environment."""

    def __init__(self, log: Path, environment: Mapping[str, str]) -> None:
        port = free_port()
        self.url = f"http://{LOOPBACK}:{port}"
        # Without it the API that the tests ask answers 401.
        options = {"FLOWER_PORT": str(port), "FLOWER_UNAUTHENTICATED_API": "true"}
        super().__init__("flower", log=log, environment={**environment, **options})

    def get(self, path: str) -> Any:
        """What a path of the JSON API answers; raises requests.RequestException."""
        answer = requests.get(f"{self.url}/{path}", timeout=10)
        answer.raise_for_status()
        return answer.json()

    def page(self, path: str) -> str:
        """A page's HTML; raises requests.RequestException."""
        answer = requests.get(f"{self.url}/{path}", timeout=10)
        answer.raise_for_status()
        return answer.text

    def online(self) -> list[str]:
        """Names of the workers that Flower sees alive."""
        return sorted(name for name, alive in self.get("api/workers?status=1").items() if alive)

    def tasks(self) -> dict[str, tuple[str, str, str | None]]:
        """Message as it was sent, state and worker of each task, by id."""
        tasks = self.get("api/tasks").items()
        # One that no worker has received has none.
        return {uuid: (task["args"], task["state"], task.get("worker")) for uuid, task in tasks}
