"""Flower's options. `celery -A proj flower` reads this file from any folder; FLOWER_<OPTION> and the command line win.

Flower ignores a mistyped name here without a word; a test compares every name with Flower's own options.
"""

import os
from pathlib import Path

from proj.celery import app
from proj.management import management_url

# Flower's default is every network of this machine, and its pages ask nobody for a password.
address = "127.0.0.1"

# Queues and their lengths come from RabbitMQ's management API. Without the last slash Flower shows none.
broker_api = management_url(app.conf).rstrip("/").removesuffix("/api") + "/api/"

# What Flower knows survives its restart; every 10 s (10,000 ms), because it may also be killed.
persistent = True
db = "var/flower.db"
state_save_interval = 10_000

# Flower keeps this many tasks in memory and saves them all each time; its own 100,000 are half a gigabyte.
max_tasks = 10_000

# Seconds. A worker that ended stays visible long enough to be noticed, and names of old containers go away.
purge_offline_workers = 600

# Which message, and who has it: the tutorial's question.
tasks_columns = "name,args,state,worker,received,runtime,result,uuid"

# The times of the workers' logs, not "a minute ago".
natural_time = False

# Flower has applied FLOWER_<OPTION> before it reads this file: what the environment sets is not set here again.
for _name in [name for name in globals() if f"FLOWER_{name.upper()}" in os.environ]:
    del globals()[_name]

if "db" in globals():
    try:
        Path(db).parent.mkdir(exist_ok=True)
    except OSError as error:
        raise SystemExit(
            f"cannot keep Flower's state in {Path(db).absolute()} ({error.strerror}): "
            "start it in a folder of yours, or set FLOWER_DB=FILE"
        ) from None
