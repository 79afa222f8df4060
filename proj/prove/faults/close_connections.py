"""RabbitMQ closes every connection: an operator, a load balancer's idle timeout, a rotated certificate."""

from contextlib import suppress

from proj.management import ManagementError
from proj.prove.fault import Fault, Stand


class CloseConnections(Fault):
    """Close every client connection in the midst of a message."""

    def inject(self, stand: Stand) -> str:
        api = stand.rabbit.api
        wanted = len(stand.up()) + 1
        stand.expect(lambda: len(stand.connections()) >= wanted, f"{wanted} connections to be known")
        run = stand.busy()
        closed = stand.connections()
        for name in closed:
            with suppress(ManagementError):  # it may have ended by itself
                api.close_connection(name, "closed by a proof")
        stand.expect(lambda: not closed & stand.connections(), "the connections to be gone")
        return f"{len(closed)} connections were closed while {run.worker} was at {run.message!r}"
