"""Donated inputs: less memory, the same results, and nothing else of the caller's is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.errors import InputError, MemoryLimitError, OptionError

N = 48
rng = np.random.default_rng(11)
X = rng.standard_normal((N, N)).astype(np.float32)
Z = rng.standard_normal((N, N)).astype(np.float32)
TURN = np.roll(np.eye(N, dtype=np.float32), 1, axis=1)


def graph() -> tw.Graph:
    """Products that cannot be fused, then sorting and more of them; x is read first, z later."""
    g = tw.Graph("net")
    x, z = g.input("x", (N, N)), g.input("z", (N, N))
    turn = g.constant(TURN)
    h = g.matmul(x, turn)
    h = g.matmul(g.matmul(h, turn), turn) + z
    k = g.softmax(g.matmul(h, turn))
    g.output(g.matmul(g.matmul(k, turn), h), name="y")
    g.output(k, name="k")
    return g


def compiled(donate: Any = (), **options: Any) -> tw.Executable:
    exe = tw.compile(graph(), threads=1, donate=donate, **options)
    assert isinstance(exe, tw.Executable)
    return exe


@pytest.fixture(scope="module")
def want() -> tuple[np.ndarray, ...]:
    return compiled()(X, Z)


def same(got: Any, want: Any) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("poison", ["", "1"])
@pytest.mark.parametrize("donate", [["x"], ["z"], ["x", "z"]])
def test_results_are_the_same_and_the_arena_smaller(
    donate: list[str], poison: str, want: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_POISON", poison)
    plain, exe = compiled(), compiled(donate)
    saved = plain.plan.arena_bytes - exe.plan.arena_bytes
    assert exe.plan.donation_saved_bytes == saved > 0
    exe.plan.check()
    x, z = X.copy(), Z.copy()
    got = exe(x, z)
    same(got, want)
    for name, a, before in (("x", x, X), ("z", z, Z)):
        used = name in donate and any(r.name == name for r in exe.plan.regions)
        assert used or (a == before).all(), "what was not donated is not written"
    assert not any(np.shares_memory(a, b) for a in got for b in (x, z))
    assert any((a != b).any() for a, b in ((x, X), (z, Z))), "the memory was used"


def at_odds(a: np.ndarray, offset: int) -> np.ndarray:
    """A copy that starts `offset` bytes behind a cache line."""
    raw = np.zeros(a.nbytes + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    made = raw[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    made[...] = a
    return made


@pytest.mark.parametrize("offset", [0, 16, 32, 48])
def test_memory_is_used_where_numpy_puts_it(offset: int, want: Any) -> None:
    x = at_odds(X, offset)
    same(compiled(["x"])(x, Z), want)
    assert (x != X).any()


def read_only(a: np.ndarray) -> np.ndarray:
    made = a.copy()
    made.flags.writeable = False
    return made


@pytest.mark.parametrize(
    "lay",
    [
        lambda a: at_odds(a, 4),
        lambda a: at_odds(a, 1),
        read_only,
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    ],
    ids=["by 4 bytes", "by 1 byte", "read-only", "fortran", "strided"],
)
def test_other_arrays_are_copied(lay: Any, want: Any) -> None:
    x = lay(X)
    same(compiled(["x"])(x, Z), want)
    np.testing.assert_array_equal(x, X)


def test_arrays_that_are_two_inputs_are_copied() -> None:
    square = compiled()(X, X)
    both = rng.standard_normal((N + 1, N)).astype(np.float32)
    shifted = compiled()(both[:-1], both[1:])
    for donate in (["x"], ["z"], ["x", "z"]):
        x, over = X.copy(), both.copy()
        exe = compiled(donate)
        same(exe(x, x), square)
        same(exe(over[:-1], over[1:]), shifted)
        if len(donate) == 1:
            np.testing.assert_array_equal(x, X)
            np.testing.assert_array_equal(over, both)


def test_outputs_may_not_lie_there() -> None:
    exe, x = compiled(["x"]), X.copy()
    with pytest.raises(InputError, match="shares memory with an input"):
        exe(x, Z, out=(x, None))
    np.testing.assert_array_equal(x, X)


def test_in_place_from_the_first_kernel_on() -> None:
    """An operand that dies in the step that reads it."""
    g = tw.Graph("inplace")
    x = g.input("x", (N, N))
    h = g.relu(x)
    turn = g.constant(TURN)
    g.output(g.matmul(g.softmax(g.transpose(g.matmul(h, turn))), turn) + g.reduce_max(h), name="y")
    plain, exe = (tw.compile(g, threads=1, donate=d) for d in ((), ("x",)))
    assert exe.plan.arena_bytes < plain.plan.arena_bytes
    same([exe(at_odds(X, 16))], [plain(X)])


@pytest.mark.parametrize("donate", [["w"], ["x", "w"], ["y"]])
def test_unknown_names(donate: list[str]) -> None:
    with pytest.raises(OptionError, match=r"there is no input \['.'\]; the inputs are \['x', 'z'"):
        compiled(donate)


def test_open_dimensions() -> None:
    onnx = pytest.importorskip("onnx")
    info, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    chain = [node("MatMul", [f"h{k}", "w"], [f"h{k + 1}"]) for k in range(4)]
    graph = onnx.helper.make_graph(
        chain, "net", [info("h0", 1, ["n", N])], [info("h4", 1, ["n", N])],
        [onnx.numpy_helper.from_array(TURN, "w")],
    )  # fmt: skip
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    with pytest.raises(OptionError, match=r"no input \['x'\]; the inputs are \['h0'\]"):
        tw.compile(model, donate=["x"])
    exe = tw.compile(model, donate=["h0"], threads=1)
    x = X.copy()
    np.testing.assert_array_equal(exe(x), tw.compile(model)(X))
    assert exe.plan.donation_saved_bytes == N * N * 4
    assert (x != X).any()


@pytest.mark.parametrize("donate", ["x", 3, [1], {"x": 1}, None])
def test_what_are_no_names(donate: Any) -> None:
    with pytest.raises(OptionError, match="expected the names of inputs"):
        compiled(donate)


def test_the_memory_limit_counts_what_is_left() -> None:
    def least(*donate: str) -> int:
        with pytest.raises(MemoryLimitError) as caught:
            compiled(donate, memory_limit=0)
        assert caught.value.least_bytes is not None
        return caught.value.least_bytes

    need = compiled(["x"]).plan.arena_bytes
    within = compiled(["x"], memory_limit=need)
    assert need < compiled().plan.arena_bytes and within.plan.arena_bytes == need
    assert not any(k.notes for k in within.kernels), "nothing has to change"
    assert any(k.notes for k in compiled(memory_limit=need).kernels)
    assert least("x") <= least()
    assert compiled(["x"], memory_limit=least("x")).plan.arena_bytes == least("x")


def test_profiling_leaves_donated_arrays_alone() -> None:
    exe, x = compiled(["x"]), X.copy()
    assert exe.profile(x, Z, rounds=2).rows
    np.testing.assert_array_equal(x, X)


def test_saved_programs_keep_it(tmp_path: Path, want: Any) -> None:
    exe = compiled(["x"])
    exe.save(tmp_path / "p.tw")
    loaded = tw.load(tmp_path / "p.tw")
    assert loaded.plan.donation_saved_bytes == exe.plan.donation_saved_bytes > 0
    x = X.copy()
    same(loaded(x, Z), want)
    assert (x != X).any()
