"""A worker vanishes as a whole: the out-of-memory killer, a power cut."""

from signal import SIGKILL

from proj.prove.fault import Fault, Stand


class KillWorker(Fault):
    """kill -9 one worker, main process and pool, in the midst of a message."""

    def inject(self, stand: Stand) -> str:
        run = stand.busy()
        stand.workers[run.worker].signal_all(SIGKILL)
        return f"{stand.ended(run.worker)} at {run.message!r}"

    def heal(self, stand: Stand) -> None:
        stand.revive()
