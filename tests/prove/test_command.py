"""`celery -A proj prove`: what it answers to bad input, and the tables that it writes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proj.broker import NodeFailed
from proj.cli.prove import prove
from proj.prove import suite
from proj.prove.checker import check
from proj.prove.fault import all_faults, named
from proj.prove.report import COLUMNS, NoMarks, columns_of, insert, markdown, summary
from proj.prove.run import Proof
from proj.prove.suite import Suite
from proj.prove.without import PROTECTIONS
from proj.prove.workload import Load, Plan
from tests.test_checker import GOOD, published

ROOT = Path(__file__).parents[2]
PLAN = Plan(Load(60, 1), 2)
GOOD_PROOF = Proof("kill_worker", check(GOOD), Path("run"), 20.4, "4.3.6", PLAN)
LOSSY = replace(GOOD_PROOF, fault="rubbish", verdict=check([*GOOD, *published("c"), *published("d")]))
NOT_READ = replace(GOOD_PROOF, fault="none", verdict=check([*GOOD[:-1], *published("c")]), rabbitmq="")
MARKED = """Before.
<!-- prove: fault, verdict, confirmed, lost, seconds to recover -->
what stood here
<!-- /prove -->
After.
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Returns a function that runs the command in an empty folder."""
    from celery.bin.base import CLIContext

    from proj.celery import app

    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Result:
        return CliRunner().invoke(prove, arguments, obj=CLIContext(app=app, no_color=True, workdir=None))

    return command


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["kill_borker"], "unknown fault 'kill_borker'; did you mean 'kill_broker'?"),
        (["--without", "taks_acks_late"], "no protection named 'taks_acks_late'; did you mean 'task_acks_late'?"),
        (["zzz"], "unknown fault 'zzz'; --list shows them all"),
        (["--messages", "0"], "Invalid value for '--messages': 0 is not in the range x>=6."),
        (["--messages", "-1"], "Invalid value for '--messages': -1 is not in the range x>=6."),
        (["--workers", "0"], "Invalid value for '--workers': 0 is not in the range x>=1."),
        (
            ["none", "--markdown", "marked.md"],
            "--markdown writes the table of a full run; leave out the faults and --without",
        ),
        (
            ["--markdown", "plain.md"],
            "plain.md: no place for the table; "
            "it needs the lines <!-- prove: fault, verdict, lost --> and <!-- /prove -->",
        ),
        (
            ["--folder", "plain.md/runs"],
            "cannot write to plain.md/runs (Not a directory); make room there or name another folder: --folder",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_proves_nothing(arguments, answer, command, tmp_path):
    (tmp_path / "plain.md").write_text("no marks")
    (tmp_path / "marked.md").write_text(MARKED)
    result = command(*arguments)
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == f"Error: {answer}"


def test_the_list_has_every_fault_and_every_protection(command):
    output = command("--list").output
    assert [name for name in all_faults() if name not in output] == []
    assert [name for name in PROTECTIONS if name[:40] not in output] == []


# --- Tables ---------------------------------------------------------------------------------------------------------


def test_the_table_in_markdown():
    assert markdown([GOOD_PROOF, LOSSY, NOT_READ], ["fault", "verdict", "lost", "seconds to recover"]) == (
        "| fault | verdict | lost | seconds to recover |\n"
        "| --- | --- | ---: | ---: |\n"
        "| `kill_worker` | valid | 0 | 1.0 |\n"
        "| `rubbish` | invalid | 2 | - |\n"
        "| `none` | unknown | ? | - |\n"
    )


def test_the_table_says_which_two_faults_struck():
    two = replace(GOOD_PROOF, fault="two_at_once", parts=("kill_main", "rubbish"))
    assert "chooses the same two. Here: kill_main, rubbish. |" in markdown([two], ["fault", "what it does"])


def test_the_summary_says_when_on_what_and_what_was_lost():
    text = summary([NOT_READ, GOOD_PROOF, LOSSY], took=90)
    assert re.match(r"The last full run: \d+ \w+ 20\d\d, RabbitMQ 4.3.6, Celery 5\.\S+, Python 3\.\S+, \d+ core", text)
    text = " ".join(text.split())
    assert "60 messages and 2 workers each, seed 1." in text
    assert text.endswith("3 faults in 1.5 minutes: 1 valid, 1 invalid, 1 unknown; 2 lost, nothing unexpected.")


def test_a_table_stands_between_its_marks_as_often_as_it_is_written(tmp_path):
    document = tmp_path / "document.md"
    document.write_text(MARKED)
    for _ in range(2):
        insert(document, [GOOD_PROOF], took=60)
        text = document.read_text()
        assert text.startswith("Before.\n<!-- prove: fault, verdict, confirmed, lost, seconds to recover -->\nThe last")
        assert text.endswith(
            "\n\n| fault | verdict | confirmed | lost | seconds to recover |\n| --- | --- | ---: | ---: | "
            "---: |\n| `kill_worker` | valid | 2 | 0 | 1.0 |\n<!-- /prove -->\nAfter.\n"
        )
        assert "what stood here" not in text


def test_a_column_that_nobody_knows_is_refused(tmp_path):
    document = tmp_path / "document.md"
    document.write_text(MARKED.replace("lost", "gone"))
    with pytest.raises(NoMarks, match="unknown column 'gone'"):
        columns_of(document)


@pytest.mark.parametrize("name", ["README.md", "docs/faults.md"])
def test_a_document_of_ours_takes_the_table_and_has_one(name):
    assert set(columns_of(ROOT / name)) <= set(COLUMNS)
    rows = re.findall(r"^\| `(\w+)` \| .*(?:valid|invalid|unknown) \|", (ROOT / name).read_text(), re.MULTILINE)
    assert set(rows) <= set(all_faults()), "the table has a fault that is no more"
    assert len(rows) > 20


# --- Trouble --------------------------------------------------------------------------------------------------------


class NoNode:
    """A RabbitMQ that does not start."""

    @classmethod
    def free(cls, *_):
        raise NodeFailed("RabbitMQ failed: no more ports\nits log")


def test_where_no_node_starts_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "Node", NoNode)
    with pytest.raises(NodeFailed, match="no more ports"):
        Suite([named("none")], PLAN, tmp_path, lambda *_: None, lambda _: None).run()


def test_where_one_node_does_not_start_its_proofs_are_unknown(tmp_path, monkeypatch):
    def proved(fault, rabbit, plan, folder, *_):
        folder.mkdir()
        return replace(GOOD_PROOF, fault=fault.name)

    def free(folder):
        return NoNode.free() if folder.name == "own" else Started()

    class Started:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def start(self):
            pass

    monkeypatch.setattr(suite, "prove", proved)
    monkeypatch.setattr(suite.Node, "free", free)
    done: list[Proof] = []
    faults = [named("kill_broker"), named("none")]
    proofs = Suite(faults, PLAN, tmp_path, lambda *_: None, done.append).run()
    assert [(p.fault, p.verdict.verdict) for p in proofs] == [("kill_broker", "unknown"), ("none", "valid")]
    assert proofs[0].verdict.reason == "RabbitMQ did not start: RabbitMQ failed: no more ports"
    assert len(done) == 2
