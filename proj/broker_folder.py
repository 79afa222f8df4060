"""What a private RabbitMQ node needs in its folder and in its environment."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .installation import Installation
from .management import CONSUMER_TIMEOUT
from .ports import LOOPBACK

# The rest stays outside: RabbitMQ's scripts read dozens of names, several without a prefix of their own.
KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "USER", "LOGNAME", "LD_LIBRARY_PATH")
LOOPBACK_ONLY = "-kernel inet_dist_use_interface {127,0,0,1}"
# Milliseconds. With both at RabbitMQ's own 5 s, a queue's counts are 8 s old; so they are 3, for 0.2 % of a core.
FRESH_COUNTS = "1000"
ADVANCED = {"quorum_tick_interval": FRESH_COUNTS}
PLUGINS = "[rabbitmq_management,rabbitmq_prometheus].\n"


@dataclass
class Setup:
    """The choices that a node's files are written from. `folder` holds all that it owns; ports are of loopback."""

    folder: Path
    name: str
    installation: Installation
    port: int
    management_port: int
    prometheus_port: int
    distribution_port: int = 0
    epmd_port: int = 0
    config: Mapping[str, str] = field(default_factory=dict)
    advanced: Mapping[str, str] = field(default_factory=dict)
    peers: Sequence[str] = ()
    cookie: str | None = None

    @property
    def data(self) -> Path:
        """The messages. A release cannot read another's, so each has a folder of its own."""
        major, minor = self.installation.release
        return self.folder / f"data-{major}.{minor}"

    def write(self) -> None:
        """Write configuration, plug-ins and cookie."""
        (self.folder / "home").mkdir(parents=True, exist_ok=True)
        self.data.mkdir(exist_ok=True)
        (self.folder / "enabled_plugins").write_text(PLUGINS)
        (self.folder / "advanced.config").write_text(_advanced(ADVANCED | dict(self.advanced)))
        lines = [f"{key} = {value}\n" for key, value in self._settings().items()]
        (self.folder / "rabbitmq.conf").write_text("".join(lines))
        self._write_cookie()

    def environment(self) -> dict[str, str]:
        """The environment of the node, and of rabbitmqctl when it shall talk to this node."""
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        erlang = self.installation.erlang
        return {
            "LANG": "C.UTF-8",
            **kept,
            "PATH": os.pathsep.join([str(erlang), kept.get("PATH", os.defpath)]),
            "HOME": str(self.folder / "home"),
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_NODENAME": full_name(self.name),
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self.data),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{LOOPBACK_ONLY} {self._stop_sooner()}".strip(),
            "RABBITMQ_CTL_ERL_ARGS": LOOPBACK_ONLY,
            # Makes the start script become the node: its process id is ours, and a kill reaches it.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _stop_sooner(self) -> str:
        # 3.10 spends 4 s of its stop waiting for the management plug-in.
        return "-kernel shutdown_timeout 1000" if self.installation.release < (4, 0) else ""

    def _settings(self) -> dict[str, str]:
        settings = {
            "listeners.tcp.1": f"{LOOPBACK}:{self.port}",
            "management.tcp.ip": LOOPBACK,
            "management.tcp.port": str(self.management_port),
            "prometheus.tcp.ip": LOOPBACK,
            "prometheus.tcp.port": str(self.prometheus_port),
            "consumer_timeout": str(CONSUMER_TIMEOUT),
            "collect_statistics_interval": FRESH_COUNTS,
        }
        if self.installation.release >= (4, 0):
            settings["default_queue_type"] = "quorum"
        else:
            settings["load_definitions"] = str(self._write_definitions())
        if self.peers:
            settings["cluster_formation.peer_discovery_backend"] = "classic_config"
            for number, peer in enumerate(self.peers, 1):
                settings[f"cluster_formation.classic_config.nodes.{number}"] = full_name(peer)
        return settings | dict(self.config)

    def _write_definitions(self) -> Path:
        path = self.folder / "definitions.json"
        path.write_text(json.dumps(_definitions(), indent=2))
        return path

    def _write_cookie(self) -> None:
        path = self.folder / "home" / ".erlang.cookie"
        cookie = self.cookie or (path.read_text() if path.exists() else secrets.token_hex(16))
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o400), "w") as file:
            file.write(cookie)


def full_name(name: str) -> str:
    """A node's name with its host, which is always this one."""
    return name if "@" in name else f"{name}@localhost"


def _advanced(terms: Mapping[str, str]) -> str:
    inner = ",".join(f"{{{key},{value}}}" for key, value in terms.items())
    return f"[{{rabbit,[{inner}]}}].\n"


def _definitions() -> dict[str, object]:
    """What RabbitMQ 3 creates at its first boot, but with quorum as the virtual host's default queue type."""
    permission = {"user": "guest", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
    salt = secrets.token_bytes(4)
    hashed = base64.b64encode(salt + hashlib.sha256(salt + b"guest").digest()).decode()
    guest = {
        "name": "guest",
        "password_hash": hashed,
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": ["administrator"],
    }
    return {
        "vhosts": [{"name": "/", "metadata": {"default_queue_type": "quorum"}}],
        "users": [guest],
        "permissions": [permission],
    }
