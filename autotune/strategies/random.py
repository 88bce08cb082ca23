"""Candidates in random order: the baseline that a search has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from ..outcome import Outcome
from ..task import Task
from .exhaustive import InOrder
from .survey import Survey


@dataclass(frozen=True, slots=True)
class Shuffled:
    """The default first, then the starts, then the others in an order that the seed and the task's
    key decide."""

    seed: int = 0
    rounds: int = 16
    together: int = 4
    name: Final = "random"

    def search(
        self, task: Task, known: Sequence[tuple[int, Outcome]], starts: Sequence[int]
    ) -> InOrder:
        rest = list(range(1, len(task.space)))
        Random(f"{self.seed} {task.key.digest}").shuffle(rest)
        order = list(dict.fromkeys([0, *starts, *rest]))
        return InOrder(Survey(task, known), order, self.rounds, self.together)
