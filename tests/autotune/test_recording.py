"""Recordings as files, and as a runner."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tilewright.autotune.errors import TunerError
from tilewright.autotune.outcome import Failure, Measurement
from tilewright.autotune.recording import Recording, from_json, read, to_json, write
from tilewright.autotune.replay import ReplayRunner, curve, share, within
from tilewright.autotune.runner import Request
from tilewright.autotune.task import Candidate, Key, Task

from .made import made, timed


def mixed() -> Recording:
    """Two templates, one of them without a model, a failure, and all kinds of values."""
    space = (
        Candidate("a", 2, {"n": 4, "how": "oc", "z": None}),
        Candidate("a", 2, {"n": 2, "how": "sp", "z": True}),
        Candidate("b", 1, {"m": 0.5}),
    )
    key = Key("a problem\non two lines", "here", "standard")
    task = Task(key, space, (3.0, 2.0, 1.0), {"flops": 1e9, "in.0": 64.0}, label="conv")
    failure = Failure("timeout", "it took: long")
    return Recording(task, (timed(2e-3, 0.01), failure, timed(1e-3)))


def test_a_file_gives_the_same_recordings(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    plain = made([1.0, None])
    write(file, [mixed(), plain])
    assert file.read_text().count("\n") == 4
    found, second = read(file)
    assert second == plain
    assert found.task.key == mixed().task.key and found.task.features == mixed().task.features
    assert found.task.space == mixed().task.space
    assert found.task.estimates == mixed().task.estimates
    assert found.outcomes == mixed().outcomes
    assert found.best == 1e-3 and found.seconds == {0: 2e-3, 2: 1e-3}


@pytest.mark.parametrize("change", [
    lambda d: d.pop("key"), lambda d: d["spaces"][0]["rows"][0].pop(),
    lambda d: d["spaces"][0]["rows"][1].__setitem__(-1, "magic: none"),
    lambda d: d["spaces"].append(d["spaces"][0]), lambda d: d.__setitem__("spaces", []),
    lambda d: d.__setitem__("spaces", 3),
])  # fmt: skip
def test_what_is_no_recording_is_refused(tmp_path: Path, change: object) -> None:
    data = json.loads(json.dumps(to_json(mixed())))
    assert from_json(data).outcomes == mixed().outcomes
    assert callable(change)
    change(data)
    file = tmp_path / "r.json"
    file.write_text(json.dumps([data]))
    with pytest.raises(TunerError, match="no recordings"):
        read(file)


def test_a_recording_without_times_has_no_best() -> None:
    with pytest.raises(TunerError, match="no times"):
        _ = made([None, None]).best


def test_replay_says_what_is_on_record() -> None:
    recording = mixed()
    runner = ReplayRunner([recording])
    told = list(runner.run(recording.task, Request((2, 1), 8), 0.0))
    assert told == [(2, timed(1e-3, rounds=8)), (1, Failure("timeout", "it took: long"))]
    ((_, more),) = runner.run(recording.task, Request((2,), 4), 0.0)
    assert isinstance(more, Measurement) and more.rounds == 12
    ((_, default),) = runner.run(recording.task, Request((0,), 64), 0.0)
    assert isinstance(default, Measurement) and default.seconds == 2e-3
    assert default.low == pytest.approx(1.99e-3) and default.high == pytest.approx(2.01e-3)
    assert runner.order == {recording.task.key.digest: [2, 1, 0]}
    with pytest.raises(TunerError, match="nothing is recorded"):
        list(runner.run(made([1.0], name="other").task, Request((0,), 1), 0.0))


def test_jitter_is_within_its_bounds_and_repeats() -> None:
    recording = made([1.0, 2.0])

    def run(seed: int) -> list[Measurement]:
        runner = ReplayRunner([recording], 0.1, seed)
        found = [o for _, o in runner.run(recording.task, Request((0, 1), 40), 0.0)]
        assert all(isinstance(o, Measurement) for o in found)
        return found  # type: ignore[return-value]

    one, two = run(1)
    assert 0.9 <= one.low < one.seconds < one.high <= 1.1 and one.low < 0.95 < one.high
    assert 1.8 <= two.low < two.seconds < two.high <= 2.2 and one.rounds == 40
    assert run(1) == [one, two] and run(2) != [one, two]


def test_curves_and_budgets() -> None:
    recording = made([2.0, None, 4.0, 1.0])
    assert curve(recording, [1, 2, 0, 3]) == (0.0, 0.25, 0.5, 1.0)
    assert within((0.5, 0.8), 1) == 0.5 and within((0.5, 0.8), 9) == 0.8
    assert within((), 3) == within((0.5,), 0) == 0.0
    assert [share(n, 0.15) for n in (1, 6, 7, 13, 14, 20, 27)] == [1, 1, 2, 2, 3, 3, 5]
