"""A task that wants more memory than there is."""

from proj.history import Started
from proj.prove.fault import Fault, Stand
from proj.prove.tasks import use_all_memory


class MemoryErrors(Fault):
    """Send a message whose task raises MemoryError, which ends Celery's worker."""

    def inject(self, stand: Stand) -> str:
        task_id = stand.send(use_all_memory.name)
        stand.expect(lambda: task_id in stand.ids(Started), "the message to be run")
        return f"{task_id} was run"
