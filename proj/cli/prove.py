"""`celery -A proj prove`: break things on purpose, and count what became of every message."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console
    from rich.table import Table

    from proj.prove.fault import Fault
    from proj.prove.run import Proof
    from proj.prove.workload import Plan

FOLDER = Path("var/prove")
ROOM = 2**20  # bytes that have to fit into the folder: a proof leaves less than half of that
STATUS = {"valid": 0, "invalid": 1, "unknown": 2}
TABLE = 138  # columns
COLOURS = {"valid": "green", "invalid": "red", "unknown": "yellow"}


@click.command()
@click.argument("names", metavar="[FAULT]...", nargs=-1)
@click.option("--list", "listing", is_flag=True, help="Show the faults and what --without takes; run nothing.")
@click.option("--messages", type=click.IntRange(6), default=60, show_default=True, help="Messages in each proof.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Workers in each proof.")
@click.option("--seed", type=int, default=1, show_default=True, help="Makes message ids, weights and random faults.")
@click.option("--without", default="", metavar="SETTING", help="Take this protection away, to see what it costs.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.option(
    "--markdown",
    "documents",
    type=click.Path(exists=True, dir_okay=False, writable=True, path_type=Path),
    multiple=True,
    help="Put the table of a full run into this document, between its marks. Can be given twice.",
)
@click.option("--keep", is_flag=True, help="Keep RabbitMQ's own folders, too.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), default=FOLDER, show_default=True)
@click.pass_context
def prove(
    ctx: click.Context,
    names: tuple[str, ...],
    listing: bool,
    messages: int,
    workers: int,
    seed: int,
    without: str,
    as_json: bool,
    documents: tuple[Path, ...],
    keep: bool,
    folder: Path,
) -> None:
    """Publish messages to workers on a private RabbitMQ, inject a fault in their midst, and check that nothing
    is lost: every confirmed message has finished, or lies in the dead queue.

    Without FAULT all of them, in some minutes. Each leaves its history, logs, picture and verdict in
    var/prove/FAULT-TIME, and `latest` leads to the last one. Exit status: 0 all valid, 1 messages were lost
    or came from nowhere, 2 unknown: a fault did not land, the queue did not become empty, or nothing could be
    tried at all.

    \b
    Examples:
        celery -A proj prove
        celery -A proj prove kill_worker kill_broker --messages 600
        celery -A proj prove kill_worker --without task_acks_late
        celery -A proj prove --markdown README.md --markdown docs/faults.md
    """
    from rich.console import Console

    console = Console(no_color=ctx.obj.no_color, highlight=False, markup=False, stderr=as_json)
    if listing:
        _list(console)
        return
    faults = _faults(names, without)
    _check(folder, documents, full=not (names or without))
    import time

    from proj.prove.workload import Load, Plan

    began = time.monotonic()
    proofs = _run(ctx, console, faults, Plan(Load(messages, seed), workers, without), folder, keep)
    took = time.monotonic() - began
    _draw(console, proofs)
    if as_json:
        import json

        click.echo(json.dumps([proof.as_dict() for proof in proofs], indent=2))
    else:
        _report(console, proofs, without)
    _insert(console, proofs, documents, took)
    ctx.exit(_status(proofs))


class CannotProve(click.ClickException):
    """Nothing could be tried, so nothing is known."""

    exit_code = STATUS["unknown"]


def _faults(names: Sequence[str], without: str) -> list[type[Fault]]:
    from proj.prove.fault import UnknownFault, all_faults, named, suggest
    from proj.prove.without import PROTECTIONS

    if without and without not in PROTECTIONS:
        hint = suggest(without, list(PROTECTIONS), "--list")
        raise CannotProve(f"no protection named {without!r}; {hint}")
    if without and not names:
        names = (PROTECTIONS[without].fault,)
    try:
        return [named(name) for name in dict.fromkeys(names)] or list(all_faults().values())
    except UnknownFault as error:
        raise CannotProve(str(error)) from error


def _check(folder: Path, documents: Sequence[Path], full: bool) -> None:
    """Find out now what would be a pity to find out after some minutes."""
    import tempfile

    from proj.prove.report import NoMarks, columns_of

    if documents and not full:
        raise CannotProve("--markdown writes the table of a full run; leave out the faults and --without")
    try:
        for document in documents:
            columns_of(document)
    except NoMarks as error:
        raise CannotProve(str(error)) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM))
    except OSError as error:
        hint = "make room there or name another folder: --folder"
        raise CannotProve(f"cannot write to {folder} ({error.strerror}); {hint}") from error


def _insert(console: Console, proofs: Sequence[Proof], documents: Sequence[Path], took: float) -> None:
    from proj.prove.report import insert

    for document in documents:
        try:
            insert(document, proofs, took)
        except OSError as error:
            raise CannotProve(f"cannot write {document}: {error.strerror}") from error
        console.print(f"{document} has the table now")


def _run(
    ctx: click.Context, console: Console, faults: Sequence[type[Fault]], plan: Plan, folder: Path, keep: bool
) -> list[Proof]:
    import logging

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from proj.broker import NodeFailed, PortInUse
    from proj.installation import NotInstalled
    from proj.processes import interrupt_on_sigterm
    from proj.prove.suite import Suite

    interrupt_on_sigterm()
    # It warns of whatever arrives while a channel closes.
    logging.getLogger("amqp").setLevel(logging.ERROR)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    at_work: dict[str, str] = {}
    ended: list[Proof] = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(faults))

        def say(fault: str, what: str) -> None:
            at_work[fault] = what
            progress.update(bar, description=", ".join(f"{name}: {state}" for name, state in at_work.items()))

        def done(proof: Proof) -> None:
            at_work.pop(proof.fault, None)
            ended.append(proof)
            progress.advance(bar)
            console.print(_line(proof), style=COLOURS[proof.verdict.verdict], soft_wrap=True)

        suite = Suite(faults, plan, folder, say, done, keep)
        try:
            return suite.run()
        except (NotInstalled, PortInUse, NodeFailed) as error:
            raise CannotProve(str(error)) from error
        except KeyboardInterrupt:
            suite.waiting.cancel()
            console.print(f"stopped after {len(ended)} of {len(faults)} faults: of the rest nothing is known")
            ctx.exit(130)


def _line(proof: Proof) -> str:
    return f"{proof.title}: {proof.verdict.verdict} in {proof.seconds:.0f} s: {proof.verdict.reason}"


def _draw(console: Console, proofs: Iterable[Proof]) -> None:
    from proj.history import BadHistory, read
    from proj.picture import NoPicture, draw

    for proof in proofs:
        with console.status("drawing"):
            try:
                draw(read(proof.folder / "history.jsonl").records, proof.folder / "picture.svg")
            except NoPicture as error:
                console.print(f"no pictures: {error}", soft_wrap=True)
                return
            except (BadHistory, OSError):
                # Its verdict says so: unknown, with what is wrong.
                continue


def _report(console: Console, proofs: Sequence[Proof], without: str) -> None:
    from proj.prove.report import rabbitmq

    # Broken numbers cannot be read; a narrow terminal breaks the lines instead.
    console.width = max(console.width, TABLE)
    console.print(_table(proofs))
    if without:
        from proj.prove.without import PROTECTIONS

        protection = PROTECTIONS[without]
        note = f" ({protection.note})" if protection.note else ""
        console.print(
            f"without {without}{note}: under {protection.fault} that costs {protection.cost}"
            + (": invalid is what is expected" * (protection.cost == "messages")),
            soft_wrap=True,
        )
    for proof in proofs:
        if proof.verdict.verdict != "valid":
            console.print(f"{_line(proof)}; see {proof.folder}", soft_wrap=True)
    if proofs:
        console.print(f"RabbitMQ {rabbitmq(proofs)}; histories, logs and pictures: {proofs[-1].folder.parent}")


def _table(proofs: Iterable[Proof]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from proj.prove.report import COLUMNS, WORDS

    columns = [name for name in COLUMNS if name != "what it does"]
    table = Table(box=None)
    for name in columns:
        header = name.replace("seconds ", "seconds\n")
        table.add_column(header, justify="left" if name in WORDS else "right", no_wrap=True)
    for proof in proofs:
        colour = COLOURS[proof.verdict.verdict]
        table.add_row(*(Text(COLUMNS[name](proof), style=colour if name == "verdict" else "") for name in columns))
    return table


def _list(console: Console) -> None:
    from rich.table import Table

    from proj.prove.fault import all_faults
    from proj.prove.without import PROTECTIONS

    faults = Table("fault", "what it does", box=None)
    for name, fault in all_faults().items():
        faults.add_row(name, fault().sentence)
    protections = Table("--without", "shows with", "what it costs", box=None)
    for name, protection in PROTECTIONS.items():
        protections.add_row(name, protection.fault, protection.cost)
    console.print(faults, "", protections)


def _status(proofs: Iterable[Proof]) -> int:
    verdicts = {proof.verdict.verdict for proof in proofs}
    return next((STATUS[verdict] for verdict in ("invalid", "unknown") if verdict in verdicts), 0)
