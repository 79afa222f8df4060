"""Many proofs: some side by side on one node, those that break the node on another, the cluster's on a third."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from time import strftime
from typing import Any

from proj.broker import Node, NodeFailed, PortInUse
from proj.prove.fault import Fault, Place
from proj.prove.rabbit import Rabbit
from proj.prove.run import Proof, not_carried_out, prove
from proj.prove.waiting import Cancelled, Waiting
from proj.prove.workload import Plan

# Proofs at once in each place: on two cores more of them only slow each other down.
SIDE_BY_SIDE: dict[Place, int] = {"shared": 3, "own": 1, "cluster": 1}

Say = Callable[[str, str], object]


@dataclass
class Suite:
    """The proofs to carry out; their folders go to `folder`, and `keep` keeps the nodes' own folders there, too.

    `say` is told the fault and what is being done about it, `done` each result.
    """

    faults: Sequence[type[Fault]]
    plan: Plan
    folder: Path
    say: Say
    done: Callable[[Proof], object]
    keep: bool = False
    waiting: Waiting = field(default_factory=Waiting)
    _errors: list[Exception] = field(default_factory=list)

    def run(self) -> list[Proof]:
        """Carry them out, and return the results in the order of the faults.

        Where a node cannot start, or start again, the proofs that need it are unknown. Where none could be carried
        out, raises what starting a node raises.
        """
        stamp = strftime("%Y%m%d-%H%M%S")
        with ExitStack() as stack, ThreadPoolExecutor(sum(SIDE_BY_SIDE.values())) as threads:
            stack.callback(self.waiting.cancel)
            home = Path(stack.enter_context(self._home(stamp)))
            lanes = [
                threads.submit(self._lane, place, [f() for f in self.faults if f.place == place], home, stamp)
                for place in SIDE_BY_SIDE
            ]
            try:
                found = {proof.fault: proof for lane in lanes for proof in lane.result()}
            except BaseException:
                # What is just starting has to be ready before it can be stopped.
                self.say("all", "stopping")
                self.waiting.cancel()
                raise
        if self._errors and not any(proof.rabbitmq for proof in found.values()):
            raise self._errors[0]
        return [found[name] for name in (fault().name for fault in self.faults) if name in found]

    @contextmanager
    def _home(self, stamp: str) -> Any:
        if self.keep:
            yield self.folder / f"nodes-{stamp}"
            return
        with tempfile.TemporaryDirectory(prefix="proj-prove-", ignore_cleanup_errors=True) as name:
            yield name

    def _lane(self, place: Place, faults: Iterable[Fault], home: Path, stamp: str) -> list[Proof]:
        queue: SimpleQueue[Fault] = SimpleQueue()
        slowest_first = sorted(faults, key=lambda fault: -fault.patience)
        for fault in slowest_first:
            queue.put(fault)
        if not slowest_first:
            return []
        try:
            with self._rabbit(place, home) as rabbit, ThreadPoolExecutor(SIDE_BY_SIDE[place]) as threads:
                jobs = [threads.submit(self._work, rabbit, queue, stamp) for _ in range(SIDE_BY_SIDE[place])]
                return [proof for job in jobs for proof in job.result()]
        except (NodeFailed, PortInUse) as error:
            # Raised by the start alone: _prove sees to all later ones.
            return [self._missed(fault, error, stamp) for fault in slowest_first]

    def _missed(self, fault: Fault, error: Exception, stamp: str) -> Proof:
        self._errors.append(error)
        why = f"RabbitMQ did not start: {error}".partition("\n")[0]
        proof = not_carried_out(fault, self.plan, self.folder / f"{fault.name}-{stamp}", why)
        self.done(proof)
        return proof

    @contextmanager
    def _rabbit(self, place: Place, home: Path) -> Any:
        if place == "cluster":
            from proj.prove.cluster import cluster

            with cluster(home / place) as nodes:
                yield Rabbit(nodes)
            return
        with Node.free(home / place) as node:
            yield Rabbit([node])

    def _work(self, rabbit: Rabbit, queue: SimpleQueue[Fault], stamp: str) -> list[Proof]:
        proofs: list[Proof] = []
        while True:
            try:
                fault = queue.get_nowait()
            except Empty:
                return proofs
            try:
                proofs.append(self._prove(rabbit, fault, stamp))
            except Cancelled:
                return proofs

    def _prove(self, rabbit: Rabbit, fault: Fault, stamp: str) -> Proof:
        self.say(fault.name, "starting")
        try:
            for node in rabbit.nodes:
                # What the proof before this one may have left.
                node.start()
        except (NodeFailed, PortInUse) as error:
            return self._missed(fault, error, stamp)
        folder = self.folder / f"{fault.name}-{stamp}"
        try:
            proof = prove(fault, rabbit, self.plan, folder, self.waiting, lambda what: self.say(fault.name, what))
            point_to(self.folder / "latest", folder)
        except OSError as error:
            why = f"cannot write {error.filename or folder}: {error.strerror}"
            proof = replace(not_carried_out(fault, self.plan, folder, why), rabbitmq=rabbit.version)
        self.done(proof)
        return proof


def point_to(link: Path, folder: Path) -> None:
    """Make `link` lead to a folder beside it, at once."""
    new = link.with_name(f".{link.name}-{os.getpid()}-{folder.name}")
    new.unlink(missing_ok=True)
    new.symlink_to(folder.name)
    new.replace(link)
