"""How a model is tuned: compiled with defaults, profiled, searched, compiled with what was found.

Both `tw.tune` and `tw.compile(tune=...)` come here. A budget counts from its first moment to its
last: before searching begins, time is laid by for the compilation and the comparison that follow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ...autotune.choice import winner
from ...autotune.errors import TunerError
from ...autotune.events import Event, Reached, Warned
from ...autotune.interrupts import Stop, stopped_by_signals
from ...autotune.outcome import Measurement
from ...autotune.records import Records
from ...autotune.runner import Runner, Strategy
from ...autotune.schedule import Job
from ...autotune.session import Session, open_jobs
from ...autotune.strategies.halving import Halving
from ...autotune.task import Candidate
from ..errors import OptionError
from ..graph.ir import Graph
from ..kernels.device import Device
from ..kernels.select import digests_of, live_outputs, shape_of
from ..tuning.choices import Choice, Choices
from ..tuning.fingerprint import label
from ..tuning.tasks import Use, tasks_of
from .executable import Executable, random_input
from .report import Comparison, TaskReport, TuningReport, compare, verdict_of, warnings_of

Listener = Callable[[Event], None]
Build = Callable[[Choices], Executable]

PROFILE_SHARE: Final = 0.03
PROFILE_SECONDS: Final = 0.5
COMPARE_SHARE: Final = 0.05
COMPARE_SECONDS: Final = 2.0
OBJECT_SECONDS: Final = 0.06
"""To build the code of one kernel, where this process has built none yet."""

_NO_CHOICES: Final[Choices] = {}


@dataclass(slots=True)
class Budget:
    """Seconds of the wall clock, from `began`, and what may end them before their time."""

    seconds: float
    began: float = field(default_factory=time.monotonic)
    stop: Stop = field(default_factory=Stop)

    @property
    def end(self) -> float:
        return self.began + self.seconds

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())


@dataclass(frozen=True, slots=True)
class Help:
    """Who takes part. runners: makes those who run candidates, given the tasks' device; called
    once, and only when there is something to run."""

    records: Records
    runners: Callable[[str], Sequence[Runner]]
    listener: Listener = lambda event: None
    strategy: Strategy = field(default_factory=Halving)


def tuned(
    build: Build, device: Device, budget: Budget, help: Help
) -> tuple[TuningReport, Executable]:  # fmt: skip
    """The report, and the program with the kernels that were chosen.

    build: compiles the model with defaults except for choices. device: as `build` has it. The first
    Ctrl-C or SIGTERM ends the search; the second raises KeyboardInterrupt.
    """
    warnings: list[str] = []

    def tell(event: Event) -> None:
        if isinstance(event, Warned):
            warnings.append(event.text)
        help.listener(event)

    def reach(station: str) -> None:
        tell(Reached(station, budget.elapsed))

    with stopped_by_signals(budget.stop):
        reach("compile")
        default = build(_NO_CHOICES)
        reach("profile")
        feeds = tuple(random_input(s, k) for k, s in enumerate(default.inputs))
        once, seconds = _profiled(default, feeds, budget)
        compilation = default._compilation
        uses = tasks_of(compilation, device)
        jobs = open_jobs([(u.task, u.share(seconds)) for u in uses], help.strategy, help.records)
        reach("search")
        deadline = budget.end - _reserve(default, once, len(uses), budget)
        runners = help.runners(jobs[0].task.key.device) if jobs else ()
        session = Session(jobs, runners, deadline, help.records, report=tell, stop=budget.stop,
                          began=budget.began)  # fmt: skip
        ended = session.run()
        reach("build")
        winners = [_winner(job) for job in jobs]
        choices = _choices(compilation.graph, uses, winners, compilation.launches)
        program = build(choices) if choices else default
        comparison = None
        if program is not default:
            reach("compare")
            comparison = _compared(default, program, feeds, budget)
        tasks = tuple(map(_reported, uses, jobs, winners))
        for text in warnings_of(tasks):
            tell(Warned(text))
    report = TuningReport(
        label(uses[0].task.key.device) if uses else "", compilation.options.numerics,
        default.threads, budget.seconds, budget.elapsed, ended, tasks, comparison, tuple(warnings),
    )  # fmt: skip
    return report, program


# --------------------------------------------------------------------------- time


def _profiled(
    exe: Executable, feeds: Sequence[Any], budget: Budget
) -> tuple[float, tuple[float, ...]]:  # fmt: skip
    """Seconds of a call, and of every launch."""
    _call(exe, feeds)
    start = time.perf_counter()
    _call(exe, feeds)
    once = time.perf_counter() - start
    most = min(PROFILE_SECONDS, PROFILE_SHARE * budget.seconds)
    rounds = min(20, max(3, int(most / max(once, 1e-6))))
    return once, exe.launch_seconds(*feeds, rounds=rounds)


def _reserve(exe: Executable, once: float, tasks: int, budget: Budget) -> float:
    """Seconds to lay by: to compile again, with all the tasks' kernels to be built, and to compare;
    at most half of what is left."""
    s = exe.stats
    each = s.objects / s.built if s.built else OBJECT_SECONDS
    building = s.kernels + s.link + each * tasks
    return min(building + _comparing(once, budget), budget.left / 2)


def _comparing(once: float, budget: Budget) -> float:
    wanted = min(COMPARE_SECONDS, COMPARE_SHARE * budget.seconds)
    return max(wanted, 10 * once)


def _compared(
    default: Executable, tuned: Executable, feeds: Sequence[Any], budget: Budget
) -> Comparison:  # fmt: skip
    """Both programs, for what is left of the budget within reason."""
    seconds = 0.0 if budget.stop.is_set() else min(budget.left, COMPARE_SECONDS)
    return compare(lambda: _call(default, feeds), lambda: _call(tuned, feeds), seconds)


def _call(exe: Executable, feeds: Sequence[Any]) -> None:
    exe(*([np.array(a) for a in feeds] if exe.plan.regions else feeds))


# --------------------------------------------------------------------------- what was found


def _winner(job: Job) -> Candidate:
    space = job.task.space
    return winner(job.task.default, {space[k]: o for k, o in job.outcomes.items()})


def _choices(
    graph: Graph, uses: Sequence[Use], winners: Sequence[Candidate], launches: Sequence[Any]
) -> Choices:
    """Winners that are no defaults, for every group of their tasks."""
    digests = digests_of(graph)
    found: dict[str, Choice] = {}
    for use, chosen in zip(uses, winners, strict=True):
        if chosen == use.task.default:
            continue
        for number in use.launches:
            ops = [graph.ops[k] for k in launches[number].ops]
            shape, _ = shape_of(graph, ops, live_outputs(graph, ops))
            found[digests[shape]] = Choice(chosen, "tuned now")
    return found


def _reported(use: Use, job: Job, chosen: Candidate) -> TaskReport:
    task, outcomes = job.task, job.outcomes
    measured = sum(isinstance(o, Measurement) for o in outcomes.values())
    verdict = verdict_of(
        chosen_is_default=chosen == task.default, best_is_default=job.best == 0,
        measured=measured, failed=len(outcomes) - measured,
    )  # fmt: skip
    found = outcomes.get(task.places[chosen])
    seconds = found.seconds if isinstance(found, Measurement) else None
    return TaskReport(
        task.label, len(use.launches), job.weight, len(task.space), len(job.tried), job.failed,
        len(job.recorded), str(task.default), str(chosen), job.default, seconds, verdict,
    )  # fmt: skip
