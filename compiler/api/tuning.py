"""How a model is tuned: compiled with defaults, profiled, searched, compiled with what was found.

Both `tw.tune` and `tw.compile(tune=...)` come here. A budget counts from its first moment to its
last: before searching begins, time is laid by for the compilation and the comparison that follow.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from ...autotune.choice import winner
from ...autotune.events import Event, Reached, Warned
from ...autotune.farm import on_device
from ...autotune.interrupts import Stop, stopped_by_signals
from ...autotune.outcome import Measurement
from ...autotune.records import Records
from ...autotune.runner import Strategy
from ...autotune.schedule import Job
from ...autotune.session import Session, on_record, open_jobs
from ...autotune.strategies.halving import Halving
from ...autotune.task import Candidate
from ..codegen.cpu.target import CpuTarget
from ..codegen.cuda.target import CudaTarget
from ..errors import OptionError
from ..graph.ir import Graph
from ..kernels.device import Device, gpu_device
from ..kernels.select import digests_of, group_of
from ..options import Options
from ..records import open_records
from ..store import Store
from ..text import printable
from ..tuning.choices import NO_CHOICES, Choice, Choices
from ..tuning.faults import VARIABLE, are_asked_for
from ..tuning.fingerprint import fingerprint, label, same_model
from ..tuning.guess import guessed_seconds
from ..tuning.tasks import Use, tasks_of
from .build import Progress, Stopwatch, choose, device_of, dump, link, optimise
from .collector import paused_collector
from .crew import Crew, local_crew
from .executable import Executable, random_input
from .report import (
    LEAST_ROUNDS,
    Comparison,
    TaskReport,
    TuningReport,
    compare,
    verdict_of,
    warnings_of,
)

_log: Final = logging.getLogger("tilewright")
Listener = Callable[[Event], None]
Target = CpuTarget | CudaTarget
Program = Any
"""An Executable, or a GpuExecutable, which has the same of what is used here."""
Build = Callable[[Choices], Program]
Pairs = Sequence[tuple[float, float]]
"""By launch of the default program: its seconds, and those of the launch in its place."""

PROFILE_SHARE: Final = 0.03
PROFILE_SECONDS: Final = 0.5
COMPARE_SHARE: Final = 0.05
COMPARE_SECONDS: Final = 2.0
COMPARE_CALLS: Final = 2 * (1 + LEAST_ROUNDS) + 2 * LEAST_ROUNDS
"""Of the shortest comparison, of programs and then of their launches; where there is no time for
it, the programs have HURRIED_ROUNDS, and launches none."""
HURRIED_ROUNDS: Final = 2
OBJECT_SECONDS: Final = 0.06
"""To build the code of one kernel, where this process has built none yet."""
GPU_OBJECT_SECONDS: Final = 1.0
"""The same for a GPU, where workers of a farm have built the winners in stores of their own."""
CLOSE_SECONDS: Final = 0.5
"""For worker processes to leave."""


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
class Means:
    """Who takes part. crew: makes those who run candidates; called once, when the model has been
    compiled and has something to tune."""

    records: Records
    crew: Callable[[Target, Device], Crew]
    listener: Listener = lambda event: None
    strategy: Strategy = field(default_factory=Halving)


def tuned_here(
    graph: Graph, target: Target, chosen: Options, budget: Budget, progress: Progress | None
) -> Program:  # fmt: skip
    """The program with the kernels that were chosen by worker processes of this machine, or the
    default one where that is faster; what they measured is in the user's cache. Warnings go to the
    log. progress: as for `tw.compile`. Raises as `tuned`."""
    with open_records(writing=True) as records:
        means = Means(records, local_crew, _seconds_of(budget, progress))
        report, program = tuned(graph, target, chosen, budget, means)
    if report.comparison is not None and report.comparison.is_slower:
        _log.warning("tune: this program has its default kernels, with which it is faster")
    return program


def _seconds_of(budget: Budget, progress: Progress | None) -> Listener:
    """Tells `progress` of a session as seconds of its budget, and the log of warnings."""
    station = "tune"

    def listen(event: Event) -> None:
        nonlocal station
        if isinstance(event, Reached):
            station = event.station
        if isinstance(event, Warned):
            _log.warning("tune: %s", printable(event.text))
        if progress is not None:
            progress(f"tune: {station}", min(round(budget.elapsed), round(budget.seconds)),
                     round(budget.seconds))  # fmt: skip

    return listen


def tuned(
    graph: Graph, target: Target, chosen: Options, budget: Budget, means: Means
) -> tuple[TuningReport, Program]:  # fmt: skip
    """The report on tuning a graph, and the program with the kernels that were chosen: with the
    default ones where that was faster.

    The first Ctrl-C or SIGTERM ends the search; the second raises KeyboardInterrupt. Raises
    OptionError where nobody can run candidates.
    """
    device, place, build = _setting(graph, target, chosen)
    teller = _Teller(means.listener, budget)
    tell, reach, warnings = teller.tell, teller.reach, teller.warnings
    means = _without_records(means, tell)
    with stopped_by_signals(budget.stop):
        reach("compile")
        default = build(NO_CHOICES)
        reach("profile")
        feeds = tuple(random_input(s, k) for k, s in enumerate(default.inputs))
        once, seconds = _profiled(default, feeds, budget)
        uses = tasks_of(default._compilation, device, place)
        reach("search")
        ended = "searched"
        found: list[_Found] = []
        if uses:
            crew = means.crew(target, device)
            try:
                for text in crew.warnings:
                    tell(Warned(text))
                abroad = isinstance(target, CudaTarget) and not crew.builds_here
                least = GPU_OBJECT_SECONDS if abroad else 0.0
                deadline = budget.end - _reserve(default, once, len(uses), budget, least)
                ended, found = _searched(uses, seconds, crew, deadline, budget, means, tell, place)
            finally:
                crew.close()
            if ended == "runners" and not any(f.job.tried for f in found):
                raise OptionError(f"no candidate could be run: {warnings[-1]}")
        reach("build")
        choices = _choices(default, found, place)
        program = build(choices) if choices else default
        comparison: Comparison | None = None
        pairs: Pairs = ()
        if program is not default:
            reach("compare")
            comparison, pairs = _compared(default, program, feeds, once, budget)
        tasks = tuple(_reported(f, pairs) for f in found)
        for text in warnings_of(tasks, comparison):
            tell(Warned(text))
    report = TuningReport(
        label(place), chosen.numerics, default.threads, budget.seconds, budget.elapsed, ended,
        tasks, comparison, tuple(warnings),
    )  # fmt: skip
    if comparison is not None and comparison.is_slower:
        dump(default._compilation)  # that of the program that is used comes last
        program = default
    return report, program


def tuned_abroad(
    graph: Graph, target: CudaTarget, chosen: Options, budget: Budget, means: Means
) -> TuningReport:
    """The report on tuning a graph for GPUs that are elsewhere, with none here: no code is made,
    shares of the run time are those of a model, and nothing is compared in the end. Otherwise as
    `tuned`."""
    from .gpu import analysed

    device = gpu_device(target.capability)
    teller = _Teller(means.listener, budget)
    means = _without_records(means, teller.tell)
    with stopped_by_signals(budget.stop):
        teller.reach("compile")
        c = analysed(graph, target, chosen, 0.0)
        uses = tasks_of(c, device, "")
        teller.reach("search")
        ended, found, where = "searched", list[_Found](), ""
        if uses:
            crew = means.crew(target, device)
            where = crew.devices[0]
            try:
                for text in crew.warnings:
                    teller.tell(Warned(text))
                teller.tell(Warned(f"there is no GPU of this kind here: what is found is on record "
                                   f"for {label(where)}, and shares are guessed"))  # fmt: skip
                ended, found = _searched(
                    uses, guessed_seconds(c, device), crew, budget.end - CLOSE_SECONDS, budget,
                    means, teller.tell, where,
                )  # fmt: skip
            finally:
                crew.close()
            if ended == "runners" and not any(f.job.tried for f in found):
                raise OptionError(f"no candidate could be run: {teller.warnings[-1]}")
        tasks = tuple(_reported(f, ()) for f in found)
        for text in warnings_of(tasks, None):
            teller.tell(Warned(text))
    return TuningReport(
        label(where), chosen.numerics, 1, budget.seconds, budget.elapsed, ended, tasks, None,
        tuple(teller.warnings),
    )  # fmt: skip


class _Teller:
    """Tells a listener what happens, and keeps the warnings."""

    def __init__(self, listener: Listener, budget: Budget) -> None:
        self._listener, self._budget = listener, budget
        self.warnings: list[str] = []

    def tell(self, event: Event) -> None:
        """Pass an event on."""
        if isinstance(event, Warned):
            self.warnings.append(event.text)
        self._listener(event)

    def reach(self, station: str) -> None:
        """Tell of a new station."""
        self.tell(Reached(station, self._budget.elapsed))


def _without_records(means: Means, tell: Listener) -> Means:
    """The means, with no records where candidates are to fail on purpose."""
    if not are_asked_for():
        return means
    tell(Warned(f"{VARIABLE} is set: nothing is recorded"))
    return replace(means, records=Records(None))


@dataclass(frozen=True, slots=True)
class _Found:
    """What came of one task on the device that the program is for."""

    use: Use
    job: Job

    @property
    def winner(self) -> Candidate:
        space = self.job.task.space
        return winner(self.use.task.default, {space[k]: o for k, o in self.job.outcomes.items()})


def _searched(
    uses: Sequence[Use], seconds: Sequence[float], crew: Crew, deadline: float, budget: Budget,
    means: Means, tell: Listener, place: str,
) -> tuple[str, list[_Found]]:  # fmt: skip
    """Search all tasks on every device of the crew; why that ended, and what was found for the
    device `place`, or another one of its model."""
    tasks = [(on_device(u.task, device), u.share(seconds)) for device in crew.devices for u in uses]
    jobs = open_jobs(tasks, means.strategy, means.records)
    session = Session(jobs, crew.runners, deadline, means.records, report=tell, stop=budget.stop,
                      began=budget.began)  # fmt: skip
    ended = session.run()
    ours = max(crew.devices, key=lambda d: (d == place, same_model(d, place)))
    mine = [job for job in jobs if job.task.key.device == ours]
    for job in mine:  # of two measurements of a candidate, what is on record is the better one
        job.outcomes |= on_record(job.task, means.records)
    return ended, [_Found(u, job) for u, job in zip(uses, mine, strict=True)]


def _setting(graph: Graph, target: Target, chosen: Options) -> tuple[Device, str, Build]:
    """The device as templates see it, its fingerprint, and what compiles the graph. Raises
    OptionError for an architecture without a device."""
    if not isinstance(target, CudaTarget):
        return device_of(target, chosen), fingerprint(target), _builder(graph, target, chosen)
    from .gpu import gpu_builder
    from .gpu_devices import place_of

    if target.device is None:
        raise OptionError(f"tune: kernels for {target} are measured on a device: target='cuda' is"
                          " that of this machine, farm= has others")  # fmt: skip
    build = gpu_builder(graph, target, chosen)
    return gpu_device(target.capability), place_of(target.device), build


def _builder(graph: Graph, target: CpuTarget, chosen: Options) -> Build:
    """Compiles the graph with defaults, except for choices."""
    watch, store = Stopwatch(), Store()
    with paused_collector():
        stages = optimise(graph, target, chosen, 0.0)
    passes = watch.lap()

    @paused_collector()
    def build(choices: Choices) -> Executable:
        watch.lap()
        compilation = choose(stages, target, chosen, store, choices)
        dump(compilation)  # that of the program with choices comes last
        return link(compilation, store, None, read=0.0, passes=passes, kernels=watch.lap())

    return build


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


def _reserve(exe: Program, once: float, tasks: int, budget: Budget, least: float) -> float:
    """Seconds to lay by: to compile again, with all the tasks' kernels to be built, each in `least`
    seconds or more, and to compare; at most half of what is left."""
    s = exe.stats
    each = max(s.objects / s.built if s.built else OBJECT_SECONDS, least)
    building = s.kernels + s.link + each * tasks
    return min(CLOSE_SECONDS + building + _comparing(once, budget), budget.left / 2)


def _comparing(once: float, budget: Budget) -> float:
    wanted = min(COMPARE_SECONDS, COMPARE_SHARE * budget.seconds)
    return max(wanted, COMPARE_CALLS * once)


def _compared(
    default: Executable, tuned: Executable, feeds: Sequence[Any], once: float, budget: Budget
) -> tuple[Comparison, Pairs]:  # fmt: skip
    """Both programs and their launches in turn, for what is left of the budget within reason; the
    programs alone, and few times, where little is left or the user waits. once: seconds of a call.
    """
    hurried = budget.stop.is_set() or budget.left < COMPARE_CALLS * once
    seconds = 0.0 if hurried else min(budget.left, COMPARE_SECONDS)
    whole = compare(lambda: _call(default, feeds), lambda: _call(tuned, feeds), seconds / 2,
                    least=HURRIED_ROUNDS if hurried else LEAST_ROUNDS)  # fmt: skip
    if hurried:
        return whole, ()
    end = time.monotonic() + seconds / 2
    times: tuple[list[Any], list[Any]] = ([], [])
    while len(times[0]) < LEAST_ROUNDS or (time.monotonic() < end and len(times[0]) < 100):
        for exe, found in zip((default, tuned), times, strict=True):
            found.append(exe.launch_seconds(*feeds, rounds=1))
    before, after = (np.median(found, axis=0) for found in times)
    order = {launch.ops: k for k, launch in enumerate(tuned._compilation.launches)}
    now = [after[order[launch.ops]] for launch in default._compilation.launches]
    return whole, tuple(zip(before.tolist(), map(float, now), strict=True))


def _call(exe: Executable, feeds: Sequence[Any]) -> None:
    exe(*([np.array(a) for a in feeds] if exe.plan.regions else feeds))


# --------------------------------------------------------------------------- what was found


def _choices(default: Executable, found: Sequence[_Found], place: str) -> Choices:
    """Winners that are no defaults, for every group of their tasks. What other models of devices
    like best says nothing of the device `place`."""
    compilation = default._compilation
    graph = compilation.graph
    digests = digests_of(graph)
    choices: dict[str, Choice] = {}
    for f in found:
        if f.winner == f.use.task.default or not same_model(f.job.task.key.device, place):
            continue
        for number in f.use.launches:
            group = group_of(graph, compilation.launches[number])
            choices[digests[group.shape]] = Choice(f.winner, "tuned just now")
    return choices


def _reported(found: _Found, pairs: Pairs) -> TaskReport:
    job, task, chosen = found.job, found.job.task, found.winner
    measured = sum(isinstance(o, Measurement) for o in job.outcomes.values())
    verdict = verdict_of(
        chosen_is_default=chosen == task.default, best_is_default=job.best == 0,
        measured=measured, failed=len(job.outcomes) - measured,
    )  # fmt: skip
    outcome = job.outcomes.get(task.places[chosen])
    seconds = outcome.seconds if isinstance(outcome, Measurement) else None
    in_model = None
    if pairs and verdict == "tuned":
        before, after = map(sum, zip(*(pairs[k] for k in found.use.launches), strict=True))
        in_model = before / after
    return TaskReport(
        task.label, len(found.use.launches), job.weight, len(task.space), len(job.tried),
        job.failed, len(job.recorded), len(job.outcomes), str(task.default), str(chosen),
        job.default, seconds, verdict, in_model,
    )  # fmt: skip
