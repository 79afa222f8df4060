"""A worker's main process vanishes, its pool lives on for a moment."""

from signal import SIGKILL

from proj.prove.fault import Fault, Stand


class KillMain(Fault):
    """kill -9 a worker's main process in the midst of a message; its pool process works on alone."""

    def inject(self, stand: Stand) -> str:
        run = stand.busy()
        stand.workers[run.worker].signal(SIGKILL)
        return f"{stand.ended(run.worker)} at {run.message!r}"

    def heal(self, stand: Stand) -> None:
        stand.revive()
