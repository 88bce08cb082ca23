"""How a session spends its budget: no clock runs here, and nobody sleeps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tilewright.autotune.errors import TunerError
from tilewright.autotune.events import Began, Ended, Event, Tried, Warned, as_json
from tilewright.autotune.interrupts import Stop, stopped_by_signals
from tilewright.autotune.outcome import Failure, Measurement, Outcome
from tilewright.autotune.recording import read
from tilewright.autotune.records import Records
from tilewright.autotune.replay import ReplayRunner
from tilewright.autotune.row import Row
from tilewright.autotune.runner import Request, Runner
from tilewright.autotune.schedule import Job, Schedule
from tilewright.autotune.session import FEW, Session, open_jobs
from tilewright.autotune.strategies.halving import Halving
from tilewright.autotune.task import Task

from .session_fakes import Bench, Clock, InOrder, Surer, Unsure, measured, task

Events = list[Event]


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "records.sqlite")


def kept(records: Records) -> dict[int, Outcome]:
    """Outcomes on record by the number of the candidate."""
    return {int(str(r.candidate.config["n"])): r.outcome for r in records.rows()}


def session(
    weights: Sequence[tuple[Task, float]], runners: Sequence[Runner], clock: Clock, budget: float,
    records: Records | None = None, strategy: InOrder | None = None, **more: Any,
) -> tuple[str, Sequence[Job], Events]:  # fmt: skip
    records = records or Records(None)
    events: Events = []
    jobs = open_jobs(weights, strategy or InOrder(), records)
    made = Session(jobs, runners, clock.now + budget, records, report=events.append,
                   clock=clock, **more)  # fmt: skip
    return made.run(), jobs, events


FLAT = [1.0, 1.0, 1.0, 1.0]


def test_the_heavier_task_comes_first() -> None:
    clock = Clock()
    bench = Bench(clock, {"light": FLAT, "heavy": FLAT})
    why, _, _ = session([(task("light"), 0.2), (task("heavy"), 0.7)], [bench], clock, 100)
    assert why == "searched"
    assert bench.ran[:3] == [("heavy", 0), ("heavy", 1), ("heavy", 2)]
    assert len(bench.ran) == 8 and bench.closed


def test_a_task_that_became_faster_weighs_less() -> None:
    clock = Clock()
    bench = Bench(clock, {"a": [1.0, 0.1, 0.1, 0.1], "b": FLAT})
    session([(task("a"), 0.6), (task("b"), 0.35)], [bench], clock, 100)
    assert bench.ran == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2), ("b", 3),
                         ("a", 2), ("a", 3)]  # fmt: skip


def test_a_task_that_costs_more_waits() -> None:
    clock = Clock()
    slow = Bench(clock, {"slow": FLAT, "quick": FLAT})

    def linger(name: str, place: int) -> None:
        clock.now += 20.0 if name == "slow" else 0.0

    slow.during = linger
    session([(task("slow"), 0.5), (task("quick"), 0.4)], [slow], clock, 100)
    assert slow.ran[:4] == [("slow", 0), ("quick", 0), ("quick", 1), ("quick", 2)]


def test_the_budget_is_kept_and_partial_answers_count() -> None:
    clock = Clock()
    bench = Bench(clock, {"a": FLAT}, cost=1.0)
    why, jobs, events = session([(task("a"), 1.0)], [bench], clock, 2.5, strategy=InOrder(step=4))
    assert why == "budget"
    assert clock.now <= 102.5
    assert jobs[0].tried == {0, 1}
    assert isinstance(events[-1], Ended) and events[-1].state.tried == 2


def test_nothing_is_begun_when_the_budget_is_spent() -> None:
    class Careless(Unsure):
        def run(self, task: Task, request: Request, deadline: float) -> Any:
            return super().run(task, request, deadline + 100)

    clock = Clock()
    bench = Careless(clock, {"a": [1.0, 0.96, 2.0, 2.0]}, cost=3.0)  # there would be doubts
    why, _, _ = session([(task("a"), 1.0)], [bench], clock, 5)
    assert why == "budget" and bench.ran == [("a", 0), ("a", 1)]


def test_where_no_time_is_left_for_a_slow_task_a_quick_one_may_still_run() -> None:
    clock = Clock()
    slow, quick = Bench(clock, {"s": FLAT}, cost=10.0), Bench(clock, {"q": FLAT}, cost=1.0)

    class Both(Bench):
        def run(self, task: Task, request: Any, deadline: float) -> Any:
            return (slow if task.label == "s" else quick).run(task, request, deadline)

    why, jobs, _ = session([(task("s"), 0.8), (task("q"), 0.2)], [Both(clock, {})], clock, 5)
    assert why == "budget"
    assert [j.tried for j in jobs] == [set(), {0, 1, 2, 3}]


def test_nothing_is_run_when_nothing_is_to_be_gained() -> None:
    clock = Clock()
    bench = Bench(clock, {"a": FLAT})
    why, _, _ = session([(task("a"), 1.0)], [bench], clock, 50, strategy=InOrder(gain=0.0))
    assert (why, bench.ran, clock.now) == ("searched", [], 100.0)


def test_tasks_too_light_to_matter_are_left_alone() -> None:
    clock = Clock()
    bench = Bench(clock, {"a": FLAT})
    why, _, _ = session([(task("a"), 1e-4)], [bench], clock, 50)
    assert (why, bench.ran) == ("searched", [])


def test_every_outcome_is_recorded_before_it_is_told(records: Records) -> None:
    clock = Clock()
    bench = Bench(clock, {"a": [1.0, Failure("crash", "signal 11"), 0.5, 2.0]})
    jobs = open_jobs([(task("a"), 1.0)], InOrder(), records)
    counts = []

    def listen(event: Event) -> None:
        if isinstance(event, Tried):
            counts.append((event.state.tried, len(records.rows())))

    Session(jobs, [bench], clock.now + 9, records, report=listen, clock=clock).run()
    assert counts == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert kept(records) == {0: measured(1.0), 1: Failure("crash", "signal 11"),
                             2: measured(0.5), 3: measured(2.0)}  # fmt: skip
    rows = records.rows()
    assert {(r.origin, r.features["size"]) for r in rows} == {("here", 1.0)}
    assert [r.candidate.config["n"] for r in rows if r.is_default] == [0]


class Refusing(Records):
    """A file that somebody else has locked, for so many tries."""

    def __init__(self, path: Path, times: int) -> None:
        super().__init__(path)
        self.left, self.tries = times, 0

    def merge(self, rows: Iterable[Row]) -> int | None:
        self.tries += 1
        if self.left > 0:
            self.left -= 1
            return None
        return super().merge(rows)


def test_what_records_refuse_is_offered_again(tmp_path: Path) -> None:
    clock, records = Clock(), Refusing(tmp_path / "records.sqlite", 1)
    bench = Bench(clock, {"a": [1.0] * 20})
    _, _, events = session([(task("a", 20), 1.0)], [bench], clock, 50, records)
    assert len(kept(records)) == 20 and not warned(events)
    assert records.tries == 11, "refused once, then left alone for ten seconds"


def test_what_could_not_be_kept_is_said_once(tmp_path: Path) -> None:
    clock, records = Clock(), Refusing(tmp_path / "records.sqlite", 99)
    bench = Bench(clock, {"a": FLAT})
    _, _, events = session([(task("a"), 1.0)], [bench], clock, 50, records)
    (text,) = warned(events)
    assert "4 outcomes could not be kept" in text and str(records.path) in text
    assert isinstance(events[-1], Ended) and records.tries == 2


def test_without_a_cache_nothing_is_lost() -> None:
    clock = Clock()
    _, _, events = session([(task("a"), 1.0)], [Bench(clock, {"a": FLAT})], clock, 50)
    assert not warned(events)


def warned(events: Events) -> list[str]:
    return [e.text for e in events if isinstance(e, Warned)]


def test_a_second_session_repeats_nothing(records: Records) -> None:
    clock = Clock()
    first = Bench(clock, {"a": [1.0, Failure("wrong"), 0.5, 2.0]})
    assert session([(task("a"), 1.0)], [first], clock, 2.5, records)[0] == "budget"
    second = Bench(clock, first.times)
    why, jobs, events = session([(task("a"), 1.0)], [second], clock, 50, records)
    assert why == "searched"
    assert first.ran + second.ran == [("a", k) for k in range(4)]
    began = events[0]
    assert isinstance(began, Began) and began.state.recorded == 2
    assert began.tasks[0].default == 1.0 and jobs[0].best == 2
    third = Bench(clock, first.times)
    assert session([(task("a"), 1.0)], [third], clock, 50, records)[0] == "searched"
    assert third.ran == []


@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_with_all_outcomes_of_a_finished_search_nothing_is_left_to_do(
    jitter: float, tmp_path: Path
) -> None:
    """Whatever the times were: what makes sure of a winner may make other candidates worthwhile."""
    tried = 0
    for k, recording in enumerate(read(Path(__file__).parent / "recordings.json")):
        key = replace(recording.task.key, device="cpu")
        recording = replace(recording, task=replace(recording.task, key=key))
        records, runs = Records(tmp_path / f"{k}.sqlite"), []
        for seed in (k, -k):
            runner = ReplayRunner([recording], jitter, seed)
            jobs = open_jobs([(recording.task, 1.0)], Halving(), records)
            assert Session(jobs, [runner], 1.0, records, clock=lambda: 0.0).run() == "searched"
            runs.append((jobs[0].tried, jobs[0].best))
        assert runs[1] == (set(), runs[0][1])
        tried += len(runs[0][0])
    assert tried > 100


def test_where_all_fails_the_machine_may_be_at_fault(records: Records) -> None:
    """And the candidates are tried again."""
    clock, crash = Clock(), Failure("crash")
    bench = Bench(clock, {"a": [crash] * 6, "b": FLAT})
    _, _, events = session([(task("a", 6), 1.0)], [bench], clock, 50, records)
    assert kept(records) == {k: crash for k in range(FEW)}
    (text,) = warned(events)
    assert "3 failures are not recorded" in text
    # With something that can be measured, they are failures of their own.
    tasks = [(task("a", 6), 1.0), (task("b"), 0.1)]
    _, _, events = session(tasks, [bench], clock, 50, records)
    rows = [r for r in records.rows() if r.key.problem == "a"]
    assert len(rows) == 6 and not warned(events)


def test_a_timeout_at_the_end_of_the_budget_is_not_kept(records: Records) -> None:
    clock = Clock()
    bench = Bench(clock, {"a": [1.0, Failure("timeout"), Failure("timeout"), 1.0]})

    def linger(name: str, place: int) -> None:
        clock.now += 50.0 if place == 2 else 0.0

    bench.during = linger
    session([(task("a"), 1.0)], [bench], clock, 10, records)
    assert kept(records) == {0: measured(1.0), 1: Failure("timeout")}


def test_winners_of_near_problems_and_other_devices_are_where_a_search_begins(
    records: Records,
) -> None:
    space = task("a", size=8.0).space
    for name, device, place, outcome in (
        ("b", "cpu", 2, measured(1.0)), ("b", "cpu", 1, measured(2.0)),  # its winner is 2
        ("a", "other", 3, measured(1.0)), ("a", "other", 2, measured(1.5)),
        ("a", "other", 1, Failure("crash")),
    ):  # fmt: skip
        key = task(name, device=device).key
        records.add(key, space[place], outcome, features={"size": 8.5})
    strategy = InOrder()
    open_jobs([(task("a", size=8.0), 1.0)], strategy, records)
    assert strategy.starts == [(3, 2)]


def test_what_was_disturbed_is_measured_again(records: Records) -> None:
    clock, a = Clock(), task("a", 8)
    for k, seconds, disturbed in ((0, 1.0, False), (1, 0.9, False), (2, 0.7, True), (3, 0.5, True),
                                  (4, 0.6, True)):  # fmt: skip
        records.add(a.key, a.space[k], replace(measured(seconds), contaminated=disturbed))
    strategy = InOrder()
    bench = Bench(clock, {"a": [9.0] * 8})
    _, jobs, _ = session([(a, 1.0)], [bench], clock, 100, records, strategy)
    assert strategy.starts == [(3, 4)] and jobs[0].recorded == {0, 1}
    assert bench.ran == [("a", k) for k in range(2, 8)]
    assert kept(records)[3] == measured(9.0)


def test_a_search_that_wants_to_be_sure_is_heard_when_nothing_is_left_to_gain() -> None:
    """Its last requests bring no gain: they come after those that do, and before the end."""
    clock = Clock()
    bench = Bench(clock, {"a": FLAT, "b": FLAT})
    session([(task("a"), 0.5), (task("b"), 0.4)], [bench], clock, 100, strategy=Surer())
    assert bench.ran == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 1), ("b", 1)]


def test_at_the_end_those_in_doubt_run_again_and_nothing_new() -> None:
    clock = Clock()
    bench = Unsure(clock, {"a": [1.0, 0.96, *[2.0] * 38]})
    why, _, _ = session([(task("a", 40), 1.0)], [bench], clock, 20, strategy=InOrder(step=1))
    assert why == "budget"
    assert bench.ran[:17] == [("a", k) for k in range(17)]
    assert {k for _, k in bench.ran[17:]} == {0, 1}
    assert min(bench.rounds["a", 0], bench.rounds["a", 1]) >= 6


def test_a_heat_that_waits_while_winners_are_made_sure_of_is_run_later() -> None:
    """All that the search has asked for is run, or it would give up what it never saw run."""
    asked: dict[str, list[Request]] = {}

    class Listening(Halving):
        def search(self, task: Task, *more: Any) -> Any:
            found = super().search(task, *more)
            asks = asked.setdefault(task.label, [])
            ask = found.ask

            def listen() -> Request | None:
                request = ask()
                asks.extend(filter(None, [request]))
                return request

            found.ask = listen  # type: ignore[method-assign]
            return found

    jobs = open_jobs([(task("a", 9), 0.5), (task("b", 9), 0.4)], Listening(), Records(None))
    schedule = Schedule(jobs)

    def step(seconds: float, off: float) -> tuple[str, Request]:
        job = schedule.next()
        assert job is not None and job.pending is not None
        request, found = job.pending, Measurement(seconds, seconds - off, seconds + off, 8)
        for k in request.candidates:
            schedule.heard(job, k, found)
        schedule.finished(job, [(k, found) for k in request.candidates], 1.0)
        return job.task.label, request

    ran = [step(1.0, 0.2) for _ in range(2)]
    assert schedule.next() is not None  # somebody is at work on one task, the other one waits
    waiting = next(job for job in jobs if not job.busy)
    name, request = waiting.task.label, asked[waiting.task.label][-1]
    assert waiting.pending == request
    schedule.settle()
    label, again = step(1.0, 0.2)
    assert label == name and set(again.candidates) <= set(ran[0][1].candidates)
    schedule.explore()
    assert schedule.next() is waiting and waiting.pending == request


def test_time_that_certainty_does_not_need_goes_to_the_search() -> None:
    clock = Clock()
    bench = Bench(clock, {"a": [1.0, *[2.0] * 39]})  # the default wins, without a doubt
    why, _, _ = session([(task("a", 40), 1.0)], [bench], clock, 20, strategy=InOrder(step=1))
    assert why == "budget"
    assert bench.ran == [("a", k) for k in range(20)]


# --------------------------------------------------------------------------- being stopped


def test_asked_to_stop_it_keeps_what_it_has(records: Records) -> None:
    clock, stop = Clock(), Stop()
    bench = Bench(clock, {"a": FLAT})
    bench.during = lambda name, place: stop.set() if place == 1 else None
    why, jobs, events = session([(task("a"), 1.0)], [bench], clock, 50, records, stop=stop)
    assert why == "interrupted" and bench.closed
    assert 0 in jobs[0].outcomes and len(bench.ran) == 2
    assert isinstance(events[-1], Ended) and events[-1].why == "interrupted"
    assert set(kept(records)) == jobs[0].tried


def test_what_was_heard_before_the_wish_to_stop_counts() -> None:
    """The first outcome is told of only when two more are there and the wish to stop."""
    clock, stop, asked = Clock(), Stop(), threading.Event()
    bench = Bench(clock, {"a": FLAT})

    def wish(name: str, place: int) -> None:
        if place == 3:
            stop.set()
            asked.set()

    def listen(event: Event) -> None:
        assert not isinstance(event, Tried) or asked.wait(20)

    bench.during = wish
    jobs = open_jobs([(task("a"), 1.0)], InOrder(step=4), Records(None))
    made = Session(jobs, [bench], clock.now + 50, Records(None), report=listen, stop=stop,
                   clock=clock)  # fmt: skip
    assert made.run() == "interrupted"
    assert jobs[0].tried >= {0, 1, 2}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_and_the_second_aborts(number: int) -> None:
    before = signal.getsignal(number)
    stop = Stop()
    with pytest.raises(KeyboardInterrupt), stopped_by_signals(stop):
        os.kill(os.getpid(), number)
        assert stop.is_set()
        os.kill(os.getpid(), number)
        pytest.fail("the second signal did nothing")
    assert signal.getsignal(number) is before


def test_a_runner_that_never_comes_back_does_not_hold_the_session() -> None:
    """The clock jumps past the deadline while the runner hangs; nobody waits for it."""
    clock = Clock()
    hanging = Hanging(clock)
    why, _, events = session([(task("a"), 1.0)], [hanging], clock, 5)
    assert why == "budget" and hanging.closed
    assert any(isinstance(e, Warned) and "did not come back" in e.text for e in events)


class Hanging(Bench):
    """Says one thing and then nothing more, until it is closed."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, {"a": FLAT})
        self.gate = threading.Event()

    def run(self, task: Task, request: Request, deadline: float) -> Iterator[tuple[int, Outcome]]:
        self.clock.now = deadline + 5
        yield 0, measured(1.0)
        self.gate.wait()

    def stop(self) -> None:
        super().stop()
        self.gate.set()


def test_what_a_runner_raises_comes_out() -> None:
    class Broken(Bench):
        def run(self, task: Task, request: Any, deadline: float) -> Any:
            raise ZeroDivisionError("a bug")

    clock = Clock()
    broken = Broken(clock, {})
    with pytest.raises(ZeroDivisionError, match="a bug"):
        session([(task("a"), 1.0)], [broken], clock, 5)
    assert broken.closed


# --------------------------------------------------------------------------- several runners


def test_several_runners_share_the_tasks_and_repeat_nothing() -> None:
    clock = Clock()
    times = {name: FLAT for name in "abcdef"}
    benches = [Bench(clock, times) for _ in range(3)]
    why, jobs, _ = session([(task(n), 0.15) for n in times], benches, clock, 1000)
    assert why == "searched"
    ran = [r for b in benches for r in b.ran]
    assert len(ran) == len(set(ran)) == 24
    assert all(len(j.tried) == 4 for j in jobs)


def test_tasks_go_to_runners_of_their_device(records: Records) -> None:
    clock = Clock()
    times = {"a": FLAT, "b": FLAT}
    benches = [Bench(clock, times, device=d, origin=d) for d in ("gpu0", "gpu1")]
    weights = [(task("a", device="gpu0"), 0.5), (task("b", device="gpu1"), 0.5)]
    session(weights, benches, clock, 1000, records)
    assert [{name for name, _ in b.ran} for b in benches] == [{"a"}, {"b"}]
    assert {(r.device, r.origin) for r in records.rows()} == {
        ("gpu0", "gpu0"), ("gpu1", "gpu1")}  # fmt: skip


@pytest.mark.parametrize("lost_after", [0, 1, 5])
def test_what_a_lost_runner_had_begun_goes_to_another(records: Records, lost_after: int) -> None:
    clock = Clock()
    times = {"a": FLAT, "b": FLAT}
    benches = [Bench(clock, times, lost_after=lost_after), Bench(clock, times)]
    why, _, events = session([(task("a"), 0.5), (task("b"), 0.5)], benches, clock, 1000,
                                records, InOrder(step=2))  # fmt: skip
    assert why == "searched"
    ran = [r for b in benches for r in b.ran]
    assert sorted(ran) == [(n, k) for n in "ab" for k in range(4)]
    assert len(records.rows()) == 8
    lost = [e.text for e in events if isinstance(e, Warned)]
    assert len(lost) == (len(benches[0].ran) == lost_after), lost


def test_a_runner_that_gives_up_is_lost_too() -> None:
    class Tired(Bench):
        def run(self, task: Task, request: Request, deadline: float) -> Any:
            yield from super().run(task, request, deadline)
            raise TunerError("workers do not start")

    clock = Clock()
    why, jobs, events = session([(task("a"), 1.0)], [Tired(clock, {"a": FLAT})], clock, 50)
    assert why == "runners" and jobs[0].tried == {0}
    assert any(isinstance(e, Warned) and "do not start" in e.text for e in events)


def test_with_all_runners_lost_it_ends_with_what_it_has() -> None:
    clock = Clock()
    bench = Bench(clock, {"a": FLAT}, lost_after=2)
    why, jobs, events = session([(task("a"), 1.0)], [bench], clock, 1000, strategy=InOrder(step=4))
    assert why == "runners"
    assert jobs[0].tried == {0, 1}
    assert [e.text for e in events if isinstance(e, Warned)] == [
        "a runner is lost (pulled the plug); none is left"]  # fmt: skip


# --------------------------------------------------------------------------- what it tells


def test_speedup_and_remaining_gain_are_of_the_whole_model() -> None:
    jobs = open_jobs([(task("a"), 0.5), (task("b"), 0.3)], InOrder(), Records(None))
    schedule = Schedule(jobs)
    assert schedule.speedup == 1.0
    assert schedule.gain == pytest.approx(0.5 * 0.4 + 0.3 * 0.4)
    schedule.heard(jobs[0], 0, measured(2.0))
    schedule.heard(jobs[0], 1, measured(1.0))
    assert schedule.speedup == pytest.approx(1 / 0.75)
    schedule.heard(jobs[0], 2, measured(9.0))  # no slower than before: the best counts
    assert schedule.speedup == pytest.approx(1 / 0.75)


def test_events_are_json() -> None:
    clock = Clock()
    bench = Bench(clock, {"a": [1.0, Failure("crash", "signal 11"), 0.5, 2.0]})
    _, _, events = session([(task("a"), 1.0)], [bench], clock, 100)
    told = [as_json(e) for e in events]
    assert [e["event"] for e in told] == ["tasks", *["tried"] * 4, "ended"]
    assert [e["ok"] for e in told[1:5]] == [True, False, True, True]
    assert told[2]["outcome"] == {"kind": "crash", "detail": "signal 11"}
    assert told[4]["best"] == 0.5 and told[4]["best_candidate"] == "t(n=2)"
    assert told[-1]["state"]["speedup"] == pytest.approx(2.0)
    assert Measurement(**told[1]["outcome"]) == measured(1.0)
