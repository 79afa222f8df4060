"""The RabbitMQ that a proof runs on: a node or a cluster."""

from __future__ import annotations

from collections.abc import Sequence

from proj.broker import Node
from proj.broker_folder import full_name
from proj.management import Management, Record
from proj.ports import LOOPBACK

OURS = "proof"  # the name that the proofs' own connections have


class Rabbit:
    """The node or nodes that a proof runs on."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = list(nodes)

    @property
    def node(self) -> Node:
        """The first node, or the only one."""
        return self.nodes[0]

    @property
    def api(self) -> Management:
        """The management API of the first node that runs."""
        node = next((node for node in self.nodes if node.running), self.node)
        return Management(node.management_url, timeout=5)

    def queue(self, name: str, vhost: str) -> Record:
        """Return what the node that leads a queue knows of it now. Raises ManagementError."""
        here = self.api.queue_here(name, vhost)
        leads = (node for node in self.nodes if node.running and full_name(node.name) == here.get("leader"))
        return next((node.management.queue_here(name, vhost) for node in leads), here)

    def url(self, vhost: str, port: int | None = None) -> str:
        """Where clients connect: all nodes, or the one that is behind `port`."""
        ports = [port] if port else [node.port for node in self.nodes]
        return ";".join(f"amqp://guest:guest@{LOOPBACK}:{each}/{vhost}" for each in ports)

    def management_url(self) -> str:
        """The management API's URL with its credentials."""
        return self.node.management_url

    def connections(self, vhost: str) -> set[str]:
        """Return the names of the client connections to a virtual host, the proofs' own left out.

        Raises ManagementError.
        """
        return {c["name"] for c in self.api.connections() if c.get("vhost") == vhost and not _is_ours(c)}

    @property
    def version(self) -> str:
        """RabbitMQ's version."""
        return self.node.installation.version


def _is_ours(connection: Record) -> bool:
    # One that has just been opened is not fully known yet.
    return "name" not in connection or known(connection, "client_properties").get("connection_name") == OURS


def known(record: Record, name: str) -> Record:
    """Return an object inside a record; RabbitMQ 3 writes an empty one as an empty list."""
    return record.get(name) or {}
