"""A worker without -n claims the first free name of its host."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

CLAIM = """
import os, pathlib, sys, time
from proj.worker import claim_node_name
print(claim_node_name(pathlib.Path(sys.argv[1])).partition("@")[0], flush=True)
if "fork" in sys.argv and os.fork() == 0:
    os.execvp("sleep", ["sleep", "60"])
sys.stdin.read()
"""

Claim = Callable[..., tuple[str, "subprocess.Popen[str]"]]


@pytest.fixture
def claim(tmp_path: Path) -> Iterator[Claim]:
    """Claim a name in a process of its own, which then holds it; returns the name and the process."""
    with ExitStack() as stack:

        def claim(*flags: str, folder: Path = tmp_path / "names") -> tuple[str, subprocess.Popen[str]]:
            command = [sys.executable, "-c", CLAIM, str(folder), *flags]
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            return process.stdout.readline().strip(), process

        yield claim


def test_each_process_gets_the_first_free_name(claim: Claim) -> None:
    assert [claim()[0] for _ in range(3)] == ["worker1", "worker2", "worker3"]


@pytest.mark.parametrize("flags", [(), ("fork",)], ids=["alone", "with a child that lives on"])
def test_name_of_a_killed_process_is_free_again(flags: tuple[str, ...], claim: Claim) -> None:
    _, first = claim(*flags)
    claim()
    first.kill()
    first.wait()
    assert claim()[0] == "worker1"


def test_without_a_folder_to_write_the_process_id_makes_the_name(claim: Claim, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    name, process = claim(folder=tmp_path / "file" / "names")
    assert name == f"worker-{process.pid}"
