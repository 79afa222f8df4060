"""A line that is all but choked: everything passes, a few bytes at a time."""

from time import monotonic

from proj.prove.fault import DidNotLand, Fault, Stand

RATE = 4000  # bytes a second, each way, for each connection: some two messages


class Trickle(Fault):
    """Let everything trickle, 16 bytes at a time and 4000 a second, for a fifth of the messages."""

    proxied = True
    patience = 25
    span = 8

    def inject(self, stand: Stand) -> str:
        stand.to_workers.rate = stand.to_publisher.rate = RATE
        began = monotonic()
        length, pieces = stand.greeting(stand.to_workers)
        took = monotonic() - began
        if length / took > RATE:
            raise DidNotLand(f"expected {RATE} bytes a second, got {length / took:.0f}")
        before, fifth = len(stand.done()), max(stand.plan.load.messages // 5, 1)
        stand.expect(lambda: len(stand.done()) >= before + fifth, f"{fifth} messages to be done slowly", 60)
        return f"RabbitMQ's greeting of {length} bytes came in {pieces} pieces over {took:.2f} s; " + (
            f"{fifth} messages were done meanwhile"
        )

    def heal(self, stand: Stand) -> None:
        stand.to_workers.rate = stand.to_publisher.rate = 0
