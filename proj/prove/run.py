"""One proof: a stand, a workload, a fault in its midst, a drain, a verdict, and the folder that is left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from subprocess import SubprocessError
from threading import Event
from time import monotonic, time
from traceback import format_exc
from typing import Any

from proj import history
from proj.broker import NodeFailed
from proj.history import BadHistory, FaultHealed, FaultInjected, Record, RunBegan
from proj.management import ManagementError
from proj.processes import NotReady
from proj.prove.checker import Verdict, check
from proj.prove.drain import read_out, silence
from proj.prove.fault import DidNotLand, Fault
from proj.prove.rabbit import Rabbit
from proj.prove.stand import Stand
from proj.prove.waiting import Cancelled, TookTooLong, Waiting
from proj.prove.witness import AWAY
from proj.prove.workload import Plan
from proj.timeline import Feed

# What the workers' own ledgers cannot tell; the rest of the events would say the same things twice.
OVERHEARD = (history.Received, history.Redelivered, history.Requeued, history.Parked, history.WorkerLost)
Say = Callable[[str], object]
TROUBLE = (TookTooLong, NotReady, NodeFailed, ManagementError, BadHistory, SubprocessError, *AWAY)


@dataclass(frozen=True)
class Proof:
    """The result of one proof. `problem` says what kept it from being carried out as planned."""

    fault: str
    verdict: Verdict
    folder: Path
    seconds: float
    rabbitmq: str
    plan: Plan
    problem: str = ""
    proof: str = ""
    parts: tuple[str, ...] = ()
    """The faults that struck, where they were several."""

    @property
    def title(self) -> str:
        """The fault's name, and what it consisted of."""
        return self.fault + (f" ({', '.join(self.parts)})" if self.parts else "")

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        found = asdict(self) | {"folder": str(self.folder)}
        return found | {"plan": {**asdict(self.plan), "load": asdict(self.plan.load)}}


def prove(fault: Fault, rabbit: Rabbit, plan: Plan, folder: Path, waiting: Waiting, say: Say) -> Proof:
    """Carry out one proof. Trouble on the way makes the verdict unknown, never an error.

    Raises Cancelled; OSError where the folder cannot be written to.
    """
    began = monotonic()
    parts = fault.parts(plan.load.seed)
    # Messages have to come until the last one strikes.
    span = sum(part.patience for part in parts[:-1]) + parts[-1].span
    plan = replace(plan, proxied=any(part.proxied for part in parts), load=replace(plan.load, span=span))
    log_start = _size(rabbit)
    problems: list[str] = []
    try:
        say("starting workers")
        with Stand(rabbit, folder.name, folder, plan, waiting) as stand:
            stand.record(_began(fault, parts, plan))
            _carry_out(parts, stand, problems, say)
    except TROUBLE as error:
        # The log's end behind it is in the folder anyway.
        problems.append(f"{error}".partition("\n")[0])
    except Cancelled:
        raise
    except Exception as error:
        # A defect of ours must not take the other proofs with it.
        (folder / "error.log").write_text(format_exc())
        problems.append(f"the proof itself failed, see error.log: {type(error).__name__}: {error}")
    finally:
        _keep_log(rabbit, log_start, folder)
    records = _in_order(folder / "history.jsonl", problems)
    proofs = "; ".join(record.proof for record in records if isinstance(record, FaultInjected))
    problem, seconds = "; ".join(problems), round(monotonic() - began, 1)
    verdict, names = _verdict(records, problem), tuple(part.name for part in parts if part is not fault)
    proof = Proof(fault.name, verdict, folder, seconds, rabbit.version, plan, problem, proofs, names)
    (folder / "verdict.json").write_text(json.dumps(proof.as_dict(), indent=2) + "\n")
    return proof


def not_carried_out(fault: Fault, plan: Plan, folder: Path, why: str) -> Proof:
    """Return the result of a proof that could not even begin."""
    return Proof(fault.name, replace(check(()), reason=why), folder, 0.0, "", plan, why)


def _in_order(path: Path, problems: list[str]) -> tuple[Record, ...]:
    """Return the history, which several processes have written, and sort its file."""
    try:
        records = history.read(path).records
        history.write(path, records)
    except (BadHistory, OSError) as error:
        problems.append(f"{error}")
        return ()
    return records


def _verdict(records: tuple[Record, ...], problem: str) -> Verdict:
    verdict = check(records)
    # The cause says more than what the checker can see of it.
    return replace(verdict, reason=problem) if verdict.verdict == "unknown" and problem else verdict


def _carry_out(parts: Sequence[Fault], stand: Stand, problems: list[str], say: Say) -> None:
    with _overheard(stand):
        stand.start_publisher()
        stand.midst()
        say("fault")
        strike(parts, stand, problems)
        say("draining")
        quiet = silence(stand)
    read_out(stand, quiet)


def strike(faults: Sequence[Fault], stand: Stand, problems: list[str]) -> None:
    """Inject faults one upon the other, then heal them, and write each down; what goes wrong is added to `problems`."""
    for fault in faults:
        _inject(fault, stand, problems)
    healed = [(fault, time()) for fault in reversed(faults) if _healed(fault.heal, fault, stand, problems)]
    for fault, at in healed:
        if _healed(fault.recovered, fault, stand, problems):
            stand.record(FaultHealed(at=at, fault=fault.name))


def _inject(fault: Fault, stand: Stand, problems: list[str]) -> None:
    stand.strikes()
    proof = ""
    try:
        proof = fault.inject(stand)
    except DidNotLand as error:
        problems.append(f"{fault.name} did not land: {error}")
    except TROUBLE as error:
        problems.append(f"{fault.name} could not be injected: {error}")
    stand.record(FaultInjected(at=stand.struck, fault=fault.name, proof=proof))


def _healed(step: Callable[[Stand], None], fault: Fault, stand: Stand, problems: list[str]) -> bool:
    try:
        step(stand)
    except (DidNotLand, *TROUBLE) as error:
        problems.append(f"{fault.name} did not heal: {error}")
        return False
    return True


def _began(fault: Fault, parts: Sequence[Fault], plan: Plan) -> RunBegan:
    of = f": {' and '.join(part.name for part in parts)}" if len(parts) > 1 else ""
    title = fault.name + of + (f" without {plan.without}" if plan.without else "")
    return RunBegan(
        at=time(),
        title=title,
        fault=fault.name,
        messages=plan.load.messages,
        workers=plan.workers,
        seed=plan.load.seed,
        without=plan.without,
    )


@contextmanager
def _overheard(stand: Stand) -> Iterator[None]:
    """Write down what Celery's events add to the ledgers, and how the queue fills, while the block runs."""
    over, feed = Event(), Feed(stand.app)

    def write() -> None:
        # A full disk is told where the proof itself has to write.
        with suppress(OSError):
            while not over.is_set():
                for record in filter(None, (_known_better(record, stand) for record in feed.records())):
                    if not over.is_set():
                        stand.record(record)

    with feed.running():
        thread = stand.beside(write)
        try:
            yield
        finally:
            over.set()
            thread.join()


def _known_better(record: Record, stand: Stand) -> Record | None:
    """Return what a proof keeps of a record of the feed: nothing of what the ledgers or the fault itself tell."""
    match record:
        case history.WorkerUp():
            # It may be back after a silence; a start is in its ledger.
            return replace(record, heard=True)
        case history.WorkerLost() if record.pid in stand.killed:
            return None
        case history.QueueRead():
            with suppress(ManagementError):
                return replace(record, unacknowledged=stand.held())
            return replace(record, unacknowledged=None)
    return record if isinstance(record, OVERHEARD) else None


def _size(rabbit: Rabbit) -> list[int]:
    return [node.log.stat().st_size if node.log.exists() else 0 for node in rabbit.nodes]


def _keep_log(rabbit: Rabbit, starts: list[int], folder: Path) -> None:
    for node, start in zip(rabbit.nodes, starts, strict=True):
        if node.log.exists() and folder.exists():
            with node.log.open("rb") as log:
                log.seek(start)
                (folder / f"{node.name}.log").write_bytes(log.read())
