"""The documents are true: every setting has a reason and a test that needs it, every promise a test."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from proj import celeryconfig
from proj.celery import app

ROOT = Path(__file__).parent.parent
SOURCE = (ROOT / "proj/celeryconfig.py").read_text()
ROWS = re.findall(r"^\| `([a-z_]+)` \| (.*?) \| .* \| `(test_\w+)` \|$", (ROOT / "docs/settings.md").read_text(), re.M)
TESTS = "\n".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
SETTINGS = [name for name in vars(celeryconfig) if re.match(r"[a-z]", name) and name != "os"]
NAMED = sorted(set(re.findall(r"`(test_\w+)`", (ROOT / "docs/promise.md").read_text())))

# Those whose removal no behaviour shows at once, because Celery's default is the same today or acts after hours, or
# because the tests of the behaviour set a shorter one.
STATED = {
    "publish_timeout": 10,
    "broker_connection_timeout": 4,
    "broker_heartbeat_checkrate": 10,
    "broker_connection_retry_on_startup": True,
    "broker_transport_options": {"confirm_publish": True},
    "broker_connection_max_retries": None,
    "broker_pool_acquire_timeout": 10,
    "consumer_timeout": 86400,
    "delivery_limit": 5,
    "task_default_delivery_mode": "persistent",
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
}


def test_every_setting_is_documented() -> None:
    assert [name for name, _, _ in ROWS] == SETTINGS


@pytest.mark.parametrize(("name", "test"), [(name, test) for name, _, test in ROWS])
def test_every_setting_names_a_test_that_is_there(name: str, test: str) -> None:
    assert re.search(rf"^def {test}\(", TESTS, re.M), f"docs/settings.md: {name} is needed by {test}, which is missing"


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_its_reason(name: str) -> None:
    block = SOURCE[: SOURCE.index(f"\n{name} = ")].rpartition("\n\n")[2]
    assert block.startswith("#"), f"{name} has no comment above it"


def test_values_are_the_documented_ones() -> None:
    assert {name: vars(celeryconfig)[name] for name in STATED} == STATED
    assert {name: app.conf[name] for name in STATED} == STATED


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("CELERY_BROKER_URL", "broker_url"),
        ("CELERY_RESULT_BACKEND", "result_backend"),
        ("PROJ_MANAGEMENT_URL", "management_url"),
    ],
)
def test_environment_names_the_broker(name: str, setting: str) -> None:
    value = "amqp://one:5672//;amqp://two:5672//"
    code = f"from proj.celery import app; print(app.conf.{setting})"
    printed = subprocess.run([sys.executable, "-c", code], env={name: value}, capture_output=True, text=True).stdout
    assert printed == f"{value}\n"


def test_without_an_environment_the_broker_is_on_this_machine() -> None:
    code = "from proj.celery import app; print(app.conf.broker_url)"
    printed = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True).stdout
    assert printed == "amqp://guest:guest@localhost:5672//\n"


def test_queue_named_with_q_is_quorum_whatever_the_virtual_host_makes_of_it() -> None:
    assert app.amqp.queues.new_missing("other").queue_arguments == {"x-queue-type": "quorum"}


@pytest.mark.parametrize("test", NAMED)
def test_every_row_of_the_promise_names_a_test_that_is_there(test: str) -> None:
    assert re.search(rf"^def {test}\(", TESTS, re.M), f"docs/promise.md names {test}, which is missing"
