"""Candidates in this process: made, compared with the reference, timed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tilewright.autotune.outcome import Failure
from tilewright.autotune.serving import Failed
from tilewright.autotune.statistics import Sample
from tilewright.autotune.task import Candidate, Task
from tilewright.compiler.graph.builder import GraphBuilder
from tilewright.compiler.tuning import bench as bench_module
from tilewright.compiler.tuning import candidate as candidate_module
from tilewright.compiler.tuning.bench import ProblemBench
from tilewright.compiler.tuning.candidate import Contender, Sets
from tilewright.compiler.tuning.faults import VARIABLE
from tilewright.compiler.tuning.memory import logical, store
from tilewright.compiler.tuning.problem import parse
from tilewright.compiler.tuning.reference import Reference, roundoff
from tilewright.ops.types import f32, parse_type

from .problems import convolution, product, task_of_largest

Found = dict[int, list[Sample | Failure]]


def made(task: Task) -> ProblemBench:
    return ProblemBench(task.payload, lambda *_: None)


def measured(
    bench: ProblemBench, task: Task, places: Iterable[int], rounds: int = 2,
    deadline: float = math.inf,
) -> Found:  # fmt: skip
    found: Found = {}
    wanted = [(k, task.space[k]) for k in places]
    for outcomes in bench.measure(wanted, [rounds] * len(wanted), deadline):
        for place, outcome in outcomes:
            found.setdefault(place, []).append(outcome)
    return found


@pytest.mark.parametrize("task", [
    convolution(), convolution(kernel=1, channels=21, size=5), convolution(threads=2), product(),
    convolution("reproducible", channels=19),
], ids=lambda t: t.label)  # fmt: skip
def test_every_kind_of_task_is_measured(task: Task) -> None:
    places = [k * len(task.space) // 4 for k in range(4)]
    found = measured(made(task), task, places)
    assert set(found) == set(places)
    for samples in found.values():
        times = [s.seconds for s in samples if isinstance(s, Sample)]
        assert len(times) == len(samples) >= 2, samples
        assert 0 < min(times) < 1  # the machine may have stood still during one of them


def test_every_template_keeps_the_bound() -> None:
    """The whole space, Winograd's algorithm and direct sums side by side."""
    task = convolution(channels=16, size=9)
    assert {c.template for c in task.space} == {"winograd", "direct_conv"}
    bench = made(task)
    for place, candidate in list(enumerate(task.space))[:: max(1, len(task.space) // 12)]:
        bench.contender(place, candidate)


@pytest.mark.parametrize("error", [3e-5, 1e-3, np.nan, np.inf])
def test_results_beyond_the_bound_are_wrong(error: float) -> None:
    task = convolution()
    bench = made(task)
    launch = bench.contender(0, task.default)[0].launch
    reference = Reference(bench.problem)
    (name,) = bench.problem.outputs
    right = reference.truth[name].astype(np.float32)
    reference.check(launch, {name: right})
    scale = np.abs(right).max()
    off = right.copy()
    off.flat[7] += np.float32(error * scale)
    with pytest.raises(Failed) as e:
        reference.check(launch, {name: off})
    assert e.value.failure.kind == "wrong" and name in e.value.failure.detail


def test_the_bound_follows_the_arithmetic() -> None:
    """More terms, more roundoffs; F(4) more than F(2), and both less than ten direct sums."""
    task = convolution(channels=64)
    bench = made(task)
    reference = Reference(bench.problem)
    launches: dict[Any, Any] = {}
    for c in task.space:
        launches.setdefault(c.config.get("m", 0), bench.problem.instantiate(c))
    direct, two, four = (reference.roundoffs(launches[m]) for m in (0, 2, 4))
    assert direct < 100 and two < four < 10 * direct
    small = made(convolution(channels=16))
    launch = small.problem.instantiate(
        next(c for c in convolution(channels=16).space if c.template == "direct_conv")
    )
    assert Reference(small.problem).roundoffs(launch) < direct
    assert roundoff(f32) == 2.0**-24


def test_groups_that_amplify_errors_are_compared_with_plain_arithmetic() -> None:
    """A difference of near values: the error is as large as the result."""
    g = GraphBuilder("net")
    x = g.input("x", (7, 33))
    w = np.random.default_rng(0).standard_normal((33, 40)).astype(np.float32)
    y = g.matmul(x, w)
    big = np.float32(1e4)
    g.output(g.sub(g.add(y, big), big), name="y")
    task = task_of_largest(g, "standard", 1)
    found = measured(made(task), task, [0])
    assert all(isinstance(s, Sample) for s in found[0]), found


def test_reproducible_candidates_have_the_bits_of_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that is right but rounds otherwise is refused; under `standard` it is not."""
    kept = Contender.keep

    def rounded(self: Contender) -> None:
        kept(self)
        number[0] += 1
        if number[0] == 2:  # the first is the default's
            (flat,) = self.results.values()
            flat[:1] = np.nextafter(flat[:1], np.float32(np.inf))

    monkeypatch.setattr(Contender, "keep", rounded)
    for numerics in ("reproducible", "standard"):
        number = [0 if numerics == "reproducible" else 5]
        task = convolution(numerics)
        found = measured(made(task), task, [1])
        if numerics == "reproducible":
            assert isinstance(found[1][0], Failure) and "other bits" in found[1][0].detail
        else:
            assert isinstance(found[1][0], Sample)


def test_a_wrong_run_among_the_timed_ones_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond those that are looked at before: the results of every timed run are compared."""
    monkeypatch.setattr(bench_module, "CHECKS", 3)
    monkeypatch.setenv(VARIABLE, "wrong50@1")
    task = convolution()
    found = measured(made(task), task, [0, 1], rounds=60)
    assert all(isinstance(s, Sample) for s in found[0])
    last = found[1][-1]
    assert isinstance(last, Failure) and "run 50" in last.detail
    assert len(found[1]) < 60


def test_outputs_that_are_not_written_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is poisoned before a run, so that what an earlier one left does not count."""
    task = convolution()
    bench = made(task)
    contender, _ = bench.contender(0, task.default)
    contender.refresh(1)
    with pytest.raises(Failed, match="another"):
        contender.compare(1)
    contender.run(contender.address(1))
    contender.compare(1)


def test_several_runs_have_memory_of_their_own() -> None:
    task = convolution()
    bench = made(task)
    contender, _ = bench.contender(0, task.default)
    contender.refresh(5)
    contender.run(contender.address(5))
    contender.compare(5)
    tables = [contender._table(k) for k in range(5)]
    shared = set.intersection(*map(set, tables))
    assert len(shared) == sum(a is None for a in contender.launch.args), "only scratch"


@pytest.mark.parametrize("argument", [False, True])
def test_what_no_kernel_just_wrote_is_in_main_memory(
    monkeypatch: pytest.MonkeyPatch, argument: bool
) -> None:
    """Weights; and where an input is an argument of the call, that and the results: after they were
    written, as writing brings them back."""
    given = parse(convolution().payload)
    problem = replace(given, arguments=given.graph.inputs if argument else ())
    bench = ProblemBench(problem.text, lambda *_: None)
    contender, _ = bench.contender(0, problem.default())
    done: list[int] = []
    monkeypatch.setattr(candidate_module, "flush", lambda: lambda at, nbytes: done.append(at))
    write = Sets.write
    monkeypatch.setattr(Sets, "write", lambda self, k: (done.append(0), write(self, k)))
    contender.refresh(1)
    own = contender._sets.get(0)
    addresses = [own[n].ctypes.data for n in (*problem.graph.inputs, *problem.graph.outputs)]
    weights = [a.ctypes.data for a in contender._constants[0].values()]
    assert done == [*weights, 0, *(addresses if argument else ())]


def test_samples_have_as_many_runs_however_long_one_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more runs less of the inputs is in caches: times of few and of many do not compare."""
    seen: set[int] = set()
    refresh, check = Contender.refresh, ProblemBench._check

    def counted(contender: Contender, runs: int) -> None:
        seen.add(runs)
        refresh(contender, runs)

    monkeypatch.setattr(Contender, "refresh", counted)
    task = convolution()
    for seconds in (1e-7, 1e-5, 1e-1):

        def checked(*given: Any, took: float = seconds) -> float:
            check(*given)
            return took

        monkeypatch.setattr(ProblemBench, "_check", checked)
        measured(made(task), task, (0, 1))
    assert len(seen) == 1
    assert 1 < seen.pop() <= bench_module.MOST_RUNS


def test_samples_are_taken_in_several_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    task, bench = convolution(), made(convolution())
    where: list[tuple[int, ...]] = []

    def sample(bench: ProblemBench, entrant: Any) -> Sample:
        where.append(tuple(entrant.contender._table(0)))
        return Sample(1e-6)

    monkeypatch.setattr(ProblemBench, "_sample", sample)
    found = measured(bench, task, (0, 1), rounds=bench_module.BLOCK * bench_module.ROOMS + 3)
    assert [len(found[k]) for k in (0, 1)] == [bench_module.BLOCK * bench_module.ROOMS + 3] * 2
    assert len(set(where)) == 2 * bench_module.ROOMS
    places = [set(table) for table in dict.fromkeys(where)]
    assert not set.intersection(*places), "inputs, results and constants lie elsewhere each time"
    monkeypatch.setattr(bench_module, "ROOM_BYTES", 0)
    where.clear()
    measured(made(task), task, (0,), rounds=bench_module.BLOCK * 2)
    assert len(set(where)) == 1


def test_a_candidate_that_fails_is_not_timed_in_the_next_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "wrong@1")
    task = convolution()
    found = measured(made(task), task, (0, 1), rounds=2 * bench_module.BLOCK)
    assert len(found[1]) == 1 and isinstance(found[1][0], Failure)
    assert len(found[0]) >= 2 * bench_module.BLOCK


def test_unknown_candidates_are_refused() -> None:
    task = convolution()
    stranger = Candidate("no_such_template", 1, {})
    newer = replace(task.default, version=99)
    bench = made(task)
    for candidate in (stranger, newer):
        found = bench.measure([(0, candidate)], [1], math.inf)
        ((_, failure),) = (pair for outcomes in found for pair in outcomes)
        assert isinstance(failure, Failure) and failure.kind == "refused"
        with pytest.raises(Failed):
            bench.build(0, candidate)


@pytest.mark.parametrize("disturbed", ["strain", "neighbours", ""])
def test_disturbed_samples_are_taken_again(disturbed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to twice as many as were wanted; others' use of all processors counts where kernels run on
    several threads."""
    monkeypatch.setattr(bench_module, "WATCHED_SECONDS", 0.0)
    monkeypatch.setattr(bench_module, "strain", lambda: 2.0 if disturbed == "strain" else 1.0)
    speed = 100.0 if disturbed == "neighbours" else 0.0
    monkeypatch.setattr(bench_module, "busy_seconds", lambda: time.perf_counter() * speed)
    monkeypatch.setattr(bench_module, "sampled", unhurried)
    task = convolution(threads=2)
    (samples,) = measured(made(task), task, [0], rounds=4).values()
    assert len(samples) == (8 if disturbed else 4)
    assert all(isinstance(s, Sample) and s.is_calm != bool(disturbed) for s in samples)


def unhurried(wall: float, cpu: float, switches: int, strain: float, alone: bool) -> Sample:
    """A sample of a machine that does nothing else."""
    return Sample(wall, strain - 1)


def test_no_time_is_left() -> None:
    task = convolution()
    assert measured(made(task), task, [0], deadline=time.monotonic() - 1) == {}


def test_fields_are_split_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "KEPT_BYTES", 1)
    task = convolution()
    found = measured(made(task), task, range(3))
    assert [len(found[k]) >= 2 for k in range(3)] == [True] * 3


@pytest.mark.parametrize("text", [
    "f32[2,21,5,3]@1x16", "f32[1,32,7,7]@1x16@1/96", "f32[2,32,7]@1/96", "f32[3,5]",
    "f32[2,16,1]@1x8",
])  # fmt: skip
def test_layouts(text: str) -> None:
    """What is stored comes back, and nothing else is touched."""
    kind = parse_type(text)
    value = np.random.default_rng(0).standard_normal(kind.dims).astype(np.float32)
    flat = np.full(kind.span, np.nan, np.float32)
    store(flat, kind, value)
    np.testing.assert_array_equal(logical(flat, kind), value)
    assert np.count_nonzero(~np.isnan(flat)) == value.size


def test_inputs_are_written_anew() -> None:
    problem = parse(convolution().payload)
    feeds = problem.feeds()
    sets = Sets(problem.graph, feeds)
    name = problem.graph.inputs[0]
    flat = sets.get(1)[name]
    before = flat.copy()
    flat.fill(0)
    sets.write(1)
    np.testing.assert_array_equal(flat, before)
