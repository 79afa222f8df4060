"""RabbitMQ vanishes and comes back: its machine loses power."""

from signal import SIGCONT

from proj.prove.fault import Fault, Stand

WAITING = 5  # messages


class KillBroker(Fault):
    """kill -9 RabbitMQ while messages run and wait in the queue, then start it again."""

    place = "own"
    patience = 30
    blocking = True
    span = 10

    def inject(self, stand: Stand) -> str:
        run, node = stand.busy(), stand.rabbit.node
        waiting, pid = stand.pile_up(WAITING), node.pid
        node.kill()
        stand.signal_workers(SIGCONT)
        return f"RabbitMQ (pid {pid}) was killed with {waiting} messages in the queue, {run.worker} at {run.message!r}"

    def heal(self, stand: Stand) -> None:
        stand.signal_workers(SIGCONT)
        stand.rabbit.node.start()
