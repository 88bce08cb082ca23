"""What a call costs and keeps right besides the kernels: addresses, threads, callers at once."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.errors import InputError
from tilewright.compiler.runtime import driver as native
from tilewright.compiler.runtime import fields as module
from tilewright.compiler.runtime.fields import Fields, address, fields
from tilewright.compiler.runtime.threads import ThreadPool

rng = np.random.default_rng(3)


def unusual() -> list[np.ndarray]:
    whole = rng.standard_normal(24).astype(np.float32)
    frozen = whole.copy()
    frozen.flags.writeable = False
    return [whole, whole[5:], whole[::3], whole[::-1], whole[:0], whole.reshape(4, 6).T, frozen,
            np.full((), 3, np.float32), np.broadcast_to(whole[:1], (7,)),
            np.frombuffer(b"12345678", np.int32), np.zeros(3, ">i8")]  # fmt: skip


def test_the_address_is_where_the_first_element_lies() -> None:
    for a in unusual():
        assert address(a) == a.ctypes.data


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process in which objects are not known yet."""
    fields.cache_clear()
    native.driver.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    fields.cache_clear()
    native.driver.cache_clear()


def test_objects_of_this_process_are_known() -> None:
    """Of CPython on 64 bits with numpy 1 and 2: or calls are slower than they need to be."""
    assert fields() is not None and native.driver().enter is not None


FIELDS = ("type", "data", "rank", "dims", "dtype", "flags", "items")


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_is_believed_unseen(field: str, unknown: pytest.MonkeyPatch) -> None:
    right = module._expected()
    assert right is not None and module._hold(right)
    for wrong in (-8, 8):
        moved = replace(right, **{field: getattr(right, field) + wrong})
        assert not module._hold(moved), wrong


def test_arrays_of_other_interpreters_are_asked_in_python(
    unknown: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unknown.setattr(sys.implementation, "name", "other")
    exe = plus_one(10, 1)
    assert module._reader() is module._from_interface
    assert exe._program._enter is None
    assert [r.levelname for r in caplog.records] == ["WARNING"], "told once"
    assert "in another way than expected" in caplog.text
    x = np.arange(10, dtype=np.float32)
    y = np.empty(10, np.float32)
    np.testing.assert_array_equal(exe(x), x + 1)
    np.testing.assert_array_equal(exe(x[::-1], out=y), x[::-1] + 1)
    with pytest.raises(InputError, match="must have shape"):
        exe(x[1:])


def test_offsets_follow_the_headers_of_objects(unknown: pytest.MonkeyPatch) -> None:
    """Those of CPython 3.11 to 3.14 on 64 bits: numpy.h, and tuples with or without a hash."""
    found = module._expected()
    assert found is not None and found.items in (24, 32)
    assert replace(found, items=24) == Fields(8, 16, 24, 32, 56, 64, 24)
    unknown.setattr(sys, "maxsize", 2**31 - 1)
    assert module._expected() is None


def plus_one(n: int, threads: int) -> tw.Executable:
    g = tw.Graph("plus")
    x = g.input("x", (n,))
    g.output(g.add(x, g.constant(np.float32(1))), name="y")
    return tw.compile(g, threads=threads)


def test_workers_start_only_for_programs_that_share_work(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(ThreadPool, "start", lambda pool: started.append(pool))
    small, large = plus_one(10, 2), plus_one(1 << 20, 2)
    x = np.arange(10, dtype=np.float32)
    np.testing.assert_array_equal(small(x), x + 1)
    assert not started
    large(np.zeros(1 << 20, np.float32))
    assert started == [large._program.pool]


@pytest.mark.parametrize("n", [10, 1 << 18])
def test_callers_at_once_get_their_own_results(n: int) -> None:
    exe = plus_one(n, 2)
    wrong: list[int] = []

    def calls(k: int) -> None:
        for step in range(200 if n < 100 else 20):
            x = np.full(n, 1000 * k + step, np.float32)
            if not np.array_equal(exe(x), x + 1):  # exact: whole numbers below 2**24
                wrong.append(k)

    callers = [threading.Thread(target=calls, args=(k,)) for k in range(4)]
    for c in callers:
        c.start()
    for c in callers:
        c.join()
    assert not wrong


def test_inputs_of_any_strides_and_alignment() -> None:
    exe = plus_one(10, 1)
    for x in (np.arange(20, dtype=np.float32)[::2], np.arange(10, dtype=np.float32)[::-1],
              np.frombuffer(bytes(1) + np.arange(10, dtype=np.float32).tobytes(), np.uint8)[1:]
              .view(np.float32)):  # fmt: skip
        np.testing.assert_array_equal(exe(x), x + 1)
        np.testing.assert_array_equal(exe.run({"x": x})["y"], x + 1)


def three() -> tw.Executable:
    """Inputs of several dtypes and ranks, a view among the results."""
    g = tw.Graph("three")
    a, b = g.input("a", (4, 6)), g.input("b", ())
    c = g.input("c", (4,), "int64")
    s = g.add(a, b)
    g.output(s, name="sum")
    g.output(g.gather(s, c, axis=0), name="rows")
    return tw.compile(g)


A = rng.standard_normal((4, 6)).astype(np.float32)
B = np.full((), 2, np.float32)
C = np.array([3, 0, 0, 2])


class Named(np.ndarray[Any, Any]):
    """A class of arrays."""


SAME: dict[str, tuple[Any, Any, Any]] = {
    "as they are": (A, B, C),
    "columns first": (A.T.copy().T, B, C),
    "every other one": (np.repeat(A, 2, axis=1)[:, ::2], B, np.repeat(C, 2)[::2]),
    "misaligned": (np.frombuffer(b"1" + A.tobytes(), np.uint8)[1:].view("f4").reshape(4, 6), B, C),
    "a number and a list": (A, np.float32(2), [3, 0, 0, 2]),
    "of a class": (A.view(Named), B.view(Named), C),
    "a dtype of its own": (A.astype(np.dtype(np.float32, metadata={"a": 1})), B, C),
    "repeated": (np.broadcast_to(A[:1], (4, 6)), B, C),
}


@pytest.mark.parametrize("kind", SAME)
def test_any_arrays_of_the_right_type_give_the_same(kind: str) -> None:
    exe = three()
    a, b, c = SAME[kind]
    first, rows = exe(a, b, c)
    want = np.asarray(a, np.float32) + np.float32(2)
    np.testing.assert_array_equal(first, want)
    np.testing.assert_array_equal(rows, want[C])


WRONG: list[tuple[tuple[Any, Any, Any], str]] = [
    ((A.astype(np.float64), B, C), "'a' must be float32, got float64"),
    ((A.astype(">f4"), B, C), "'a' must be float32, got >f4"),
    ((A.view(np.int32), B, C), "'a' must be float32, got int32"),
    ((A.T, B, C), r"'a' must have shape \[4, 6\], got \[6, 4\]"),
    ((A[0], B, C), r"'a' must have shape \[4, 6\], got \[6\]"),
    ((A[:, 0].copy(), B, C), r"'a' must have shape \[4, 6\], got \[4\]"),
    ((A[None], B, C), r"'a' must have shape \[4, 6\], got \[1, 4, 6\]"),
    ((A, B[None], C), r"'b' must have shape \[\], got \[1\]"),
    ((A, B, C[:3]), r"'c' must have shape \[4\], got \[3\]"),
    ((A, B, C.astype(np.int32)), "'c' must be int64, got int32"),
    ((A, B, object()), "'c' must be int64, got object"),
]


@pytest.mark.parametrize(("given", "said"), WRONG)
def test_arrays_of_another_type_are_refused(given: tuple[Any, Any, Any], said: str) -> None:
    exe = three()
    with pytest.raises(InputError, match=said):
        exe(*given)
    first, _ = exe(A, B, C)
    np.testing.assert_array_equal(first, A + 2)


def test_a_wrong_number_of_arrays() -> None:
    exe = plus_one(10, 1)
    with pytest.raises(InputError, match="2 arrays for 1 inputs: x: float32"):
        exe(np.zeros(10, np.float32), np.zeros(10, np.float32))
    with pytest.raises(InputError, match="0 arrays"):
        exe()
