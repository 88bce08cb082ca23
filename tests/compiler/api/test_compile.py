"""The public API: calling, names, arguments that make no sense, open dimensions, inspection."""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import tilewright as tw
from tilewright.compiler.errors import InputError, MemoryLimitError, OptionError, TargetError
from tilewright.compiler.graph.text import parse, to_text


def two_by_two() -> tw.Graph:
    """Two inputs, two outputs: a + b and a * b."""
    g = tw.Graph("pair")
    a, b = g.input("a", (2, 3)), g.input("b", (2, 3))
    g.output(a + b, "sum")
    g.output(a * b, "product")
    return g


def test_calls_by_position_by_name_and_mixed() -> None:
    exe = tw.compile(two_by_two())
    a, b = np.full((2, 3), 2, np.float32), np.full((2, 3), 5, np.float32)
    for total, product in (exe(a, b), exe(a=a, b=b), exe(a, b=b)):
        assert (total == 7).all() and (product == 10).all()
    assert list(exe.run({"b": b, "a": a})) == ["sum", "product"]
    assert [s.name for s in exe.inputs] == ["a", "b"]
    assert exe.outputs[0].shape == (2, 3) and exe.outputs[0].dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "named", "why"),
    [
        ((1,), {}, "1 arrays for 2 inputs"),
        ((), {"a": 0}, "no array for"),
        ((), {"a": 0, "b": 0, "c": 0}, "there is no input"),
        ((0, 0), {"a": 0}, "by position and by name"),
    ],
)
def test_wrong_calls_say_what_is_wrong(arrays, named, why) -> None:  # type: ignore[no-untyped-def]
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(InputError, match=why):
        tw.compile(two_by_two())(*(x for _ in arrays), **dict.fromkeys(named, x))


def test_wrong_dtype_and_shape_name_the_input() -> None:
    exe = tw.compile(two_by_two())
    good = np.zeros((2, 3), np.float32)
    with pytest.raises(InputError, match=r"input 'b' must be float32, got float64.*astype"):
        exe(good, good.astype(np.float64))
    with pytest.raises(InputError, match=r"input 'a' must have shape \[2, 3\], got \[3, 2\]"):
        exe(good.T, good)


def test_arguments_are_checked() -> None:
    with pytest.raises(OptionError, match="numerics='sloppy'"):
        tw.compile(two_by_two(), numerics="sloppy")
    with pytest.raises(OptionError, match="'lots' is not an amount of memory"):
        tw.compile(two_by_two(), memory_limit="lots")
    with pytest.raises(OptionError, match="threads=0"):
        tw.compile(two_by_two(), threads=0)
    with pytest.raises(TargetError, match="target='toaster'"):
        tw.compile(two_by_two(), target="toaster")


def deep() -> tw.Graph:
    """A chain whose reductions cannot be fused: intermediates have to live somewhere."""
    g = tw.Graph("deep")
    x = g.input("x", (64, 64))
    for axis in (0, 1, 0, 1, 0):
        x = g.softmax(x, axis=axis)
    g.output(x, "y")
    return g


def test_arrays_by_name_are_a_mapping() -> None:
    x = np.zeros((2, 3), np.float32)
    for given in ([x, x], x, None):
        with pytest.raises(InputError, match=r"arrays by name.*\['a', 'b'\]"):
            tw.compile(two_by_two()).run(given)  # type: ignore[arg-type]


def test_an_executable_is_saved_not_pickled() -> None:
    exe = tw.compile(two_by_two())
    # what pickling asks for, and copying
    for make in (lambda e: e.__reduce_ex__(5), copy.deepcopy):
        with pytest.raises(TypeError, match=r"Executable can't be pickled.*exe.save"):
            make(exe)


def test_other_outputs_of_a_graph(tmp_path: Path) -> None:
    g = tw.Graph("g")
    x = g.input("x", (2, 3))
    inner = g.op("exp", x, out=("inner",))
    g.output(g.relu(g.matmul(inner, np.ones((3, 4), np.float32))), "y")
    (tmp_path / "g.txt").write_text(to_text(g.build()))
    given = np.full((2, 3), 2, np.float32)
    for source in (g, g.build(), tmp_path / "g.txt"):
        exe = tw.compile(source, outputs=["inner"])
        np.testing.assert_allclose(exe(given), np.exp(given), rtol=1e-6)
        assert [s.name for s in exe.outputs] == ["inner"]
    for wrong, why in (
        (["iner"], "'iner'; did you mean 'inner'"),
        (["y", "y"], "once"),
        ([], "names"),
    ):
        with pytest.raises(OptionError, match=f"outputs.*{why}"):
            tw.compile(g, outputs=wrong)


def test_shapes_of_a_graph_are_fixed() -> None:
    tw.compile(two_by_two(), shapes={"a": (2, 3)})
    with pytest.raises(OptionError, match=r"input 'a' of the graph is f32\[2,3\].*\(4, 3\)"):
        tw.compile(two_by_two(), shapes={"a": (4, 3)})
    with pytest.raises(OptionError, match=r"no input 'q'.*'a', 'b'"):
        tw.compile(two_by_two(), shapes={"q": 4})


def test_memory_limit_is_met_or_explained() -> None:
    exe = tw.compile(deep())
    need = exe.plan.arena_bytes
    assert 0 < need < exe.plan.unshared_bytes
    exe.plan.check()
    assert tw.compile(deep(), memory_limit=need).plan.arena_bytes <= need
    with pytest.raises(MemoryLimitError, match=str(need)):
        tw.compile(deep(), memory_limit=need - 1)


def test_thread_counts_give_the_same_bits() -> None:
    x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    one, two = tw.compile(deep(), threads=1)(x), tw.compile(deep(), threads=2)(x)
    np.testing.assert_array_equal(one, two)


def test_every_view_of_an_executable() -> None:
    exe = tw.compile(two_by_two())
    assert parse(exe.ir("graph")).structural_key() == two_by_two().build().structural_key()
    assert "group 0" in exe.ir("fused")
    assert "parallel item" in exe.ir("kernels")
    assert "define void" in exe.ir("llvm")
    assert "ret" in exe.ir("asm")
    assert "arena" in exe.ir("memory")
    with pytest.raises(OptionError, match="'sass'"):
        exe.ir("sass")
    assert exe.stages[0].name == "import"
    info = exe.kernels[0]
    assert info.template == "nest" and info.bytes > 0 and "for " in info.source
    assert len(exe.profile(rounds=3).rows) == len(exe.kernels)


def test_progress_is_reported() -> None:
    seen: list[tuple[str, int, int]] = []
    tw.compile(deep(), progress=lambda *step: seen.append(step))
    assert seen and seen[-1][1] == seen[-1][2]


def test_an_unmet_template_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    g = tw.Graph()
    x = g.input("x", (3, 4), np.int32)
    g.output(g.matmul(x, g.input("w", (4, 2), np.int32)), "y")
    with caplog.at_level(logging.INFO, "tilewright"):
        exe = tw.compile(g)
    assert "general loop nest" in caplog.text
    assert exe.kernels[0].template == "nest"


def test_second_compilation_loads_what_the_first_built(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    first = tw.compile(deep()).stats
    again = tw.compile(deep()).stats
    assert first.built == first.distinct > 0
    assert again.built == 0


def test_compile_takes_no_time_to_speak_of() -> None:
    """Of the processors: how long others have them does not count."""
    start = time.process_time()
    tw.compile(two_by_two())
    assert time.process_time() - start < 5


def test_views_of_an_open_program_are_those_of_the_last_call() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        "open",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    exe = tw.compile(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    with pytest.raises(OptionError, match="ir depends on sizes"):
        exe.ir("graph")
    for n in (2, 5):
        assert exe(np.zeros((n, 3), np.float32)).shape == (n, 3)
        assert f"f32[{n},3]" in exe.ir("graph")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = exe.nonsense
