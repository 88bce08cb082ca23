"""GPUs of a farm, and several of one machine: each tunes, with worker processes as they are, on the
stub driver."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

import tilewright as tw
from tilewright.autotune.events import Event, Tried, Warned
from tilewright.autotune.outcome import Measurement
from tilewright.autotune.records import Records
from tilewright.autotune.session import Session, open_jobs
from tilewright.autotune.task import Task
from tilewright.compiler.api import crew
from tilewright.compiler.api.gpu import analysed
from tilewright.compiler.api.gpu_devices import place_of
from tilewright.compiler.codegen.cuda.target import CudaTarget
from tilewright.compiler.errors import OptionError
from tilewright.compiler.kernels.device import gpu_device
from tilewright.compiler.kernels.gpu_model import LAUNCH
from tilewright.compiler.kernels.select import coded_groups
from tilewright.compiler.options import options
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.pipeline import gpu_pipeline
from tilewright.compiler.tuning import farmhand
from tilewright.compiler.tuning.guess import guessed_seconds
from tilewright.compiler.tuning.problem import problem_of
from tilewright.compiler.tuning.tasks import task_of

from ....autotune.session_fakes import InOrder
from ...tuning.clusters import cluster
from .nets import convnet, rows
from .stub import Stub

TARGET = CudaTarget("sm_90", 0)
DEVICE = gpu_device((9, 0))
PROCESS = str(Path(__file__).with_name("stub_process.py"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where code is that was made before: a shared one, as what is tested is not how it is made."""
    return str(tmp_path_factory.mktemp("cache"))


def tasks(place: str) -> list[Task]:
    """Some candidates of two groups of a small model."""
    graph, _ = run_pipeline(gpu_pipeline(), convnet())
    found = []
    for group in list(coded_groups(graph))[:2]:
        problem = problem_of(graph, group.ops, group.outputs, DEVICE, "standard")
        made = task_of(problem, place)
        found.append(Task(made.key, made.space[:4], payload=made.payload, label=made.label))
    return found


def ran(log: Path) -> Counter[tuple[str, ...]]:
    """Who made which candidate ready to run: processes, problems, candidates."""
    return Counter(tuple(line.split(" ", 2)) for line in log.read_text().splitlines())


def search(made: crew.Crew, records: Records, listen: object, seconds: float = 250) -> list[Task]:
    """Every candidate of all tasks, in turn."""
    wanted = [t for place in made.devices for t in tasks(place)]
    jobs = open_jobs([(t, 1 / len(wanted)) for t in wanted], InOrder(step=2), records)
    session = Session(jobs, made.runners, time.monotonic() + seconds, records, report=listen)  # type: ignore[arg-type]
    try:
        assert session.run() == "searched"
    finally:
        made.close()
    return wanted


def test_devices_of_one_machine_are_tuned_side_by_side(
    stub: Stub, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.start("9.0,8.0,9.0")
    log = tmp_path / "log"
    monkeypatch.setenv("STUB_CUDA_PROCESS", PROCESS)
    monkeypatch.setenv("STUB_LOG", str(log))
    monkeypatch.setenv("TILEWRIGHT_CACHE", cache)
    (one,) = crew.local_crew(TARGET, DEVICE).runners
    made = crew.local_crew(TARGET, DEVICE, all_gpus=True)
    assert [r.origin for r in made.runners] == ["cuda:0", "cuda:2"]  # type: ignore[attr-defined]
    assert len(made.devices) == 1 and one.device == made.devices[0]  # type: ignore[attr-defined]
    records = Records(tmp_path / "records.sqlite")
    wanted = search(made, records, lambda event: None)
    rows = records.rows()
    assert all(isinstance(r.outcome, Measurement) for r in rows)
    assert len(rows) == sum(len(t.space) for t in wanted)
    assert {r.origin for r in rows} == {"cuda:0", "cuda:2"}
    # One process for each device, and no candidate in both.
    assert len({pid for pid, *_ in ran(log)}) == 2
    assert len(Counter((p, c) for _, p, c in ran(log))) == len(rows) == len(ran(log))


def test_gpus_of_a_farm_take_part_once(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.start("9.0,9.0")
    two = json.loads(farmhand.describe())
    assert two["gpu"]["device"] and len(two["gpu"]["others"]) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    stub.start("9.0,9.0")
    second = json.loads(farmhand.describe())
    assert second["gpu"]["name"] == two["gpu"]["others"][0] and not second["gpu"]["others"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    stub.start("8.0")
    older = json.loads(farmhand.describe())
    stub.start("")
    none = json.loads(farmhand.describe())
    stub.start("9.0")
    told: dict[str, object] = {}

    class Known:
        def __init__(self, *_: object) -> None: ...
        def close(self) -> None: ...

        def members(self) -> Mapping[str, object]:
            return told

        def runner(self, address: str, device: str) -> str:
            return address

    monkeypatch.setattr(crew, "Farm", Known)
    told |= {"a": two, "b": two, "c": older, "d": none}
    made = crew.farm_crew("tcp://x", TARGET, DEVICE)
    assert made.runners == ["a"] and len(made.devices) == 1
    assert "b takes no part: its GPU is that of a" in made.warnings[0]
    assert "c takes no part: its templates is" in made.warnings[1]
    assert "d takes no part" in made.warnings[2] and "no device" in made.warnings[2]
    assert "GPUs without a worker: 1, which a sees" in made.warnings[3]
    told["b"] = second
    made = crew.farm_crew("tcp://x", TARGET, DEVICE)
    assert made.runners == ["a", "b"] and not any("GPUs without" in w for w in made.warnings)
    told.clear()
    with pytest.raises(OptionError, match="no worker can run candidates"):
        crew.farm_crew("tcp://x", TARGET, DEVICE)


def test_a_killed_gpu_worker_of_a_farm_loses_nothing_and_nothing_is_measured_twice(
    stub: Stub, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.start("9.0,9.0")
    log = tmp_path / "log"
    monkeypatch.setenv("STUB_CUDA_PROCESS", PROCESS)
    monkeypatch.setenv("STUB_LOG", str(log))
    given = [{"CUDA_VISIBLE_DEVICES": str(k), "TILEWRIGHT_CACHE": cache} for k in range(2)]
    told: list[Event] = []
    with cluster(tmp_path, given) as (address, processes):
        made = crew.farm_crew(address, TARGET, DEVICE)
        assert len(made.runners) == 2 and not made.warnings, made.warnings
        victim = str(made.runners[0].origin)  # type: ignore[attr-defined]

        def listen(event: Event) -> None:
            """Whoever answers first, the victim will be asked for more, or is at work."""
            told.append(event)
            tried = sum(isinstance(e, Tried) for e in told)
            if isinstance(event, Tried) and tried == 1:
                processes[victim.removeprefix("farm ")].send_signal(signal.SIGKILL)

        records = Records(tmp_path / "records.sqlite")
        wanted = search(made, records, listen)
    everything = {(t.key.problem, c) for t in wanted for c in t.space}
    rows = records.rows()
    assert {(r.key.problem, r.candidate) for r in rows} == everything
    assert len(rows) == len(everything) == sum(isinstance(e, Tried) for e in told)
    assert all(isinstance(r.outcome, Measurement) for r in rows)
    (lost,) = [e.text for e in told if isinstance(e, Warned)]
    assert victim in lost and "1 left" in lost
    # A request has two candidates: those that the victim had in hand the other one did again.
    by_candidate = Counter((problem, candidate) for _, problem, candidate in ran(log))
    assert set(ran(log).values()) == {1}
    assert sum(n - 1 for n in by_candidate.values()) <= 2


@pytest.mark.slow
def test_a_machine_without_a_gpu_has_a_farm_tune(
    stub: Stub, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_CUDA_PROCESS", PROCESS)
    stub.start("")
    here = tmp_path / "here"
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(here))
    given = {"STUB_CUDA_DEVICES": "9.0", "TILEWRIGHT_CACHE": cache}
    with cluster(tmp_path, [given]) as (address, _):
        report = tw.tune(rows(), target="cuda:sm_90", budget="40s", farm=address)
        with pytest.raises(OptionError, match="no worker can run candidates"):
            tw.tune(rows(), target="cuda:sm_80", budget="40s", farm=address)
    assert report.tried > 1 and report.failed == 0 and report.comparison is None
    assert "Stub 9.0 (sm_90, 1 GiB, CUDA 12)" in report.device
    (warning,) = report.warnings
    assert "there is no GPU of this kind here" in warning
    assert len(list(here.iterdir())) == 1, "records, and no code"
    stub.start("9.0")
    kept = Records(here / "records.sqlite").rows()
    assert {r.device for r in kept} == {place_of(0)} and len(kept) == report.tried


def test_shares_are_guessed_by_work_and_traffic() -> None:
    c = analysed(convnet(), CudaTarget("sm_90"), options(), 0.0)
    guessed = guessed_seconds(c, DEVICE)
    assert len(guessed) == len(c.launches) and all(LAUNCH < s < 2 * LAUNCH for s in guessed)
    g = tw.Graph("products")
    x = g.input("x", (2048, 2048))
    g.output(g.relu(g.matmul(x, x)), "large")
    g.output(g.softmax(g.input("a", (4, 40)), axis=1), "small")
    c = analysed(g.build(), CudaTarget("sm_90"), options(), 0.0)
    by_label = {x.label: s for x, s in zip(c.launches, guessed_seconds(c, DEVICE), strict=True)}
    assert max(by_label.values()) > 10 * min(by_label.values()), by_label
