"""What all tests share: a RabbitMQ installation and one running node."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from proj.broker import Node
from proj.installation import Installation, NotInstalled, find

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
    """A running node for the whole session. Whoever kills or reconfigures a node starts one of its own."""
    with Node.free(tmp_path_factory.mktemp("node"), installation=installation) as node:
        yield node
