"""RabbitMQ's resource alarms: while one is on, every publish is held back and what is in the queues goes out."""

from __future__ import annotations

from signal import SIGCONT, SIGSTOP
from typing import ClassVar

from proj.prove.fault import Fault, Stand


class Alarm(Fault):
    """An alarm that rabbitmqctl sets off with an impossible limit. `alarm` and `limit` are the API's names."""

    place = "own"
    patience = 25
    blocking = True
    alarm: ClassVar[str]
    limit: ClassVar[str]
    command: ClassVar[tuple[str, ...]]
    """rabbitmqctl's command, but for the limit."""
    impossible: ClassVar[str]
    before = ""

    def inject(self, stand: Stand) -> str:
        """Set the alarm off, and see that a publish is held back."""
        self.before = str(stand.rabbit.api.nodes()[0][self.limit])
        # rabbitmqctl is slow, and the messages shall not all be published before.
        stand.pause_publisher(SIGSTOP)
        stand.rabbit.node.ctl(*self.command, self.impossible)
        stand.expect(lambda: stand.rabbit.api.nodes()[0][self.alarm], f"{self.alarm} to be on")
        stand.strikes()
        stand.pause_publisher(SIGCONT)
        held = stand.expect(stand.stuck, "a publish to be held back")
        return f"{self.alarm} is on, and {held!r} is held back"

    def heal(self, stand: Stand) -> None:
        """Give the limit back."""
        stand.pause_publisher(SIGCONT)
        if self.before:
            stand.rabbit.node.ctl(*self.command, self.before)
            stand.wait(lambda: not stand.rabbit.api.nodes()[0][self.alarm], f"{self.alarm} to be off")
