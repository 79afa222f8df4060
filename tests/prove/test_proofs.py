"""The quick faults, against a real RabbitMQ; and the proofs' honesty: without a protection they find what is lost."""

from __future__ import annotations

import json
from signal import SIGINT
from uuid import uuid4

import psutil
import pytest

from proj.history import FaultHealed, FaultInjected, Finished, Parked, read
from proj.processes import Process
from proj.prove.fault import DidNotLand, Fault, named
from proj.prove.rabbit import Rabbit
from proj.prove.run import prove
from proj.prove.waiting import Waiting
from proj.prove.workload import Load, Plan
from tests.waiting import wait_for

pytestmark = pytest.mark.broker
rest = pytest.mark.proof  # of the quick ones: `make test` takes some of each kind

MESSAGES = 30


@pytest.fixture
def carry_out(node, tmp_path):
    """Returns a function that carries out one proof on the session's node."""

    def carry_out(fault: Fault, without: str = "", workers: int = 2):
        # Its name is the virtual host's, on a node that other processes use as well.
        folder = tmp_path / f"proof-{uuid4().hex[:8]}"
        plan = Plan(Load(MESSAGES, seed=3), workers, without)
        return prove(fault, Rabbit([node]), plan, folder, Waiting(), lambda _: None)

    return carry_out


REST = [pytest.param(name, marks=rest) for name in ("none", "kill_everything", "close_connections", "delete_queue")]


@pytest.mark.parametrize("name", ["kill_child", *REST])
def test_nothing_is_lost(carry_out, name):
    proof = carry_out(named(name)())
    assert proof.verdict.verdict == "valid", proof.verdict.reason
    assert proof.proof
    assert proof.verdict.confirmed == proof.verdict.attempted == MESSAGES


@pytest.mark.parametrize(("name", "letters"), [("rubbish", 4), pytest.param("unknown_task", 3, marks=rest)])
def test_what_cannot_be_done_is_parked(carry_out, name, letters):
    proof = carry_out(named(name)())
    assert proof.verdict.verdict == "valid", proof.verdict.reason
    assert proof.verdict.parked == letters
    assert proof.verdict.finished == MESSAGES


class Two(Fault):
    """Two faults, whatever the seed."""

    def parts(self, _):
        return named("kill_worker")(), named("rubbish")()


@rest
def test_of_two_faults_at_once_each_is_proven_and_healed(carry_out):
    proof = carry_out(Two())
    assert proof.verdict.verdict == "valid", proof.verdict.reason
    assert (proof.parts, proof.verdict.parked) == (("kill_worker", "rubbish"), 4)
    records = read(proof.folder / "history.jsonl").records
    injected, healed = ([r for r in records if isinstance(r, kind)] for kind in (FaultInjected, FaultHealed))
    assert [r.fault for r in injected] == ["kill_worker", "rubbish"]
    assert all(r.proof for r in injected)
    assert sorted(r.fault for r in healed) == ["kill_worker", "rubbish"]
    assert max(r.at for r in injected) < min(r.at for r in healed), "neither heals before both have struck"


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("task_acks_late", "kill_everything"),
        pytest.param("worker_consumer", "rubbish", marks=rest),
        pytest.param("confirm_publish", "delete_queue", marks=rest),
    ],
)
def test_without_the_protection_the_loss_is_found(carry_out, setting, fault):
    proof = carry_out(named(fault)(), without=setting)
    assert proof.verdict.verdict == "invalid", proof.verdict.reason
    assert proof.verdict.lost


class Missed(Fault):
    """A fault that does not land."""

    def inject(self, stand):
        raise DidNotLand("expected an earthquake, got none")


@rest
def test_a_fault_that_did_not_land_proves_nothing(carry_out):
    proof = carry_out(Missed())
    assert proof.verdict.verdict == "unknown"
    assert "expected an earthquake, got none" in proof.verdict.reason


@rest
def test_a_proof_leaves_its_history_and_its_verdict(carry_out):
    proof = carry_out(named("kill_worker")())
    records = read(proof.folder / "history.jsonl").records
    verdict = json.loads((proof.folder / "verdict.json").read_text())
    assert verdict["verdict"]["verdict"] == proof.verdict.verdict == "valid"
    assert len({r.id for r in records if isinstance(r, Finished)}) == verdict["verdict"]["finished"]
    assert not [r for r in records if isinstance(r, Parked)]
    (injected,) = (r for r in records if isinstance(r, FaultInjected))
    (healed,) = (r for r in records if isinstance(r, FaultHealed))
    assert injected.at < healed.at
    assert "ended with status -9" in injected.proof
    assert len(list(proof.folder.glob("worker*.log"))) == 3, "two workers, and the one in the place of the killed"


@rest
@pytest.mark.usefixtures("installation")
def test_ctrl_c_ends_everything_that_was_started(tmp_path):
    command = ("prove", "kill_broker", "--folder", str(tmp_path / "runs"))
    with Process(*command, log=tmp_path / "log", environment={}) as process:
        wait_for(lambda: list(tmp_path.glob("runs/*/worker2-2.log")), "the workers to start", 60, process.log)
        children = psutil.Process(process.pid).children(recursive=True)
        process.signal(SIGINT)
        wait_for(lambda: not process.running, "the end", 60, process.log)
    assert process.status == 130
    assert process.text() == "stopped after 0 of 1 faults: of the rest nothing is known\n"
    assert len(children) >= 4, "a node, its epmd, two workers"
    wait_for(lambda: not any(child.is_running() for child in children), "everything to be gone", 10)
