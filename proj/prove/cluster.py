"""Three private nodes that form a RabbitMQ cluster on loopback, and what can be done to their queue's members."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from proj.broker import Epmd, Node
from proj.broker_folder import full_name
from proj.management import ManagementError
from proj.ports import free_port, free_ports
from proj.prove.stand import QUEUE, Stand
from proj.prove.waiting import Waiting

NAMES = ("rabbit1", "rabbit2", "rabbit3")
PATIENCE = 90  # seconds until three nodes are one cluster; 28 were seen


@contextmanager
def cluster(folder: Path) -> Iterator[list[Node]]:
    """Start three nodes and yield them when they know each other. Raises what starting a node raises."""
    epmd, cookie = Epmd(free_port()), secrets.token_hex(16)
    with ExitStack() as stack:
        stack.enter_context(epmd)
        ports = iter(free_ports(3 * len(NAMES)))
        nodes = [
            Node(
                folder / name,
                next(ports),
                next(ports),
                prometheus_port=next(ports),
                name=name,
                peers=NAMES,
                cookie=cookie,
                epmd=epmd,
                # What is cut off must not go on alone; from 4.3 on nothing else exists.
                config={"cluster_partition_handling": "pause_minority"},
            )
            for name in NAMES
        ]
        for node in nodes:
            stack.callback(node.kill)
        for node in nodes:
            node.launch()
        for node in nodes:
            node.wait_until_ready(PATIENCE)
        Waiting().until(lambda: _together(nodes), "three nodes to form a cluster", PATIENCE)
        yield nodes


def _together(nodes: list[Node]) -> bool:
    return all(sum(bool(peer.get("running")) for peer in node.management.nodes()) == len(nodes) for node in nodes)


def leader(stand: Stand) -> Node:
    """Return the node that leads the queue. Raises ManagementError while RabbitMQ does not say."""
    name = stand.queue().get("leader")
    found = [node for node in stand.rabbit.nodes if full_name(node.name) == name]
    if not found:
        raise ManagementError(f"RabbitMQ names no node of ours as the leader of {QUEUE}, but {name!r}")
    return found[0]


def follower(stand: Stand) -> Node:
    """Return a node that does not lead the queue. Raises as `leader` does."""
    leads = leader(stand)
    return next(node for node in reversed(stand.rabbit.nodes) if node is not leads)


def whole(stand: Stand) -> bool:
    """Whether each node sees every member of the queue online. Raises ManagementError."""
    views = [node.management.queue_here(QUEUE, stand.vhost) for node in stand.rabbit.nodes]
    return all(len(view.get("online", [])) == len(views) for view in views)


def cut_off(node: Node, others: list[Node]) -> str:
    """Let a node and the others refuse each other's distribution connections; returns who it still sees."""
    answer = node.ctl(
        "eval",
        f"Others = {_names(others)}, Me = atom_to_list(node()),"
        # The two ends must not have the same wrong cookie, or they would understand each other.
        'Wrong = fun(Name) -> list_to_atom("not_" ++ Name) end,'
        "[rpc:call(P, erlang, set_cookie, [node(), Wrong(atom_to_list(P))]) || P <- Others],"
        "[begin erlang:set_cookie(P, Wrong(Me)), erlang:disconnect_node(P) end || P <- Others], nodes().",
    )
    return ", ".join(other.name for other in others if full_name(other.name) in answer)


def reunite(node: Node, others: list[Node]) -> None:
    """Let them speak to each other again."""
    node.ctl("eval", f"[erlang:set_cookie(P, erlang:get_cookie()) || P <- {_names(others)}].")
    others[0].ctl(
        "eval",
        f"Others = {_names(others)}, Node = hd({_names([node])}),"
        "[rpc:call(P, erlang, set_cookie, [Node, erlang:get_cookie()]) || P <- Others],"
        "[rpc:call(P, net_kernel, connect_node, [Node]) || P <- Others].",
    )


def _names(nodes: list[Node]) -> str:
    return "[" + ", ".join(f"'{full_name(node.name)}'" for node in nodes) + "]"
