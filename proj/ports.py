"""TCP ports on loopback: which are free, and what answers on the others."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Collection
from threading import Lock
from time import monotonic

LOOPBACK = "127.0.0.1"
# Below every system's range of outgoing ports (32768 on Linux, 49152 on macOS): a client that retries a port of
# that range while its server is down can be given the very port, and then talks to itself.
FREE_PORTS = range(10_000, 15_600)
SHARES = 61  # about 90 ports each; a prime, so that neighbouring process ids differ

SOON = 30.0  # seconds within which a port that was given should be in use

_given: dict[int, float] = {}
_giving = Lock()


def free_ports(count: int) -> list[int]:
    """Return that many different ports nobody listens on. They are not reserved: use them soon."""
    # Free is not taken: processes that look at the same moment would choose alike, so each has its own share first.
    ours = [port for port in FREE_PORTS if port % SHARES == os.getpid() % SHARES]
    others = [port for port in FREE_PORTS if port not in ours]
    shuffled = random.sample(ours, len(ours)) + random.sample(others, len(others))
    with _giving:
        # Nor may two threads of ours choose alike.
        since = monotonic() - SOON
        free = (port for port in shuffled if _given.get(port, since) <= since and is_free(port))
        found = [next(free) for _ in range(count)]
        _given.update(dict.fromkeys(found, monotonic()))
    return found


def free_port(*, besides: Collection[int] = ()) -> int:
    """Return a port nobody listens on, and none of `besides`."""
    return next(port for port in free_ports(len(besides) + 1) if port not in besides)


def is_free(port: int) -> bool:
    """True when a server could listen on this port of loopback now."""
    with socket.socket() as probe:
        # As servers do: connections of an ended server that linger in TIME_WAIT are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    # macOS lets us bind loopback beside a server on all addresses.
    return not accepts(port)


def accepts(port: int, seconds: float = 2) -> bool:
    """True when something accepts connections on this port of loopback."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=seconds).close()
    except OSError:
        return False
    return True


def answers_amqp(port: int, seconds: float = 2) -> bool:
    """True when an AMQP 0-9-1 broker answers there: the protocol header is met with Connection.Start."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=seconds) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            with connection.makefile("rb") as stream:
                frame = stream.read(11)
    except OSError:
        return False
    # A method frame (1) on channel 0, its length, class 10 (connection), method 10 (start).
    return frame[:3] == b"\x01\x00\x00" and frame[7:] == b"\x00\x0a\x00\x0a"
