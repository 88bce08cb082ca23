"""What becomes of what is measured, where a fake runner says what that is."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tilewright as tw
from tilewright.autotune.outcome import Measurement, Outcome
from tilewright.autotune.runner import Request
from tilewright.autotune.task import Task
from tilewright.compiler.api import tuning
from tilewright.compiler.api.crew import Crew
from tilewright.compiler.api.executable import Executable
from tilewright.compiler.api.report import Comparison
from tilewright.compiler.codegen.cpu.target import host
from tilewright.compiler.tuning.fingerprint import fingerprint

from .tunable import product


class SecondBest:
    """A runner to whom the second candidate of every task seems to be the fastest."""

    def run(
        self, task: Task, request: Request, deadline: float
    ) -> Iterator[tuple[int, Outcome]]:  # fmt: skip
        for place in request.candidates:
            seconds = 1e-6 if place == 1 else 1e-3
            yield place, Measurement(seconds, seconds, seconds, 200)

    def stop(self) -> None: ...
    def close(self) -> None: ...


@pytest.mark.parametrize("speedup", [0.5, 2.0])
def test_compile_warns_and_gives_the_faster_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    speedup: float,
) -> None:  # fmt: skip
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path))
    crew = Crew((SecondBest(),), (fingerprint(host()),), ("somebody takes no part",))
    monkeypatch.setattr(tuning, "local_crew", lambda *_: crew)
    whole = Comparison(1e-3, 1e-3 / speedup, speedup, 0.01, 9)
    monkeypatch.setattr(tuning, "compare", lambda *_, **__: whole)
    with caplog.at_level(logging.WARNING, "tilewright"):
        exe = tw.compile(product(), tune="20s", threads=1)
    assert "somebody takes no part" in caplog.text
    assert ("2.000x slower" in caplog.text) == (speedup < 1)
    assert ("has its default kernels" in caplog.text) == (speedup < 1)
    configs = [dict(k.config) for k in exe.kernels]
    default = [dict(k.config) for k in tw.compile(product(), tune=False, threads=1).kernels]
    assert (configs == default) == (speedup < 1)


def test_the_shortest_comparison_makes_the_calls_that_time_is_laid_by_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0

    def call(*_: Any) -> None:
        nonlocal calls
        calls += 1
        time.sleep(2e-3)

    def launch_seconds(exe: Executable, *_: Any, rounds: int) -> tuple[float, ...]:
        nonlocal calls
        calls += rounds
        return (1.0,) * len(exe.kernels)

    exe = tw.compile(product(8), tune=False, threads=1)
    monkeypatch.setattr(tuning, "_call", call)
    monkeypatch.setattr(Executable, "launch_seconds", launch_seconds)
    monkeypatch.setattr(tuning, "COMPARE_SECONDS", 0.0)
    _, pairs = tuning._compared(exe, exe, (), 1.0, tuning.Budget(60.0))
    assert pairs and calls == tuning.COMPARE_CALLS
    assert tuning._comparing(1.0, tuning.Budget(60.0)) == calls

    late, stopped = tuning.Budget(5.0), tuning.Budget(60.0)
    stopped.stop.set()
    for budget in (late, stopped):
        calls = 0
        whole, pairs = tuning._compared(exe, exe, (), 1.0, budget)
        assert (whole.rounds, pairs, calls) == (2, (), 6)
