"""A TCP proxy on loopback that can hold back, delay, trickle or cut what passes: a network that fails on request."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Lock, Thread
from time import sleep
from types import TracebackType
from typing import Literal, Self

LOOPBACK = "127.0.0.1"
CHUNK = 65536  # bytes read at once
DROP = 16  # bytes sent at once where the rate is bounded: less than any AMQP frame of interest
CONNECT = 5  # seconds for a connection to the target

Direction = Literal["there", "back"]
BOTH: tuple[Direction, ...] = ("there", "back")


class Proxy:
    """Passes connections to `port` on to the port *target* of loopback. A context manager, closed at its end.

    What is held back is delivered late, not lost, as TCP does after a partition.
    """

    def __init__(self, target: int, port: int = 0) -> None:
        self.target = target
        self.latency = 0.0  # seconds, each way, for each piece that is read
        self.rate = 0  # bytes a second, each way, in drops of a few bytes; 0: as fast as they come
        self._gates = _open_gates()
        self._links: set[_Link] = set()
        self._threads: list[Thread] = []
        self._closed = False
        self._lock = Lock()
        self._listener = socket.create_server((LOOPBACK, port))
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = _start(self._accept)

    @property
    def connections(self) -> int:
        """How many connections pass through now."""
        with self._lock:
            return len(self._links)

    def hold(self, *directions: Direction) -> None:
        """Let nothing through any more, one way or both: connections stay open and nobody is told."""
        for direction in directions or BOTH:
            self._gates[direction].clear()

    def hold_present(self) -> None:
        """Hold back the present connections, for good; new ones pass."""
        with self._lock:
            held, self._gates = self._gates, _open_gates()
        for gate in held.values():
            gate.clear()

    def release(self) -> None:
        """Let everything through again, first what was held back."""
        for gate in self._gates.values():
            gate.set()

    def cut(self) -> None:
        """Close all connections; new ones are accepted."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cut()

    def close(self) -> None:
        """Stop listening and close all connections; nothing of them is left when this returns."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        # Neither a close nor a shutdown wakes who waits for a connection on every system; a connection does.
        with suppress(OSError):
            socket.create_connection((LOOPBACK, self.port), CONNECT).close()
        self._acceptor.join()
        self.cut()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        with self._listener:
            while True:
                client, _ = self._listener.accept()
                if self._closed:
                    client.close()
                    return
                self._threads = [*filter(Thread.is_alive, self._threads), _start(self._carry, client)]

    def _carry(self, client: socket.socket) -> None:
        """Carry one connection to its end; its sockets are closed here, where no thread uses them any more."""
        with client, suppress(OSError), socket.create_connection((LOOPBACK, self.target), CONNECT) as server:
            server.settimeout(None)
            with self._lock:
                if self._closed:
                    return
                link = _Link(self, client, server, self._gates)
                self._links.add(link)
            link.carry()
            with self._lock:
                self._links.remove(link)


class _Link:
    """One connection through a proxy, and the gates that it has to pass, one each way."""

    def __init__(
        self, proxy: Proxy, client: socket.socket, server: socket.socket, gates: dict[Direction, Event]
    ) -> None:
        self._proxy = proxy
        self._client, self._server, self._gates = client, server, gates
        self._cut = False
        for end in (client, server):
            # A drop has to leave by itself, not with the next ones.
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def carry(self) -> None:
        """Pass everything on, both ways, until either side ends or the link is cut."""
        back = _start(self._pass, self._server, self._client, self._gates["back"])
        self._pass(self._client, self._server, self._gates["there"])
        back.join()

    def cut(self) -> None:
        """Show both sides an end, whatever is held back."""
        self._cut = True
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _pass(self, source: socket.socket, sink: socket.socket, gate: Event) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                self._wait(gate)
                sleep(self._proxy.latency)
                self._send(data, sink, gate)
        # An end of the connection is held back like everything else.
        self._wait(gate)
        self.cut()

    def _send(self, data: bytes, sink: socket.socket, gate: Event) -> None:
        while data:
            rate = self._proxy.rate
            drop, data = (data[:DROP], data[DROP:]) if rate else (data, b"")
            self._wait(gate)
            sink.sendall(drop)
            if rate:
                sleep(len(drop) / rate)

    def _wait(self, gate: Event) -> None:
        while not gate.wait(0.1):
            if self._cut:
                return


def _open_gates() -> dict[Direction, Event]:
    gates: dict[Direction, Event] = {direction: Event() for direction in BOTH}
    for gate in gates.values():
        gate.set()
    return gates


def _start(function: Callable[..., object], *arguments: object) -> Thread:
    thread = Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread
