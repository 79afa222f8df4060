"""The queue is full: RabbitMQ refuses what comes (the policy says reject-publish)."""

from signal import SIGCONT

from proj.history import Indeterminate, Refused
from proj.management import policy_for
from proj.prove.fault import Fault, Stand

LIMIT = 5  # messages


class FillQueue(Fault):
    """Fill the queue to a limit of five messages while the workers stand still: publishes are refused."""

    blocking = True

    def inject(self, stand: Stand) -> str:
        policy = policy_for(stand.rabbit.version)
        policy["definition"]["max-length"] = LIMIT
        stand.rabbit.api.put_policy(stand.vhost, body=policy)
        stand.pile_up(LIMIT)
        refused = stand.expect(lambda: stand.ids(Refused, Indeterminate), "a publish to be refused")
        return f"{stand.ready()} messages in a queue with max-length {LIMIT}; {len(refused)} publishes were refused"

    def heal(self, stand: Stand) -> None:
        stand.rabbit.api.put_policy(stand.vhost, body=policy_for(stand.rabbit.version))
        stand.signal_workers(SIGCONT)
