"""RabbitMQ is stopped in an orderly way and started again: an upgrade."""

from signal import SIGCONT

from proj.prove.fault import DidNotLand, Fault, Stand

WAITING = 5  # messages


class StopBroker(Fault):
    """Stop RabbitMQ cleanly while messages run and wait in the queue, then start it again."""

    place = "own"
    patience = 35
    blocking = True
    span = 10

    def inject(self, stand: Stand) -> str:
        run, node = stand.busy(), stand.rabbit.node
        waiting, pid = stand.pile_up(WAITING), node.pid
        clean = node.stop()
        stand.signal_workers(SIGCONT)
        if not clean:
            raise DidNotLand(f"RabbitMQ (pid {pid}) did not stop and was killed")
        return f"RabbitMQ (pid {pid}) stopped with {waiting} messages in the queue, {run.worker} at {run.message!r}"

    def heal(self, stand: Stand) -> None:
        stand.signal_workers(SIGCONT)
        stand.rabbit.node.start()
