"""What a call costs and keeps right besides the kernels: addresses, threads, callers at once."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.errors import InputError
from tilewright.compiler.runtime import address as module
from tilewright.compiler.runtime.address import address
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


def test_unknown_interpreters_are_asked_by_the_documented_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert module._reader() is not module._from_interface
    monkeypatch.setattr(sys.implementation, "name", "other")
    assert module._reader() is module._from_interface
    monkeypatch.undo()
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)  # too few addresses for the window
    assert module._reader() is module._from_interface
    monkeypatch.undo()
    monkeypatch.setattr(module, "_DATA", module._DATA + 8)  # an object of another build
    assert module._reader() is module._from_interface


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


def test_a_wrong_number_of_arrays() -> None:
    exe = plus_one(10, 1)
    with pytest.raises(InputError, match="2 arrays for 1 inputs: x: float32"):
        exe(np.zeros(10, np.float32), np.zeros(10, np.float32))
    with pytest.raises(InputError, match="0 arrays"):
        exe()
