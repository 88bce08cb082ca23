"""Whatever way an array lies in memory, and whoever calls: right answers or a clear error."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import tilewright as tw
from tilewright.compiler.api.executable import Executable
from tilewright.compiler.errors import GraphError, InputError

from .models import model, node, tensor, value

Array = npt.NDArray[Any]

SHAPE = (4, 6, 5)
RNG = np.random.default_rng(0)
VALUES = RNG.uniform(-2, 2, SHAPE).astype(np.float32)
WEIGHTS = RNG.uniform(-1, 1, (5, 3)).astype(np.float32)


def build(dtype: str = "f32", shape: tuple[int, ...] = SHAPE) -> Executable:
    """y = transpose(x * 2 + x): reads every element where it is."""
    g = tw.Graph("net")
    x = g.input("x", shape, dtype)
    g.output(g.transpose(g.add(g.add(x, x), x)), name="y")
    exe = tw.compile(g, threads=2)
    assert isinstance(exe, Executable)
    return exe


def expected(x: Array) -> Array:
    return (x + x + x).T


@pytest.fixture(scope="module")
def exe() -> Executable:
    return build()


def fortran(x: Array) -> Array:
    return np.asfortranarray(x)


def strided(x: Array) -> Array:
    big = np.full(tuple(2 * d for d in x.shape), 99, x.dtype)
    big[::2, 1::2, ::2] = x
    return big[::2, 1::2, ::2]


def backwards(x: Array) -> Array:
    return x[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1]


def misaligned(x: Array) -> Array:
    data = b"\x01" + x.tobytes()
    return np.frombuffer(data, x.dtype, offset=1).reshape(x.shape)


def read_only(x: Array) -> Array:
    y = x.copy()
    y.flags.writeable = False
    return y


def in_record(x: Array) -> Array:
    records = np.zeros(x.shape, np.dtype([("tag", "u1"), ("x", x.dtype)]))
    records["x"] = x
    return records["x"]


def mapped(x: Array, folder: Any) -> Array:
    path = folder / "x.npy"
    np.save(path, x)
    return np.load(path, mmap_mode="r")


class Wrapped:
    """What numpy can turn into an array, as PyTorch's tensors are."""

    def __init__(self, x: Array) -> None:
        self.x = x

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.x if dtype is None else self.x.astype(dtype)


LAYOUTS: list[Callable[[Array], Any]] = [
    fortran, strided, backwards, misaligned, read_only, in_record, Wrapped, np.ascontiguousarray,
    lambda x: x.view(np.matrix) if x.ndim == 2 else np.ma.array(x),
    lambda x: x.transpose(2, 0, 1).copy().transpose(1, 2, 0),
    lambda x: memoryview(x),
]  # fmt: skip


@pytest.mark.parametrize("lay", LAYOUTS, ids=lambda f: f.__name__)
def test_any_layout(exe: Executable, lay: Callable[[Array], Any]) -> None:
    given = lay(VALUES)
    before = np.array(given, copy=True)
    for y in (exe(given), exe(x=given), exe.run({"x": given})["y"]):
        np.testing.assert_array_equal(y, expected(VALUES))
        assert y.flags.c_contiguous and y.flags.writeable and y.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(given), before, err_msg="an input was changed")


def test_a_mapped_file_and_a_broadcast(exe: Executable, tmp_path: Any) -> None:
    np.testing.assert_array_equal(exe(mapped(VALUES, tmp_path)), expected(VALUES))
    one = np.broadcast_to(np.float32(1.5), SHAPE)
    np.testing.assert_array_equal(exe(one), expected(one))


@pytest.mark.parametrize("name", ["f32", "f64", "i32", "i64", "u8", "i8"])
@pytest.mark.parametrize("lay", [fortran, strided, backwards, misaligned])
def test_layouts_of_other_element_types(name: str, lay: Callable[[Array], Array]) -> None:
    exe = build(name)
    x = RNG.integers(0, 20, SHAPE).astype(exe.inputs[0].dtype)
    np.testing.assert_array_equal(exe(lay(x)), expected(x))


def test_scalars() -> None:
    g = tw.Graph("scalar")
    x = g.input("x", ())
    g.output(g.exp(x), name="y")
    exe = tw.compile(g)
    for given in (np.float32(1), np.array(1, np.float32), np.full((), 1, np.float32)):
        y = exe(given)
        assert y.shape == () and y == pytest.approx(np.e)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), (2, 0, 4), (0, 0)])
def test_no_elements_at_all(shape: tuple[int, ...]) -> None:
    y = build(shape=shape)(np.zeros(shape, np.float32))
    assert y.shape == shape[::-1]
    g = tw.Graph("empty")
    x = g.input("x", shape)
    g.output(g.reduce_sum(x, axes=tuple(range(len(shape))), keepdims=0), name="sum")
    g.output(g.concat(x, g.constant(np.ones(shape, np.float32)), axis=0), name="joined")
    g.output(g.matmul(x, g.constant(np.ones((shape[-1], 2), np.float32))), name="product")
    total, joined, product = tw.compile(g)(np.zeros(shape, np.float32))
    assert total == 0 and joined.shape == (2 * shape[0], *shape[1:])
    np.testing.assert_array_equal(product, np.zeros((*shape[:-1], 2)))


def test_what_does_not_fit_is_refused(exe: Executable) -> None:
    swapped = VALUES.astype(VALUES.dtype.newbyteorder())
    wrong: list[Any] = [
        swapped, VALUES.astype("f8"), VALUES[:3], VALUES[None], VALUES.reshape(-1), None, "text",
        1.5, object(), b"bytes", {}, {"x": VALUES}, [], [[1, 2], [3]], VALUES.tolist(), tw, exe,
        VALUES.astype("M8[s]"), np.ma, iter([1]), [VALUES], (VALUES,), lambda: VALUES,
    ]  # fmt: skip
    for given in wrong:
        for call in (lambda g: exe(g), lambda g: exe.run({"x": g}), lambda g: exe(x=g)):
            with pytest.raises(InputError) as e:
                call(given)
            assert "'x'" in str(e.value)
    for given, part in [(swapped, swapped.dtype.str), (VALUES[:3], "[3, 6, 5]"), (None, "None is")]:
        with pytest.raises(InputError) as e:
            exe(given)
        assert part in str(e.value)


def test_lists_that_fit_exactly() -> None:
    """Python's integers are int64 to numpy: such a list is as good as an array."""
    exe = build("i64", (2, 3, 1))
    x = [[[1], [2], [3]], [[4], [5], [6]]]
    np.testing.assert_array_equal(exe(x), expected(np.array(x)))


def two_inputs() -> Executable:
    g = tw.Graph("two")
    a, b = g.input("a", (3,)), g.input("b", (3,))
    g.output(g.sub(a, b), name="difference")
    g.output(g.mul(a, b), name="product")
    exe = tw.compile(g)
    assert isinstance(exe, Executable)
    return exe


def test_by_position_and_by_name() -> None:
    exe = two_inputs()
    a, b = np.float32([1, 2, 3]), np.float32([3, 5, 7])
    for d, p in (exe(a, b), exe(a, b=b), exe(a=a, b=b), exe(b=b, a=a)):
        np.testing.assert_array_equal(d, a - b)
        np.testing.assert_array_equal(p, a * b)
    assert list(exe.run({"b": b, "a": a})) == ["difference", "product"]
    mistakes: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((), {}, "2 inputs"), ((a,), {}, "2 inputs"), ((a, b, a), {}, "2 inputs"),
        ((a,), {"a": a}, "'a'"), ((a, b), {"b": b}, "'b'"), ((a,), {"c": b}, "'c'|'b'"),
        ((), {"a": a}, "'b'"), ((a, b), {"c": a}, "'c'"), ((a, b, a), {"c": a}, "input"),
    ]  # fmt: skip
    for arrays, named, part in mistakes:
        with pytest.raises(InputError, match=part):
            exe(*arrays, **named)


def test_one_array_for_both_inputs() -> None:
    a = np.float32([1, 2, 3])
    d, p = two_inputs()(a, a)
    np.testing.assert_array_equal(d, 0 * a)
    np.testing.assert_array_equal(p, a * a)


def test_results_are_the_callers() -> None:
    """No call writes into what another one returned, nor into its own input."""
    exe = build()
    first = exe(VALUES)
    kept = first.copy()
    second = exe(-VALUES)
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)
    second[...] = np.nan
    np.testing.assert_array_equal(exe(VALUES), kept)


def test_outputs_that_are_inputs_or_constants_are_copies() -> None:
    g = tw.Graph("through")
    x = g.input("x", (3,))
    g.output(g.identity(x), name="same")
    g.output(g.reshape(x, shape=(3, 1)), name="column")
    g.output(g.identity(g.constant(np.float32([7, 8]))), name="fixed")
    exe = tw.compile(g)
    given = np.float32([1, 2, 3])
    same, column, fixed = exe(given)
    assert not np.shares_memory(same, given) and not np.shares_memory(column, given)
    same[...], column[...], fixed[...] = 0, 0, 0
    np.testing.assert_array_equal(given, [1, 2, 3])
    np.testing.assert_array_equal(exe(given)[2], [7, 8])
    np.testing.assert_array_equal(exe(given)[1], [[1], [2], [3]])


def test_indices_out_of_range_read_nothing_outside() -> None:
    g = tw.Graph("lookup")
    i = g.input("i", (4,), "i64")
    g.output(g.gather(g.constant(np.arange(6, dtype=np.float32)), i, axis=0), name="y")
    exe = tw.compile(g)
    y = exe(np.array([0, 5, 1 << 40, -(1 << 62)]))
    np.testing.assert_array_equal(y[:2], [0, 5])
    assert set(y[2:]) <= set(range(6))


def test_nan_and_infinity_pass_through(exe: Executable) -> None:
    x = VALUES.copy()
    x[0, 0, :3] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(exe(x), expected(x))


def test_open_dimensions_are_as_strict() -> None:
    """Programs made at the first call check arrays before they compile anything."""
    onnx = pytest.importorskip("onnx")
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["a", "b"], ["y"])],
        "g",
        [info("a", 1, ["n", 3]), info("b", 1, ["n", 3])],
        [info("y", 1, ["n", 3])],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    exe = tw.compile(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))
    for n in (1, 4, 0):
        a = np.full((n, 3), 2, np.float32)
        for y in (exe(a, a[::-1]), exe(a, b=a), exe.run({"b": a, "a": a})["y"]):
            np.testing.assert_array_equal(y, a + a)
        y = np.zeros((n, 3), np.float32)
        assert exe(a, a, out=y) is y and exe.run({"a": a, "b": a}, out={"y": y})["y"] is y
        np.testing.assert_array_equal(y, a + a)
    a = np.ones((2, 3), np.float32)
    wrong: list[Any] = [
        a[0], a[:, :2], a[:1], a.astype("f8"), None, [[1], [2, 3]], "text", a.astype(">f4"),
    ]  # fmt: skip
    for given in wrong:
        with pytest.raises(tw.TilewrightError):
            exe(a, given)
        with pytest.raises(tw.TilewrightError):
            exe.run({"a": given, "b": a})
    for arrays, named in [
        ((), {}),
        ((a,), {}),
        ((a, a, a), {}),
        ((a, a), {"a": a}),
        ((a,), {"c": a}),
    ]:
        with pytest.raises(InputError):
            exe(*arrays, **named)
    unfit: list[Any] = [
        {}, {"a": (2, 3)}, {"a": (2, 3), "b": (2, 3), "c": (1,)}, {"a": (2, 3), "b": (4, 3)},
        {"a": (2,), "b": (2, 3)}, {"a": None, "b": "xy"}, None, 3,
    ]  # fmt: skip
    for shapes in unfit:
        with pytest.raises(tw.TilewrightError):
            exe.specialise(shapes)
    assert exe.specialise({"a": (2, 3), "b": (2, 3)})(a, a).shape == (2, 3)


# --------------------------------------------------------------------------- who calls, and when


def product() -> tuple[Executable, Callable[[Array], Array]]:
    """A program of several kernels, with an arena that concurrent calls would fight for."""
    g = tw.Graph("busy")
    x = g.input("x", (64, 5))
    w, v = g.constant(WEIGHTS), g.constant(RNG.uniform(-1, 1, (3, 40)).astype(np.float32))
    h = g.tanh(g.matmul(x, w))
    g.output(g.softmax(g.matmul(h, v), axis=1), name="y")
    exe = tw.compile(g, threads=2)
    assert isinstance(exe, Executable)
    v_ = g.build().blobs[v.name].value

    def want(a: Array) -> Array:
        z = np.tanh(a.astype(np.float64) @ WEIGHTS) @ v_
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    return exe, want


def test_calls_from_four_threads() -> None:
    exe, want = product()
    failures: list[str] = []
    start = threading.Barrier(4)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        start.wait()
        for k in range(60):
            x = rng.uniform(-1, 1, (64, 5)).astype(np.float32)
            if np.abs(exe(x) - want(x)).max() > 1e-5:
                failures.append(f"thread {seed}, call {k}")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_compiling_in_four_threads() -> None:
    results: list[bool] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        exe, want = product()
        x = np.ones((64, 5), np.float32)
        results.append(bool(np.abs(exe(x) - want(x)).max() < 1e-5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == [True] * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_calls_too() -> None:
    exe, want = product()
    x = RNG.uniform(-1, 1, (64, 5)).astype(np.float32)
    good = want(x)
    exe(x)  # the parent's workers exist
    child = os.fork()
    if child == 0:
        code = 1
        try:
            fine = all(np.abs(exe(x) - good).max() < 1e-5 for _ in range(3))
            fine = fine and np.abs(product()[0](x).sum(1) - 1).max() < 1e-5
            code = 0 if fine else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 60
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(status) == 0
    assert np.abs(exe(x) - good).max() < 1e-5, "the parent still works"


def test_an_executable_keeps_what_it_needs() -> None:
    onnx = pytest.importorskip("onnx")
    w = np.arange(3, dtype=np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g",
        [onnx.helper.make_tensor_value_info("x", 1, [2, 3])],
        [onnx.helper.make_tensor_value_info("y", 1, [2, 3])],
        [onnx.numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 17)]
    data = bytearray(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    )
    exe = tw.compile(bytes(data))
    proto = onnx.load_from_string(bytes(data))
    other = tw.compile(proto)
    data[:] = bytes(len(data))
    del proto, graph
    gc.collect()
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(exe(x), x + w)
    np.testing.assert_array_equal(other(x), x + w)


def test_constants_may_change_afterwards() -> None:
    """An array given as a constant is read while compiling; later writes to it change nothing."""
    w = np.ones(3, np.float32)
    g = tw.Graph("own")
    g.output(g.add(g.input("x", (3,)), g.constant(w)), name="y")
    exe = tw.compile(g)
    w[:] = 100
    np.testing.assert_array_equal(exe(np.zeros(3, np.float32)), np.ones(3))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux")
def test_memory_is_given_back() -> None:
    """What the process has now: the most that it ever had may be of other tests."""
    g = tw.Graph("big")
    x = g.input("x", (512, 512))
    g.output(g.relu(x), name="y")
    exe = tw.compile(g)
    a = np.ones((512, 512), np.float32).T

    def resident() -> int:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(20):
        exe(a)
    before = resident()
    for _ in range(200):
        exe(a)
    grown = resident() - before
    assert grown < 50 * a.nbytes, f"{grown} bytes more after 200 calls"


def test_arrays_in_other_wrappings_are_explained(exe: Executable) -> None:
    x = np.zeros(SHAPE, np.float32)
    for wrong, why in (
        (lambda: exe({"x": x}), r"'x': a dict is no array; call run\(\)"),
        (lambda: exe(None), "'x': None is no array"),
        (lambda: exe.run(None, {"x": x}), r"by name, not a NoneType; the inputs are \['x'\]"),
        (lambda: exe.run(["y"], {"x": x}), "by name, not a list"),
        (lambda: exe.run({"X": x}), r"no array for \['x'\], and there is no input \['X'\]"),
    ):
        with pytest.raises(InputError, match=why):
            wrong()


def test_open_dimensions_are_named_in_errors() -> None:
    y, x = value("y", ["n", 3]), value("x", ["n", 3])
    exe = tw.compile(model([node("Relu", "x")], [x], [y]))
    with pytest.raises(InputError, match=r"shape \[n, 3\], got \[2, 4\]"):
        exe(np.zeros((2, 4), np.float32))


def test_sizes_that_a_model_has_fixed_inside_are_explained() -> None:
    shape = tensor(np.array([6]), "shape")
    nodes = [node("Reshape", "x", "shape")]
    exe = tw.compile(model(nodes, [value("x", ["n", 3])], [value("y", [6])], [shape]))
    assert exe(np.zeros((2, 3), np.float32)).shape == (6,)
    with pytest.raises(GraphError, match=r"Reshape_node.*with x=\[3, 3\].*export the model again"):
        exe(np.zeros((3, 3), np.float32))
