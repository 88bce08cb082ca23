"""Where the search of a new problem begins: with what won near ones."""

from __future__ import annotations

from collections.abc import Iterable

from .alike import unlikeness
from .task import Candidate, Task


def starts(task: Task, winners: Iterable[Candidate]) -> list[int]:
    """Places in a task's space that are like the given candidates, in their order, each once.

    Spaces of two problems differ: a tile that fits one may not fit the other. A winner that the
    space lacks stands for the most similar config of its template, of several the one that the task
    ranks first; templates that the space has no candidate of are left out.
    """
    found: dict[int, None] = {}
    for winner in winners:
        place = task.places.get(winner)
        if place is None:
            place = _most_alike(task, winner)
        if place is not None:
            found[place] = None
    return list(found)


def _most_alike(task: Task, winner: Candidate) -> int | None:
    same = [
        k for k in task.ranked()
        if (task.space[k].template, task.space[k].version) == (winner.template, winner.version)
    ]  # fmt: skip
    if not same:
        return None
    apart = unlikeness([winner.config, *(task.space[k].config for k in same)])[0, 1:]
    return same[int(apart.argmin())]
