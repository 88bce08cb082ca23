"""What a search knows of its space: a helper that strategies share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property

from ..outcome import Failure, Measurement, Outcome
from ..task import Task
from .belief import Belief, Posterior


class Survey:
    """Outcomes by place, which places nobody has tried, and what is believed of those.

    measured: the newest measurement of each place that never failed. tried: every place that an
    outcome is known of, and those that a search gave up.
    """

    def __init__(self, task: Task, known: Iterable[tuple[int, Outcome]] = ()) -> None:
        self.task = task
        self.measured: dict[int, Measurement] = {}
        self.failed: set[int] = set()
        self.tried: set[int] = set()
        self._posterior: Posterior | None = None
        self._gain: float | None = None
        self.tell(known)

    def tell(self, outcomes: Iterable[tuple[int, Outcome]]) -> None:
        for place, outcome in outcomes:
            self.tried.add(place)
            if isinstance(outcome, Failure):  # whatever times it has: who fails once may again
                self.failed.add(place)
                self.measured.pop(place, None)
            elif place not in self.failed:
                self.measured[place] = outcome
        self._posterior = self._gain = None

    def give_up(self, places: Iterable[int]) -> None:
        """Not to be tried, whatever they are worth."""
        self.tried.update(places)
        self._gain = None

    @property
    def best(self) -> int | None:
        """The fastest place so far, the earlier one where two are equal."""
        if not self.measured:
            return None
        return min(self.measured, key=lambda k: (self.measured[k].seconds, k))

    @property
    def untried(self) -> list[int]:
        return [k for k in range(len(self.task.space)) if k not in self.tried]

    @property
    def gain(self) -> float:
        """The share of the best time that trying all the others is expected to save. The default
        stands for the best before anything is measured; where all that was tried failed, anything
        is a gain."""
        if self._gain is None:
            self._gain = self._expected()
        return self._gain

    def _expected(self) -> float:
        posterior, rest = self.posterior, self.untried
        if not self.tried:
            posterior, rest = posterior.supposing(0), rest[1:]
        if not rest:
            return 0.0
        lost = self.tried and not self.measured
        return 1.0 if lost else posterior.gain(rest, self._limit)

    @property
    def posterior(self) -> Posterior:
        if self._posterior is None:
            self._posterior = self._belief.given(self.measured)
        return self._posterior

    def promising(self, count: int, beside: Sequence[int] = ()) -> list[int]:
        """At most so many untried places, the one with the largest expected improvement first, each
        as if those before it, and those `beside` them, had turned out as expected ("kriging
        believer": Ginsbourger, Le Riche and Carraro, 2010)."""
        found: list[int] = []
        posterior, limit = self.posterior, self._limit
        rest = [k for k in self.untried if k not in beside]
        for place in beside:
            limit = min(limit, float(posterior.mean[place]))
            posterior = posterior.supposing(place)
        while rest and len(found) < count:
            values = posterior.improvements(rest, limit)
            place = rest[int(values.argmax())]
            found.append(place)
            rest.remove(place)
            limit = min(limit, float(posterior.mean[place]))
            posterior = posterior.supposing(place)
        return found

    @cached_property
    def _belief(self) -> Belief:
        return Belief(self.task)

    @property
    def _limit(self) -> float:
        best = self.best
        return float(self.posterior.mean[0]) if best is None else math.log(
            self.measured[best].seconds)  # fmt: skip
