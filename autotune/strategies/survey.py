"""What a search knows of its space: a helper that strategies share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..outcome import Failure, Measurement, Outcome
from ..task import Task


class Survey:
    """Outcomes by place, and which places nobody has tried.

    measured: the newest measurement of each place that never failed. tried: every place that an
    outcome is known of, and those that a search gave up.
    """

    def __init__(self, task: Task, known: Iterable[tuple[int, Outcome]] = ()) -> None:
        self.task = task
        self.measured: dict[int, Measurement] = {}
        self.failed: set[int] = set()
        self.tried: set[int] = set()
        self.tell(known)

    def tell(self, outcomes: Iterable[tuple[int, Outcome]]) -> None:
        for place, outcome in outcomes:
            self.tried.add(place)
            if isinstance(outcome, Failure):  # whatever times it has: who fails once may again
                self.failed.add(place)
                self.measured.pop(place, None)
            elif place not in self.failed:
                self.measured[place] = outcome

    @property
    def best(self) -> int | None:
        """The fastest place so far, the earlier one where two are equal."""
        if not self.measured:
            return None
        return min(self.measured, key=lambda k: (self.measured[k].seconds, k))

    @property
    def untried(self) -> list[int]:
        return [k for k in range(len(self.task.space)) if k not in self.tried]

    def first(self, starts: Sequence[int]) -> list[int]:
        """Places to look at, in order: the default, the starts, the rest as the task ranks them;
        without those that were tried."""
        order = dict.fromkeys([0, *starts, *self.task.ranked()])
        return [k for k in order if k not in self.tried]
