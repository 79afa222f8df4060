"""The kernel's out-of-memory killer takes a task's process: the message is tried again, then parked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from proj.broker import Node
from proj.processes import Worker
from tests.consuming import Desk
from tests.waiting import wait_for

pytestmark = pytest.mark.broker

LIMIT = 400_000_000  # bytes for a worker and its pool process; they need some 100 MB
# A memory cgroup of the second and of the first version: where, and the file that holds the limit.
KINDS = ((Path("/sys/fs/cgroup"), "memory.max"), (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"))


def cgroup() -> tuple[Path, Path]:
    """A new memory cgroup, and the file that takes its limit. Skips where none can be made."""
    for root, name in KINDS:
        group = root / f"proj-{uuid4().hex[:8]}"
        with suppress(OSError):
            if (root / "cgroup.procs").exists():
                group.mkdir()
                if (group / name).exists():
                    return group, group / name
                group.rmdir()
    pytest.skip("no memory cgroup can be made here: that takes root and a writable /sys/fs/cgroup")


@contextmanager
def memory_limited(worker: Worker) -> Iterator[None]:
    """Move a worker with its pool into a memory cgroup of its own."""
    group, limit = cgroup()
    try:
        limit.write_text(str(LIMIT))
        for process in (psutil.Process(worker.pid), *psutil.Process(worker.pid).children()):
            (group / "cgroup.procs").write_text(str(process.pid))
        yield
    finally:
        worker.kill()
        wait_for(lambda: group.rmdir() is None, "the end of the cgroup", 5)


def test_a_task_that_the_kernel_kills_for_its_memory_is_parked(node: Node, tmp_path: Path) -> None:
    desk = Desk(node.amqp_url, tmp_path)
    with desk.worker(settings=("delivery.limit=(int)2",)) as worker:
        worker.wait_until_ready()
        with memory_limited(worker):
            task_id = desk.send("allocate", "all", 2 * LIMIT)
            letter = desk.parked(task_id, 30, worker.log)
            desk.send("noted", "next")
            wait_for(lambda: desk.notes()["done next"], "the next task", log=worker.log)
            assert worker.running
    assert (letter.parked["cause"], letter.parked["deliveries"]) == ("poison", 3)
    assert desk.notes() == {"started all": 2, "started next": 1, "done next": 1}
