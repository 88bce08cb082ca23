"""Results written straight into arrays of the caller."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.errors import InputError

rng = np.random.default_rng(7)
X = rng.standard_normal((6, 8)).astype(np.float32)
W = np.arange(8, dtype=np.float32)


def program(constant: np.ndarray = W) -> tw.Executable:
    """Two outputs of different dtypes, one of them read by a later kernel as well."""
    g = tw.Graph("two")
    x = g.input("x", (6, 8))
    h = g.add(g.softmax(x), g.constant(constant, "w"))
    g.output(h, name="h")
    g.output(g.arg_max(g.matmul(h, g.transpose(h)), axis=1, keepdims=0), name="best")
    return tw.compile(g)


@pytest.fixture(scope="module")
def exe() -> tw.Executable:
    return program()


def fresh(exe: tw.Executable) -> list[np.ndarray]:
    return [np.full(s.shape, 99, s.dtype) for s in exe.outputs]


def test_results_land_in_the_arrays_given(exe: tw.Executable) -> None:
    want = exe(X)
    for kind in (tuple, list):
        given = fresh(exe)
        got = exe(X, out=kind(given))
        assert isinstance(got, tuple)
        for a, b, c in zip(got, given, want, strict=True):
            assert a is b
            np.testing.assert_array_equal(a, c)


def test_some_arrays_may_be_left_to_the_program(exe: tw.Executable) -> None:
    want, given = exe(X), fresh(exe)
    first, second = exe(X, out=(None, given[1]))
    assert second is given[1] and first is not given[0]
    np.testing.assert_array_equal(first, want[0])
    np.testing.assert_array_equal(second, want[1])
    got = exe.run({"x": X}, out={"h": given[0]})
    assert got["h"] is given[0] and list(got) == ["h", "best"]
    np.testing.assert_array_equal(got["h"], want[0])
    np.testing.assert_array_equal(got["best"], want[1])


def test_one_output_takes_one_array() -> None:
    g = tw.Graph("one")
    g.output(g.relu(g.input("x", (6, 8))), name="y")
    exe = tw.compile(g)
    row = np.full((3, 6, 8), 99, np.float32)
    assert exe(X, out=row[1]).base is row
    np.testing.assert_array_equal(row[1], np.maximum(X, 0))
    assert (row[[0, 2]] == 99).all()
    assert exe(x=X, out=(row[0],)).base is row
    np.testing.assert_array_equal(row[0], np.maximum(X, 0))


@pytest.mark.parametrize("offset", [4, 16, 60])
def test_results_may_begin_at_any_element(offset: int) -> None:
    """Kernels that write whole vectors: convolution, products, transposes, softmax."""
    g = tw.Graph("net")
    x = g.input("x", (2, 24, 9, 9))
    w = rng.standard_normal((40, 24, 3, 3)).astype(np.float32)
    y = g.conv(x, g.constant(w), pads=1)
    g.output(y, name="conv")
    flat = g.reshape(y, shape=(80, 81))
    g.output(g.matmul(flat, g.transpose(flat)), name="product")
    g.output(g.softmax(g.transpose(flat)), name="turned")
    exe = tw.compile(g, threads=2)
    a = rng.standard_normal((2, 24, 9, 9)).astype(np.float32)
    given = []
    for s in exe.outputs:
        raw = np.full(s.dtype.itemsize * int(np.prod(s.shape)) + 128, 0x7F, np.uint8)
        start = -raw.ctypes.data % 64 + offset
        given.append((raw, start, raw[start : -128 + start].view(s.dtype).reshape(s.shape)))
    exe(a, out=tuple(g for *_, g in given))
    for (raw, start, y), want in zip(given, exe(a), strict=True):
        np.testing.assert_array_equal(y, want)
        assert (raw[:start] == 0x7F).all() and (raw[start + y.nbytes :] == 0x7F).all()


def test_a_mapped_file_receives_results(exe: tw.Executable, tmp_path: Any) -> None:
    file = np.lib.format.open_memmap(tmp_path / "h.npy", "w+", np.float32, (6, 8))
    exe(X, out=(file, None))
    file.flush()
    np.testing.assert_array_equal(np.load(tmp_path / "h.npy"), exe(X)[0])


def read_only() -> np.ndarray:
    a = np.zeros((6, 8), np.float32)
    a.flags.writeable = False
    return a


def misaligned() -> np.ndarray:
    return np.zeros(6 * 8 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(6, 8)


WRONG: list[tuple[Any, str]] = [
    (np.zeros((6, 8), np.float64), r"'h' must be float32\[6, 8\], got float64"),
    (np.zeros((8, 6), np.float32), r"'h' must be float32\[6, 8\], got float32\[8, 6\]"),
    (np.zeros((6, 8), ">f4"), "'h' must be float32"),
    (np.zeros((8, 6), np.float32).T, r"'h' must be C-contiguous .* target\[\.\.\.\] = exe"),
    (np.zeros((6, 16), np.float32)[:, ::2], "C-contiguous"),
    (misaligned(), "aligned"),
    (read_only(), "read-only"),
    ([[0.0] * 8] * 6, "must be a numpy array"),
]


@pytest.mark.parametrize(("given", "said"), WRONG)
def test_arrays_that_do_not_fit_are_refused(exe: tw.Executable, given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        exe(X, out=(given, None))
    with pytest.raises(InputError, match=said):
        exe.run({"x": X}, out={"h": given})


def test_shared_memory_is_refused() -> None:
    wide = np.zeros((12, 8), np.float32)
    exe = program()
    for given in (wide[:6], wide[3:9]):
        with pytest.raises(InputError, match="shares memory with an input"):
            exe(wide[:6], out=(given, None))
    exe(wide[:6], out=(wide[6:], None))  # neighbours
    exe(wide[:6].T.copy().T, out=(wide[:6], None))  # what is read is a copy
    both = np.zeros(64, np.uint8)
    g = tw.Graph("pair")
    x = g.input("x", (4,))
    g.output(x + np.float32(1), name="a")
    g.output(x * np.float32(2), name="b")
    pair = tw.compile(g)
    with pytest.raises(InputError, match="'b' shares memory with another output's"):
        pair(np.zeros(4, np.float32), out=(both[:16].view("f4"), both[8:24].view("f4")))


def test_constants_cannot_be_written_over() -> None:
    g = tw.Graph("row")
    g.output(g.input("x", (8,)) + g.constant(W), name="y")
    row = tw.compile(g)
    (mine,) = row._program.constants.values()
    window = (ctypes.c_float * 8).from_address(mine.ctypes.data)
    with pytest.raises(InputError, match="shares memory with a constant"):
        row(np.zeros(8, np.float32), out=np.frombuffer(window, np.float32))


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ((), "out: an array for each of 2 outputs .*, not 0 of them"),
        ((None,), "not 1 of them"),
        (np.zeros((6, 8), np.float32), "not 1 of them"),
        ({"h": None}, "not dict"),
        (3, "not int"),
    ],
)
def test_a_wrong_number_of_arrays(exe: tw.Executable, out: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        exe(X, out=out)


def test_unknown_outputs(exe: tw.Executable) -> None:
    with pytest.raises(InputError, match=r"no output \['y'\]; the outputs are \['h', 'best'\]"):
        exe.run({"x": X}, out={"y": X})
    with pytest.raises(InputError, match="by the outputs' names"):
        exe.run({"x": X}, out=[None, None])  # type: ignore[arg-type]


def test_an_input_called_out_is_given_by_position_or_to_run() -> None:
    g = tw.Graph("named")
    g.output(g.input("out", (3,)) + np.float32(1), name="y")
    exe = tw.compile(g)
    x, y = np.zeros(3, np.float32), np.zeros(3, np.float32)
    assert exe(x, out=y) is y
    assert exe.run({"out": x}, out={"y": y})["y"] is y
    np.testing.assert_array_equal(y, 1)
