"""RabbitMQ's management API: the few calls that we need."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from proj import celeryconfig

TIMEOUT = 10  # seconds for one call; a broker that cannot answer in that time is as good as unreachable
POLICY = "proj-task-queue"
# A worker holds one message per process unacknowledged until its task is done, so this is the longest task that
# runs undisturbed. RabbitMQ's own 30 minutes would re-run every longer one; a day still frees what hangs for good.
CONSUMER_TIMEOUT = celeryconfig.consumer_timeout * 1000  # milliseconds
DELIVERY_LIMIT = 20  # above the application's own limit: the net below it, not the first to act
# What is counted can vanish while it is counted, a virtual host for instance: that is a 500, once.
AGAIN = Retry(
    connect=0, read=0, status=6, status_forcelist=[500, 503], allowed_methods=["GET"], backoff_factor=0.2,
    raise_on_status=False,
)  # fmt: skip

Record = dict[str, Any]


class ManagementError(Exception):
    """The management API gave no useful answer; the message says where and why."""


def policy_for(version: str) -> Record:
    """Return the body of the policy for `task_queue` as this RabbitMQ version (X.Y.Z) accepts it."""
    release = tuple(int(part) for part in version.split(".")[:2])
    definition: Record = {
        "dead-letter-exchange": "",
        "dead-letter-routing-key": "task_queue.dead",
        # At least once, or the broker's own dead-lettering may lose a message; it needs reject-publish.
        "dead-letter-strategy": "at-least-once",
        "overflow": "reject-publish",
        "delivery-limit": DELIVERY_LIMIT,
    }
    if release >= (4, 0):
        # 3.10 refuses the key; there the node's configuration has to say it.
        definition["consumer-timeout"] = CONSUMER_TIMEOUT
    return {"pattern": "^task_queue$", "apply-to": "queues", "priority": 0, "definition": definition}


def management_url(conf: Mapping[str, Any]) -> str:
    """Return the API's URL for an app: `management_url`, PROJ_MANAGEMENT_URL, else port 15672 on its first broker."""
    # The variable for applications that do not know of it.
    if url := conf.get("management_url") or os.environ.get("PROJ_MANAGEMENT_URL"):
        return str(url)
    broker = urlsplit(str(conf["broker_url"]).split(";")[0])
    user, at, host = broker.netloc.rpartition("@")
    name = "[::1]" if host.startswith("[::1]") else host.partition(":")[0]
    scheme = "https" if broker.scheme == "amqps" else "http"
    return f"{scheme}://{user}{at}{name or 'localhost'}:{15671 if scheme == 'https' else 15672}/api/"


class Management:
    """The management API at a URL with credentials, e.g. http://guest:guest@127.0.0.1:15672/api/.

    Every call raises ManagementError when the API cannot be reached, refuses us, or is none.
    """

    def __init__(self, url: str, timeout: float = TIMEOUT) -> None:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        path = parts.path.rstrip("/")
        self.url = urlunsplit((parts.scheme, host, path if path.endswith("/api") else f"{path}/api", "", ""))
        self._user = unquote(parts.username or "guest")
        self._timeout = timeout
        self._session = requests.Session()
        self._session.auth = (self._user, unquote(parts.password or "guest"))
        self._session.mount("http", HTTPAdapter(max_retries=AGAIN))
        self._session.trust_env = False  # neither a proxy nor a .netrc has a say about a broker's address

    def overview(self) -> Record:
        """Return the broker's overview; among others rabbitmq_version, cluster_name, listeners."""
        overview = cast(Record, self._call("GET", "overview"))
        if "rabbitmq_version" not in overview:
            raise ManagementError(f"{self.url} answers, but is not RabbitMQ's management API")
        return overview

    def version(self) -> str:
        """Return the broker's version as X.Y.Z."""
        return str(self.overview()["rabbitmq_version"])

    def queues(self, vhost: str = "/") -> list[Record]:
        """Return the queues: name, type, messages_ready, messages_unacknowledged, consumers, policy and more.

        The counts lag a quorum queue by some seconds; a queue just declared may have none yet.
        """
        return self._list(f"queues/{quoted(vhost)}")

    def queue(self, name: str, vhost: str = "/") -> Record:
        """Return one queue, consumer_details included."""
        return cast(Record, self._call("GET", f"queues/{quoted(vhost)}/{quoted(name)}"))

    def queue_here(self, name: str, vhost: str = "/") -> Record:
        """Return what this node itself knows of a queue now, past the statistics: leader, online.

        From RabbitMQ 4.0 on, and on the leader's node, messages_ready and messages_unacknowledged as well. The
        statistics lag by seconds, and after a partition by minutes.
        """
        path = f"queues/{quoted(vhost)}/{quoted(name)}?disable_stats=true&enable_queue_totals=true"
        return cast(Record, self._call("GET", path))

    def consumers(self, vhost: str = "/") -> list[Record]:
        """Return the consumers: consumer_tag, prefetch_count, ack_required, queue, channel_details."""
        return self._list(f"consumers/{quoted(vhost)}")

    def channels(self) -> list[Record]:
        """Return the channels: name, messages_unacknowledged, prefetch_count, idle_since, connection_details."""
        return self._list("channels")

    def connections(self) -> list[Record]:
        """Return the client connections: name, user, state, channels, client_properties."""
        return self._list("connections")

    def close_connection(self, name: str, reason: str = "closed by proj") -> None:
        """Close one client connection by its name."""
        self._call("DELETE", f"connections/{quoted(name)}", headers={"X-Reason": reason})

    def nodes(self) -> list[Record]:
        """Return the nodes: name, running, mem_alarm, mem_limit, disk_free_alarm, disk_free_limit and more."""
        return self._list("nodes")

    def add_vhost(self, name: str, policy: Record) -> None:
        """Create a virtual host that our user may use, with a policy."""
        self._call("PUT", f"vhosts/{quoted(name)}", json={})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self._call("PUT", f"permissions/{quoted(name)}/{quoted(self._user)}", json=everything)
        self.put_policy(name, body=policy)

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with all that is in it."""
        self._call("DELETE", f"vhosts/{quoted(name)}")

    def delete_queue(self, name: str, vhost: str = "/") -> None:
        """Delete a queue with all that is in it."""
        self._call("DELETE", f"queues/{quoted(vhost)}/{quoted(name)}")

    def policies(self, vhost: str = "/") -> list[Record]:
        """Return the policies of a virtual host: name, pattern, apply-to, priority, definition."""
        return self._list(f"policies/{quoted(vhost)}")

    def put_policy(self, vhost: str = "/", name: str = POLICY, body: Record | None = None) -> None:
        """Create or replace a policy; without a body, ours for `task_queue` as this broker's version knows it."""
        body = body or policy_for(self.version())
        self._call("PUT", f"policies/{quoted(vhost)}/{quoted(name)}", json=body)

    def _list(self, path: str) -> list[Record]:
        return cast("list[Record]", self._call("GET", path))

    def _call(self, method: str, path: str, **options: Any) -> Any:
        url = f"{self.url}/{path}"
        try:
            answer = self._session.request(method, url, timeout=self._timeout, **options)
        except requests.RequestException as error:
            raise ManagementError(f"cannot reach the management API at {self.url} ({_cause(error)})") from error
        if answer.status_code == requests.codes.unauthorized:
            raise ManagementError(f"{self.url} refused user {self._user!r}: wrong password or no management tag")
        if not answer.ok:
            raise ManagementError(f"{method} {url}: {answer.status_code} {_reason(answer)}")
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError as error:
            raise ManagementError(f"{self.url} answers, but is not RabbitMQ's management API") from error


def quoted(name: str) -> str:
    """A virtual host's or a queue's name as the API wants it in a path."""
    return quote(name, safe="")


def _cause(error: requests.RequestException) -> str:
    text = str(error)
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if "Connection refused" in text:
        return "connection refused"
    return "unknown host" if "NameResolution" in text else text


def _reason(answer: requests.Response) -> str:
    try:
        return str(answer.json().get("reason", answer.reason))
    except (ValueError, AttributeError):
        return answer.reason
