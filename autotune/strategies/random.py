"""Candidates in random order: the baseline that a search has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from ..outcome import Outcome
from ..task import Task
from .survey import Survey
from .exhaustive import InOrder


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
        survey = Survey(task, known)
        fixed = [k for k in dict.fromkeys([0, *starts]) if k not in survey.tried]
        rest = [k for k in survey.untried if k not in fixed]
        Random(f"{self.seed} {task.key.digest}").shuffle(rest)
        return InOrder(survey, [*fixed, *rest], self.rounds, self.together)
