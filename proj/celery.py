"""The Celery application."""

import os
from pathlib import Path

from proj.publish import ConfirmedCelery

app = ConfirmedCelery("proj", config_source="proj.celeryconfig")

# Flower looks for its options in the current folder only; ours are in the package, wherever it is started.
os.environ.setdefault("FLOWER_CONF", str(Path(__file__).with_name("flowerconfig.py")))
