"""Candidates on a GPU that are made to fail in every way, in workers that use the stub driver."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.autotune.outcome import Failure, Measurement, Outcome
from tilewright.autotune.runner import Request
from tilewright.autotune.task import Task
from tilewright.compiler.codegen.cuda.target import CudaTarget
from tilewright.compiler.runtime import gpu_code
from tilewright.compiler.store import Store
from tilewright.compiler.tuning.faults import FAULTS, VARIABLE
from tilewright.compiler.tuning.local import gpu_runner
from tilewright.compiler.tuning.problem import parse

from ...tuning.hung import LIMITS, age
from .nets import A, rows, softmax
from .stub import Stub
from .test_tuning import task

# What every fault is found out as, and a word of why; None: it harms nothing.
KINDS: Mapping[str, tuple[str, str] | None] = {
    "segv": ("crash", "a kernel faulted"), "abort": ("crash", "SIGABRT"),
    "exit": ("crash", "status 0 in the middle"), "memory": ("memory", "takes all there is"),
    "hang": ("timeout", "running took more than 220 s"), "wrong": ("wrong", "off by"),
    "wrong50": ("wrong", "another run"), "nan": ("wrong", ""), "garbage": None,
    "hang-build": ("timeout", "building took more than 210 s"), "segv-build": ("crash", "SIGSEGV"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def workers(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes begin with the stub as well, and a device that is full soon."""
    stub.start("9.0:33554432")
    monkeypatch.setenv("STUB_CUDA_PROCESS", str(Path(__file__).with_name("stub_process.py")))
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path))


def built(t: Task, places: Iterable[int]) -> None:
    """Put the code of candidates into the store: this process has loaded what that takes."""
    target, store = CudaTarget("sm_90"), Store()
    gpu_code.load([parse(t.payload).instantiate(t.space[k]).kernel for k in places], target, store)


def found(t: Task, places: Iterable[int]) -> dict[int, Outcome]:
    wanted = tuple(places)
    built(t, wanted)
    with gpu_runner(0, limits=replace(LIMITS, memory=0)) as runner:
        return dict(runner.run(t, Request(wanted, 1), time.monotonic() + 250))


def check(fault: str, outcome: Outcome) -> None:
    expected = KINDS[fault]
    if expected is None:
        assert isinstance(outcome, Measurement), f"{fault}: {outcome}"
    else:
        assert isinstance(outcome, Failure), f"{fault}: {outcome}"
        assert outcome.kind == expected[0] and expected[1] in outcome.detail, outcome


def test_every_fault_is_survived_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(KINDS) == set(FAULTS)
    often, t = [fault for fault in FAULTS if fault != "wrong50"], task(2)
    at_once = len(t.space) - 2  # between two that are sound
    for start in range(0, len(often), at_once):
        some = often[start : start + at_once]
        given = ",".join(f"{fault}@{place}" for place, fault in enumerate(some, 1))
        monkeypatch.setenv(VARIABLE, given)
        with monkeypatch.context() as patch:
            hanging = {"hang": "run", "hang-build": "build"}
            age(patch, {(hanging[f], k) for k, f in enumerate(some, 1) if f in hanging})
            outcomes = found(t, range(len(some) + 2))
        assert sorted(outcomes) == list(range(len(some) + 2))
        for place, fault in enumerate(some, 1):
            check(fault, outcomes[place])
        for place in (0, len(some) + 1):
            assert isinstance(outcomes[place], Measurement), outcomes[place]


def test_what_is_wrong_once_in_a_while_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates are looked at as often as there would be time for on a device."""
    monkeypatch.setenv("STUB_CHECKS", "50")
    monkeypatch.setenv(VARIABLE, "wrong50@1")
    outcomes = found(task(2), (0, 1))
    check("wrong50", outcomes[1])
    assert isinstance(outcomes[0], Measurement)


@pytest.mark.slow
def test_where_all_candidates_fail_the_default_serves(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.knows_what_is_loaded("gpu")
    monkeypatch.setenv(VARIABLE, "segv@100%")
    report = tw.tune(rows(), target="cuda", budget="25s")
    (only,) = report.tasks
    assert only.failed == only.tried > 0 and only.verdict == "failed", report
    assert any("every candidate" in w for w in report.warnings), report.warnings
    exe = tw.compile(rows(), target="cuda")
    np.testing.assert_allclose(exe(A), softmax(A), 1e-5, 1e-7)
    assert exe.kernels[0].origin == "default"
