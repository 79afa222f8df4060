"""What a fault is, and which ones there are."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from functools import cache
from typing import ClassVar, Literal

from proj.prove import faults
from proj.prove.stand import Stand
from proj.prove.witness import DidNotLand
from proj.prove.workload import Load

__all__ = ["DidNotLand", "Fault", "Place", "Stand", "UnknownFault", "all_faults", "named", "suggest"]

Place = Literal["shared", "own", "cluster"]


class UnknownFault(Exception):
    """No fault has that name."""


class Fault:
    """One way to break things, for one proof. Its name is its file's; its docstring says what it does."""

    place: ClassVar[Place] = "shared"
    """Whose node it needs: one that other proofs use, one of its own, or a cluster of three."""
    proxied: ClassVar[bool] = False
    """Whether workers and publisher reach the node through the stand's proxies."""
    span: ClassVar[float] = Load.span
    """Over how many seconds messages are published: what takes long to strike needs them for longer."""
    patience: ClassVar[float] = 10
    """About how many seconds it takes: the slow ones start first."""
    blocking: ClassVar[bool] = False
    """Whether, until it is healed, too little works for another fault to strike."""

    @property
    def name(self) -> str:
        """The name to call it by."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def sentence(self) -> str:
        """What it does, in one sentence."""
        return (type(self).__doc__ or "").strip().splitlines()[0]

    def parts(self, seed: int) -> tuple[Fault, ...]:
        """Return what strikes: this fault, or those that the seed puts in its place."""
        return (self,)

    def inject(self, stand: Stand) -> str:
        """Strike, and return the proof that it landed. Raises DidNotLand."""
        raise NotImplementedError

    def heal(self, stand: Stand) -> None:
        """Make whole again what the fault broke, also when it did not land. Nothing, where that heals itself."""

    def recovered(self, stand: Stand) -> None:
        """Return when the effects are over: all workers consume. Raises TookTooLong."""
        stand.consuming()


@cache
def all_faults() -> dict[str, type[Fault]]:
    """Return every fault by its name: one file each in `faults/`."""
    names = [module.name for module in pkgutil.iter_modules(faults.__path__)]
    return {name: _of(name) for name in names}


def _of(name: str) -> type[Fault]:
    module = importlib.import_module(f"{faults.__name__}.{name}")
    found = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Fault) and kind.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"expected one subclass of Fault in {module.__name__}, got {len(found)}")
    return found[0]


def named(name: str) -> type[Fault]:
    """Return the fault of that name. Raises UnknownFault."""
    try:
        return all_faults()[name]
    except KeyError:
        raise UnknownFault(f"unknown fault {name!r}; {suggest(name, list(all_faults()), '--list')}") from None


def suggest(name: str, known: list[str], otherwise: str) -> str:
    """Return the end of a sentence about an unknown name."""
    # Swapped letters are the likelier slip: kill_borker is kill_broker rather than kill_worker.
    close = sorted(get_close_matches(name, known), key=lambda other: sorted(other) != sorted(name))
    return f"did you mean {close[0]!r}?" if close else f"{otherwise} shows them all"
