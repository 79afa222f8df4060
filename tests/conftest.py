"""What all tests share: a RabbitMQ installation and one running node."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

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
