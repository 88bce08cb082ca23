"""The figures of the tuner: which problems are recorded, what is made of recordings."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tilewright.autotune.outcome import Measurement
from tilewright.autotune.recording import Recording, read, write
from tilewright.autotune.replay import ReplayRunner
from tilewright.autotune.task import Candidate, Key, Task
from tilewright.compiler.tuning.tuned import VERSIONS

from .scripts import script

search = script("autotune_search")
autotune = script("autotune")
report = script("report")

RECORDED = Path(__file__).parents[1] / "autotune" / "recordings.json"


def task(number: int, template: str, flops: float = 1e6, size: int = 3) -> Task:
    space = tuple(Candidate(template, 1, {"x": k}) for k in range(size))
    return Task(Key(f"p{number}", "d", "standard"), space, features={"flops": flops, "n": number},
                payload="long", label=f"{template} {number}")  # fmt: skip


def test_recorded_are_some_of_each_kind() -> None:
    kinds = ["winograd"] * 6 + ["gemm"] * 2 + ["direct_conv"] * 9
    some = [task(k, kind) for k, kind in enumerate(kinds)] + [task(99, "gemm", 1e12)]
    chosen = search.mixed(some, 9)
    counted = [t.default.template for t in chosen]
    assert (counted.count("gemm"), counted.count("winograd")) == (2, 3) and len(counted) == 9
    assert len({t.key for t in search.mixed(some, 100)}) == 17


def test_recording_goes_on_where_it_was(tmp_path: Path) -> None:
    """And writes what it has after each problem, without texts that nobody needs."""
    file = tmp_path / "r.json"
    some = [task(k, "gemm") for k in range(3)]
    times = tuple(Measurement(float(k + 1), k + 1, k + 1, 16) for k in range(3))
    runner = ReplayRunner([Recording(t, times) for t in some])
    search.record(some[:2], runner, file, 1e18)
    assert [r.task.key.problem for r in read(file)] == [t.key.digest for t in some[:2]]
    assert read(file)[0].task.payload == "" and read(file)[0].outcomes == times
    search.record(some, ReplayRunner([Recording(some[2], times)]), file, 1e18)  # no others
    assert len(read(file)) == 3
    search.record([task(7, "gemm")], runner, file, 0.0)  # no time left
    other = replace(some[0], space=some[0].space[:2])
    search.record([other], ReplayRunner([Recording(other, times[:2])]), file, 1e18)
    assert [len(r.task.space) for r in read(file)] == [3, 3, 2]


def test_the_nearest_recorded_winners_of_its_templates() -> None:
    def won(number: int, template: str, place: int) -> Recording:
        times = [Measurement(2.0 - (k == place), 1, 2, 16) for k in range(3)]
        return Recording(task(number, template), tuple(times))

    some = [won(10, "gemm", 1), won(80, "gemm", 2), won(11, "winograd", 1), won(20, "gemm", 0)]
    found = search.near(some[0], some)
    assert found == [some[3].task.space[0], some[1].task.space[2]]


def test_spaces_of_older_templates_are_not_used() -> None:
    newest = Candidate("gemm", VERSIONS["gemm"], {"x": 0})
    older = Candidate("winograd", VERSIONS["winograd"] - 1, {"x": 0})
    some = [Recording(replace(task(k, "t"), space=space), (Measurement(1, 1, 1, 16),) * len(space))
            for k, space in enumerate([(newest,), (newest, older), (older,)])]  # fmt: skip
    assert autotune.fitting(some) == some[:1]


def test_without_a_space_of_today_nothing_is_replayed(tmp_path: Path) -> None:
    write(tmp_path / "some.json", [Recording(task(1, "gone"), (Measurement(1, 1, 1, 16),) * 3)])
    args = SimpleNamespace(spaces=tmp_path / "some.json", models=[])
    with pytest.raises(SystemExit, match="--only spaces"):
        autotune.regret(autotune.Run(args, 0.0, autotune.Sheet(tmp_path / "autotune.json")))


def test_all_that_needs_no_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts make rows, the rows a diagram and a section of the page."""
    monkeypatch.setattr(autotune, "fitting", lambda recordings: recordings)
    write(tmp_path / "some.json", read(RECORDED)[::3])
    args = SimpleNamespace(spaces=tmp_path / "some.json", models=[])
    run = autotune.Run(args, 0.0, autotune.Sheet(tmp_path / "autotune.json"))
    for name in ("regret", "transfer", "jitter"):
        autotune.PARTS[name](run)
    assert "halving" in capsys.readouterr().out
    ratios = [("gemm", 1.0), ("gemm", 1.02), ("winograd", 1.3)]
    rows = [{"template": t, "ratio": r} for t, r in ratios]
    run.put("defaults", {"problems": 5, "rows": rows})
    run.put(
        "retune",
        {"tunings": 3, "rows": [{"agree": True, "apart": 0.0}, {"agree": False, "apart": 0.02}]},
    )
    rows = json.loads((tmp_path / "autotune.json").read_text())
    made = {r["name"]: r for r in rows}
    halving = made["regret"]["strategies"]["halving"]
    assert halving["share"]["15%"]["median"] >= made["regret"]["strategies"]["random"]["share"][
        "15%"]["median"]  # fmt: skip
    assert halving["curve"][-1] == [1.0, 1.0] and halving["share"]["100%"]["least"] == 1.0
    held_out = made["transfer"]["strategies"]["halving, held out"]
    assert held_out["count"]["5"]["median"] >= 0.95
    text = autotune.draw(autotune.panels(rows))
    assert len(re.findall("<polyline", text)) == 3 + 3 + 1
    ET.fromstring(text)
    page = report.autotune_section(rows)
    assert "| gemm | 2 | 1.010 | 1.020 | 1.020 | 100.0% |" in page
    assert "| all | 3 | 1.020 | 1.300 | 1.300 | 66.7% |" in page
    assert re.search(r"for \d of 5 held-out problems", page) and "15 % find" in page
    assert "for 1 of 2 problems" in page and "| halving, held out | " in page
    assert report.autotune_section(rows[:1]).count("##") == 1


def test_agreement_is_about_winners() -> None:
    made = task(1, "gemm")

    def times(*seconds: float) -> dict[Candidate, Measurement]:
        found = zip(made.space, seconds, strict=False)
        return {c: Measurement(t, t, t, 16) for c, t in found}

    same = autotune.agreement(made, [times(1.0, 1.1), times(1.02, 1.0, 1.1)])
    assert same["agree"] and same["winners"] == ["gemm(x=0)"] and same["apart"] == 0.0
    other = autotune.agreement(made, [times(1.0, 1.01), times(1.05, 1.0)])
    assert not other["agree"] and other["apart"] == pytest.approx(0.05)


def test_a_search_by_hand(tmp_path: Path) -> None:
    """Whole searches come to an end and give the ratio; those cut short do not."""
    made = task(1, "gemm")
    times = tuple(Measurement(t, t, t, 16) for t in (1.2, 1.1, 1.0))
    runner = ReplayRunner([Recording(made, times)])
    heard: list[int] = []
    outcomes, whole = autotune.searched(
        made, runner, 1e18, heard=lambda place, outcome: heard.append(place)
    )
    assert whole and set(heard) == set(outcomes) == {0, 1, 2}
    assert autotune._ratio(made, outcomes) == pytest.approx(1.2)
    _, whole = autotune.searched(made, runner, 0.0)
    assert not whole
    assert autotune._ratio(made, {1: times[1]}) is None
    with autotune.Records(tmp_path / "r.sqlite") as records:
        row = autotune._default(made, "net", records, runner, 1e18)
        assert row["ratio"] == pytest.approx(1.2) and row["best"] == "gemm(x=2)"
        assert len(records.of(made.key)) == 3
        again = autotune._default(made, "net", records, ReplayRunner([]), 1e18)  # runs nothing
        assert again["ratio"] == pytest.approx(1.2)
        assert autotune._default(task(2, "gemm"), "net", records, ReplayRunner([
            Recording(task(2, "gemm"), times)]), 0.0) is None  # fmt: skip
