"""Worker processes that misbehave in every way: found out, ended, and the rest is measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tilewright.autotune import isolation, workers
from tilewright.autotune.board import Board, shared_page
from tilewright.autotune.errors import TunerError
from tilewright.autotune.isolation import IsolatedRunner
from tilewright.autotune.outcome import Failure, Measurement, Outcome
from tilewright.autotune.runner import Request
from tilewright.autotune.task import Candidate, Key, Task
from tilewright.autotune.workers import Limits, Worker

WORKER = (sys.executable, str(Path(__file__).with_name("bad_worker.py")))
# Less than the workers say that they have hung for, more than any step takes on a busy machine.
LIMITS = Limits(start=100, prepare=100, build=130, run=130, memory=128 << 20)
GOOD: Mapping[str, Any] = {}


def task(*configs: Mapping[str, Any], payload: str = "", name: str = "p") -> Task:
    space = tuple(Candidate("t", 1, {"n": k, **c}) for k, c in enumerate(configs))
    return Task(Key(name, "device", "standard"), space, payload=payload)


def soon(seconds: float = 200) -> float:
    return time.monotonic() + seconds


def outcomes(
    runner: IsolatedRunner, t: Task, rounds: int = 3, deadline: float | None = None
) -> dict[int, Outcome]:
    everything = Request(tuple(range(len(t.space))), rounds)
    return dict(runner.run(t, everything, soon() if deadline is None else deadline))


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """Who has hung for long is found at once, and no build is late because others were quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "LOOK_SECONDS", 0.02)
        patch.setattr(workers, "LEAST_BUILD", LIMITS.build)
        yield


@pytest.fixture(scope="module")
def runner() -> Iterator[IsolatedRunner]:
    with IsolatedRunner(WORKER, limits=LIMITS) as made:
        yield made


def failing(step: str, does: str, **more: Any) -> Mapping[str, Any]:
    return {"step": step, "does": does, **more}


@pytest.mark.parametrize(("does", "kind", "says"), [
    ("hang", "timeout", "took more than 130 s"),
    ("segv", "crash", "SIGSEGV"),
    ("abort", "crash", "SIGABRT"),
    ("exit", "crash", "exited with status 0 in the middle"),
    ("kill", "memory", "the system killed it"),
    ("memory", "memory", ""),
    ("nonsense", "protocol", "nonsense"),
    ("flood", "protocol", "xxx"),
    ("fail", "wrong", "off by one?and two"),
])  # fmt: skip
@pytest.mark.parametrize("step", ["build", "run"])
def test_the_culprit_fails_and_the_others_do_not(
    runner: IsolatedRunner, step: str, does: str, kind: str, says: str
) -> None:
    t = task(GOOD, failing(step, does, turn=2), GOOD, name=f"{step} {does}")
    found = outcomes(runner, t)
    assert set(found) == {0, 1, 2}
    bad = found[1]
    assert isinstance(bad, Failure)
    assert bad.kind == kind and says in bad.detail, bad
    for good in (found[0], found[2]):
        assert isinstance(good, Measurement) and good.rounds == 3 and good.seconds == 1e-3


def test_an_exception_is_of_the_step(runner: IsolatedRunner) -> None:
    found = outcomes(runner, task(failing("build", "raise"), name="raise"))
    assert found == {0: Failure("build", "ValueError: no such tile")}


def test_many_culprits_in_one_request(runner: IsolatedRunner) -> None:
    ways = "segv", "exit", "abort"
    crashing = [failing("run", does, turn=k) for k, does in enumerate(ways, 1)]
    found = outcomes(runner, task(*crashing, GOOD, name="many"), rounds=4)
    assert [getattr(found[k], "kind", "") for k in range(4)] == ["crash", "crash", "crash", ""]


def test_what_candidates_print_harms_nothing() -> None:
    noisy = failing("run", "shout"), failing("run", "mute", turn=2), failing("build", "shout")
    with IsolatedRunner(WORKER, limits=LIMITS) as made:
        found = outcomes(made, task(*noisy, name="noise"))
    assert len(found) == 3 and all(isinstance(x, Measurement) for x in found.values())


def test_what_was_printed_last_is_reported(runner: IsolatedRunner) -> None:
    """stdout and stderr of a worker that died; nothing in it reaches a terminal as it is."""
    t = task(failing("run", "shout"), failing("run", "segv", turn=2), name="loud")
    found = outcomes(runner, t)
    assert isinstance(found[1], Failure) and "it printed last" in found[1].detail
    assert found[1].detail.isprintable()


def test_a_culprit_that_lies_is_found_alone(runner: IsolatedRunner) -> None:
    """It posts another candidate, or one that does not exist, before it crashes."""
    t = task(GOOD, failing("run", "segv", posts=77), GOOD, name="liar")
    found = outcomes(runner, t)
    assert isinstance(found[1], Failure)
    assert isinstance(found[0], Measurement) and isinstance(found[2], Measurement)


def test_samples_survive_and_add_up(runner: IsolatedRunner) -> None:
    """What was taken before another candidate crashed counts, also in later requests."""
    t = task({"seconds": 2e-3}, failing("run", "segv", turn=3), name="survive")
    assert getattr(outcomes(runner, t, rounds=5)[0], "rounds", 0) == 5
    found = dict(runner.run(t, Request((0,), 4), soon()))
    assert getattr(found[0], "rounds", 0) == 9


def test_a_candidate_without_fault_is_tried_again(runner: IsolatedRunner) -> None:
    """Somebody hung up on its worker; should that happen each time, it is to blame after all."""
    t = task(GOOD, failing("run", "hangup"), name="hangup")
    found = outcomes(runner, t)
    assert isinstance(found[0], Measurement)
    assert isinstance(found[1], Failure) and "SIGHUP" in found[1].detail


def test_deaths_without_fault_count_in_a_row_only(tmp_path: Path) -> None:
    """Somebody ends workers now and then; each time something was measured in between."""
    with IsolatedRunner(WORKER, limits=LIMITS) as made:
        for k in range(4):
            t = task(failing("run", "hangup", once=str(tmp_path / f"{k}")), name=f"once {k}")
            assert isinstance(outcomes(made, t)[0], Measurement), k


@pytest.mark.parametrize(("payload", "kind"), [("bad", "refused"), ("hang", "timeout")])
def test_a_task_that_cannot_be_prepared(runner: IsolatedRunner, payload: str, kind: str) -> None:
    found = outcomes(runner, task(GOOD, GOOD, payload=payload, name=payload))
    assert [getattr(found[k], "kind", "") for k in range(2)] == [kind, kind]


def test_the_deadline_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured by then comes out; whoever was in the middle has not failed."""
    begun = tmp_path / "begun"
    with IsolatedRunner(WORKER, limits=replace(LIMITS, run=1e6)) as made:

        def monotonic() -> float:  # it is late as soon as a candidate stalls, in its second run
            return time.monotonic() + (2000 if made._samples and begun.exists() else 0)

        clock = SimpleNamespace(monotonic=monotonic, sleep=time.sleep)
        for module in (isolation, workers):
            monkeypatch.setattr(module, "time", clock)
        t = task(GOOD, failing("run", "stall", turn=2, once=str(begun)), GOOD, name="late")
        found = outcomes(made, t, rounds=100, deadline=soon(1000))
    assert {k: getattr(x, "rounds", 0) for k, x in found.items()} == {0: 1, 1: 1, 2: 1}


def test_a_build_is_not_waited_for_much_longer_than_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = Limits(build=60)
    monkeypatch.setattr(workers, "LEAST_BUILD", 5.0)
    assert limits.among(0.1).build == 5
    assert limits.among(0.5) == Limits(build=10)
    assert limits.among(9.0).build == 60
    assert Limits(build=2).among(0.1).build == 2
    monkeypatch.setattr(workers, "LEAST_BUILD", 600.0)
    t = task(failing("build", "hang"), *[GOOD] * 4, name="others")
    with IsolatedRunner(WORKER, limits=Limits(build=1e6)) as made:
        found = outcomes(made, t)
    assert found[0] == Failure("timeout", "building took more than 600 s")
    assert len(found) == 5


def test_a_deadline_in_the_past_starts_nothing(runner: IsolatedRunner) -> None:
    assert outcomes(runner, task(GOOD, name="past"), deadline=time.monotonic() - 1) == {}


def test_without_builders() -> None:
    with IsolatedRunner(WORKER, limits=LIMITS, builders=0) as made:
        found = outcomes(made, task(GOOD, failing("run", "segv")))
    assert isinstance(found[0], Measurement) and isinstance(found[1], Failure)


def test_places_outside_of_the_space(runner: IsolatedRunner) -> None:
    with pytest.raises(TunerError, match="1 candidates"):
        next(runner.run(task(GOOD), Request((1,), 1), soon()))


@pytest.mark.parametrize("argv", [(*WORKER, "--stillborn"), ("/nowhere/to/be/found",)])
def test_workers_that_do_not_start(argv: tuple[str, ...]) -> None:
    with IsolatedRunner(argv, limits=LIMITS) as made, pytest.raises(TunerError) as e:
        outcomes(made, task(GOOD))
    assert argv[0] in str(e.value)


def children(pid: int) -> list[int]:
    """Processes whose parent it is, by the second field behind their names."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if entry.read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(int(entry.parent.name))
    return found


def test_closing_leaves_no_process() -> None:
    before = set(children(os.getpid()))
    made = IsolatedRunner(WORKER, limits=LIMITS)
    outcomes(made, task(GOOD, GOOD))
    assert len(set(children(os.getpid())) - before) >= 2
    made.close()
    assert set(children(os.getpid())) <= before


def test_a_search_that_stops_in_the_middle(runner: IsolatedRunner) -> None:
    """As by Ctrl-C: nothing is left running, and the runner goes on to work."""
    t = task(failing("build", "fail"), {"takes": 0.1}, name="stop")
    going = runner.run(t, Request((0, 1), 50), soon())
    next(going)
    going.close()  # type: ignore[attr-defined]
    assert all(isinstance(x, Measurement) for x in outcomes(runner, task(GOOD, name="on")).values())


PARENT = """
import sys, time
sys.path.insert(0, {folder!r})
from test_isolation import *
made = IsolatedRunner(WORKER, limits=Limits(run=100))
t = task({{"takes": 0.01}}, name="orphan")
for _ in made.run(t, Request((0,), 1), soon()): pass
print("ready", flush=True)
for _ in made.run(t, Request((0,), 1000), soon(100)): pass
"""


def test_workers_leave_when_the_parent_is_killed() -> None:
    text = PARENT.format(folder=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        time.sleep(0.1)
        mine = children(parent.pid)
        assert len(mine) >= 2
        parent.send_signal(signal.SIGKILL)
    until = soon(60)
    while any(_runs(pid) for pid in mine) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in mine)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_that_reads_nothing_does_not_hang_whoever_asks() -> None:
    worker = Worker([sys.executable, "-c", "import time; time.sleep(60)"], Limits())
    try:
        worker.ask("measure", "t", "x" * 500_000)  # as large as requests come
    finally:
        worker.close()


def test_a_board_needs_no_room_on_a_disk() -> None:
    with shared_page() as page:
        assert os.fstat(page).st_blocks * 512 >= Board.SIZE  # none of it is only promised
        Board(page).post("run", 3)
        found = Board(page).read()
    assert found is not None and (found.step, found.place) == ("run", 3)
