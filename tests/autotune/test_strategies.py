"""What every strategy has to do, and what the search does on made-up and on recorded spaces."""

from __future__ import annotations

import math
import random
from pathlib import Path
from statistics import fmean, median

import pytest

from tilewright.autotune.choice import MARGIN
from tilewright.autotune.outcome import Failure, Measurement
from tilewright.autotune.recording import Recording, read
from tilewright.autotune.replay import ReplayRunner, share, trace, within
from tilewright.autotune.runner import Strategy
from tilewright.autotune.strategies.exhaustive import Exhaustive
from tilewright.autotune.strategies.halving import DOUBT, Halving
from tilewright.autotune.strategies.random import Shuffled
from tilewright.autotune.strategies.survey import Survey

from .made import made, timed

ALL = [Halving(), Halving(width=2, rounds=4, enough=0.0), Exhaustive(), Shuffled(3)]
RECORDED = Path(__file__).parent / "recordings.json"


def bowl(size: int = 24, seed: int = 0) -> Recording:
    """Times that the estimates say something of, and one candidate in eight fails."""
    rng = random.Random(seed)
    configs = [{"a": 2 ** (k % 4), "b": k // 4} for k in range(size)]
    estimates = [1.0 + 0.2 * abs(c["a"] - 4) + 0.1 * abs(c["b"] - 3) for c in configs]
    times = [e * math.exp(rng.gauss(0, 0.1)) for e in estimates]
    gone = {k for k in range(1, size) if rng.random() < 1 / 8}
    return made([None if k in gone else t for k, t in enumerate(times)], estimates, configs)


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    found = read(RECORDED)
    assert len(found) >= 10
    return found


# --------------------------------------------------------------------------- every strategy


@pytest.mark.parametrize("strategy", ALL, ids=lambda s: s.name)
def test_it_begins_with_the_default_and_ends(strategy: Strategy) -> None:
    recording = bowl()
    task, runner = recording.task, ReplayRunner([recording])
    search = strategy.search(task, (), (7, 3))
    assert 0.0 < search.remaining_gain() < 1.0
    first = search.ask()
    assert first is not None and first.candidates[0] == 0 and first.rounds > 0
    failed: set[int] = set()
    requests, request = 0, first
    while request is not None:
        assert len(set(request.candidates)) == len(request.candidates) and request.rounds > 0
        assert not failed.intersection(request.candidates)
        told = list(runner.run(task, request, math.inf))
        failed |= {k for k, o in told if isinstance(o, Failure)}
        search.tell(told)
        assert 0.0 <= search.remaining_gain() < 1.0
        request = search.ask()
        requests += 1
        assert requests < 100
    assert search.ask() is None
    (order,) = runner.order.values()
    assert set(order[:4]) >= {7, 3}
    tried = {k: recording.outcomes[k] for k in order}
    best = min(o.seconds for o in tried.values() if isinstance(o, Measurement))
    assert best <= recording.best * 1.03


def test_what_it_learns_beside_is_not_the_answer_to_its_request() -> None:
    recording = bowl()
    told, learning = (Halving().search(recording.task, (), ()) for _ in range(2))
    assert told.ask() == learning.ask()
    default = [(0, recording.outcomes[0])]
    told.tell(default)  # the rest of the heat is given up
    learning.learn(default)
    assert learning.remaining_gain() > told.remaining_gain()


@pytest.mark.parametrize("strategy", ALL, ids=lambda s: s.name)
def test_what_is_known_is_not_asked_for(strategy: Strategy) -> None:
    recording = bowl()
    known = [(k, o) for k, o in enumerate(recording.outcomes) if k != 5]
    search = strategy.search(recording.task, known, (3,))
    asked = set()
    while (request := search.ask()) is not None:
        asked.update(request.candidates)
        search.tell([(k, recording.outcomes[k]) for k in request.candidates])
    fastest = min((o.seconds, k) for k, o in known if isinstance(o, Measurement))[1]
    assert asked <= {5, fastest}  # beside whom a new one runs
    assert search.remaining_gain() == 0.0
    everything = list(enumerate(recording.outcomes))
    assert strategy.search(recording.task, everything, ()).ask() is None


@pytest.mark.parametrize("strategy", ALL, ids=lambda s: s.name)
def test_one_candidate_is_nothing_to_search(strategy: Strategy) -> None:
    search = strategy.search(made([1.0]).task, (), ())
    assert search.remaining_gain() == 0.0
    request = search.ask()
    if request is not None:
        search.tell([(0, timed(1.0))])
    assert search.ask() is None


@pytest.mark.parametrize("strategy", ALL, ids=lambda s: s.name)
def test_it_ends_where_everything_fails_or_no_time_is_left(strategy: Strategy) -> None:
    recording = made([None] * 9)
    for answer in (recording.outcomes[0], None):
        search = strategy.search(recording.task, (), (4,))
        for _ in range(20):
            request = search.ask()
            if request is None:
                break
            search.tell([(k, answer) for k in request.candidates if answer is not None])
        assert search.ask() is None


@pytest.mark.parametrize("strategy", ALL, ids=lambda s: s.name)
def test_who_failed_once_has_failed(strategy: Strategy) -> None:
    """Even if its time comes later: it is wrong once in a while."""
    recording = made([1.0, 0.1, 0.9], (1.0, 1.0, 1.0))
    search = strategy.search(recording.task, [(1, timed(0.1)), (1, Failure("wrong"))], ())
    search.tell([(1, timed(0.1))])
    while (request := search.ask()) is not None:
        assert 1 not in request.candidates
        search.tell([(k, recording.outcomes[k]) for k in request.candidates])


def test_random_order_is_that_of_the_seed() -> None:
    recording = bowl()
    one, two, other = (trace(recording, Shuffled(seed)).order for seed in (1, 1, 2))
    assert one == two != other and sorted(one) == list(range(24))
    assert trace(recording, Exhaustive()).order == tuple(recording.task.ranked())


# --------------------------------------------------------------------------- halving


def test_the_better_half_runs_twice_as_often() -> None:
    recording = made([1.0, 1.2, 0.8, 1.1], (1, 2, 3, 4))
    search = Halving(rounds=8).search(recording.task, (), ())
    first = search.ask()
    assert first is not None and sorted(first.candidates) == [0, 1, 2, 3] and first.rounds == 8
    search.tell([(k, timed(recording.seconds[k], rounds=8)) for k in first.candidates])
    second = search.ask()
    assert second is not None and second.candidates == (2, 0) and second.rounds == 8


def test_those_in_doubt_run_until_the_winner_is_certain() -> None:
    """The default is about as slow as the margin allows."""
    recording = made([1.03, 1.0])
    search = Halving(rounds=8, most=64).search(recording.task, (), ())
    rounds = dict.fromkeys((0, 1), 0)
    while (request := search.ask()) is not None:
        assert search.remaining_gain() >= (DOUBT if rounds[0] else 0.0)
        for k in request.candidates:
            rounds[k] += request.rounds
        off = 0.1 / math.sqrt(rounds[0])
        search.tell([(k, timed(recording.seconds[k], off, rounds[k])) for k in (0, 1)])
    assert rounds == {0: 64, 1: 64}
    search = Halving(rounds=8).search(recording.task, (), ())
    while (request := search.ask()) is not None:
        rounds[0] = request.rounds
        search.tell([(k, timed(recording.seconds[k] + k / 10, 0.02, 8)) for k in (0, 1)])
    assert rounds[0] == 8  # the default is the fastest for sure


def test_the_winner_does_not_depend_on_the_way() -> None:
    """x=1 ties with the fastest and comes first in order, but promises no gain: it runs in the end,
    and x=0 does not, which is not believed to tie; nor x=9, which comes behind."""
    configs = [{"x": k} for k in (5, 0, 1, 9, 7)]
    times = [1.2, 1.1, 1.01, 1.0, 1.0]
    task = made(times, times, configs).task
    for known in ([0, 4], [0, 3, 4]):
        seen = [(k, timed(times[k])) for k in known]
        search = Halving(enough=1.0).search(task, seen, ())
        asked: set[int] = set()
        while (request := search.ask()) is not None:
            asked.update(request.candidates)
            search.tell([(k, timed(times[k])) for k in request.candidates])
        assert {2} == asked - set(known)


def test_who_lost_in_few_samples_gets_more() -> None:
    """Once, if it would win with a tie: x=0, which looked 10 % slower, and not x=9; nor x=1, whose
    samples are many, nor x=2, which is much slower."""
    configs = [{"x": k} for k in (5, 0, 1, 2, 7, 9)]
    times = [1.3, 1.1, 1.1, 1.5, 1.0, 1.1]
    rounds = [32, 8, 32, 8, 32, 8]
    task = made(times, times, configs).task
    seen = [(k, timed(t, rounds=n)) for k, (t, n) in enumerate(zip(times, rounds, strict=True))]
    search = Halving().search(task, seen, ())
    request = search.ask()
    assert request is not None and request.candidates == (4, 1) and request.rounds >= 8
    search.tell([(4, timed(1.0, rounds=64)), (1, timed(1.1, rounds=8))])  # no time for the second
    assert search.ask() is None
    search = Halving().search(task, seen, ())
    assert search.ask() == request
    search.tell([(4, timed(1.0, rounds=64)), (1, timed(1.0, rounds=24))])
    assert search.ask() is None
    assert task.space[search._winner] == task.space[1]


def test_what_is_promising_is_like_what_is_fast() -> None:
    """The estimates like a=0 best, but one of those is slower than one of the others."""
    configs = [{"a": a, "b": b, "c": c} for a in (0, 1) for b in "xy" for c in "uv"]
    estimates = [1.0, 1.01, 1.02, 1.03, 1.1, 1.11, 1.12, 1.13]
    task = made([1.0] * 8, estimates, configs).task
    assert set(Survey(task, [(0, timed(1.0)), (4, timed(1.1))]).promising(3)) & {1, 2, 3}
    survey = Survey(task, [(0, timed(1.3)), (4, timed(1.0))])
    assert set(survey.promising(3)) == {5, 6, 7}
    survey.give_up([6])
    assert len(survey.promising(9)) == 5 and 6 not in survey.promising(9)


def test_little_is_expected_where_the_estimates_are_right() -> None:
    estimates = [1.0 + 0.02 * k for k in range(20)]
    right, wrong = [Survey(made([1.0] * 20, estimates).task, [
        (k, timed(estimates[k] * (1 + off * (k % 2)))) for k in range(0, 20, 3)
    ]) for off in (0.0, 0.2)]  # fmt: skip
    assert 0 < right.gain < 0.01 < wrong.gain < 0.2


def test_expected_gain_is_about_what_comes(recordings: list[Recording]) -> None:
    """Within a factor of about two on average, over all states of all searches."""
    said, came = [], []
    for r in recordings:
        t = trace(r, Halving(enough=0.0), gains=True)
        assert t.gains[0][1] < 0.5
        for n, gain in t.gains[1:]:
            if gain > DOUBT:
                said.append(gain)
                came.append(1 - t.curve[n - 1])
    assert 0.3 < fmean(came) / fmean(said) < 1.5


# --------------------------------------------------------------------------- recorded spaces


def test_the_search_reaches_nearly_the_best_soon(recordings: list[Recording]) -> None:
    """And sooner than chance does, where a part of the space is more than the default."""

    def reached(strategy: Strategy) -> tuple[list[float], list[float]]:
        curves = [(len(r.task.space), trace(r, strategy).curve) for r in recordings]
        return ([within(c, share(n, 0.15)) for n, c in curves], [within(c, 5) for _, c in curves])

    part, five = reached(Halving())
    assert median(part) >= 0.97
    assert median(five) >= 0.99 and min(five) >= 0.92
    assert fmean(five) > fmean(fmean(reached(Shuffled(s))[1]) for s in range(3))


def test_jitter_makes_no_wrong_winner(recordings: list[Recording]) -> None:
    """Samples off by up to 10 %: nobody wins who is slower than the fastest that ran by more than
    the margin (and what the last samples left in doubt)."""
    for seed, r in enumerate(recordings):
        t = trace(r, Halving(), jitter=0.1, seed=seed)
        fastest = min(r.seconds[k] for k in t.order)
        won = r.seconds[r.task.places[t.winner]]
        assert won <= fastest * (1 + MARGIN + 0.01)


def test_tuning_again_gives_the_same(recordings: list[Recording]) -> None:
    """Three times, with 1 % of jitter, but where a candidate is just as slow as the margin says."""
    same = 0
    for r in recordings:
        won = {trace(r, Halving(), jitter=0.01, seed=seed).winner for seed in range(3)}
        same += len(won) == 1
    assert same >= 0.9 * len(recordings)
