"""A worker whose connection for results is dead: it goes on, and so do the results."""

from __future__ import annotations

from pathlib import Path

import pytest

from proj.broker import Node
from proj.processes import Worker
from proj.proxy import Proxy
from tests.publishing import application, url
from tests.waiting import ensure_not_for_a_while, wait_for

pytestmark = pytest.mark.broker
HEARTBEAT = 2  # seconds
BACK = 2 * HEARTBEAT + 5
BOUNDS = (f"broker.heartbeat=(int){HEARTBEAT}", "publish_timeout=(float)4", "broker.connection_timeout=(float)2")
STOCK = ("result.backend=celery.backends.rpc:RPCBackend",)


@pytest.mark.parametrize(
    "settings", [pytest.param((), id="ours"), pytest.param(STOCK, id="stock", marks=pytest.mark.proof)]
)
def test_a_dead_connection_for_results_does_not_stop_a_worker(
    broker: Node, network: Proxy, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    """Stock Celery's pool process waits for it for ever, told to end or not."""
    app = application(broker.amqp_url, publish_timeout=30)
    task = app.tasks["proj.tasks.fake_work"]
    with Worker("-c", "1", "--", *BOUNDS, *settings, broker=url(network), log=tmp_path / "log") as worker:
        assert task.delay("Before").get(timeout=60) == 0
        held = task.delay("Held.")
        wait_for(lambda: "Received 'Held.'" in worker.text(), "the task to run", log=worker.log)
        network.hold_present()
        after = task.delay("After")
        if settings:
            ensure_not_for_a_while(lambda: "Received 'After'" in worker.text(), "the next task", BACK, worker.log)
        else:
            assert held.get(timeout=60) == 1
            assert after.get(timeout=60) == 0
        worker.kill()
