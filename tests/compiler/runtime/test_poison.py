"""Plans that are wrong, made by hand past the verifier: NaN tells of them under poison only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.memory.plan import MemoryPlan
from tilewright.compiler.runtime.objects import Objects
from tilewright.compiler.runtime.program import Program

N = 16
EYE = np.eye(N, dtype=np.float32)
Edit = Callable[[MemoryPlan], MemoryPlan]


def compiled(dtype: str = "f32") -> tw.Executable:
    """a lives until the last step, b and c follow each other: %a, %b, %c stand in the plan."""
    g = tw.Graph("net")
    x = g.input("x", (N, N), dtype)
    eye = g.constant(EYE.astype(x.type.dtype.numpy))
    a = g.matmul(x, eye, name="a")
    b = g.matmul(a, eye, name="b")
    c = g.matmul(b, eye, name="c")
    g.output(g.matmul(c, a), name="y")
    return tw.compile(g, threads=1)


def rebuilt(exe: tw.Executable, edit: Edit, poison: bool) -> Program:
    """The same code under an edited plan, which nobody verifies."""
    old = exe._program
    objects = old._keep
    assert isinstance(objects, Objects)
    return Program(exe.graph, old.launches, edit(exe.plan), objects, old.constants, 1, poison)


def names(plan: MemoryPlan) -> list[str]:
    """The blobs in the order in which they are born."""
    return [r.name for r in plan.ranges if not r.name.endswith("scratch")]


def overlapping(plan: MemoryPlan) -> MemoryPlan:
    """The last float of a lies where the first of b does: a is alive all the time."""
    a, b, _ = names(plan)
    top = plan.arena_bytes
    offsets = {**plan.offsets, a: top, b: top + N * N * 4 - 4}
    return replace(plan, offsets=MappingProxyType(offsets), arena_bytes=top + 2 * N * N * 4)


def dying_early(plan: MemoryPlan) -> MemoryPlan:
    """a is said to die in the step that reads it first; nobody takes its place, as it happens."""
    a, _, _ = names(plan)
    return replace(plan, ranges=tuple(
        replace(r, last=1) if r.name == a else r for r in plan.ranges
    ))  # fmt: skip


X = np.random.default_rng(0).integers(1, 9, (N, N)).astype(np.float32)


@pytest.mark.parametrize("edit", [overlapping, dying_early])
def test_a_read_after_death_shows(edit: Edit) -> None:
    exe = compiled()
    (plain,), (poisoned,) = (rebuilt(exe, edit, poison)([X]) for poison in (False, True))
    assert not np.isnan(plain).any(), "wrong or by chance right, and nobody can tell"
    assert np.isnan(poisoned).any()


def test_integers_become_minus_one() -> None:
    exe = compiled("i32")
    x = X.astype(np.int32)
    (plain,), (poisoned,) = (rebuilt(exe, dying_early, poison)([x]) for poison in (False, True))
    np.testing.assert_array_equal(plain, x @ x)
    np.testing.assert_array_equal(poisoned, x @ np.full((N, N), -1, np.int32))


def test_right_plans_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    want = compiled()(X)
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")
    exe = compiled()
    np.testing.assert_array_equal(exe(X), want)
    y = np.zeros((N, N), np.float32)
    assert exe(X, out=y) is y
    np.testing.assert_array_equal(y, want)
    arena = exe._program.contexts.idle[0].arena
    assert (arena == 0xFF).all(), "all is dead at the end"


def test_outputs_are_filled_before_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")
    exe = compiled()
    exe._program._run = lambda frame: None  # nothing is computed
    assert np.isnan(exe(X)).all()
