"""Ctrl+C in a worker's terminal: SIGINT to the worker and its pool."""

from signal import SIGINT

from proj.prove.fault import Fault, Stand


class CtrlC(Fault):
    """Ctrl+C in a worker's terminal, in the midst of a message: it finishes that and ends."""

    def inject(self, stand: Stand) -> str:
        run = stand.busy()
        stand.workers[run.worker].signal_all(SIGINT)
        return f"{stand.ended(run.worker)} at {run.message!r}"

    def heal(self, stand: Stand) -> None:
        stand.revive()
