"""SIGQUIT, Celery's signal for "stop at once"."""

from signal import SIGQUIT

from proj.prove.fault import Fault, Stand


class SigQuit(Fault):
    """SIGQUIT to a worker in the midst of a message: it ends at once, the message goes back."""

    def inject(self, stand: Stand) -> str:
        run = stand.busy()
        stand.workers[run.worker].signal(SIGQUIT)
        return f"{stand.ended(run.worker)} at {run.message!r}"

    def heal(self, stand: Stand) -> None:
        stand.revive()
