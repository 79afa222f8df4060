"""Every fault is complete, findable and explained; the workload is the same for the same seed."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest

from proj.prove.fault import Fault, UnknownFault, all_faults, named
from proj.prove.faults.two_at_once import pairs
from proj.prove.without import PROTECTIONS
from proj.prove.workload import HEAVIES, Load

ROOT = Path(__file__).parents[2]
FAULTS = sorted(all_faults().items())


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_fault_bears_its_files_name_and_says_what_it_does(name, fault):
    assert fault().name == name
    assert fault().sentence.endswith(".")
    assert len(fault().sentence) > 20
    assert fault.inject is not Fault.inject or fault.parts is not Fault.parts


@pytest.mark.parametrize("name", PROTECTIONS)
def test_each_protection_names_a_fault_that_shows_its_worth(name):
    assert PROTECTIONS[name].fault in all_faults()


def test_every_lesson_of_the_tutorial_has_a_pair_that_the_document_shows():
    text = (ROOT / "docs/lessons.md").read_text()
    assert {p.lesson for p in PROTECTIONS.values()} - {None} == {2, 3, 4}
    assert "prove none --messages 18 --workers 1" in text, "the first lesson is the number of workers"
    assert [name for name in PROTECTIONS if f"--without {name}" not in " ".join(text.split())] == []
    pictures = re.findall(r"\]\((pictures/[^)]*)\)", text)
    assert len(pictures) == 8
    assert [picture for picture in pictures if not (ROOT / "docs" / picture).exists()] == []


def test_a_mistyped_fault_is_answered_with_the_right_name():
    with pytest.raises(UnknownFault, match=r"^unknown fault 'kill_borker'; did you mean 'kill_broker'\?$"):
        named("kill_borker")


@pytest.mark.parametrize("messages", [6, 60, 61, 1000])
def test_the_same_seed_makes_the_same_messages(messages):
    first, second, other = (list(Load(messages, seed)) for seed in (1, 1, 2))
    assert first == second
    assert {message.id for message in first}.isdisjoint(message.id for message in other)
    assert len({message.id for message in first}) == messages


@pytest.mark.parametrize("messages", [6, 60, 600])
def test_every_sixth_part_of_the_messages_has_a_heavy_one(messages):
    part = messages // HEAVIES
    texts = [message.text for message in Load(messages, 7)]
    assert [sum("." in text for text in texts[n : n + part]) for n in range(0, messages, part)] == [1] * HEAVIES


def test_the_fault_that_contributors_are_shown_is_one():
    shown = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    assert shown == (ROOT / "proj/prove/faults/kill_worker.py").read_text()
    assert len([line for line in shown.splitlines() if line]) < 15, "ten lines or so"
    assert "```python" not in (ROOT / "docs/faults.md").read_text(), "one listing is enough"


def test_the_same_seed_strikes_with_the_same_two_faults():
    two = named("two_at_once")()
    chosen = [tuple(part.name for part in two.parts(seed)) for seed in range(200)]
    assert chosen == [tuple(part.name for part in two.parts(seed)) for seed in range(200)]
    assert len(set(chosen)) > 100, "hardly any two faults are ever chosen"
    assert all(first != second for first, second in chosen)


def test_of_two_faults_at_once_any_two_can_be_chosen_that_fit():
    chosen = {frozenset(f().name for f in pair) for pair in pairs()}
    alone = {"none", "two_at_once", *(name for name, fault in FAULTS if fault.place == "cluster")}
    blocking = {name for name, fault in FAULTS if fault.blocking}
    others = {name for name, _ in FAULTS} - alone
    assert chosen == {frozenset(two) for two in combinations(sorted(others), 2) if not set(two) <= blocking}
    assert not any(first.blocking for first, _ in pairs()), "nothing can strike after what blocks"
