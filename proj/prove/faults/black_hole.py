"""The network swallows everything, both ways: a switch fails, a route is gone."""

from proj.prove.fault import Fault, Stand


class BlackHole(Fault):
    """Let nothing through in either direction, until RabbitMQ has given up on every worker."""

    proxied = True
    span = 8
    patience = 50
    blocking = True

    def inject(self, stand: Stand) -> str:
        before = stand.expect(stand.all_consumers, "RabbitMQ to know all consumers")
        run = stand.busy()
        stand.to_workers.hold()
        stand.to_publisher.hold()
        stand.expect(lambda: not before & stand.consumers(), "RabbitMQ to give up on all workers", 60)
        return f"RabbitMQ gave up on {len(before)} workers; {run.worker} was at {run.message!r}"

    def heal(self, stand: Stand) -> None:
        stand.to_workers.release()
        stand.to_publisher.release()
