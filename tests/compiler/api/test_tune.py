"""`tw.tune` and `tw.compile(tune=...)` from end to end, with real worker processes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.autotune.events import Event, Tried, as_json
from tilewright.autotune.outcome import Failure, Measurement, Outcome
from tilewright.autotune.records import Records
from tilewright.autotune.strategies.halving import Halving
from tilewright.compiler.errors import OptionError, RecordsError
from tilewright.compiler.options import parse_seconds

from .tunable import network, product

HERE = Path(__file__).parent


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own: nothing is known in the beginning."""
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(1.5, 1.5), (2, 2.0), ("60s", 60.0), ("10m", 600.0), ("1.5 h", 5400.0), ("250ms", 0.25),
     ("90", 90.0), (" 2min ", 120.0)],
)  # fmt: skip
def test_lengths_of_time(text: float | str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "-3s", "3 days", 0, -1, True, None, math.inf, math.nan])
def test_what_is_no_length_of_time(text: Any) -> None:
    with pytest.raises(OptionError, match="not a length of time"):
        parse_seconds(text)


def test_tuning_ends_early_and_again_measures_nothing(cache: Path) -> None:
    events: list[Event] = []
    report = tw.tune(product(), budget="60s", threads=1, progress=events.append)
    assert report.ended == "searched" and not report.interrupted
    assert report.seconds < 60 and report.failed == 0 and report.warnings == ()
    (task,) = report.tasks
    assert 0 < task.tried == task.seen <= task.candidates and task.weight == pytest.approx(1.0)
    assert task.default_seconds and task.chosen_seconds
    assert task.verdict in ("tuned", "default", "tie")
    assert (report.comparison is not None) == (task.verdict == "tuned")
    stations = [e.station for e in events if e.kind == "station"]
    assert stations[:4] == ["compile", "profile", "search", "build"]
    assert json.loads(json.dumps([as_json(e) for e in events]))

    found = recorded(cache).values()
    disturbed = sum(map(is_disturbed, found))  # these are measured again
    again = tw.tune(product(), budget="60s", threads=1, progress=events.append)
    assert again.recorded == report.tried - disturbed
    if not disturbed and all(o.rounds % Halving().rounds == 0 for o in found):
        # No sample was disturbed: who lacks some may get more of them.
        assert again.tried == 0 and again.tasks[0].chosen == task.chosen
    task = again.tasks[0]
    assert "nothing was left to gain" in str(again) and task.label in str(again)
    data = json.loads(json.dumps(again.as_json()))
    assert data["recorded"] == again.recorded and data["tasks"][0]["label"] == task.label

    # A compilation uses what was found, and computes the same.
    exe, plain = tw.compile(product(), threads=1), tw.compile(product(), threads=1, tune=False)
    x = np.random.default_rng(1).standard_normal((64, 256), dtype=np.float32)
    np.testing.assert_allclose(exe(x), plain(x), rtol=1e-4, atol=1e-4)
    assert chosen(exe) == [fields(task.chosen)] and chosen(plain) == [fields(task.default)]


Fields = tuple[str, frozenset[str]]


def chosen(exe: Any) -> list[Fields]:
    return [(k.template, frozenset(f"{n}={v}" for n, v in k.config.items())) for k in exe.kernels]


def fields(candidate: str) -> Fields:
    template, _, rest = candidate.rstrip(")").partition("(")
    return template, frozenset(rest.split())


def test_records_may_lie_elsewhere_and_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    file = tmp_path / "mine.sqlite"
    report = tw.tune(product(8), budget="60s", threads=1, records=file)
    assert len(Records(file).rows()) == report.tried > 0 == report.failed
    exe = tw.compile(product(8), tune="1s", threads=1)
    assert exe(np.ones((8, 256), np.float32)).shape == (8, 96)


def test_a_file_that_holds_something_else_is_refused_before_anything_is_spent(
    cache: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.onnx"
    file.write_text("a model " * 999)
    events: list[Event] = []
    with pytest.raises(RecordsError, match="left alone"):
        tw.tune(product(8), budget="60s", threads=1, records=file, progress=events.append)
    assert events == [] and list(tmp_path.glob("*onnx*")) == [file]
    assert file.read_text() == "a model " * 999


def test_compile_tunes_first(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_DUMP", str(tmp_path / "dump"))
    said: list[tuple[str, int, int]] = []
    exe = tw.compile(product(16), threads=1, tune="30s", progress=lambda *a: said.append(a))
    assert {s for s, *_ in said} >= {"tune: compile", "tune: search", "tune: build"}
    assert all(0 <= done <= total == 30 for _, done, total in said)
    assert Records(cache / "records.sqlite").rows()
    used = sorted((tmp_path / "dump").iterdir())[-1]  # of the program that came out of it
    assert (used / "00_import.txt").exists()
    assert next(used.glob("*_memory.txt")).read_text() == exe.ir("memory")
    x = np.random.default_rng(1).standard_normal((16, 256), dtype=np.float32)
    np.testing.assert_allclose(exe(x), tw.compile(product(16), tune=False)(x), rtol=1e-4, atol=1e-4)
    assert chosen(exe) == chosen(tw.compile(product(16), threads=1))


def test_what_cannot_be_tuned_is_said(cache: Path) -> None:
    for wrong in ({"budget": "soon"}, {"threads": 0}, {"numerics": "loose"}, {"shapes": 3}):
        with pytest.raises(OptionError):
            tw.tune(product(), **{"budget": "1s", **wrong})
    with pytest.raises(OptionError, match="are measured on a device: target='cuda'"):
        tw.tune(product(), target="cuda:sm_90")
    with pytest.raises(OptionError, match="not a length of time"):
        tw.compile(product(), tune="soon")
    with pytest.raises(tw.TilewrightError):
        tw.tune("no-such-model.onnx")


# --------------------------------------------------------------------------- faults


def test_all_that_is_wrong_with_candidates_is_survived(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "TILEWRIGHT_FAULT", "segv@1,wrong@2,exit@3,nan@4,garbage@5,abort@6,wrong50@7"
    )
    events: list[Event] = []
    report = tw.tune(product(), budget="60s", threads=1, progress=events.append)
    assert report.ended == "searched" and report.failed > 0
    found = [e.outcome for e in events if isinstance(e, Tried)]
    kinds = {o.kind for o in found if isinstance(o, Failure)}
    assert kinds <= {"crash", "wrong"} and kinds
    assert "TILEWRIGHT_FAULT is set: nothing is recorded" in report.warnings
    # A fault that is on record stays there for good: these are none of the candidates' own.
    assert recorded(cache) == {}


def test_if_everything_fails_the_default_serves_with_a_warning(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_FAULT", "wrong@100%")
    report = tw.tune(product(), budget="60s", threads=1)
    (task,) = report.tasks
    assert task.verdict == "failed" and task.chosen == task.default and task.failed == task.tried
    assert "nothing is recorded" in report.warnings[0]
    (warning,) = report.warnings[1:]
    assert "every candidate that was run failed; the default kernel serves" in warning
    assert "warning: " in str(report)
    assert chosen(tw.compile(product(), threads=1)) == [fields(task.default)]


def test_where_no_worker_starts_the_error_says_so(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewright.compiler.tuning.local.WORKER", ("/bin/false",))
    with pytest.raises(OptionError, match=r"no candidate could be run: .*workers do not start"):
        tw.tune(product(8), budget="30s", threads=1)


# --------------------------------------------------------------------------- being cut off

TUNE = """
import json, sys
import tilewright as tw
from tilewright.autotune.events import as_json
sys.path.insert(0, {here!r})
from tunable import network
tell = lambda e: print(json.dumps(as_json(e)), flush=True)
report = tw.tune(network(), budget="60s", threads=1, progress=tell)
print(json.dumps({{"event": "report"}} | report.as_json()), flush=True)
"""


def run_until(
    done: Callable[[list[dict[str, Any]]], bool], send: int
) -> tuple[list[dict[str, Any]], int]:
    """Tune in a new process, send it a signal when its events fulfil `done`; all events, and its
    exit status."""
    command = [sys.executable, "-c", TUNE.format(here=str(HERE))]
    events: list[dict[str, Any]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        sent = False
        for line in process.stdout:
            events.append(json.loads(line))
            if not sent and done(events):
                process.send_signal(send)
                sent = True
    return events, process.returncode


def tried(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(e["label"], e["candidate"]) for e in events if e["event"] == "tried"]


def test_killed_in_the_middle_it_goes_on_where_it_was(cache: Path) -> None:
    events, status = run_until(lambda e: len(tried(e)) == 6, signal.SIGKILL)
    assert status == -signal.SIGKILL and events[-1]["event"] == "tried"
    before = recorded(cache)
    assert set(before) >= {fields(c) for _, c in tried(events)}

    more: list[Event] = []
    report = tw.tune(network(), budget="4s", threads=1, progress=more.append)
    assert report.recorded == sum(not is_disturbed(o) for o in before.values())
    for event in more:  # nothing is run anew, but for more samples beside others
        if isinstance(event, Tried) and fields(event.candidate) in before:
            assert not isinstance(before[fields(event.candidate)], Failure)
    assert set(recorded(cache)) >= set(before)
    wait_for_workers_to_leave(cache)


def recorded(cache: Path) -> dict[Fields, Any]:
    rows = Records(cache / "records.sqlite").rows()
    return {fields(str(r.candidate)): r.outcome for r in rows}


def is_disturbed(outcome: Outcome) -> bool:
    return isinstance(outcome, Measurement) and outcome.contaminated


def test_a_signal_ends_the_search_with_the_best_so_far(cache: Path) -> None:
    events, status = run_until(lambda e: len(tried(e)) == 4, signal.SIGTERM)
    assert status == 0
    report = events[-1]
    assert report["event"] == "report" and report["ended"] == "interrupted"
    assert report["tried"] >= 1 and len(report["tasks"]) == 3
    assert report["seconds"] < 55
    assert len(Records(cache / "records.sqlite").rows()) == report["tried"]
    wait_for_workers_to_leave(cache)


def wait_for_workers_to_leave(cache: Path) -> None:
    """No process that has this test's cache in its environment runs our worker any more."""
    until = time.monotonic() + 20
    while (left := workers_of(cache)) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []


def workers_of(cache: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            about = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if b"tuning/start.py" in about[0] and os.fsencode(cache) in about[1]:
            found.append(int(entry.name))
    return found


# --------------------------------------------------------------------------- budgets


@pytest.mark.slow
@pytest.mark.parametrize("budget", [2.0, 5.0])
def test_a_budget_is_kept(cache: Path, budget: float) -> None:
    start = time.monotonic()
    report = tw.tune(network(), budget=budget, threads=1)
    assert time.monotonic() - start < budget + max(2.0, 0.05 * budget)
    assert report.ended in ("budget", "searched")


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    ["hang", "segv", "abort", "exit", "memory", "wrong", "wrong50", "nan", "garbage", "hang-build",
     "segv-build"],
)  # fmt: skip
def test_every_fault_ends_with_a_report(
    cache: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("TILEWRIGHT_FAULT", f"{fault}@30%")
    report = tw.tune(product(), budget="60s", threads=1)
    assert report.ended in ("budget", "searched") and report.tried > 0
    assert fault == "garbage" or report.failed > 0
    assert report.tasks[0].verdict in ("tuned", "tie", "default")
