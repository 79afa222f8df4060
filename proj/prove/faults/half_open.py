"""Connections die without a word: a NAT that forgets them, a firewall that restarts."""

from proj.prove.fault import Fault, Stand


class HalfOpen(Fault):
    """Let every present connection go dead without a word; new ones pass."""

    proxied = True
    span = 8
    patience = 45

    def inject(self, stand: Stand) -> str:
        before = stand.expect(stand.all_consumers, "RabbitMQ to know all consumers")
        run = stand.busy()
        dead = stand.to_workers.connections + stand.to_publisher.connections
        stand.to_workers.hold_present()
        stand.to_publisher.hold_present()
        stand.expect(lambda: not before & stand.consumers(), "RabbitMQ to give up on all workers", 60)
        return f"{dead} connections went dead and RabbitMQ gave up on {len(before)} workers; " + (
            f"{run.worker} was at {run.message!r}"
        )
