"""Loaded into a worker, deletes its control queue once, right after it was declared.

A worker of the same name that was killed takes the queue along just then, when RabbitMQ notices its death.
"""

from typing import Any

from kombu import pidbox

import tests.chores  # noqa: F401 - a worker's last -I counts

declared = pidbox.Node.Consumer
vanished = False


def consumer(self: pidbox.Node, *args: Any, **options: Any) -> Any:
    global vanished
    result = declared(self, *args, **options)
    if not vanished:
        vanished = True
        result.channel.queue_delete(result.queues[0].name)
    return result


pidbox.Node.Consumer = consumer
