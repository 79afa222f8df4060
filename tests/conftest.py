"""What all tests share: a RabbitMQ installation and one running node."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from kombu import Connection

from proj.broker import Node
from proj.installation import Installation, NotInstalled, find
from tests.sharing import common_folder, shared_node

# How fast a loaded machine makes up examples says nothing about the code.
settings.register_profile("proj", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("proj")


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The RabbitMQ under test: the one that $PROJ_RABBITMQ names, else the machine's."""
    try:
        return find()
    except NotInstalled as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def node(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A running node, shared by all that runs now. Whoever kills or reconfigures a node starts one of its own."""
    with shared_node(common_folder(tmp_path_factory) / "shared-node", installation) as node:
        yield node


@pytest.fixture(scope="session")
def node_of_this_process(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node.free(tmp_path_factory.mktemp("own"), installation=installation)
    yield node
    node.kill()


@pytest.fixture
def own_node(node_of_this_process: Node) -> Node:
    """A node to kill, to stop and to starve, in no other test's use now. It runs, and has no task_queue."""
    node_of_this_process.start()
    with Connection(node_of_this_process.amqp_url) as connection:
        connection.default_channel.queue_delete("task_queue")
    return node_of_this_process
