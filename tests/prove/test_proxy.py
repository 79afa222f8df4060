"""The proxy between clients and node: what it does to what passes, and that it leaves no socket behind."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest

from proj.ports import LOOPBACK, free_port, free_ports
from proj.proxy import DROP, Proxy
from tests.waiting import ensure_not_for_a_while, wait_for

TEXT = bytes(range(256)) * 4


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that says everything again."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
        serving = threading.Thread(target=_serve, args=(listener,))
        serving.start()
        yield port
        with socket.create_connection((LOOPBACK, port)) as last:
            last.sendall(b"end")
        serving.join()


def _serve(listener: socket.socket) -> None:
    with ThreadPoolExecutor(50) as pool:
        while True:
            client, _ = listener.accept()
            with suppress(OSError):
                if client.recv(3, socket.MSG_PEEK) == b"end":
                    client.close()
                    return
            pool.submit(_echo, client)


def _echo(client: socket.socket) -> None:
    with client, suppress(OSError):
        while data := client.recv(65536):
            client.sendall(data)


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy(echo) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with connect(proxy) as client:
        assert echoed(client, b"hello") == b"hello"
        yield client


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection((LOOPBACK, proxy.port), timeout=10)


def echoed(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    return read(client, len(text))


def read(client: socket.socket, length: int) -> bytes:
    """Return so many bytes, or those that came before the end."""
    found = b""
    while len(found) < length and (data := client.recv(length - len(found))):
        found += data
    return found


def over(client: socket.socket) -> bool:
    """Whether the other side ends the connection, after what it may still have sent."""
    with suppress(ConnectionResetError):
        while client.recv(65536):
            pass
    return True


def silent(client: socket.socket) -> bool:
    """Whether nothing has come."""
    return not select.select([client], [], [], 0)[0]


def left_open(port: int) -> list[object]:
    """The sockets of this process that belong to a proxy which listens, or listened, there."""
    return [c for c in psutil.Process(os.getpid()).net_connections() if c.laddr.port == port]


@pytest.mark.parametrize("directions", [("there",), ("back",), ()], ids=["there", "back", "both ways"])
def test_what_is_held_back_comes_late_and_whole(proxy, client, directions):
    proxy.hold(*directions)
    client.sendall(TEXT)
    ensure_not_for_a_while(lambda: not silent(client), "anything to pass", 0.3)
    proxy.release()
    assert read(client, len(TEXT)) == TEXT


def test_present_connections_are_held_back_and_new_ones_pass(proxy, client):
    proxy.hold_present()
    client.sendall(TEXT)
    with connect(proxy) as other:
        assert echoed(other, TEXT) == TEXT
    proxy.release()
    ensure_not_for_a_while(lambda: not silent(client), "anything to pass", 0.3)


def test_latency_delays_each_way(proxy, client):
    proxy.latency = 0.1
    began = time.monotonic()
    assert echoed(client, b"hello") == b"hello"
    assert time.monotonic() - began >= 0.2


def test_a_rate_makes_it_trickle_in_drops_until_it_is_lifted(proxy, client):
    proxy.rate = 4096
    began = time.monotonic()
    client.sendall(TEXT)
    first = client.recv(len(TEXT))
    assert len(first) < len(TEXT)
    assert first + read(client, len(TEXT) - len(first)) == TEXT
    assert time.monotonic() - began >= (len(TEXT) - DROP) / 4096
    client.sendall(TEXT * 100)
    assert read(client, 2 * DROP) == TEXT[: 2 * DROP]
    proxy.rate = 0
    # At the old rate that would take 25 seconds, and the client waits for ten.
    assert read(client, 100 * len(TEXT) - 2 * DROP) == (TEXT * 100)[2 * DROP :]


@pytest.mark.parametrize("held", [False, True])
def test_a_cut_ends_the_present_connections_only(proxy, client, held):
    if held:
        proxy.hold()
    proxy.cut()
    assert over(client)
    proxy.release()
    with connect(proxy) as other:
        assert echoed(other, TEXT) == TEXT
    wait_for(lambda: not proxy.connections, "no connection to be counted")


def test_an_end_passes_the_proxy(proxy, client):
    assert proxy.connections == 1
    client.shutdown(socket.SHUT_WR)
    assert over(client)
    wait_for(lambda: not proxy.connections, "no connection to be counted")


def test_nobody_behind_it_ends_the_connection():
    with Proxy(free_port()) as proxy, connect(proxy) as client:
        assert over(client)


@pytest.mark.parametrize("trouble", ["", "hold", "hold_present", "rate"])
def test_after_the_close_nothing_is_left(echo, trouble):
    before = threading.active_count()
    with Proxy(echo) as proxy, connect(proxy) as client:
        assert echoed(client, b"hello") == b"hello"
        if trouble == "rate":
            proxy.rate = 100
        elif trouble:
            getattr(proxy, trouble)()
        client.sendall(TEXT)
        proxy.close()
        assert over(client)
        assert left_open(proxy.port) == []
        proxy.close()
    wait_for(lambda: threading.active_count() <= before + 1, "the threads to end but the server's own")


@pytest.mark.parametrize("end", ["close", "cut"])
def test_who_connects_meanwhile_is_not_left_open(echo, end):
    for _ in range(20):
        clients: list[socket.socket] = []
        with Proxy(echo) as proxy:
            storm = threading.Thread(target=_storm, args=(proxy, clients))
            storm.start()
            wait_for(lambda: len(clients) > 3, "some connections")  # noqa: B023 - called at once
            getattr(proxy, end)()
            storm.join()
        assert left_open(proxy.port) == []
        for client in clients:
            assert over(client)
            client.close()


def _storm(proxy: Proxy, clients: list[socket.socket]) -> None:
    with suppress(OSError):
        for _ in range(20):
            clients.append(connect(proxy))


def test_no_port_is_given_twice_at_the_same_time():
    with ThreadPoolExecutor(8) as pool:
        given = [port for ports in pool.map(free_ports, [9] * 8) for port in ports]
    assert len(set(given)) == len(given)
