"""What records answer: rows by key, the nearest problems, other devices; and what is pruned."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tilewright.autotune import records as module
from tilewright.autotune.distance import distance
from tilewright.autotune.errors import TunerError
from tilewright.autotune.outcome import Failure
from tilewright.autotune.records import Records

from .rows import KEY, candidate, key, row, time


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.sqlite"


def test_rows_of_other_versions_are_kept_but_not_current(path: Path) -> None:
    records = Records(path)
    old, new = candidate(1, version=1), candidate(1, version=2)
    records.add(KEY, old, time(1))
    records.add(KEY, new, time(2))
    records.add(KEY, candidate(1, "gone"), time(3))
    now = {"conv": 2}
    assert [r.candidate for r in records.of(KEY, now)] == [new]
    assert [r.candidate for r in records.of_many([KEY], now, 1.1)[KEY.digest]] == [new]
    assert records.of(KEY, {}) == [] and len(records.of(KEY)) == 3
    other = key("other")
    assert [r.candidate for r in records.near(other, {}, 9, now)] == []  # no features
    assert records.elsewhere(key(KEY.problem, "else"), now)[0].candidate == new


def test_many_keys_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 3)
    records = Records(path)
    keys = [key(f"problem {k}") for k in range(8)]
    for k, each in enumerate(keys[:7]):
        for tile in range(4):
            records.add(each, candidate(tile), time(100 + k + 10 * tile), is_default=tile == 3)
        records.add(each, candidate(9), Failure("build"))
    found = records.of_many(keys)
    assert [len(found[k.digest]) for k in keys] == [5] * 7 + [0]
    assert all(r.key == k for k in keys for r in found[k.digest])
    close = records.of_many(keys, {"conv": 1}, within=1.15)
    tiles = [[r.candidate.config["tile"] for r in close[k.digest]] for k in keys]
    assert tiles == [[0, 1, 3]] * 7 + [[]]  # two within 15 percent, and the default


def test_keys_differ_in_every_part(path: Path) -> None:
    records = Records(path)
    keys = [KEY, replace(KEY, problem="p"), replace(KEY, device="d"), replace(KEY, numerics="n")]
    for k, each in enumerate(keys):
        records.add(each, candidate(1), time(1 + k))
    assert [[r.seconds for r in records.of(k)] for k in keys] == [[1.0], [2.0], [3.0], [4.0]]


def test_the_nearest_problems(path: Path) -> None:
    records = Records(path)
    for size in (8, 16, 32, 64, 128):
        for tile in (1, 2):
            records.add(key(f"conv {size}"), candidate(tile), time(size * 3 / tile),
                        features={"channels": size, "taps": 9})  # fmt: skip
    records.add(key("gemm"), candidate(1), time(0.1), features={"channels": 32, "m": 9})
    records.add(key("bare"), candidate(1), time(0.1))
    records.add(key("far", "else"), candidate(1), time(0.1), features={"channels": 30, "taps": 9})
    records.add(key("bits", numerics="reproducible"), candidate(1), time(0.1),
                features={"channels": 30, "taps": 9})  # fmt: skip
    records.add(key("broken"), candidate(1), Failure("build"), features={"channels": 30, "taps": 9})
    features = {"channels": 30, "taps": 9}
    found = records.near(key("conv 30"), features, 3)
    assert [r.key.problem for r in found] == ["conv 32", "conv 16", "conv 64"]
    assert all(r.candidate == candidate(2) for r in found), "the fastest of each"
    everything = records.near(key("conv 32"), features, 99)
    assert [r.key.problem for r in everything] == [
        "conv 16", "conv 64", "conv 8", "conv 128", "gemm"
    ]  # fmt: skip
    assert records.near(key("conv 30"), features, 3, {"gemm": 1}) == []


def test_distance_is_of_ratios() -> None:
    near, far = distance({"k": 8.0}, {"k": 16.0}), distance({"k": 64.0}, {"k": 256.0})
    assert near == distance({"k": 16.0}, {"k": 8.0}) == (0, pytest.approx(math.log(2)))
    assert far == (0, pytest.approx(math.log(4)))
    assert distance({"k": 1.0, "z": 0.0}, {"k": 1.0, "z": 0.0}) == (0, 0.0)
    assert distance({"k": 1.0, "a": 2.0}, {"k": 1.0, "b": 2.0}) == (2, 0.0)
    assert distance({"k": 1.0}, {"m": 1.0}) is None


def test_other_devices(path: Path) -> None:
    records = Records(path)
    for device in ("this", "b", "a"):
        records.add(key("p", device), candidate(1), time(1))
        records.add(key("q", device), candidate(1), time(1))
        records.add(key("p", device, "reproducible"), candidate(1), time(1))
    found = records.elsewhere(key("p", "this"))
    assert [r.key for r in found] == [key("p", "a"), key("p", "b")]


def test_listing_by_digest(path: Path) -> None:
    records = Records(path)
    for problem in ("p", "q"):
        records.add(key(problem), candidate(1), time(1))
    for digest in (key("p").digest, key("p").digest[:7]):
        assert [r.key for r in records.rows(digest)] == [key("p")]
    assert records.rows("%") == [] and len(records.rows()) == 2


def test_pruning(path: Path) -> None:
    records = Records(path)
    days = [f"2026-01-0{k}T00:00:00Z" for k in range(1, 5)]
    kept = [
        row(key("p", "a"), candidate(1), time(1), date=days[0]),
        row(key("p", "b"), candidate(1, version=2), time(1), date=days[1]),
        row(key("p", "b"), candidate(2, version=2), Failure("wrong"), date=days[2]),
        row(key("p", "b"), candidate(3, "gone"), time(1), date=days[3]),
    ]
    records.merge(kept)
    for dry in (True, False):
        assert records.prune(before=days[0], dry=dry) == 0
        assert records.prune(outdated={"conv": 2}, devices=["a"], dry=dry) == 1
    assert records.rows() == kept[1:]
    assert [r.key.device for r in records.rows(kept[0].key.digest)] == []
    assert records.prune(failures=True, before=days[2]) == 0
    assert records.prune(failures=True, before=days[3]) == 1
    assert records.prune(outdated={"conv": 2}) == 1 and records.rows() == [kept[1]]
    assert records.prune(devices=[]) == 0 and records.prune(outdated={}) == 1
    assert records.rows() == []
    with pytest.raises(TunerError, match="nothing says which"):
        records.prune()
