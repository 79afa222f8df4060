"""SIGTERM, as `kill`, systemd, Docker and Kubernetes send it first."""

from signal import SIGTERM

from proj.prove.fault import Fault, Stand


class SigTerm(Fault):
    """SIGTERM to a worker in the midst of a message: it finishes that and ends."""

    def inject(self, stand: Stand) -> str:
        run = stand.busy()
        stand.workers[run.worker].signal(SIGTERM)
        return f"{stand.ended(run.worker)} at {run.message!r}"

    def heal(self, stand: Stand) -> None:
        stand.revive()
