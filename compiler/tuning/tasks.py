"""What of a compiled model can be tuned: its distinct problems, each with the launches it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...autotune.task import Key, Task
from ..inspect.views import Compilation
from ..kernels.device import Device
from ..kernels.ir import Kernel
from ..kernels.select import group_of
from .fingerprint import fingerprint
from .problem import Problem, problems_of


@dataclass(frozen=True, slots=True)
class Use:
    """A task, the problem that it is, and the launches of a program that it stands for, by
    number."""

    task: Task
    problem: Problem
    launches: tuple[int, ...]

    def share(self, seconds: Sequence[float]) -> float:
        """Of the program's run time, if its launches take so many seconds each."""
        return sum(seconds[k] for k in self.launches) / max(sum(seconds), 1e-12)


def tasks_of(c: Compilation[Any], device: Device, place: str | None = None) -> list[Use]:
    """The distinct tasks of a compilation, in the order of their first launches: problems with more
    than one candidate. Equal ones are one. Groups with operators that users declared are left out,
    as text does not say what those mean.

    place: the fingerprint of the device, this CPU's by default.
    """
    problems = problems_of(c.graph, device, c.options.numerics)
    found: dict[object, tuple[Kernel, list[int]]] = {}
    for number, launch in enumerate(c.launches):
        shape = group_of(c.graph, launch).shape
        if shape in problems:
            found.setdefault(shape, (launch.kernel, []))[1].append(number)
    place = fingerprint(c.target) if place is None else place
    uses: dict[str, Use] = {}
    for shape, (kernel, numbers) in found.items():
        problem = problems[shape]
        known = uses.get(problem.text)  # shapes may differ in what problems leave out
        task = known.task if known else task_of(problem, place, kernel)
        if len(task.space) > 1:
            before = known.launches if known else ()
            uses[problem.text] = Use(task, problem, tuple(sorted((*before, *numbers))))
    return list(uses.values())


def task_of(problem: Problem, place: str, kernel: Kernel | None = None) -> Task:
    """A problem as the tuner sees it. place: the fingerprint of the device that it runs on. kernel:
    one that computes it, if there is one already."""
    space, estimates = problem.candidates()
    return Task(Key(problem.text, place, problem.numerics), space, estimates,
                problem.features(kernel), problem.text, problem.label)  # fmt: skip
