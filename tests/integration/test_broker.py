"""The private RabbitMQ node: started, busy, killed, restarted, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pika
import psutil
import pytest

from proj.broker import FolderInUse, Node, NodeFailed, PortInUse, answers_amqp, free_port, free_ports
from proj.installation import Installation
from proj.management import POLICY, Management, ManagementError, policy_for
from tests.waiting import ensure_not_for_a_while, wait_for

pytestmark = pytest.mark.broker
QUORUM = {"x-queue-type": "quorum"}
LOOPBACK = {"127.0.0.1", "::1"}

STARTS_A_NODE_AND_STAYS = """
import signal, sys, threading
from pathlib import Path
from proj.broker import Node
from proj.installation import find
node = Node.free(Path(sys.argv[1]), installation=find(Path(sys.argv[2])))
thread = threading.Thread(target=node.start)
thread.start()
thread.join()
print(node.pid, node.epmd_pid, node.port, flush=True)
signal.pause()
"""


@contextmanager
def channel(node: Node) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", node.port))
    try:
        opened = connection.channel()
        opened.confirm_delivery()
        yield opened
    finally:
        if connection.is_open:
            connection.close()


def ready(node: Node, queue: str) -> int:
    with channel(node) as opened:
        return opened.queue_declare(queue, passive=True).method.message_count


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_old_and_new_tutorial_declare_the_same_queue(node: Node) -> None:
    with channel(node) as opened:
        opened.queue_declare("task_queue", durable=True)
        opened.queue_declare("task_queue", durable=True, arguments=QUORUM)
    assert node.management.queue("task_queue")["type"] == "quorum"


def test_the_policy_applies_to_task_queue_alone(node: Node) -> None:
    with channel(node) as opened:
        for queue in ("task_queue", "task_queue.dead"):
            opened.queue_declare(queue, durable=True, arguments=QUORUM)
    expected = policy_for(node.installation.version)["definition"]
    assert expected["delivery-limit"] == 20
    applied = wait_for(
        lambda: node.management.queue("task_queue").get("effective_policy_definition"), "the policy", log=node.log
    )
    assert applied == expected
    assert node.management.queue("task_queue")["policy"] == POLICY
    assert not node.management.queue("task_queue.dead").get("policy")


def test_a_rejected_message_is_dead_lettered_by_the_policy(node: Node) -> None:
    with channel(node) as opened:
        for queue in ("task_queue", "task_queue.dead"):
            opened.queue_declare(queue, durable=True, arguments=QUORUM)
            opened.queue_purge(queue)
        opened.basic_publish("", "task_queue", b"Hello...")
        method, _, _ = wait_for(lambda: _got(opened, "task_queue"), "the message")
        opened.basic_reject(method.delivery_tag, requeue=False)
        _, properties, body = wait_for(lambda: _got(opened, "task_queue.dead"), "the dead letter", log=node.log)
        opened.queue_purge("task_queue.dead")
    assert body == b"Hello..."
    assert properties.headers["x-first-death-reason"] == "rejected"


def _got(opened: pika.adapters.blocking_connection.BlockingChannel, queue: str) -> tuple | None:
    found = opened.basic_get(queue)
    return found if found[0] else None


def test_everything_listens_on_loopback_alone(own_node: Node) -> None:
    listening = set()
    for pid in (own_node.pid, own_node.epmd_pid):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            listening |= {c.laddr for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert {address.ip for address in listening} <= LOOPBACK
    found = {address.port for address in listening}
    assert {own_node.port, own_node.management_port, own_node.prometheus_port} < found
    assert len(found) == 5, f"expected AMQP, management, Prometheus, distribution and epmd, got {sorted(found)}"


def test_command_line_tools_reach_the_node(own_node: Node) -> None:
    assert "rabbit@localhost" in own_node.ctl("cluster_status")
    assert own_node.ctl("status", tool="rabbitmq-diagnostics")


def test_two_nodes_run_side_by_side(node: Node, own_node: Node) -> None:
    with channel(node) as opened:
        opened.queue_declare("only here", durable=True)
    assert "only here" in {queue["name"] for queue in node.management.queues()}
    assert "only here" not in {queue["name"] for queue in own_node.management.queues()}


def test_a_confirmed_message_survives_a_restart_and_a_kill(own_node: Node) -> None:
    with channel(own_node) as opened:
        opened.queue_declare("survivor", durable=True, arguments=QUORUM)
        opened.basic_publish("", "survivor", b"x", pika.BasicProperties(delivery_mode=2))
    # RabbitMQ may lose a queue, confirmed messages and all, that is killed within its first second.
    wait_for(
        lambda: own_node.management.queue("survivor").get("messages_ready"),
        "the message in the counts",
        log=own_node.log,
    )
    before = own_node.pid, own_node.epmd_pid
    own_node.restart()
    assert all(map(is_gone, before))
    assert wait_for(lambda: ready(own_node, "survivor"), "the message after a restart", log=own_node.log) == 1
    pid, epmd_pid = own_node.pid, own_node.epmd_pid
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not own_node.running, "the end of the node")
    own_node.start()
    assert is_gone(epmd_pid)
    assert wait_for(lambda: ready(own_node, "survivor"), "the message after kill -9", log=own_node.log) == 1


def test_kill_leaves_no_process(installation: Installation, tmp_path: Path) -> None:
    node = Node.free(tmp_path, installation=installation)
    node.launch()
    pid, epmd_pid = node.pid, node.epmd_pid
    assert not is_gone(pid)
    assert not is_gone(epmd_pid)
    node.kill()
    assert is_gone(pid)
    assert is_gone(epmd_pid)
    assert (node.running, node.epmd_pid) == (False, None)
    node.kill()


def test_a_port_with_a_broker(node: Node, installation: Installation, tmp_path: Path) -> None:
    with pytest.raises(PortInUse, match=f"port {node.port} of 127.0.0.1, wanted for AMQP, .* a broker answers") as e:
        Node(tmp_path, node.port, free_port(), installation=installation).start()
    assert e.value.is_broker


def test_a_port_with_something_else(installation: Installation, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {taken} .* wanted for management, .* no AMQP broker") as e:
            Node(tmp_path, free_port(), taken, installation=installation).start()
    assert not e.value.is_broker


def test_a_folder_with_a_running_node(node: Node, installation: Installation) -> None:
    with pytest.raises(FolderInUse, match=f"another node runs in {node.folder}"):
        Node.free(node.folder, installation=installation).start()
    assert answers_amqp(node.port)


def test_a_node_that_fails_shows_command_reason_and_log(installation: Installation, tmp_path: Path) -> None:
    broken = Node.free(tmp_path, installation=installation, config={"no_such_setting": "1"})
    with pytest.raises(NodeFailed) as failed:
        broken.start()
    message = str(failed.value)
    assert "exit status" in message
    assert f"command: {installation.server}" in message
    assert "no_such_setting" in message
    assert not broken.running
    assert broken.epmd_pid is None


def test_a_node_that_takes_too_long_is_ended(installation: Installation, tmp_path: Path) -> None:
    slow = Node.free(tmp_path, installation=installation)
    with pytest.raises(NodeFailed, match=r"not ready after 0.2 s: no AMQP answer"):
        slow.start(timeout=0.2)
    assert not slow.running
    assert slow.epmd_pid is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends the children of a killed process")
def test_nothing_survives_a_killed_parent(installation: Installation, tmp_path: Path) -> None:
    arguments = [str(tmp_path), str(installation.scripts)]
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_A_NODE_AND_STAYS, *arguments], stdout=subprocess.PIPE, text=True
    ) as parent:
        pid, epmd_pid, port = map(int, parent.stdout.readline().split())
        # It was started by a thread that has ended since; only the process counts.
        ensure_not_for_a_while(lambda: is_gone(pid) or is_gone(epmd_pid), "the end of the node", seconds=0.5)
        assert answers_amqp(port)
        parent.kill()
    wait_for(lambda: is_gone(pid) and is_gone(epmd_pid), "the end of the node and its epmd", seconds=5)


class Command:
    """`celery -A proj broker ...` as typed in a shell, with a log."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.log = folder / "command.log"
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "proj", "broker", *arguments],
                env={**os.environ, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def says(self, text: str) -> None:
        wait_for(lambda: text in self.log.read_text(), f"{text!r}", log=self.log)

    def end(self, number: signal.Signals | None = None) -> tuple[int, str]:
        """Send the signal and return exit status and output."""
        if number:
            self.process.send_signal(number)
        status = self.process.wait(30)
        return status, self.log.read_text()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started = []

    def run(*arguments: str, **environment: str) -> Command:
        started.append(Command(tmp_path, *arguments, **environment))
        return started[-1]

    yield run
    for one in started:
        one.process.kill()
        one.process.wait()


def test_the_command_runs_a_node_until_ctrl_c(
    command: Callable[..., Command], installation: Installation, tmp_path: Path
) -> None:
    port, management_port = free_ports(2)
    folder = tmp_path / "a folder"
    options = ["--port", str(port), "--management-port", str(management_port), "--folder", str(folder)]
    run = command(*options, PROJ_RABBITMQ=str(installation.scripts))
    run.says("is ready")
    before = run.log.read_text()
    assert f"amqp://guest:guest@127.0.0.1:{port}//" in before
    assert f"http://guest:guest@127.0.0.1:{management_port}/api/" in before
    assert str(folder) in before
    children = psutil.Process(run.process.pid).children(recursive=True)
    status, text = run.end(signal.SIGINT)
    assert status == 0, text
    assert "stopped; the data stay in" in text
    assert all(is_gone(child.pid) for child in children)
    assert not answers_amqp(port)


def test_the_command_uses_a_broker_that_is_there(node: Node, command: Callable[..., Command], tmp_path: Path) -> None:
    run = command("--port", str(node.port), "--folder", str(tmp_path / "unused"), PROJ_RABBITMQ=str(tmp_path))
    run.says(f"a broker already answers on port {node.port}".replace("a broker", "A broker"))
    status, text = run.end(signal.SIGTERM)
    assert status == 0, text
    assert answers_amqp(node.port)
    assert not (tmp_path / "unused").exists()


def test_the_command_names_the_option_for_a_busy_port(
    command: Callable[..., Command], installation: Installation, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        run = command("--port", port, "--folder", str(tmp_path / "b"), PROJ_RABBITMQ=str(installation.scripts))
        status, text = run.end()
    assert status == 69
    assert f"port {port} of 127.0.0.1, wanted for AMQP, is in use" in text
    assert "choose another one with --port" in text
    assert "Traceback" not in text


def test_the_command_without_a_rabbitmq(command: Callable[..., Command], tmp_path: Path) -> None:
    status, text = command("--port", str(free_port()), "--rabbitmq", str(tmp_path)).end()
    assert status == 69
    assert text.startswith(f"Error: no RabbitMQ in {tmp_path}: expected")
    assert "Traceback" not in text


def test_waiting_for_the_broker_of_the_application(node: Node, command: Callable[..., Command]) -> None:
    status, text = command("--wait", CELERY_BROKER_URL=node.amqp_url).end()
    assert status == 0, text
    assert text == f"amqp://guest:**@127.0.0.1:{node.port}// answers\n"


def test_waiting_in_vain(command: Callable[..., Command]) -> None:
    port = free_port()
    status, text = command("--wait", "0.3", CELERY_BROKER_URL=f"amqp://127.0.0.1:{port}//").end()
    assert status == 69
    assert f"127.0.0.1:{port}" in text
    assert "connection refused" in text
    assert len(text.splitlines()) == 1


def test_waiting_with_a_wrong_password_ends_at_once(node: Node, command: Callable[..., Command]) -> None:
    status, text = command("--wait", CELERY_BROKER_URL=f"amqp://guest:wrong@127.0.0.1:{node.port}//").end()
    assert status == 69
    assert "refused us: ACCESS_REFUSED" in text
    assert len(text.splitlines()) == 1


def test_management_closes_a_connection(node: Node) -> None:
    with channel(node) as opened:
        mine = opened.connection._impl._transport._sock.getsockname()[1]
        name = wait_for(
            lambda: next((c["name"] for c in node.management.connections() if f":{mine} ->" in c["name"]), None),
            "the connection in the management API",
        )
        node.management.close_connection(name, "for the test")
        with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="for the test"):
            opened.connection.process_data_events(time_limit=5)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://127.0.0.1:{free}/api/", r"cannot reach the management API at .* \(connection refused\)"),
        ("http://guest:wrong@127.0.0.1:{management}/api/", "refused user 'guest': wrong password"),
        ("http://guest:guest@127.0.0.1:{prometheus}/metrics", "404|is not RabbitMQ's management API"),
        ("http://guest:guest@127.0.0.1:{amqp}/api/", "cannot reach the management API"),
    ],
)
def test_management_says_what_is_wrong(node: Node, url: str, sentence: str) -> None:
    ports = {"free": free_port(), "management": node.management_port}
    ports |= {"prometheus": node.prometheus_port, "amqp": node.port}
    with pytest.raises(ManagementError, match=sentence):
        Management(url.format(**ports)).overview()
