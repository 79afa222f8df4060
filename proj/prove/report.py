"""The results of proofs as a table: for a terminal, and as Markdown inside a document."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from textwrap import fill
from time import localtime, strftime

from proj.prove.fault import named
from proj.prove.run import Proof

GIB = 2**30
LINE = 118  # columns of a document
MARK = re.compile(r"(<!-- prove: (?P<columns>[a-z ,]+) -->\n).*?(<!-- /prove -->)", re.DOTALL)

COLUMNS: dict[str, Callable[[Proof], str]] = {
    "fault": lambda proof: proof.fault,
    "what it does": lambda proof: " ".join([named(proof.fault)().sentence, *_parts(proof)]),
    "verdict": lambda proof: proof.verdict.verdict,
    "attempted": lambda proof: str(proof.verdict.attempted),
    "confirmed": lambda proof: str(proof.verdict.confirmed),
    "finished": lambda proof: str(proof.verdict.finished),
    "parked": lambda proof: str(proof.verdict.parked),
    "lost": lambda proof: "?" if proof.verdict.lost and proof.verdict.verdict == "unknown" else str(_lost(proof)),
    "unexpected": lambda proof: str(len(proof.verdict.unexpected)),
    "duplicated": lambda proof: str(len(proof.verdict.duplicated)),
    "recovered": lambda proof: str(len(proof.verdict.recovered)),
    "seconds to recover": lambda proof: seconds(proof.verdict.seconds_to_recover),
    "took": lambda proof: f"{proof.seconds:.0f} s",
}
WORDS = ("fault", "what it does", "verdict")
"""The columns that hold words, not numbers."""


class NoMarks(Exception):
    """A document has no place for a table; the message says how to make one."""


def _lost(proof: Proof) -> int:
    # What has not ended yet may still lie in a queue that did not become empty.
    return len(proof.verdict.lost) if proof.verdict.verdict == "invalid" else 0


def _parts(proof: Proof) -> list[str]:
    return [f"Here: {', '.join(proof.parts)}."] if proof.parts else []


def seconds(count: float | None) -> str:
    """Return a number of seconds as it stands in a table; a dash where it never came to that."""
    return "-" if count is None else f"{count:.1f}"


def markdown(proofs: Iterable[Proof], columns: Sequence[str]) -> str:
    """Return a table in Markdown. Raises KeyError for an unknown column."""
    lines = [[COLUMNS[column](proof) for column in columns] for proof in proofs]
    for line in lines:
        line[:] = [f"`{cell}`" if column == "fault" else cell for column, cell in zip(columns, line, strict=True)]
    rules = ["---" if column in WORDS else "---:" for column in columns]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [list(columns), rules, *lines])


def summary(proofs: Sequence[Proof], took: float) -> str:
    """Return the sentences above the table: when, on what, how much, and whether anything was lost."""
    plan, verdicts = proofs[0].plan, [proof.verdict for proof in proofs]
    counts = {word: sum(v.verdict == word for v in verdicts) for word in ("valid", "invalid", "unknown")}
    lost, unexpected = sum(map(_lost, proofs)), sum(len(verdict.unexpected) for verdict in verdicts)
    today = localtime()
    text = (
        f"The last full run: {today.tm_mday} {strftime('%B %Y', today)}, RabbitMQ {rabbitmq(proofs)}, "
        f"Celery {version('celery')}, Python {platform.python_version()}, {machine()}; {plan.load.messages} messages "
        f"and {plan.workers} workers each, seed {plan.load.seed}. {len(proofs)} faults in {took / 60:.1f} minutes: "
        + ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        + f"; {lost or 'nothing'} lost, {unexpected or 'nothing'} unexpected."
    )
    return fill(text, LINE, break_on_hyphens=False) + "\n"


def rabbitmq(proofs: Iterable[Proof]) -> str:
    """Return the version that they ran on."""
    return next((proof.rabbitmq for proof in proofs if proof.rabbitmq), "unknown")


def machine() -> str:
    """Return the machine's size in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return f"{cores} core{'s' * (cores != 1)}, {memory:.0f} GiB of memory"


def columns_of(document: Path) -> tuple[str, ...]:
    """Return the columns that a document's mark asks for. Raises NoMarks, OSError."""
    found = MARK.search(document.read_text())
    columns = tuple(found["columns"].split(", ")) if found else ()
    unknown = [column for column in columns if column not in COLUMNS]
    if not columns or unknown:
        example = "<!-- prove: fault, verdict, lost -->"
        why = f"unknown column {unknown[0]!r}" if unknown else "no place for the table"
        raise NoMarks(f"{document}: {why}; it needs the lines {example} and <!-- /prove -->")
    return columns


def insert(document: Path, proofs: Sequence[Proof], took: float) -> None:
    """Put summary and table between a document's marks, in place of what is there. Raises NoMarks, OSError."""
    text = f"{summary(proofs, took)}\n{markdown(proofs, columns_of(document))}"
    document.write_text(MARK.sub(lambda found: f"{found[1]}{text}{found[3]}", document.read_text(), count=1))
