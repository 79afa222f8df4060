"""The health file: fresh while a worker works, old when it hangs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from proj.processes import Worker
from tests.waiting import ensure_not_for_a_while, wait_for

pytestmark = pytest.mark.broker


def test_file_is_fresh_while_the_worker_lives_and_ages_when_it_hangs(
    start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    file = tmp_path / "alive"
    worker = start_worker(PROJ_HEALTH_FILE=str(file))
    first = wait_for(lambda: file.stat().st_mtime_ns, "the health file", 10, worker.log)
    last = wait_for(lambda: (now := file.stat().st_mtime_ns) > first and now, "it to be touched again", 10, worker.log)
    worker.signal(signal.SIGSTOP)
    ensure_not_for_a_while(lambda: file.stat().st_mtime_ns > last, "a sign of life of a frozen worker", 3)


def test_file_that_cannot_be_written_is_refused(start_worker: Callable[..., Worker], tmp_path: Path) -> None:
    worker = start_worker(ready=False, PROJ_HEALTH_FILE=str(tmp_path / "missing/alive"))
    wait_for(lambda: not worker.running, "the worker to end", 10, worker.log)
    assert worker.status == 1
    assert f"cannot write PROJ_HEALTH_FILE={tmp_path}/missing/alive" in worker.text()
    assert "Traceback" not in worker.text()
