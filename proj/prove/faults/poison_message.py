"""A message that kills whatever runs it, again and again."""

from proj.history import Started
from proj.prove.fault import Fault, Stand
from proj.prove.tasks import kill_own_process

TWICE = 2


class PoisonMessage(Fault):
    """Send a message whose task kills its process each time it is delivered."""

    patience = 15
    id = ""

    def inject(self, stand: Stand) -> str:
        self.id = stand.send(kill_own_process.name)
        runs = stand.expect(lambda: self.runs(stand) >= TWICE and self.runs(stand), "the poison to kill twice")
        return f"{self.id} has killed its process in each of {runs} runs"

    def runs(self, stand: Stand) -> int:
        """How often it has been started."""
        return sum(isinstance(record, Started) and record.id == self.id for record in stand.records())
