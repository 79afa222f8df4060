"""The network between the nodes breaks: one is cut off from the two others, clients still reach all."""

from proj.broker import Node
from proj.prove.cluster import cut_off, leader, reunite, whole
from proj.prove.fault import DidNotLand, Fault, Stand


class CutOff(Fault):
    """Cut the queue's leader off from the two other nodes of the cluster, and let it return."""

    place = "cluster"
    patience = 60
    span = 24
    alone: Node | None = None

    def inject(self, stand: Stand) -> str:
        self.alone = stand.expect(lambda: leader(stand), "RabbitMQ to name the queue's leader")
        others = self.others(stand)
        if still := cut_off(self.alone, others):
            raise DidNotLand(f"expected {self.alone.name} to be alone, it still sees {still}")
        view = others[0].management
        stand.expect(
            lambda: (
                view.queue("task_queue", stand.vhost).get("leader") != f"{self.alone and self.alone.name}@localhost"
            ),
            "the others to elect a leader",
            60,
        )
        return f"{self.alone.name} saw no other node, and the two others elected a leader"

    def heal(self, stand: Stand) -> None:
        if self.alone:
            reunite(self.alone, self.others(stand))

    def recovered(self, stand: Stand) -> None:
        stand.wait(lambda: whole(stand), "all three members of the queue to be online", 60)
        stand.consuming()

    def others(self, stand: Stand) -> list[Node]:
        """The two that stay together."""
        return [node for node in stand.rabbit.nodes if node is not self.alone]
