"""The publisher vanishes between sending a message and learning that RabbitMQ has it."""

from signal import SIGKILL

from proj.prove.fault import DidNotLand, Fault, Stand


class KillPublisher(Fault):
    """kill -9 the publisher while it waits for a confirm; another one publishes the rest."""

    proxied = True
    blocking = True

    def inject(self, stand: Stand) -> str:
        publisher = stand.publisher
        if publisher is None:
            raise DidNotLand("expected a publisher, got none")
        stand.to_publisher.hold("back")
        held = stand.expect(stand.stuck, "a publish to wait for its confirm")
        publisher.signal(SIGKILL)
        stand.expect(lambda: not publisher.running, "the publisher to be dead")
        return f"the publisher (pid {publisher.pid}) was killed while {held!r} waited for its confirm"

    def heal(self, stand: Stand) -> None:
        stand.to_publisher.release()
        if stand.publisher and not stand.publisher.running:
            stand.start_publisher()
