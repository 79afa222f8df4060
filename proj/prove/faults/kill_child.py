"""A worker's pool process vanishes: a crash in a C extension, the out-of-memory killer."""

import os
from signal import SIGKILL

from proj.prove.fault import DidNotLand, Fault, Stand


class KillChild(Fault):
    """kill -9 a worker's pool process in the midst of a message; its main process lives."""

    def inject(self, stand: Stand) -> str:
        run = stand.busy()
        worker = stand.workers[run.worker]
        if run.pid is None or run.pid == worker.pid:
            raise DidNotLand(f"expected a pool process beside {worker.pid}, got {run.pid}")
        os.kill(run.pid, SIGKILL)
        stand.expect(lambda: f"pid:{run.pid} " in worker.text() or "SIGKILL" in worker.text(), "the worker to notice")
        return f"pool process {run.pid} of {run.worker} was killed at {run.message!r}; the main process lives"
