"""A message for a task that no worker knows: a publisher that is newer than the workers."""

from proj.prove.fault import Fault, Stand


class UnknownTask(Fault):
    """Send messages for a task that no worker knows."""

    def inject(self, stand: Stand) -> str:
        sent = [stand.send("proj.tasks.not_yet_deployed") for _ in range(3)]
        return f"{len(sent)} messages for proj.tasks.not_yet_deployed were confirmed by RabbitMQ"
