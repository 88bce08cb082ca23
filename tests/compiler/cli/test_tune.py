"""`tilewright tune`: what it prints while it runs and in the end."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live

from tilewright.autotune.events import Began, Ended, Listed, Reached, State, Tried, Warned
from tilewright.autotune.outcome import Failure, Measurement, Outcome
from tilewright.autotune.records import Records
from tilewright.autotune.runner import Request
from tilewright.autotune.task import Task
from tilewright.compiler.api import crew
from tilewright.compiler.cli import main
from tilewright.compiler.cli.live import Drawing, Lines
from tilewright.compiler.codegen.cpu.target import host
from tilewright.compiler.tuning.fingerprint import fingerprint

from .models import write_open, write_static

STATE = State(elapsed=12.0, left=48.0, tried=7, failed=1, recorded=3, speedup=1.08,
              remaining_gain=0.031)  # fmt: skip


def tried(task: int, candidate: str, best: str, seconds: float, outcome: Any = None) -> Tried:
    outcome = outcome or Measurement(seconds, seconds, seconds, 9)
    return Tried(task, f"conv \x1b {task}", candidate, outcome, 2e-3, seconds, best, 5, 0.07, STATE)


EVENTS = [
    Reached("search", 1.0),
    Began((Listed("conv \x1b 0", 0.6, 24, 3, 2e-3, 2e-3), Listed("conv \x1b 1", 0.3, 8, 0, None,
                                                                 None)), STATE),
    tried(0, "t(n=0)", "t(n=0)", 2e-3),
    tried(0, "t(n=1)", "t(n=1)", 1e-3),
    tried(0, "t(n=1)", "t(n=1)", 1e-3),
    tried(1, "t(n=2)", "t(n=3)", 1.9e-3, Failure("crash", "signal 11")),
    Warned("a runner is lost"),
    Ended("budget", STATE),
]  # fmt: skip


def test_lines_tell_of_stations_improvements_and_failures() -> None:
    said: list[str] = []
    hear = Lines(said.append).hear
    for event in EVENTS:
        hear(event)
    text = "\n".join(said)
    assert said[0].split() == ["1.0", "s", "search"]
    assert "2 tasks, 32 candidates, 3 known, 90% of the run time" in said[1]
    assert [line for line in said if "2.00x" in line] == [
        "   12.0 s  conv \\x1b 0: 2.00x t(n=1); model 1.080x, 3.1% more expected"]  # fmt: skip
    assert "t(n=2) failed: crash (signal 11)" in text
    assert "warning: a runner is lost" in text and "\x1b" not in text
    assert len(said) == 6  # the default is no improvement, and neither is the same once more


def test_the_drawing_shows_best_gain_and_what_is_left() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, color_system=None)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        drawing = Drawing("net.onnx", live)
        for event in EVENTS:
            drawing.hear(event)
        shown = Console(file=io.StringIO(), width=140, color_system=None)
        shown.print(drawing.drawn())
    text = shown.file.getvalue()
    assert "net.onnx  search  12 s, at most 48 s left; model 1.080x so far, 3.1% more" in text
    first, second = [line.split() for line in text.splitlines() if "conv" in line]
    assert first[:8] == ["60.0%", "2.00", "ms", "1.00", "ms", "2.00x", "5/24", "7.0%"]
    assert first[-1] == "t(n=1)" and second[-1] == "t(n=3)"
    assert "\x1b" not in text and "a runner is lost" in out.getvalue()


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_static(tmp_path / "net.onnx"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class DefaultBest:
    """A runner to whom the default of every task seems to be the fastest."""

    def run(
        self, task: Task, request: Request, deadline: float
    ) -> Iterator[tuple[int, Outcome]]:  # fmt: skip
        for place in request.candidates:
            seconds = 1e-3 if task.space[place] == task.default else 2e-3
            yield place, Measurement(seconds, seconds, seconds, 200)

    def stop(self) -> None: ...
    def close(self) -> None: ...


def test_json_is_a_line_an_event_and_the_report_last(
    model: str, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = crew.Crew((DefaultBest(),), (fingerprint(host()),), ())
    monkeypatch.setattr(crew, "local_crew", lambda *_, **__: made)
    assert main.main(["tune", model, "--budget", "30s", "--threads", "1", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [e["event"] for e in events]
    assert kinds[0] == "station" and kinds[-1] == "report" and "tried" in kinds
    report = events[-1]
    assert report["ended"] == "searched" and report["budget"] == 30.0
    assert {t["verdict"] for t in report["tasks"]} == {"default"}
    tried_ones = {(e["label"], e["candidate"]) for e in events if e["event"] == "tried"}
    assert report["tried"] == len(tried_ones)

    rows = Records(cache / "records.sqlite").rows()
    assert len(rows) == report["tried"]
    assert main.main(["tune", model, "--budget", "30s", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    assert "share" in out and f"{len(rows)} known before" in out
    assert "0 candidates run (0 failed)" in out
    assert "compile" in err and "\x1b" not in out + err


def test_what_cannot_be_tuned_is_refused(
    model: str, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_model = str(write_open(tmp_path / "open.onnx"))
    program = str(tmp_path / "net.tw")
    assert main.main(["compile", model, "-o", program]) == 0
    for arguments, why in (
        ([model, "--budget", "soon"], "not a length of time"),
        ([open_model], "leaves shapes open"),
        ([program], "saved program"),
        ([model, "--target", "cuda:sm_90"], "measured on a device"),
        ([model, "--farm", "nonsense://x"], "farm"),
    ):
        assert main.main(["tune", *arguments]) == 2
        assert why in capsys.readouterr().err


def test_ctrl_c_reports_the_best_so_far(model: str, cache: Path) -> None:
    late = (
        "import sys, time; time.sleep(0.2)\n"
        "from tilewright.compiler.cli.main import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", late, "tune", model, "--budget", "60s", "--json"]
    env = {**os.environ, "TILEWRIGHT_FAULT": "hang@100%"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        events = []
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] == "tasks":  # candidates hang now, for ten seconds each
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    stations = [e["elapsed"] for e in events if e["event"] == "station"]
    assert stations[0] > 0.2  # the start of Python is part of the budget
    assert events[-1]["event"] == "report" and events[-1]["ended"] == "interrupted"
