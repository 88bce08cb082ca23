"""Windows in strips on GPUs, depthwise convolutions and pools: simulated, compared with float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.codegen.cuda.source import Source, kernel_source
from tilewright.compiler.graph.bfloat16 import bits_of
from tilewright.compiler.graph.builder import GraphBuilder, Value
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.device import GPU
from tilewright.compiler.kernels.gpu_strips import GpuStrips
from tilewright.compiler.kernels.ir import Launch
from tilewright.compiler.kernels.template import Config
from tilewright.ops.types import Layout

from ..codegen.cuda.programs import gpu_launches, run_graph, simulated
from ..codegen.cuda.simulate import SimError
from .gpu_support import array
from .mistakes import assert_caught
from .support import remembered, stored, with_layouts

STRIPS = GpuStrips()
Build = Callable[[GraphBuilder], Value]


def one_group(build: Build) -> Graph:
    """A graph as one group, whose blobs of four axes have their channels last."""
    g = tw.Graph("strips")
    y = build(g)
    g.output(y, "y")
    graph = g.build()
    if graph.ops[-1].operator == "identity":
        ops = graph.ops[:-1]
        graph = Graph(graph.name, graph.inputs, ops[-1].outputs, ops, graph.blobs)
    last = {n: Layout(1, b.type.dims[1]) for n, b in graph.blobs.items()
            if b.value is None and b.type.rank > 2 and b.type.dims[1] > 1}  # fmt: skip
    return with_layouts(graph, last)


@dataclass(frozen=True)
class Conv:
    """A depthwise convolution, with what is given behind it."""

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    attributes: dict[str, Any]
    kind: str = "f32"
    after: tuple[str, ...] = ()

    def __call__(self, g: GraphBuilder) -> Value:
        number = {"f16": np.float16, "f32": np.float32, "f64": np.float64}[self.kind]
        c = self.x[1]
        w = g.constant(array(c, 1, *self.kernel, dtype=number), name="w")
        more = [g.constant(array(c, dtype=number), name="b")] if "bias" in self.after else []
        y = g.conv(g.input("x", self.x, self.kind), w, *more, group=c, **self.attributes)
        if "residual" in self.after:
            y = y + g.input("r", y.type.dims, self.kind)
        if "scale" in self.after:
            y = y * g.input("s", (*y.type.dims[:2], 1, 1), self.kind)
        return g.relu(y) if "relu" in self.after else y


def pool(name: str, kind: str = "f32", **attributes: Any) -> Build:
    def build(g: GraphBuilder) -> Value:
        made: Value = getattr(g, name)(g.input("x", (2, 8, 7, 9), kind), **attributes)
        return made

    return build


def config(rows: int, columns: int, lanes: int = 4, threads: int = 64) -> Config:
    return {"rows": rows, "columns": columns, "lanes": lanes, "threads": threads}


def launched(graph: Graph, chosen: Config) -> Launch:
    given = graph, graph.ops, graph.outputs
    assert STRIPS.objection(*given) == ""
    launch = STRIPS.instantiate(*given, GPU, chosen)
    return remembered(launch, STRIPS, graph, graph.outputs, GPU)


def fed(graph: Graph) -> tuple[dict[str, Any], Any]:
    """Inputs as they lie in memory, and the result, too."""
    types = {n: graph.type(n) for n in graph.inputs}
    feeds = {n: array(*t.dims, dtype=t.dtype.numpy) for n, t in types.items()}
    (name,) = graph.outputs
    expected = stored(evaluate(graph, feeds)[name], graph.type(name))
    return {n: stored(feeds[n], t) for n, t in types.items()}, expected


def check(build: Build, *configs: Config) -> list[Launch]:
    graph = one_group(build)
    feeds, expected = fed(graph)
    limit = {16: 2e-3, 32: 1e-5, 64: 1e-12}[graph.type(graph.outputs[0]).dtype.bits]
    launches = [launched(graph, c) for c in configs]
    for launch in launches:
        for alias in (None, *launch.kernel.inplace):
            got = simulated(graph, launch, feeds, alias).reshape(-1)
            np.testing.assert_allclose(got, expected, limit, limit * np.abs(expected).max(),
                                       err_msg=f"{launch.kernel.config}, {alias}")  # fmt: skip
    return launches


CONVOLUTIONS: list[tuple[Conv, list[Config]]] = [
    (Conv((2, 8, 5, 7), (3, 3), {"pads": 1}, after=("bias", "relu")),
     [config(1, 1), config(2, 4), config(4, 2, 2)]),
    (Conv((1, 8, 9, 11), (3, 3), {"pads": 1, "strides": 2}, after=("residual", "relu")),
     [config(1, 2), config(2, 4), config(4, 1)]),
    (Conv((1, 8, 9, 7), (3, 3), {}), [config(2, 2, 4, 128), config(7, 1)]),  # without a guard
    (Conv((1, 12, 8, 7), (3, 3), {"pads": 2, "dilations": 2}), [config(2, 2), config(4, 1)]),
    (Conv((1, 4, 9, 9), (3, 3), {"pads": 1, "strides": 3, "dilations": 2}), [config(1, 1)]),
    (Conv((1, 4, 7, 6), (5, 5), {"pads": 2, "strides": (1, 2)}), [config(2, 1), config(1, 2)]),
    (Conv((1, 4, 8, 7), (7, 7), {"pads": 3}, after=("bias",)), [config(1, 4), config(1, 2, 2)]),
    (Conv((1, 8, 5, 6), (5, 5), {"pads": 2}, "f16"), [config(1, 2, 8)]),  # weights row by row
    (Conv((1, 8, 3, 9), (1, 5), {"pads": (0, 2, 0, 2)}), [config(1, 4), config(1, 1)]),
    (Conv((2, 8, 9), (3,), {"pads": 1}), [config(1, 4), config(1, 2)]),
    (Conv((1, 8, 5, 4), (2, 3), {"pads": (1, 0, 0, 2)}), [config(2, 4), config(1, 1)]),
    (Conv((1, 6, 5, 4), (3, 3), {"pads": 1}), [config(2, 2, 2), config(2, 1, 1)]),
    (Conv((1, 5, 5, 4), (3, 3), {"pads": 1}), [config(2, 2, 1), config(1, 4, 1)]),  # odd channels
    (Conv((1, 16, 5, 6), (3, 3), {"pads": 1}, "f16", ("bias", "relu")),
     [config(1, 1, 8), config(2, 4)]),
    (Conv((2, 8, 6, 5), (3, 3), {"pads": 1, "strides": 2}, "f16", ("scale", "residual")),
     [config(1, 2, 8), config(2, 1, 8)]),
    (Conv((1, 4, 5, 5), (3, 3), {"pads": 1}, "f64"), [config(2, 2, 2), config(1, 1, 1)]),
]  # fmt: skip


@pytest.mark.parametrize(("build", "configs"), CONVOLUTIONS, ids=lambda p: str(p)[:60])
def test_depthwise_convolutions(build: Conv, configs: list[Config]) -> None:
    check(build, *configs)


POOLS: list[tuple[Build, list[Config]]] = [
    (pool("max_pool", kernel_shape=3, strides=2, pads=1), [config(1, 1), config(2, 4)]),
    (pool("max_pool", kernel_shape=(3, 2), strides=2, ceil_mode=1), [config(2, 2)]),
    (pool("average_pool", kernel_shape=3, strides=1, pads=1), [config(4, 2), config(2, 4, 2)]),
    (pool("average_pool", "f16", kernel_shape=2, strides=2), [config(1, 2, 8)]),
    (pool("max_pool", "f16", kernel_shape=3, strides=1, pads=1), [config(2, 2, 8)]),
]


@pytest.mark.parametrize(("build", "configs"), POOLS)
def test_pools(build: Build, configs: list[Config]) -> None:
    check(build, *configs)


def test_not_a_number_wins_a_maximum_and_padding_never_does() -> None:
    graph = one_group(pool("max_pool", kernel_shape=3, strides=1, pads=1))
    feeds, _ = fed(graph)
    feeds["x"][:] = -np.inf
    feeds["x"][8 * 20] = np.nan
    got = simulated(graph, launched(graph, config(2, 4)), feeds).reshape(2, 7, 9, 8)
    assert np.isnan(got[0, 1:4, 1:4, 0]).all() and np.isnan(got).sum() == 9
    assert np.isneginf(got).sum() == got.size - 9


def test_a_residual_is_overwritten_in_place() -> None:
    (launch,) = check(Conv((1, 8, 5, 5), (3, 3), {"pads": 1}, after=("residual",)), config(2, 2))
    x, r = (next(k for k, a in enumerate(launch.args) if a == n) for n in ("x", "r"))
    assert [k for _, k in launch.kernel.inplace] == [r] and x != r


@pytest.mark.parametrize("build", [
    Conv((1, 8, 4, 5), (3, 3), {"pads": 1}, after=("bias",)),
    Conv((1, 8, 4, 5), (3, 3), {"pads": 1}, "f16", ("bias",)),
    pool("average_pool", kernel_shape=3, strides=1, pads=1),
], ids=["f32", "f16", "average"])  # fmt: skip
def test_every_config_gives_the_same_bits(build: Build) -> None:
    """The taps of a result are combined in one order."""
    graph = one_group(build)
    feeds, _ = fed(graph)
    space = STRIPS.space(graph, graph.ops, graph.outputs, GPU)
    some = [c for c in space if c["threads"] == 64][:9]
    assert STRIPS.default(graph, graph.ops, graph.outputs, GPU) in space and len(some) >= 4
    assert len({simulated(graph, launched(graph, c), feeds).tobytes() for c in some}) == 1


def test_a_network_of_each_type() -> None:
    """Depthwise convolutions of whole networks are taken, and what they read lies as they want it:
    nothing stands before or behind them but what the caller's arrays make necessary."""
    for kind in ("f32", "f16"):
        number = np.float16 if kind == "f16" else np.float32
        g = tw.Graph("network")
        x = g.conv(g.input("x", (1, 3, 8, 8), kind), g.constant(array(8, 3, 3, 3, dtype=number)),
                   pads=1, strides=2)  # fmt: skip
        for k in range(2):
            w = g.constant(array(8, 1, 3, 3, dtype=number), name=f"each{k}")
            y = g.relu(g.conv(g.relu(x), w, group=8, pads=1))
            mix = array(8, 8, 1, 1, dtype=number)
            x = g.conv(y, g.constant(mix, name=f"mix{k}"))
        g.output(g.global_average_pool(x), "y")
        source = g.build()
        used = [x.kernel.template for x in gpu_launches(source)[1]]
        product = "gpu_mma" if kind == "f16" else "gpu_tiles"
        assert [t for t in used if t != "gpu_nest"] == [product, *("gpu_strips", product) * 2]
        feeds = {"x": array(1, 3, 8, 8, dtype=number)}
        expected = evaluate(source, feeds)["y"]
        got = run_graph(source, feeds)["y"]
        limit = 1e-2 if kind == "f16" else 1e-5
        np.testing.assert_allclose(got, expected, 0, limit * np.abs(expected).max())


def test_bf16() -> None:
    """Stored in bf16, added up in float32, rounded once."""
    g = tw.Graph("mixed")
    w = g.cast(g.constant(array(16, 1, 3, 3)), to="bf16")
    mix = g.cast(g.constant(array(16, 16, 1, 1)), to="bf16")
    x = g.conv(g.input("x", (1, 16, 5, 6), "bf16"), mix)
    g.output(g.cast(g.conv(x, w, group=16, pads=1), to="f32"), "y")
    source = g.build()
    feeds = {"x": bits_of(array(1, 16, 5, 6))}
    expected = evaluate(source, feeds)["y"]
    assert "gpu_strips" in {x.kernel.template for x in gpu_launches(source)[1]}
    np.testing.assert_allclose(run_graph(source, feeds)["y"], expected, 0,
                               2.0**-7 * np.abs(expected).max())  # fmt: skip


# --------------------------------------------------------------------------- what is left to others


def dense(g: GraphBuilder) -> Value:
    return g.conv(g.input("x", (1, 8, 5, 5)), g.constant(array(8, 8, 3, 3)), pads=1)


def shared(g: GraphBuilder) -> Value:
    """Two channels of every one."""
    return g.conv(g.input("x", (1, 8, 5, 5)), g.constant(array(16, 1, 3, 3)), group=8, pads=1)


OBJECTIONS: list[tuple[Build, str]] = [
    (lambda g: g.relu(g.input("x", (1, 8, 5, 5))), "not one reduction"),
    (lambda g: g.global_average_pool(g.input("x", (1, 8, 5, 5))), "no window"),
    (lambda g: g.softmax(g.input("x", (4, 8, 5, 5)), axis=1), "expressions"),
    (lambda g: g.max_pool(g.input("x", (1, 8, 4, 4, 4)), kernel_shape=2), "along 3 axes"),
    (lambda g: g.max_pool(g.input("x", (1, 1, 8, 8)), kernel_shape=2), "side by side"),
    (lambda g: g.reduce_mean(g.input("x", (4, 8, 30, 5)), axes=(2,)), "share no inputs"),
    (lambda g: g.average_pool(g.input("x", (4, 8, 5, 6)), kernel_shape=(5, 6)), "no window"),
    (Conv((1, 4, 33, 33), (33, 33), {"pads": 16}), "registers"),
    (dense, ""), (shared, "side by side"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "why"), OBJECTIONS)
def test_objections(build: Build, why: str) -> None:
    graph = one_group(build)
    given = graph, graph.ops, graph.outputs
    said = STRIPS.objection(*given)
    assert said and why in said and not STRIPS.matches(*given)


def test_rows_of_places_are_left_to_the_general_template() -> None:
    g = tw.Graph("planar")
    g.output(g.max_pool(g.input("x", (1, 8, 9, 9)), kernel_shape=3, strides=2), "y")
    graph, launches = gpu_launches(g.build())
    assert [x.kernel.template for x in launches] == ["gpu_nest"]
    assert "side by side" in STRIPS.objection(graph, graph.ops, graph.outputs)


# --------------------------------------------------------------------------- seeded mistakes

MISTAKES = (
    (r"0 <= (?=v)", "-1 <= "),  # a row or column before the first
    (r"(v(?:_\d)?) < (\d)", r"\1 <= \2"),  # or behind the last
    (r"(v(?:_\d)?) < (\d)", r"\1 < \2 - 1"),
    (r"(v(?:_2)? = [^\n]*) - 1\n", r"\1\n"),  # windows that begin one place later
    (r"(v_\d) - 56", r"\1 - 48"),  # and read one place later
    (r"(\+ thread) < (\d+)", r"\1 < \2 - 1"),  # strips that nobody computes
    (r"range\((\d)\)(?=:  # unrolled\n +(?:v|for beside))", r"range(\1 - 1)"),  # fewer inputs
    (r"for (tap|down_tap) in range\((\d)\)", r"for \1 in range(\2 - 1)"),  # or taps
    (r"(?<=load_vector\(seen, )beside \* 4", "beside * 3"),
    (r"(load_vector\(weights0, [^\n]*)tap \* 8", r"\1tap * 4"),  # weights of other taps
    (r"\+ row_strip \* (\d+)", r"+ row_strip * (\1 // 2)"),  # strips overlap
    (r"\+ column_strip \* (\d+)", r"+ column_strip * (\1 + 4)"),
    (r"0 <= look", "1 <= look"),  # a row of taps is left out
    (r"look \+ r \* -1 < 3", "look + r * -1 < 4"),  # or one more
    (r"fma\(seen\[([^\]]*)\]", r"fma(seen[(\1) - u]"),  # another channel
    (r"weights0\[(look[^\]]*)\]", r"weights0[(\1) - u]"),
    (r"(?<= = fma\()([^\n]*), acc\[v_\d\]\)", r"\1, f32(0.0))"),
    (r"acc\[e\] = f32\(0.0\)", "acc[e] = f32(1.0)"),
    (r"umod\(([^\n]*), 2\)", r"umod(\1, 1)"),
    (r"\n +store_vector\(y0, [^\n]*", "\n                pass"),
    (r"(store_vector\(y0, v_\d+), ", r"\1 + 4, "),
    (r"(load_vector\(x2_v\d, 0, x2, channels_strip \* )4", r"\g<1>0"),  # another bias
    (r"if \(r \+ row_strip \* 2 < 5\)", "if (r + row_strip * 2 < 6)"),  # results that do not exist
    (r"\(c \+ column_strip \* 4 < 6\)", "(c + column_strip * 4 < 7)"),
    (r"(strip \* \d < )([56])\b", r"\1\2 - 1"),
    (r"range\(([24])\)(?=:  # unrolled\n +(?:if|for c))", r"range(\1 - 1)"),
    (r"udiv\(thread, (\d)\)", r"udiv(thread, 2 * \1)"),
)  # fmt: skip


def test_seeded_mistakes_are_caught(capsys: pytest.CaptureFixture[str]) -> None:
    """By an error or by a wrong result."""
    graph = one_group(Conv((1, 8, 5, 6), (3, 3), {"pads": 1}, after=("bias",)))
    feeds, expected = fed(graph)
    launch = launched(graph, config(2, 4))
    source = kernel_source(launch.kernel)

    def right(of: Source) -> bool:
        try:
            got = simulated(graph, launch, feeds, source=of)
        except (SimError, IndexError):
            return False
        return bool(np.allclose(got.reshape(-1), expected, 0, 1e-5 * np.abs(expected).max()))

    assert_caught(source, MISTAKES, right, 40, capsys)
