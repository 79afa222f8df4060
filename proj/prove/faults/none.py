"""The control run, and the template of all other faults."""

from proj.prove.fault import Fault, Stand


class NoFault(Fault):
    """Nothing happens: what the other runs are compared with."""

    def inject(self, stand: Stand) -> str:
        return f"{len(stand.workers)} workers were left in peace"

    def heal(self, stand: Stand) -> None:
        pass
