"""Bytes that are no message of ours, from somebody who knows the queue's name."""

from uuid import UUID

from proj.prove.fault import Fault, Stand

RUBBISH = (
    (b"\x80\x04\xff\x00 no JSON", "application/json"),
    (b'{"half": ', "application/json"),
    (b"\x00\xff\xfe", "application/x-nonsense"),
    (b"cos\nsystem\n(S'true'\ntR.", "application/x-python-serialize"),
)


class Rubbish(Fault):
    """Publish bytes that are no message: broken JSON, unknown and forbidden content types."""

    def inject(self, stand: Stand) -> str:
        for number, (body, kind) in enumerate(RUBBISH, 1):
            task_id = str(UUID(int=number, version=4))
            stand.post(task_id, f"rubbish {number} ({kind})", body, content_type=kind, content_encoding="binary")
        return f"{len(RUBBISH)} messages of rubbish were confirmed by RabbitMQ"
