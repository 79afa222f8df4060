"""All workers are restarted one after another: a new version is rolled out."""

from signal import SIGTERM

from proj.prove.fault import Fault, Stand


class RollingRestart(Fault):
    """Restart all workers one after another with SIGTERM, while messages go on."""

    patience = 14
    span = 12

    def inject(self, stand: Stand) -> str:
        before = {name: worker.pid for name, worker in stand.workers.items()}
        for name in before:
            self.restart(stand, name)
        after = {name: worker.pid for name, worker in stand.workers.items()}
        return f"process ids before {sorted(before.values())}, after {sorted(after.values())}"

    def restart(self, stand: Stand, name: str) -> None:
        """Restart one worker."""
        worker = stand.workers[name]
        worker.signal(SIGTERM)
        stand.expect(lambda: not worker.running, f"{name} to end after SIGTERM", 20)
        stand.revive()
