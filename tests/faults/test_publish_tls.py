"""Publishing over TLS: the same promise, on a socket that reads and writes by other rules."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from celery import Celery

from proj.broker import Node, free_port
from proj.installation import Installation
from proj.proxy import Proxy
from proj.publish import Indeterminate, NotQueued
from tests.publishing import BOUND, GRACE, application, close_all, failure, publish, ready, send, take_all
from tests.waiting import wait_for

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority of our own, and what it certifies: a server on loopback."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    server = authority.issue_cert("127.0.0.1")
    server.private_key_pem.write_to_path(str(folder / "key.pem"))
    server.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    return folder


@pytest.fixture(scope="module")
def tls_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def secure_node(
    installation: Installation, tmp_path_factory: pytest.TempPathFactory, certificates: Path, tls_port: int
) -> Iterator[Node]:
    config = {"listeners.ssl.1": f"127.0.0.1:{tls_port}"}
    config |= {f"ssl_options.{name}file": f"{certificates / name}.pem" for name in ("cert", "key")}
    config |= {"ssl_options.cacertfile": f"{certificates / 'ca.pem'}", "ssl_options.verify": "verify_none"}
    with Node.free(tmp_path_factory.mktemp("node"), installation=installation, config=config) as node:
        yield node


@pytest.fixture
def network(secure_node: Node, tls_port: int) -> Iterator[Proxy]:
    with Proxy(tls_port) as proxy:
        yield proxy
        proxy.release()
        close_all()


@pytest.fixture
def app(network: Proxy, certificates: Path) -> Celery:
    options: dict[str, Any] = {"ca_certs": str(certificates / "ca.pem"), "cert_reqs": ssl.CERT_REQUIRED}
    options |= {"server_hostname": "127.0.0.1"}
    url = f"amqps://guest:guest@127.0.0.1:{network.port}//"
    return application(url, broker_use_ssl=options, task_ignore_result=True)


def test_publishing_over_tls_is_confirmed_and_heals(app: Celery, network: Proxy, secure_node: Node) -> None:
    ids = [send(app) for _ in range(20)]
    network.cut()
    ids.append(send(app))
    assert take_all(secure_node.amqp_url) == ids


@pytest.mark.parametrize("size", [1, 20_000_000], ids=["small", "larger than all buffers"])
def test_a_black_hole_over_tls_raises_in_time(app: Celery, network: Proxy, secure_node: Node, size: int) -> None:
    ids = [send(app)]
    network.hold()
    unknown = failure(app, lambda app: publish(app, "x" * size))
    assert isinstance(unknown, Indeterminate)
    # A new connection does not even come to shake hands.
    assert isinstance(failure(app), NotQueued)
    network.release()
    ids.append(send(app))
    wait_for(lambda: ready(secure_node.amqp_url) >= 2, "the messages")
    assert set(ids) <= set(take_all(secure_node.amqp_url)) <= {*ids, unknown.task_id}


def test_closing_over_tls_is_bounded_too(app: Celery, network: Proxy) -> None:
    send(app)
    network.hold()
    start = time.monotonic()
    app.close()
    assert time.monotonic() - start < BOUND + GRACE


def test_a_certificate_of_nobody_s_is_refused(app: Celery) -> None:
    app.conf.broker_use_ssl["ca_certs"] = None
    assert "CERTIFICATE_VERIFY_FAILED" in str(failure(app))
