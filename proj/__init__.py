"""RabbitMQ's "Work Queues" tutorial as a Celery application that loses no message."""

from proj.celery import app

__all__ = ["app"]
