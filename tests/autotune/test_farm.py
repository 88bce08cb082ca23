"""A farm: what goes to workers and back, and a cluster of two of which one is killed."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tilewright.autotune import farm
from tilewright.autotune.errors import RunnerLost, TunerError
from tilewright.autotune.events import Event, Tried, Warned
from tilewright.autotune.outcome import Failure
from tilewright.autotune.records import Records
from tilewright.autotune.runner import Request
from tilewright.autotune.session import Session, open_jobs

from .session_fakes import Bench, Clock, InOrder, measured, task

HERE = Path(__file__).parent


def test_requests_and_answers_are_text() -> None:
    clock = Clock()
    bench = Bench(clock, {"a": [1.5, Failure("crash", "signal 11"), 0.5]})
    asked = farm.ask(task("a", 8), Request((6, 2, 4), 5), seconds=60.0)
    # What a worker gets is a task of three candidates, numbered anew.
    assert [c[2]["n"] for c in json.loads(asked)["candidates"]] == [6, 2, 4]
    clock.now = time.monotonic()
    told = farm.answer(asked, bench)
    assert farm.outcomes(told, Request((6, 2, 4), 5)) == [
        (6, measured(1.5)), (2, Failure("crash", "signal 11")), (4, measured(0.5))]  # fmt: skip


def test_candidates_that_no_time_was_left_for_do_not_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    bench = Bench(clock, {"a": [1.0, 1.0]}, cost=10.0)
    told = farm.answer(farm.ask(task("a"), Request((3, 1), 5), seconds=15.0), bench)
    assert farm.outcomes(told, Request((3, 1), 5)) == [(3, measured(1.0))]


@pytest.mark.parametrize(
    "text",
    ["", "[", "{}", "[1]", "[null]", '[{"seconds": 1}, null]', '[{"seconds": -1, "low": -1, '
     '"high": 1, "rounds": 3, "contaminated": false}, null]',
     '[{"failure": "bored", "detail": ""}, null]', '[{"failure": "crash"}, null]',
     '[{"seconds": 1, "low": 1, "high": 1, "rounds": 0, "contaminated": false}, null]',
     '[{"seconds": 1, "low": 1, "high": 1, "rounds": 3, "contaminated": 0}, null]',
     pytest.param("[" * 100_000, id="deep")],
)  # fmt: skip
def test_an_answer_that_makes_no_sense_is_an_error(text: str) -> None:
    with pytest.raises(TunerError, match="not an answer"):
        farm.outcomes(text, Request((0, 1), 3))


def test_whatever_a_candidate_printed_can_be_told() -> None:
    clock = Clock()
    clock.now = time.monotonic()
    bench = Bench(clock, {"a": [Failure("crash", "\0\udc80" * 9000)]})
    told = farm.answer(farm.ask(task("a", 1), Request((0,), 5), seconds=60.0), bench)
    ((_, outcome),) = farm.outcomes(told, Request((0,), 5))
    assert isinstance(outcome, Failure) and outcome.detail.startswith("??")


@pytest.mark.parametrize("text", ["", "{}", '{"key": ["a"], "candidates": []}', "[]"])
def test_a_request_that_makes_no_sense_is_an_error(text: str) -> None:
    with pytest.raises(TunerError, match="not a request"):
        farm.answer(text, Bench(Clock(), {}))


class GivenUp:
    """A client of dask that has lost its scheduler, and a future of its own."""

    def submit(self, *_: Any, **__: Any) -> GivenUp:
        return self

    def exception(self, timeout: float) -> None: ...
    def cancel(self) -> None: ...

    def result(self, timeout: float) -> None:
        raise CancelledError("scheduler-connection-lost")


class Leaving(GivenUp):
    """A worker that is gone before its answer has been fetched."""

    def nthreads(self) -> dict[str, int]:
        return {}

    def result(self, timeout: float) -> None:
        raise TimeoutError


def test_what_the_client_gives_up_is_a_loss() -> None:
    runner = farm.FarmRunner(GivenUp(), "tcp://x:1", str, "cpu")
    with pytest.raises(RunnerLost, match="tcp://x:1: scheduler-connection-lost"):
        list(runner.run(task("a"), Request((0,), 3), time.monotonic() + 30))


def test_an_answer_that_left_with_its_worker_is_a_loss() -> None:
    runner = farm.FarmRunner(Leaving(), "tcp://x:1", str, "cpu")
    with pytest.raises(RunnerLost, match="left"):
        list(runner.run(task("a"), Request((0,), 3), time.monotonic() + 30))


# --------------------------------------------------------------------------- a cluster


@dataclass
class Cluster:
    address: str
    scheduler: int
    pids: dict[str, int]
    bench: Any
    log: Path

    def farm(self) -> farm.Farm:
        return farm.Farm(self.address, self.bench.measure, self.bench.describe)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with started(tmp_path_factory.mktemp("cluster"), 2) as made:
        yield made


@contextmanager
def started(folder: Path, workers: int) -> Iterator[Cluster]:
    """A scheduler and its workers, each a process."""
    pytest.importorskip("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        bench = importlib.import_module("farm_bench")
    where, log = folder / "scheduler.json", folder / "log"
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, "PYTHONPATH": path, "FARM_LOG": str(log)}
    shared = ["--scheduler-file", str(where), "--no-dashboard"]
    commands = [
        ["dask_scheduler", "--host", "127.0.0.1", "--port", "0", *shared],
        *[["dask_worker", "--no-nanny", "--nthreads", "1", *shared] for _ in range(workers)],
    ]
    running = [
        subprocess.Popen([sys.executable, "-m", f"distributed.cli.{c[0]}", *c[1:]], env=env,
                         cwd=folder, stderr=subprocess.DEVNULL)
        for c in commands
    ]  # fmt: skip
    try:
        address = ""
        until = time.monotonic() + 60
        while not address and time.monotonic() < until:
            time.sleep(0.05)
            if where.exists() and where.read_text():
                address = json.loads(where.read_text())["address"]
        connected = farm.Farm(address, bench.measure, bench.describe)
        told: Any = {}
        while len(told) < workers and time.monotonic() < until:
            told = connected.members()
            time.sleep(0.05)
        connected.close()
        yield Cluster(address, running[0].pid, {a: d["pid"] for a, d in told.items()}, bench, log)
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def test_a_farm_that_is_not_there() -> None:
    pytest.importorskip("distributed")
    with pytest.raises(TunerError, match="no scheduler answers"):
        farm.Farm("nonsense://nowhere", str, str)


def test_a_runner_without_its_worker_is_lost_and_one_that_talks_nonsense_is_an_error(
    cluster: Cluster,
) -> None:
    joined = cluster.farm()
    try:
        gone = joined.runner("tcp://127.0.0.1:1", "cpu")
        with pytest.raises(RunnerLost, match=r"127\.0\.0\.1:1"):
            list(gone.run(task("a"), Request((0,), 3), time.monotonic() + 30))
        odd = farm.Farm(cluster.address, cluster.bench.nonsense, cluster.bench.nonsense)
        assert all("no JSON" in str(d) for d in odd.members().values())
        with pytest.raises(TunerError, match="not an answer"):
            runner = odd.runner(next(iter(cluster.pids)), "cpu")
            list(runner.run(task("a"), Request((0,), 3), time.monotonic() + 30))
        odd.close()
    finally:
        joined.close()


def logged(cluster: Cluster) -> list[tuple[str, ...]]:
    """Who ran what: processes, problems, candidates."""
    return [tuple(line.split()) for line in cluster.log.read_text().splitlines()]


def test_a_killed_worker_loses_nothing_and_nothing_is_measured_twice(
    cluster: Cluster, tmp_path: Path
) -> None:
    names = [f"p{k}" for k in range(6)]
    joined = cluster.farm()
    runners = [joined.runner(a, "cpu") for a in cluster.pids]
    told: list[Event] = []
    victims: list[str] = []

    def listen(event: Event) -> None:
        """The first one to answer is killed soon after that, while most is still to be done."""
        told.append(event)
        tried = [e for e in told if isinstance(e, Tried)]
        if len(tried) == 3 and not victims:
            ran = {(p, f"t(n={n})"): int(pid) for pid, p, n in logged(cluster)}
            pid = ran[tried[0].label, tried[0].candidate]
            victims.extend(a for a, its in cluster.pids.items() if its == pid)
            os.kill(pid, signal.SIGKILL)

    records = Records(tmp_path / "records.sqlite")
    jobs = open_jobs([(task(n), 0.15) for n in names], InOrder(step=2), records)
    session = Session(jobs, runners, time.monotonic() + 60, records, report=listen)
    assert session.run() == "searched"
    joined.close()
    (victim,) = victims
    (survivor,) = set(cluster.pids) - {victim}

    everything = {(n, k) for n in names for k in range(4)}
    kept = {(r.key.problem, r.candidate.config["n"]): r for r in records.rows()}
    assert set(kept) == everything
    assert all(r.outcome == measured_as(number) for (_, number), r in kept.items())
    (lost,) = [e.text for e in told if isinstance(e, Warned)]
    assert victim in lost and "1 left" in lost

    ran = Counter(logged(cluster))
    assert set(ran.values()) == {1}  # no worker ran anything twice
    of = {a: {(n, int(k)) for pid, n, k in ran if pid == str(cluster.pids[a])}
          for a in (victim, survivor)}  # fmt: skip
    answered = {w for w, r in kept.items() if r.origin == f"farm {victim}"}
    assert answered and answered <= of[victim]
    # What the victim had answered nobody did again; the rest the other one did, once.
    assert of[survivor] == everything - answered
    assert len(of[victim] - answered) <= 2  # of the one request that it was killed in


def test_a_worker_that_hangs_is_not_waited_for(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which its time is over as soon as nobody else is asked any more."""
    joined = cluster.farm()
    frozen, *others = joined.members()  # of those that a test before has left alive
    read: list[float] = []

    def monotonic() -> float:
        while read and sum("(ask)" in t.name for t in threading.enumerate()) > 1:
            time.sleep(0.01)
        read.append(time.monotonic() + (1000 if read else 0))
        return read[-1]

    os.kill(cluster.pids[frozen], signal.SIGSTOP)
    try:
        monkeypatch.setattr(farm, "time", SimpleNamespace(monotonic=monotonic))
        told = joined.members()
        assert told[frozen] == "no answer within 20 s"
        assert all(isinstance(told[a], dict) for a in others)
    finally:
        os.kill(cluster.pids[frozen], signal.SIGCONT)
        joined.close()


def test_with_its_scheduler_a_farm_is_lost(tmp_path: Path) -> None:
    with started(tmp_path, 1) as cluster:
        joined = cluster.farm()
        try:
            (address,) = cluster.pids
            kill = threading.Timer(0.6, os.kill, (cluster.scheduler, signal.SIGKILL))
            kill.start()
            many = task("a", 2000)  # a minute's work
            runner = joined.runner(address, "cpu")
            with pytest.raises(RunnerLost, match=address):
                list(runner.run(many, Request(tuple(range(2000)), 3), time.monotonic() + 30))
            kill.join()
        finally:
            joined.close()


def measured_as(number: object) -> Any:
    assert isinstance(number, int)
    exact = 1.0 + number
    return type(measured(1.0))(exact, exact, exact, 3)
