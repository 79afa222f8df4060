"""What tests of publishing under faults share: a node to do harm to, a network that fails, an alarm."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from proj.broker import Node
from proj.proxy import Proxy
from tests.publishing import close_all
from tests.waiting import wait_for


@pytest.fixture
def broker(own_node: Node) -> Iterator[Node]:
    """A node to do harm to."""
    yield own_node
    close_all()


@pytest.fixture
def network(broker: Node) -> Iterator[Proxy]:
    with Proxy(broker.port) as proxy:
        yield proxy
        proxy.release()
        close_all()


ALARMS = {
    "mem_alarm": ("set_vm_memory_high_watermark", "0", "0.4"),
    "disk_free_alarm": ("set_disk_free_limit", "100000GB", "50MB"),
}


@pytest.fixture(params=ALARMS)
def alarm(request: pytest.FixtureRequest, broker: Node) -> Iterator[Callable[[bool], None]]:
    """Raises an alarm when called with True and ends it when called with False; at the end it is ended."""
    command, on, off = ALARMS[request.param]

    raised = False

    def switch(wanted: bool) -> None:
        nonlocal raised
        raised = wanted
        broker.ctl(command, on if wanted else off)
        nodes = broker.management._list
        wait_for(lambda: nodes("nodes")[0][request.param] is wanted, f"{request.param} to be {wanted}")

    yield switch
    if raised:
        switch(False)
