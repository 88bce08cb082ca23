"""Candidates on a GPU: made, compared with the reference, timed, told apart by their device."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.autotune.outcome import Failure, Outcome
from tilewright.autotune.runner import Request
from tilewright.autotune.serving import Failed
from tilewright.autotune.statistics import Sample, measurement
from tilewright.autotune.task import Candidate, Task
from tilewright.compiler.errors import OptionError, TextError
from tilewright.compiler.kernels.device import GpuDevice, gpu_device
from tilewright.compiler.kernels.select import coded_groups
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.pipeline import gpu_pipeline
from tilewright.compiler.runtime.cuda_device import all_facts
from tilewright.compiler.tuning import gpu_bench
from tilewright.compiler.tuning.fingerprint import gpu_fingerprint, label, same_model
from tilewright.compiler.tuning.gpu_bench import GpuBench
from tilewright.compiler.tuning.local import gpu_runner
from tilewright.compiler.tuning.problem import Problem, is_for_gpu, parse, problem_of
from tilewright.compiler.tuning.reference import Reference
from tilewright.compiler.tuning.tasks import task_of

from .nets import A, convnet, rows, softmax
from .stub import Stub


def task(number: int = 0, numerics: Any = "standard") -> Task:
    """One of the groups of a small model."""
    graph, _ = run_pipeline(gpu_pipeline(), convnet())
    group = list(coded_groups(graph))[number]
    problem = problem_of(graph, group.ops, group.outputs, gpu_device((9, 0)), numerics)
    return task_of(problem, "a GPU")


@pytest.fixture
def bench(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes benches whose kernels the stub runs."""
    instantiate = Problem.instantiate

    def noted(self: Problem, candidate: Candidate) -> Any:
        launch = instantiate(self, candidate)
        stub.knows_kernel(launch.kernel)
        return launch

    monkeypatch.setattr(Problem, "instantiate", noted)
    monkeypatch.setattr(gpu_bench, "CHECKS", 2)  # the simulator takes a while
    monkeypatch.setattr(gpu_bench, "MOST_CHECKS", 2)
    monkeypatch.setattr(gpu_bench, "MOST_RUNS", 2)
    yield lambda t: GpuBench(t.payload, lambda *_: None)


def measured(b: GpuBench, t: Task, places: list[int], rounds: int = 2) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    b.prepare()
    for outcomes in b.measure([(k, t.space[k]) for k in places], [rounds] * len(places), math.inf):
        for place, outcome in outcomes:
            found.setdefault(place, []).append(outcome)
    return found


def test_a_problem_names_its_gpu() -> None:
    made = parse(task().payload)
    assert made.device == gpu_device((9, 0)) and isinstance(made.device, GpuDevice)
    assert made.text == task().payload and is_for_gpu(made.text)
    assert "device gpu vector_bytes=512 " in made.text and "arch=90" in made.text
    assert not is_for_gpu(made.text.replace("device gpu", "device"))
    with pytest.raises(TextError, match=r"a problem's device has the numbers .*arch"):
        parse(made.text.replace(" arch=90", ""))


def test_candidates_are_measured(stub: Stub, bench: Any) -> None:
    t = task()
    places = [0, 1]
    found = measured(bench(t), t, places)
    assert set(found) == set(places) and len(t.space) > 1
    for samples in found.values():
        assert len(samples) == 2
        assert all(isinstance(s, Sample) and 0 < s.seconds < 1e-3 for s in samples), samples


def test_wrong_results_are_found(stub: Stub, bench: Any) -> None:
    t = task()
    b = bench(t)
    b.build(0, t.space[0])
    kernels = dict(stub.kernels)
    for name, (kernel, text, entry) in kernels.items():
        stub.kernels[name] = kernel, text.replace("max(", "min("), entry
        assert text != text.replace("max(", "min(")
    stub.knows_kernel = lambda kernel: None  # type: ignore[method-assign]
    ((failed,),) = measured(b, t, [0]).values()
    assert isinstance(failed, Failure) and failed.kind == "wrong" and "off by" in failed.detail


def test_factors_in_tf32_are_within_the_bound() -> None:
    """Where numerics allow them, and no coarser ones."""
    g = tw.Graph("product")
    g.output(g.matmul(g.input("a", (64, 256)), g.input("b", (256, 64))), "y")
    graph, _ = run_pipeline(gpu_pipeline("reduced"), g.build())
    (group,) = coded_groups(graph)
    for numerics, bits, fits in (("reduced", 10, True), ("reduced", 6, False),
                                 ("standard", 10, False)):  # fmt: skip
        problem = problem_of(graph, group.ops, group.outputs, gpu_device((8, 0)), numerics)  # type: ignore[arg-type]
        reference = Reference(problem)
        launch = problem.instantiate(problem.default())
        assert (launch.kernel.template == "gpu_mma") is (numerics == "reduced")
        a, b = (rounded(reference.feeds[n], bits) for n in problem.graph.inputs)
        result = {problem.outputs[0]: (a.astype(np.float64) @ b).astype(np.float32)}
        if fits:
            reference.check(launch, result)
        else:
            with pytest.raises(Failed, match="off by"):
                reference.check(launch, result)


def rounded(x: np.ndarray, bits: int) -> np.ndarray:
    """float32 with so many bits behind the point."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.rint(fraction * 2.0 ** (bits + 1)) / 2.0 ** (bits + 1), exponent)


def test_results_that_change_are_found(stub: Stub, bench: Any) -> None:
    t = task()
    b = bench(t)
    count = 0

    def once_more(*args: Any) -> int:
        nonlocal count
        count += 1
        stub.during = once_more
        answer = stub._run(*args)
        if count == gpu_bench.CHECKS + 1:  # in the first timed run
            made = b._sets.handles[b.problem.graph.outputs[0]].value
            ctypes.c_uint32.from_address(stub.library.stub_host(made, 4, 0)).value ^= 1
        return answer

    stub.during = once_more
    *_, last = measured(b, t, [0]).popitem()[1]
    stub.during = None
    assert isinstance(last, Failure) and "another" in last.detail


def test_a_worker_that_lost_its_device_leaves(
    stub: Stub, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[str] = []
    monkeypatch.setattr(GpuBench, "_leave", lambda self, why: left.append(str(why)))
    t = task()
    b = bench(t)
    b.prepare()
    stub.fail("kernel:2=700")
    assert measured(b, t, [0]) == {}
    (why,) = left
    assert "a kernel faulted" in why


def test_a_default_that_faults_costs_the_worker_its_device(
    stub: Stub, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[str] = []
    monkeypatch.setattr(GpuBench, "_leave", lambda self, why: left.append(str(why)))
    b = bench(task(numerics="reproducible"))
    stub.fail("kernel:1=700")
    b.prepare()
    assert len(left) == 1 and "a kernel faulted" in left[0]


def test_what_fits_only_alone_is_measured_alone(stub: Stub, bench: Any) -> None:
    t = task()
    b = bench(t)
    measured(b, t, [0])
    stub.fail("cuMemAlloc_v2:1=2")  # beside the other one, which is still there
    assert all(isinstance(s, Sample) for s in measured(b, t, [1])[1])
    stub.fail("cuMemAlloc_v2:1=2,cuMemAlloc_v2:2=2")
    ((failed,),) = measured(b, t, [2]).values()
    assert isinstance(failed, Failure) and failed.kind == "memory" and "GiB" in failed.detail


def test_another_gpu_is_refused(stub: Stub, bench: Any) -> None:
    stub.start("8.0")
    b = bench(task())
    with pytest.raises(Exception, match="for another GPU than device 0"):
        b.prepare()


def test_one_worker_has_a_device_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = gpu_runner(1)
    assert runner.environment is not None
    assert runner.environment["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert gpu_runner(1).environment["CUDA_VISIBLE_DEVICES"] == "6"  # type: ignore[index]


def test_what_a_device_is_on_record(stub: Stub) -> None:
    (facts,) = all_facts()
    mine = gpu_fingerprint(facts, (12, 4))
    assert json.loads(mine) == {
        "kind": "gpu", "model": "Stub 9.0", "architecture": "sm_90", "memory": "1 GiB",
        "driver": "CUDA 12",
    }  # fmt: skip
    assert gpu_fingerprint(facts, (12, 9)) == mine
    newer = gpu_fingerprint(facts, (13, 0))
    assert newer != mine and same_model(newer, mine)
    assert not same_model(gpu_fingerprint(replace(facts, name="Other"), (12, 4)), mine)
    assert label(mine) == "Stub 9.0 (sm_90, 1 GiB, CUDA 12)"


class Here:
    """A Runner in this process."""

    def __init__(self, stub: Stub) -> None:
        self.benches: dict[str, GpuBench] = {}

    def run(
        self, task: Task, request: Request, deadline: float
    ) -> Iterator[tuple[int, Outcome]]:  # fmt: skip
        b = self.benches.setdefault(task.payload, GpuBench(task.payload, lambda *_: None))
        b.prepare()
        wanted = [(k, task.space[k]) for k in request.candidates]
        samples: dict[int, list[Sample]] = {}
        for outcomes in b.measure(wanted, [request.rounds] * len(wanted), deadline):
            for place, found in outcomes:
                if isinstance(found, Failure):
                    yield place, found
                else:
                    samples.setdefault(place, []).append(found)
                    yield place, measurement(samples[place])

    def stop(self) -> None:
        """Nothing runs between requests."""

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.slow
def test_a_model_is_tuned_and_the_next_compilation_knows(
    stub: Stub, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device where kernels are the faster, the more threads a block has."""
    monkeypatch.setattr("tilewright.compiler.api.crew.gpu_runner", lambda *_: Here(stub))
    stub.knows_what_is_loaded("gpu")
    stub.library.stub_cost_by_threads(1)
    before = tw.compile(rows(), target="cuda")
    report = tw.tune(rows(), target="cuda", budget="30s")
    (found,) = report.tasks
    assert found.verdict == "tuned", report
    assert "Stub 9.0 (sm_90, 1 GiB, CUDA 12)" in str(report)
    after = tw.compile(rows(), target="cuda")
    (old,), (new,) = before.kernels, after.kernels
    assert old.origin == "default" and new.origin.startswith("tuned ")
    assert new.phases[0].threads > old.phases[0].threads
    np.testing.assert_allclose(after(A), softmax(A), 1e-5, 1e-7)
    stub.start("8.0")
    assert tw.compile(rows(), target="cuda").kernels[0].origin == "default"


def test_targets_without_a_device_are_not_tuned(stub: Stub) -> None:
    with pytest.raises(OptionError, match="target='cuda'"):
        tw.tune(convnet(), target="cuda:sm_90", budget="10s")
