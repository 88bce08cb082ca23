"""Candidates that are made to fail in every way: each is found out, and all others are measured."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest

from tilewright.autotune.outcome import Failure, Measurement, Outcome
from tilewright.autotune.runner import Request
from tilewright.autotune.task import Task
from tilewright.autotune.workers import Limits
from tilewright.compiler.errors import OptionError
from tilewright.compiler.tuning.faults import FAULTS, VARIABLE, faults_of
from tilewright.compiler.tuning.local import local_runner

from .problems import convolution

LIMITS = Limits(build=3, run=2, memory=320 << 20)

# What every fault is found out as; None: it harms nothing.
KINDS: Mapping[str, str | None] = {
    "segv": "crash", "abort": "crash", "exit": "crash", "memory": "memory", "hang": "timeout",
    "wrong": "wrong", "wrong50": "wrong", "nan": "wrong", "garbage": None,
    "hang-build": "timeout", "segv-build": "crash",
}  # fmt: skip


def outcomes(task: Task, places: range, rounds: int = 3, seconds: float = 60) -> dict[int, Outcome]:
    with local_runner(LIMITS) as runner:
        request = Request(tuple(places), rounds)
        return dict(runner.run(task, request, time.monotonic() + seconds))


def test_every_fault_is_survived_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(KINDS) == set(FAULTS)
    given = ",".join(f"{fault}@{place}" for place, fault in enumerate(FAULTS, 1))
    monkeypatch.setenv(VARIABLE, given)
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
