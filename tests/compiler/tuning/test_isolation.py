"""Candidates that are made to fail in every way: each is found out, and all others are measured."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import tilewright as tw
from tilewright.autotune.outcome import Failure, Measurement, Outcome
from tilewright.autotune.runner import Request
from tilewright.autotune.task import Task
from tilewright.autotune.workers import Limits
from tilewright.compiler.errors import OptionError
from tilewright.compiler.tuning.faults import FAULTS, VARIABLE, faults_of
from tilewright.compiler.tuning.local import local_runner

from .hung import LIMITS, age
from .problems import convolution


def limits() -> Limits:
    """Of memory half as much again as this process ever had, which may be much after other tests:
    the system says of workers that they had that, too, so that less tells nothing."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return replace(LIMITS, memory=max(320 << 20, own * 3 // 2))


# What every fault is found out as; None: it harms nothing.
KINDS: Mapping[str, str | None] = {
    "segv": "crash", "abort": "crash", "exit": "crash", "memory": "memory", "hang": "timeout",
    "wrong": "wrong", "wrong50": "wrong", "nan": "wrong", "garbage": None,
    "hang-build": "timeout", "segv-build": "crash",
}  # fmt: skip


def outcomes(
    task: Task, places: range, rounds: int = 3, seconds: float = 250
) -> dict[int, Outcome]:
    with local_runner(limits()) as runner:
        request = Request(tuple(places), rounds)
        return dict(runner.run(task, request, time.monotonic() + seconds))


def test_every_fault_is_survived_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(KINDS) == set(FAULTS)
    given = ",".join(f"{fault}@{place}" for place, fault in enumerate(FAULTS, 1))
    monkeypatch.setenv(VARIABLE, given)
    at = {fault: place for place, fault in enumerate(FAULTS, 1)}
    age(monkeypatch, {("run", at["hang"]), ("build", at["hang-build"])})
    found = outcomes(convolution(), range(len(FAULTS) + 2))
    assert sorted(found) == list(range(len(FAULTS) + 2))
    for place, fault in enumerate(FAULTS, 1):
        outcome = found[place]
        kind = outcome.kind if isinstance(outcome, Failure) else None
        assert kind == KINDS[fault], f"{fault}: {outcome}"
    for place in (0, len(FAULTS) + 1):
        good = found[place]
        assert isinstance(good, Measurement), good
        assert 0 < good.low <= good.seconds <= good.high


def test_all_candidates_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "wrong@100%")
    found = outcomes(convolution(), range(3))
    assert [getattr(found[k], "kind", "") for k in range(3)] == ["wrong"] * 3


def test_without_a_store_the_worker_that_measures_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    monkeypatch.setenv(VARIABLE, "segv-build@1")
    found = outcomes(convolution(), range(2))
    assert isinstance(found[0], Measurement)
    assert isinstance(found[1], Failure) and found[1].kind == "crash"


def test_workers_run_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    assert isinstance(outcomes(convolution(), range(1))[0], Measurement)


def test_workers_run_the_package_that_tunes(tmp_path: Path) -> None:
    """Here it is found in the current folder alone, where workers do not look."""
    (tmp_path / "tilewright").symlink_to(Path(tw.__file__).parent)
    program = """
import subprocess
from tilewright.compiler.tuning.local import WORKER
print(subprocess.run(WORKER, stderr=subprocess.PIPE, text=True).stderr)
"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    said = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, text=True,
                          capture_output=True, check=True).stdout  # fmt: skip
    # It misses its arguments, and the traceback says where it lies.
    assert str(tmp_path / "tilewright/compiler/tuning/worker.py") in said, said


def test_faults_by_share_and_by_hash() -> None:
    space = convolution().space
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "segv@30%")
        some = [k for k, c in enumerate(space) if faults_of(k, c)]
        assert 0 < len(some) < len(space)
        patch.setenv(VARIABLE, "nan@100%, hang@0%")
        assert all(faults_of(k, c) == ("nan",) for k, c in enumerate(space))
        patch.setenv(VARIABLE, ",".join(f"wrong@#{digit}" for digit in "0123456789abcdef"))
        assert all(faults_of(k, c) == ("wrong",) for k, c in enumerate(space))
        patch.delenv(VARIABLE)
        assert not any(faults_of(k, c) for k, c in enumerate(space))


@pytest.mark.parametrize("text", ["segv", "segv@", "bang@1", "segv@1%%", "segv@-1", "nan@#xy"])
def test_a_variable_that_makes_no_sense(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(OptionError, match=VARIABLE):
        local_runner()
