"""Reports of tuning: verdicts, comparisons of programs, what is printed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tilewright.compiler.api.report import (
    Comparison,
    TaskReport,
    TuningReport,
    compare,
    verdict_of,
    warnings_of,
)


def task(label: str, verdict: str, **more: object) -> TaskReport:
    given = {"launches": 2, "weight": 0.5, "candidates": 24, "tried": 5, "failed": 1, "recorded": 3,
             "seen": 8, "default": "t(n=0)", "chosen": "t(n=1)", "default_seconds": 2e-3,
             "chosen_seconds": 1e-3, "in_model": 1.8} | more  # fmt: skip
    return TaskReport(label, verdict=verdict, **given)  # type: ignore[arg-type]


TUNED = task("conv", "tuned")
FAILED = task("pool\x1b", "failed", chosen="t(n=0)", chosen_seconds=None, weight=0.2, in_model=None)


def report(whole: Comparison | None, ended: str = "budget") -> TuningReport:
    return TuningReport("a CPU", "standard", 1, 60.0, 59.5, ended, (FAILED, TUNED), whole, ("oh",))


def test_a_report_prints_the_heaviest_task_first_and_everything_once() -> None:
    lines = str(report(Comparison(4e-3, 3e-3, 1.31, 0.02, 40))).splitlines()
    assert [line.split()[-2:] for line in lines[1:3]] == [
        ["conv", "t(n=1)"],
        ["failed", "pool\\x1b"],
    ]
    assert lines[1].split()[:10] == ["50.0%", "2", "2.00", "ms", "1.00", "ms", "2.00x", "1.80x",
                                     "8/24", "1"]  # fmt: skip
    assert "1 of 2 tasks tuned, 10 candidates run (2 failed), 6 known before, in 59.5 s" in lines[4]
    assert lines[-2:] == ["model 4.00 ms -> 3.00 ms: 1.310x +-2.0%, 40 rounds alternating",
                          "warning: oh"]  # fmt: skip
    assert "model: not compared" in str(report(None))
    assert "the kernels are the default ones" in str(replace(report(None), tasks=(FAILED,)))
    assert (
        "best so far" in str(report(None, "interrupted"))
        and report(None, "interrupted").interrupted
    )


def test_a_report_is_json() -> None:
    data = json.loads(json.dumps(report(Comparison(4e-3, 3e-3, 1.31, 0.02, 40)).as_json()))
    assert data["speedup"] == 1.31 and data["tried"] == 10 and data["failed"] == 2
    assert data["comparison"]["rounds"] == 40 and data["tasks"][1]["in_model"] == 1.8
    assert report(None).speedup == 1.0 and FAILED.speedup == 1.0 and TUNED.speedup == 2.0


@pytest.mark.parametrize(
    ("chosen", "best", "measured", "failed", "verdict"),
    [(False, False, 3, 1, "tuned"), (True, False, 3, 1, "tie"), (True, True, 3, 1, "default"),
     (True, False, 0, 3, "failed"), (True, False, 0, 0, "untried")],
)  # fmt: skip
def test_verdicts(chosen: bool, best: bool, measured: int, failed: int, verdict: str) -> None:
    found = verdict_of(chosen_is_default=chosen, best_is_default=best, measured=measured,
                       failed=failed)  # fmt: skip
    assert found == verdict


def test_programs_are_compared_in_turn_and_in_changing_order() -> None:
    now, order = 0.0, []

    def program(name: str, seconds: float) -> None:
        nonlocal now
        now += seconds
        order.append(name)

    whole = compare(lambda: program("a", 3.0), lambda: program("b", 2.0), 14.0, lambda: now)
    assert order == ["a", "b", *"ab", *"ba", *"ab"]  # warm, then three rounds in 15 seconds
    assert (whole.default_seconds, whole.tuned_seconds, whole.speedup) == (3.0, 2.0, 1.5)
    assert (whole.spread, whole.rounds) == (0.0, 3)


def test_short_programs_are_called_as_often_as_takes_a_millisecond() -> None:
    now, calls = 0.0, 0

    def program(seconds: float) -> None:
        nonlocal now, calls
        now += seconds
        calls += 1

    whole = compare(lambda: program(2e-4), lambda: program(0.9e-4), 0.0, lambda: now)
    assert whole.rounds == 3 and calls == 2 + 2 * 3 * 11
    assert whole.default_seconds == pytest.approx(2e-4)


def test_what_a_user_is_warned_of() -> None:
    slower = Comparison(3e-3, 4e-3, 0.75, 0.1, 40)
    first, second = warnings_of((TUNED, FAILED), slower)
    assert "every candidate that was run failed" in first and "1.333x slower" in second
    assert warnings_of((TUNED,), Comparison(3e-3, 3.1e-3, 0.97, 0.1, 40)) == []
    assert warnings_of((TUNED,), None) == []
