"""A node that follows freezes: a paused virtual machine, a disk that hangs."""

import os
from signal import SIGCONT, SIGSTOP

from proj.broker import Node
from proj.prove.cluster import follower, whole
from proj.prove.fault import Fault, Stand


class PauseFollower(Fault):
    """SIGSTOP a follower of the queue in a cluster of three until a fifth more of the messages is done."""

    place = "cluster"
    patience = 30
    span = 8
    paused: Node | None = None

    def inject(self, stand: Stand) -> str:
        self.paused = stand.expect(lambda: follower(stand), "RabbitMQ to name the queue's leader")
        pid = self.paused.pid or 0
        os.kill(pid, SIGSTOP)
        before, fifth = len(stand.done()), max(stand.plan.load.messages // 5, 1)
        stand.expect(lambda: len(stand.done()) >= before + fifth, f"{fifth} messages to be done without it", 90)
        return f"{self.paused.name} (pid {pid}) was {stand.state(pid)} (stopped) while {fifth} messages were done"

    def heal(self, stand: Stand) -> None:
        if self.paused:
            os.kill(self.paused.pid or 0, SIGCONT)

    def recovered(self, stand: Stand) -> None:
        stand.wait(lambda: whole(stand), "all three members of the queue to be online", 60)
        stand.consuming()
