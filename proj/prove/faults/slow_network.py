"""A slow network: another continent, a saturated line."""

from time import monotonic

from proj.prove.fault import DidNotLand, Fault, Stand

LATENCY = 0.15  # seconds, each way
ROUND_TRIPS = 3  # that opening an AMQP connection takes


class SlowNetwork(Fault):
    """Delay everything by 150 ms each way for a fifth of the messages."""

    proxied = True
    patience = 20

    def inject(self, stand: Stand) -> str:
        stand.to_workers.latency = stand.to_publisher.latency = LATENCY
        began = monotonic()
        stand.connect(stand.to_workers)
        took = monotonic() - began
        least = ROUND_TRIPS * 2 * LATENCY
        if took < least:
            raise DidNotLand(f"expected a connection to take {least:g} s to open, got {took:.2f} s")
        before, fifth = len(stand.done()), max(stand.plan.load.messages // 5, 1)
        stand.expect(lambda: len(stand.done()) >= before + fifth, f"{fifth} messages to be done slowly", 60)
        return f"a connection took {took:.1f} s to open; {fifth} messages were done meanwhile"

    def heal(self, stand: Stand) -> None:
        stand.to_workers.latency = stand.to_publisher.latency = 0.0
