"""One RabbitMQ for all of pytest-xdist's processes: a node's start costs five seconds of a core."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_SH, flock
from pathlib import Path

import pytest

from proj.broker import Node
from proj.installation import Installation


@contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    with path.open("a") as file:
        flock(file, how)
        yield


def common_folder(factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that all processes of this run share."""
    own = factory.getbasetemp()
    return own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own


@contextmanager
def shared_node(folder: Path, installation: Installation) -> Iterator[Node]:
    """A running node. Who comes first starts it, and ends it when nobody uses it any more."""
    ports = folder / "ports.json"
    folder.mkdir(exist_ok=True)
    with (folder / "users").open("a") as use:
        with locked(folder / "gate", LOCK_EX):
            if ports.exists():
                node = Node(folder / "node", **json.loads(ports.read_text()), installation=installation)
            else:
                node = Node.free(folder / "node", installation=installation)
                node.start()
                names = ("port", "management_port", "prometheus_port")
                ports.write_text(json.dumps({name: getattr(node, name) for name in names}))
            flock(use, LOCK_SH)
        yield node
    if node.running:
        with locked(folder / "gate", LOCK_EX), locked(folder / "users", LOCK_EX):
            ports.unlink()
            node.kill()
