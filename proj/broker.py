"""A private RabbitMQ node: a child of this process, in a folder of its own, on loopback only."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from . import child, installation, ports
from .broker_errors import FolderInUse, NodeFailed, PortInUse
from .broker_folder import Setup
from .epmd import Epmd
from .installation import Installation
from .management import POLICY, Management, ManagementError, policy_for
from .ports import LOOPBACK, answers_amqp, free_port, free_ports

__all__ = ["Epmd", "FolderInUse", "Node", "NodeFailed", "PortInUse", "answers_amqp", "free_port", "free_ports"]

PAUSE = 0.05  # seconds between two looks at what is starting


class Node:
    """A private RabbitMQ. As a context manager: started and ready inside, stopped at the end; its data survive.

    `config` adds keys to rabbitmq.conf, `advanced` Erlang terms of the application rabbit. A cluster's nodes have
    different names, one cookie, one epmd and everybody's names as `peers`.
    """

    def __init__(
        self,
        folder: Path,
        port: int = 5672,
        management_port: int = 15672,
        *,
        name: str = "rabbit",
        prometheus_port: int | None = None,
        installation: Installation | None = None,
        config: Mapping[str, str] | None = None,
        advanced: Mapping[str, str] | None = None,
        peers: Sequence[str] = (),
        cookie: str | None = None,
        epmd: Epmd | None = None,
    ) -> None:
        self.folder = Path(folder).absolute()
        self.port = port
        self.management_port = management_port
        self.prometheus_port = prometheus_port or management_port + 20  # RabbitMQ's defaults lie 20 apart, too
        self.name = name
        self.log = self.folder / "node.log"
        self._wanted = installation
        self._options: dict[str, Any] = {
            "config": config or {},
            "advanced": advanced or {},
            "peers": peers,
            "cookie": cookie,
        }
        self._shared_epmd = epmd
        self._epmd = epmd
        self._setup: Setup | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._log_start = 0

    @classmethod
    def free(cls, folder: Path, **options: Any) -> Node:
        """A node on ports that are free now; options as for Node."""
        port, management_port, prometheus_port = free_ports(3)
        return cls(folder, port, management_port, prometheus_port=prometheus_port, **options)

    @property
    def installation(self) -> Installation:
        """The RabbitMQ that it runs. Raises NotInstalled."""
        if self._wanted is None:
            self._wanted = installation.find()
        return self._wanted

    @property
    def pid(self) -> int | None:
        """Process id of the Erlang VM while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def running(self) -> bool:
        """True while its process lives, ready or not."""
        return self.pid is not None

    @property
    def epmd_pid(self) -> int | None:
        """Process id of the epmd that it uses, while that runs."""
        return self._epmd.pid if self._epmd else None

    @property
    def amqp_url(self) -> str:
        """Where clients connect, for the setting broker_url."""
        return f"amqp://guest:guest@{LOOPBACK}:{self.port}//"

    @property
    def management_url(self) -> str:
        """The management API, credentials and trailing slash included, as Flower wants it."""
        return f"http://guest:guest@{LOOPBACK}:{self.management_port}/api/"

    @property
    def management(self) -> Management:
        """Its management API."""
        return Management(self.management_url)

    @property
    def data(self) -> Path:
        """The folder that holds its messages."""
        return self._prepared().data

    def start(self, timeout: float = 60) -> None:
        """Start it and wait until it is ready, `timeout` seconds at most.

        Raises NotInstalled, PortInUse, FolderInUse, NodeFailed.
        """
        self.launch()
        self.wait_until_ready(timeout)

    def launch(self) -> None:
        """Start it without waiting: for several nodes at once. Raises as `start` does."""
        if self.running:
            return
        self.kill()  # what a node that ended by itself has left: its epmd and the lock
        self._check_host()
        self._check_ports()
        self._take_folder()
        try:
            self._launch()
        except BaseException:
            self.kill()
            raise

    def wait_until_ready(self, timeout: float = 60) -> None:
        """Wait until AMQP and management answer and the policy is in force; on failure nothing is left running."""
        deadline = time.monotonic() + timeout
        try:
            while waits_for := self._missing():
                if not self.running:
                    raise self.failure(f"it ended with exit status {self._exit_status()}")
                if time.monotonic() > deadline:
                    raise self.failure(f"not ready after {timeout:g} s: {waits_for}")
                time.sleep(PAUSE)
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout: float = 30) -> bool:
        """Stop it cleanly. Returns False when it had to be killed after `timeout` seconds."""
        if not self._process:
            return True
        self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        finally:
            self.kill()
        return True

    def kill(self) -> None:
        """End it as kill -9 does, its epmd too unless that is shared. Does nothing when it does not run."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._epmd and not self._shared_epmd:
            self._epmd.stop()
            self._epmd = None
        if self._lock:
            self._lock.close()
            self._lock = None

    def restart(self, timeout: float = 60) -> None:
        """Stop it cleanly if it runs, then start it."""
        self.stop()
        self.start(timeout)

    def wait(self) -> int:
        """Block until the node ends by itself or is ended; returns its exit status."""
        return self._process.wait() if self._process else 0

    def ctl(self, *arguments: str, tool: str = "rabbitmqctl", timeout: float = 60) -> str:
        """Run one of RabbitMQ's command-line tools against this node and return its output.

        Raises subprocess.CalledProcessError, subprocess.TimeoutExpired.
        """
        setup = self._prepared()
        low, high = sorted(free_ports(2))
        env = setup.environment() | {
            "RABBITMQ_CTL_DIST_PORT_MIN": str(low),
            "RABBITMQ_CTL_DIST_PORT_MAX": str(high),
        }
        command = [str(setup.installation.scripts / tool), "--quiet", *arguments]
        done = subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=timeout)
        return done.stdout

    def failure(self, reason: str) -> NodeFailed:
        """An error with this reason, the command line and the end of the log since the last start."""
        title = f"RabbitMQ {self.installation.version} in {self.folder} failed: {reason}"
        return NodeFailed.with_log(title, self._command(), self.log, self._log_start)

    def __enter__(self) -> Node:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _prepared(self) -> Setup:
        if self._setup is None:
            self._setup = Setup(
                folder=self.folder,
                name=self.name,
                installation=self.installation,
                port=self.port,
                management_port=self.management_port,
                prometheus_port=self.prometheus_port,
                **self._options,
            )
        return self._setup

    def _check_host(self) -> None:
        # Without this name the boot hangs instead of failing.
        with contextlib.suppress(OSError):
            if socket.gethostbyname("localhost") == LOOPBACK:
                return
        raise NodeFailed(f"expected localhost to be {LOOPBACK}: add the line `{LOOPBACK} localhost` to /etc/hosts")

    def _check_ports(self) -> None:
        wanted = {
            "AMQP": self.port,
            "management": self.management_port,
            "Prometheus": self.prometheus_port,
        }
        for purpose, port in wanted.items():
            if not ports.is_free(port):
                raise PortInUse(purpose, port, answers_amqp(port))

    def _take_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = (self.folder / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise FolderInUse(f"another node runs in {self.folder}: choose another folder, or stop it") from error
        self._lock = lock

    def _launch(self) -> None:
        setup = self._prepared()
        taken = [self.port, self.management_port, self.prometheus_port]
        self._epmd = self._shared_epmd or Epmd(free_port(besides=taken))
        self._epmd.start(setup.installation, self.folder)
        setup.epmd_port = self._epmd.port
        setup.distribution_port = free_port(besides=[*taken, self._epmd.port])
        setup.write()
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._process = child.start(self._command(), env=setup.environment(), folder=self.folder, output=self.log)

    def _command(self) -> list[str]:
        return [str(self.installation.server)]

    def _missing(self) -> str:
        """What a ready node has and this one does not have yet, in a few words."""
        if not answers_amqp(self.port):
            return f"no AMQP answer on port {self.port}"
        try:
            present = {policy["name"]: policy["definition"] for policy in self.management.policies()}
            wanted = policy_for(self.installation.version)
            if present.get(POLICY) != wanted["definition"]:
                self.management.put_policy(body=wanted)
        except ManagementError as error:
            return str(error)
        return ""

    def _exit_status(self) -> int | None:
        return self._process.returncode if self._process else None
