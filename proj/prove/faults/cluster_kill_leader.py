"""The node that leads the queue vanishes from the cluster and comes back."""

from proj.broker import Node
from proj.prove.cluster import leader, whole
from proj.prove.fault import Fault, Stand


class KillLeader(Fault):
    """kill -9 the queue's leader in a cluster of three, in the midst of a message; start it again."""

    place = "cluster"
    patience = 30
    span = 8
    killed: Node | None = None

    def inject(self, stand: Stand) -> str:
        self.killed = stand.expect(lambda: leader(stand), "RabbitMQ to name the queue's leader")
        run = stand.busy()
        pid = self.killed.pid
        self.killed.kill()
        stand.expect(lambda: leader(stand) is not self.killed, "another node to lead")
        return f"{self.killed.name} (pid {pid}) was killed while {run.worker} was at {run.message!r}; " + (
            f"{leader(stand).name} leads now"
        )

    def heal(self, stand: Stand) -> None:
        if self.killed:
            self.killed.start()

    def recovered(self, stand: Stand) -> None:
        stand.wait(lambda: whole(stand), "all three members of the queue to be online", 60)
        stand.consuming()
