"""Two faults at once, chosen by the seed."""

from itertools import combinations
from random import Random

from proj.prove.fault import Fault, all_faults

ALONE = ("none", "two_at_once")  # what is never one of the two


class TwoAtOnce(Fault):
    """Two faults at once, at random; the same seed chooses the same two."""

    place = "own"
    patience = 60

    def parts(self, seed: int) -> tuple[Fault, ...]:
        first, second = Random(seed).choice(pairs())  # noqa: S311 - repeatable, not secret
        return first(), second()


def pairs() -> list[tuple[type[Fault], type[Fault]]]:
    """Return every two faults of one node that can strike one upon the other, in that order.

    After one that blocks nothing else can strike, so there can be only one of those, and it is the second; of
    others the quicker one is the first, because messages have to come until the second has struck.
    """
    known = [fault for name, fault in all_faults().items() if fault.place != "cluster" and name not in ALONE]
    ordered = (sorted(two, key=lambda fault: (fault.blocking, fault.patience)) for two in combinations(known, 2))
    return [(first, second) for first, second in ordered if not first.blocking]
