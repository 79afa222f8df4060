"""RabbitMQ has no memory left and takes no more messages, but hands out those that it has."""

from proj.prove.alarm import Alarm


class MemoryAlarm(Alarm):
    """Set off RabbitMQ's memory alarm: every publish is held back, confirms do not come."""

    alarm = "mem_alarm"
    limit = "mem_limit"
    command = ("set_vm_memory_high_watermark", "absolute")
    impossible = "1MB"
