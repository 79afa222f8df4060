"""RabbitMQ's disk is full: it takes no more messages, but hands out those that it has."""

from proj.prove.alarm import Alarm


class DiskAlarm(Alarm):
    """Set off RabbitMQ's disk alarm: every publish is held back, confirms do not come."""

    alarm = "disk_free_alarm"
    limit = "disk_free_limit"
    command = ("set_disk_free_limit",)
    impossible = str(10**15)  # bytes that shall be free
