"""All workers vanish at once: their machine is gone."""

from signal import SIGKILL

from proj.prove.fault import Fault, Stand


class KillEverything(Fault):
    """kill -9 all workers at once, main processes and pools, in the midst of a message."""

    blocking = True

    def inject(self, stand: Stand) -> str:
        run, killed = stand.busy(), stand.up()
        stand.signal_workers(SIGKILL)
        return f"{', '.join(stand.ended(name) for name in killed)}, {run.worker} at {run.message!r}"

    def heal(self, stand: Stand) -> None:
        stand.revive()
