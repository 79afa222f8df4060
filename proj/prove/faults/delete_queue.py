"""An operator deletes the queue under everybody; empty, because what is in it goes with it, as ordered."""

from signal import SIGCONT, SIGSTOP

from proj.prove.fault import Fault, Stand
from proj.prove.stand import QUEUE


class DeleteQueue(Fault):
    """Delete the empty queue under workers and publisher; the publisher goes on at once."""

    paused = False

    def inject(self, stand: Stand) -> str:
        stand.pause_publisher(SIGSTOP)
        self.paused = True
        stand.expect(lambda: not stand.missing() and not stand.ready(), "the queue to be empty")
        stand.strikes()
        stand.rabbit.api.delete_queue(QUEUE, stand.vhost)
        stand.pause_publisher(SIGCONT)
        self.paused = False
        return f"{QUEUE} was deleted, {stand.age():.0f} s old, with {stand.plan.workers} consumers"

    def heal(self, stand: Stand) -> None:
        if self.paused:
            stand.pause_publisher(SIGCONT)
