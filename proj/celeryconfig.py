"""Every setting, with its reason and the lesson of the tutorial that it belongs to.

A setting that equals Celery's default is stated where the promise rests on it.
`docs/settings.md` has the same list with units and the test that needs each one.
"""

import os

from kombu import Exchange, Queue

# --- Where: the only settings that a deployment has to change -------------------------------------------

# One broker, or the nodes of a cluster separated by ";". The default is a RabbitMQ on this machine.
broker_url = os.environ.get("CELERY_BROKER_URL", "amqp://guest:guest@localhost:5672//")

# RabbitMQ's management API, for our tools and Flower; unset, it is guessed from broker_url with port 15672.
management_url = os.environ.get("PROJ_MANAGEMENT_URL")

# Results travel back over the broker to the process that asked, so that .get() works in a REPL without
# another server. A convenience: the truth about a task is its message.
result_backend = os.environ.get("CELERY_RESULT_BACKEND", "rpc://")

# Seconds. Results that nobody asks for, and the queue that holds them, go after an hour, not after a day.
result_expires = 3600

# --- Lesson 1, round-robin dispatch: one queue, any number of workers ------------------------------------

# The file that a user replaces, and what a worker process needs beside it: names, words, a sign of life.
imports = ("proj.tasks", "proj.worker", "proj.health")

# The queue carries exactly the arguments of the tutorial's own clients: with any other, RabbitMQ refuses
# whichever side declares second (406). All else about the queue is a policy. The exchange is of type topic
# because delayed delivery (countdown, eta, retry) needs one to leave the worker free in the meantime.
task_queues = (
    Queue(
        "task_queue",
        Exchange("task_exchange", type="topic"),
        routing_key="task_queue",
        queue_arguments={"x-queue-type": "quorum"},
    ),
)

# Tasks without a route go to that queue.
task_default_queue = "task_queue"

# Queues named with -Q get the same guarantees as task_queue, not Celery's classic ones.
task_create_missing_queue_type = "quorum"
task_create_missing_queue_exchange_type = "topic"

# --- Lesson 2, acknowledgement: a dead worker's message is delivered to another ---------------------------

# Acknowledge after the work, not before: a worker killed in between leaves its message to another one.
task_acks_late = True

# Without it Celery acknowledges the message of a killed pool process in spite of late acks: it is lost.
task_reject_on_worker_lost = True

# A lost connection makes RabbitMQ redeliver; the run that can no longer be acknowledged is stopped.
worker_cancel_long_running_tasks_on_connection_loss = True

# Seconds. RabbitMQ takes a frozen worker's message away two to three heartbeats after its last sign of life.
# Celery's 120 means minutes.
broker_heartbeat = 10

# Looks per heartbeat: a worker leaves a dead connection after two silent heartbeats, and a second later at most.
broker_heartbeat_checkrate = 10

# --- Consuming: nothing is discarded; what cannot be finished is parked in task_queue.dead (proj/consume.py)

# Celery's consumer, except that it parks where Celery discards.
worker_consumer = "proj.consume:Consumer"

# The task that a plain text message becomes: the tutorial's own new_task, in any language, is enough.
plain_text_task = "proj.tasks.fake_work"

# Deliveries without an end (the worker died, the process was killed), after which a message is parked unrun.
# Below RabbitMQ 4's own limit of 20, at which it drops the message.
delivery_limit = 5

# Park what a task failed with for good. A task that sets park_failures = False lets its failures go.
park_failures = True

# Seconds that a task may take before RabbitMQ hands its message to another worker (its own default is 30
# minutes). 4.3 learns it from the worker; 4.0 needs the policy, 3.x its own configuration file.
consumer_timeout = 24 * 3600

# Seconds between SIGTERM and handing the running task's message back; None waits for as long as it takes.
# A container's own grace period must be longer.
stop_timeout = float(os.environ["PROJ_STOP_TIMEOUT"]) if os.environ.get("PROJ_STOP_TIMEOUT") else None

# --- Lesson 3, durability: queue and messages survive a restart of RabbitMQ -------------------------------

# Messages are written to disk (the queue is durable by kombu's default and by being a quorum queue).
task_default_delivery_mode = "persistent"

# A publish returns when RabbitMQ has the message safe, not when it has left this process.
broker_transport_options = {"confirm_publish": True}

# --- Publishing: confirmed, or an error that says what is known (proj/publish.py) ---------------------------

# Seconds in which delay() and its kin return or raise, whatever happens to RabbitMQ or the network. A call
# may bring its own: apply_async(..., confirm_timeout=3).
publish_timeout = 10

# Seconds for a connection, and for an answer that RabbitMQ gives at once; less than half of the above, so
# that a connection that died unnoticed is replaced in time.
broker_connection_timeout = 4

# Seconds, as above; what groups and chords take from Celery's own pool, which without it waits for ever.
broker_pool_acquire_timeout = 10

# --- The connection ----------------------------------------------------------------------------------------

# A worker that outlives an outage of any length: never give up, neither at start nor later.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None

# A worker's control queue outlives a half-open connection: Celery 5.7's exclusive one stays locked by the
# old connection, and the worker that comes back dies of it (405 RESOURCE_LOCKED).
control_queue_durable = True
control_queue_exclusive = False

# --- Lesson 4, fair dispatch: a message goes to a worker that is free --------------------------------------

# One unacknowledged message per pool process, so that light messages do not wait behind a heavy one.
worker_prefetch_multiplier = 1

# --- What travels, and what can be seen --------------------------------------------------------------------

# JSON only: readable in any language, and a message can never run code (pickle can).
task_serializer = "json"
result_serializer = "json"
accept_content = ["json"]

# Flower and the timeline see every task of a worker from its first second on.
worker_send_task_events = True

# ... and every message that waits in the queue, from the process that sent it.
task_send_sent_event = True

# The task's own words first; its name and id behind them, to find it again in Flower.
worker_task_log_format = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s (%(task_name)s[%(task_id)s])"
