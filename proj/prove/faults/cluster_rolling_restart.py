"""The cluster's nodes are restarted one after another: an upgrade."""

from proj.prove.cluster import whole
from proj.prove.fault import Fault, Stand


class ClusterRollingRestart(Fault):
    """Restart the three nodes of a cluster one after another, each when the queue is whole again."""

    place = "cluster"
    patience = 70
    span = 30

    def inject(self, stand: Stand) -> str:
        before = [node.pid for node in stand.rabbit.nodes]
        for node in stand.rabbit.nodes:
            node.restart()
            stand.expect(lambda: whole(stand), f"the queue to be whole after the restart of {node.name}", 60)
        return f"process ids before {before}, after {[node.pid for node in stand.rabbit.nodes]}"
