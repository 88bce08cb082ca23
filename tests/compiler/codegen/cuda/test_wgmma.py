"""Products on the tensor cores of Hopper GPUs, simulated: right for every way in which operands may
lie, and for sizes that are no multiples of anything; seeded mistakes are all caught."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.codegen.cuda.source import Source, kernel_source
from tilewright.compiler.graph.builder import Value
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels import gpu_wgmma
from tilewright.compiler.kernels.device import GPU
from tilewright.compiler.kernels.gpu_templates import GPU_TEMPLATES
from tilewright.compiler.kernels.gpu_wgmma import GpuWgmma
from tilewright.compiler.kernels.ir import Launch
from tilewright.compiler.kernels.pieces import Buffers
from tilewright.compiler.kernels.select import coded_groups
from tilewright.compiler.kernels.template import Config, Rival
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.pipeline import gpu_pipeline
from tilewright.ops.types import DType, Layout, bf16, f16

from ...kernels.support import with_layouts
from .hopper_model import nearest_tf32
from .programs import gpu_launches, run_graph, simulated
from .simulate import SimError


@dataclass(frozen=True)
class Case:
    """relu(a @ b + c), m x k times k x n; of bf16 a @ b alone. a_across, b_across: whether an
    operand is stored with its rows, or columns, side by side. processors: blocks that run side by
    side."""

    m: int
    n: int
    k: int
    config: Config
    a_across: bool = False
    b_across: bool = False
    batch: tuple[int, ...] = ()
    dtype: DType = f16
    processors: int = 132
    shared_b: bool = False

    def graph(self) -> Graph:
        g = tw.Graph("product")
        swap = (*range(len(self.batch)), len(self.batch) + 1, len(self.batch))

        def operand(name: str, rows: int, columns: int, swapped: bool, batch: bool) -> Value:
            dims = (columns, rows) if swapped else (rows, columns)
            x = g.input(name, (*(self.batch if batch else ()), *dims), dtype=self.dtype.name)
            perm = swap if batch else (1, 0)
            return g.transpose(x, perm=perm) if swapped else x

        a = operand("a", self.m, self.k, self.a_across, True)
        b = operand("b", self.k, self.n, not self.b_across, not self.shared_b)
        y = g.matmul(a, b)
        if self.dtype is f16:  # bf16 is stored, and multiplied, and nothing else
            y = g.relu(y + g.input("c", (self.n,), dtype="f16"))
        g.output(y, "y")
        return g.build()

    def launch(self, graph: Graph) -> Launch:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gpu_wgmma, "PROCESSORS", self.processors)
            given = graph, graph.ops, graph.outputs
            assert GpuWgmma().matches(*given)
            return GpuWgmma().instantiate(*given, GPU, self.config)

    def feeds(self, graph: Graph) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(7)
        values = {n: rng.standard_normal(graph.type(n).dims).astype(np.float32)
                  for n in graph.inputs}  # fmt: skip
        return {n: self.stored(x) for n, x in values.items()}

    def stored(self, x: np.ndarray) -> np.ndarray:
        if self.dtype is f16:
            return x.astype(np.float16)
        return (x.view(np.uint32) + 0x8000 >> 16).astype(np.uint16)

    def numbers(self, x: np.ndarray) -> np.ndarray:
        if self.dtype is f16:
            return x.astype(np.float64)
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)

    def expected(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        a, b = (self.numbers(feeds[n]) for n in "ab")
        a = np.swapaxes(a, -1, -2) if self.a_across else a
        b = b if self.b_across else np.swapaxes(b, -1, -2)
        return np.maximum(a @ b + self.numbers(feeds["c"]), 0) if "c" in feeds else a @ b

    def assert_close(self, found: np.ndarray, expected: np.ndarray) -> None:
        """Sums are rounded once, to half floats; those in f32 are as good as exact beside that."""
        unit = 2.0**-11 if self.dtype is f16 else 2.0**-8
        np.testing.assert_allclose(self.numbers(found), expected, 1.1 * unit, 1e-3)


def tile(m: int, n: int, stages: int, cluster: int = 1, parts: int = 1) -> Config:
    return {"m": m, "n": n, "stages": stages, "cluster": cluster, "parts": parts}


CASES = {
    "two groups": Case(128, 128, 192, tile(128, 128, 2)),
    "two tiles of a group": Case(256, 64, 64, tile(256, 64, 2)),
    "bf16": Case(64, 64, 128, tile(64, 64, 2), dtype=bf16),
    "columns side by side, ragged": Case(200, 136, 200, tile(128, 64, 3), b_across=True,
                                         processors=2),
    "rows side by side": Case(72, 64, 136, tile(64, 64, 2), a_across=True, processors=1),
    "all side by side": Case(128, 128, 64, tile(128, 128, 2), a_across=True, b_across=True),
    "a cluster": Case(200, 128, 192, tile(64, 128, 2, 2), processors=2),
    "a cluster, columns side by side": Case(128, 128, 128, tile(64, 128, 2, 2), b_across=True),
    "batches": Case(64, 72, 64, tile(64, 64, 2), batch=(3,), processors=2),
    "batches of two axes": Case(64, 64, 64, tile(64, 64, 2), batch=(2, 2), b_across=True),
    "one right operand": Case(40, 64, 64, tile(64, 64, 2), batch=(3,), shared_b=True),
    "parts": Case(72, 72, 440, tile(64, 64, 2, parts=3), processors=2),  # of 3, 3 and 1 rounds
    "parts in a cluster": Case(136, 128, 200, tile(64, 128, 2, 2, 2), processors=3),
    "parts of odd rows, in batches": Case(72, 67, 136, tile(64, 64, 3, parts=2), batch=(2,)),
    "parts of two tiles of a group": Case(256, 64, 128, tile(256, 64, 2, parts=2), b_across=True),
    "results without boxes": Case(70, 100, 72, tile(64, 64, 2), processors=1),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_products(case: Case) -> None:
    graph = prepared(case)
    launch, feeds = case.launch(graph), case.feeds(graph)
    source = kernel_source(launch.kernel)
    assert ("tma_store" in source.text) == (case.n % 8 == 0 and case.config["parts"] == 1)
    case.assert_close(simulated(graph, launch, feeds), case.expected(feeds))


def prepared(case: Case) -> Graph:
    graph, _ = run_pipeline(gpu_pipeline(), case.graph())
    return graph


def small(x: tuple[int, ...], w: np.ndarray, dtype: str) -> Graph:
    """The product of a matrix with a constant."""
    g = tw.Graph("constant")
    multiply = g.matmul_integer if dtype in ("i8", "u8") else g.matmul
    g.output(multiply(g.input("a", x, dtype=dtype), g.constant(w, name="w")), "y")
    return run_pipeline(gpu_pipeline(), g.build())[0]


def launched(graph: Graph, tf32: bool = False, parts: int = 1) -> Launch:
    given = graph, graph.ops, graph.outputs
    assert GpuWgmma(tf32).matches(*given)
    return GpuWgmma(tf32).instantiate(*given, GPU, tile(64, 64, 2, parts=parts))


def test_constants_are_stored_as_they_are_copied() -> None:
    """With rows at multiples of 16 bytes; operands of bytes or words with terms side by side."""
    rng = np.random.default_rng(2)
    a, w = (rng.standard_normal(s).astype(np.float16) for s in ((40, 72), (72, 36)))
    graph = small((40, 72), w, "f16")
    expected = a.astype(np.float64) @ w
    np.testing.assert_allclose(simulated(graph, launched(graph), {"a": a}), expected, 1e-3, 1e-2)


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "input"])
def test_terms_of_one_head_after_the_other(constant: bool) -> None:
    """Which are boxes of an operand that no transposition puts side by side."""
    rng = np.random.default_rng(9)
    x, w = (rng.standard_normal(s).astype(np.float16) for s in ((1, 3, 70, 64), (192, 72)))
    g = tw.Graph("heads")
    heads = g.transpose(g.input("x", x.shape, "f16"), perm=(0, 2, 1, 3))
    right = g.constant(w) if constant else g.input("w", w.shape, "f16")
    g.output(g.matmul(g.reshape(heads, shape=(1, 70, 192)), right), "y")
    graph = run_pipeline(gpu_pipeline(), g.build())[0]
    launch = launched(graph)
    (tensor, *_) = kernel_source(launch.kernel).entries[0].tensor_maps
    assert tensor.dims[:3] == (64, 70, 3)
    feeds = {n: v for n, v in {"x": x, "w": w}.items() if n in graph.inputs}
    expected = np.moveaxis(x.astype(np.float64), 1, 2).reshape(1, 70, 192) @ w
    np.testing.assert_allclose(simulated(graph, launch, feeds), expected, 1e-3, 2e-2)
    few = tw.Graph("few")
    heads = few.transpose(few.input("x", (1, 3, 70, 40), "f16"), perm=(0, 2, 1, 3))
    few.output(few.matmul(few.reshape(heads, shape=(1, 70, 120)), few.constant(w[:120])), "y")
    graph = run_pipeline(gpu_pipeline(), few.build())[0]
    said = GpuWgmma().objection(graph, graph.ops, graph.outputs)
    assert "do not lie in fixed steps" in said, "a box would reach into the next head"


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_bytes(dtype: type) -> None:
    rng, info = np.random.default_rng(3), np.iinfo(dtype)
    a, w = (
        rng.integers(info.min, info.max, s, dtype, endpoint=True) for s in ((70, 144), (144, 9))
    )
    graph = small(a.shape, w, "i8" if dtype is np.int8 else "u8")
    for parts in (1, 2):
        found = simulated(graph, launched(graph, parts=parts), {"a": a})
        np.testing.assert_array_equal(found, a.astype(np.int64) @ w)


def test_float32_in_ten_bits() -> None:
    rng = np.random.default_rng(4)
    a, w = (rng.standard_normal(s).astype(np.float32) for s in ((64, 40), (40, 70)))
    graph = small(a.shape, w, "f32")
    assert not GpuWgmma().matches(graph, graph.ops, graph.outputs)
    near = [nearest_tf32(x).astype(np.float64) for x in (a, w)]
    found = simulated(graph, launched(graph, tf32=True), {"a": a})
    np.testing.assert_allclose(found, near[0] @ near[1], 1e-5, 1e-5)


def test_rounding_to_ten_bits() -> None:
    x = np.array([1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-11 + 2**-20, -1 - 2**-12, 2 - 2**-20, 0,
                  np.inf], np.float32)  # fmt: skip
    near = [1, 1 + 2**-9, 1 + 2**-10, -1, 2, 0, np.inf]
    assert nearest_tf32(x).tolist() == near and np.isnan(nearest_tf32(np.float32([np.nan]))).all()


def test_long_sums_of_few_elements_fall_into_parts() -> None:
    """As many as multiprocessors would be idle without, and the memory for them is no must."""

    def product(m: int, n: int, k: int) -> tuple[Graph, list[Config]]:
        graph = small((m, k), np.zeros((k, n), np.float16), "f16")
        return graph, GpuWgmma().space(graph, graph.ops, graph.outputs, GPU)

    graph, space = product(128, 512, 4160)  # 65 rounds
    given = graph, graph.ops, graph.outputs, GPU
    default, lean = GpuWgmma().default(*given), GpuWgmma().lean(*given)
    assert default in space and default["parts"] > 4
    assert lean[0] == default and lean[-1]["parts"] == 1
    launch = GpuWgmma().instantiate(*given, default)
    assert launch.kernel.params[-1].elements == default["parts"] * 128 * 512
    for c in space:
        tiles = -(-128 // c["m"]) * -(-512 // c["n"])
        assert c["parts"] == 1 or c["parts"] * tiles <= gpu_wgmma.PROCESSORS
        assert -(-65 // c["parts"]) * (c["parts"] - 1) < 65
    assert {c["parts"] for c in product(2048, 2048, 4096)[1]} == {1}
    assert {c["parts"] for c in product(64, 64, 384)[1]} == {1}, "six rounds"


class Convolutions(GpuWgmma):
    """With tiles that a simulator gets through."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def default(self, *given: Any) -> Config:
        return self.config


@pytest.mark.parametrize(
    ("x", "w", "config", "attributes"),
    [
        ((1, 64, 9, 10), (64, 64, 3, 3), tile(64, 64, 2), {"pads": 1}),
        ((2, 72, 5, 7), (40, 72, 3, 3), tile(64, 64, 2), {"pads": [0, 2, 1, 0]}),
        ((1, 16, 12, 13), (64, 16, 2, 3), tile(128, 64, 2), {"dilations": 2, "pads": 2}),
        ((2, 8, 10, 10), (128, 8, 3, 1), tile(64, 128, 2, 2), {}),
        ((3, 64, 6, 6), (64, 64, 1, 1), tile(64, 64, 2), {}),
        ((2, 64, 11, 14), (64, 64, 3, 3), tile(64, 64, 2), {"pads": 1, "strides": [2, 3]}),
        ((1, 64, 12, 12), (64, 64, 1, 1), tile(64, 64, 2), {"strides": 2}),
        ((5, 64, 4, 3), (64, 64, 3, 3), tile(64, 64, 2), {"pads": 1}),
        ((3, 16, 7, 7), (128, 16, 3, 3), tile(64, 128, 2, 2), {"pads": 1, "strides": 2}),
        ((3, 8, 7, 7), (36, 8, 3, 3), tile(128, 64, 2), {"pads": 1}),
        ((1, 72, 5, 7), (72, 72, 3, 3), tile(64, 64, 2, parts=6), {"pads": 1}),
        ((5, 64, 4, 3), (64, 64, 3, 3), tile(64, 64, 2, parts=5), {"pads": 1}),
    ],
    ids=[
        "padded",
        "channels that fill no box",
        "dilated",
        "in clusters",
        "one tap",
        "in steps",
        "one tap in steps",
        "several images in a tile",
        "several images, in steps and clusters",
        "several images, results without boxes",
        "in parts",
        "several images, in parts",
    ],
)
def test_convolutions(
    x: tuple[int, ...], w: tuple[int, ...], config: Config, attributes: dict[str, Any]
) -> None:
    rng = np.random.default_rng(6)
    weights, bias = (rng.standard_normal(s).astype(np.float16) for s in (w, w[:1]))
    g = tw.Graph("conv")
    y = g.conv(g.input("x", x, dtype="f16"), g.constant(weights), g.constant(bias), **attributes)
    g.output(g.relu(y), "y")
    feeds = {"x": rng.standard_normal(x).astype(np.float16)}
    source = g.build()
    templates = (Convolutions(config), *(t for t in GPU_TEMPLATES if not isinstance(t, Rival)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_wgmma, "PROCESSORS", 2)
        launches = gpu_launches(source, templates=templates)[1]
        found = run_graph(source, feeds, templates=templates)["y"]
    assert "gpu_wgmma" in [x.kernel.template for x in launches]
    expected = evaluate(source, feeds)["y"]
    np.testing.assert_allclose(found, expected, 0, 2e-3 * np.abs(expected).max())


def test_small_images_share_tiles() -> None:
    """Where one of them would leave most of a tile empty."""

    def tiles(
        batch: int, size: int, m: int, window: int = 3, step: int = 1
    ) -> tuple[int, tuple[int, ...]]:
        g = tw.Graph("conv")
        w = g.constant(np.zeros((64, 64, window, window), np.float16))
        x = g.relu(g.input("x", (batch, 64, size, size), "f16"))
        g.output(g.conv(x, w, pads=window // 2, strides=step), "y")
        graph = run_pipeline(gpu_pipeline(), g.build())[0]
        buffers = Buffers(graph)
        (p,) = (GpuWgmma()._product(graph, x.ops, x.outputs, buffers) for x in coded_groups(graph)
                if GpuWgmma().matches(graph, x.ops, x.outputs))  # fmt: skip
        p = p.tiled(m)
        assert p.window is not None
        return p.batch * p.window.tiles, p.window.shape

    assert tiles(1, 7, 128) == (1, (16, 8))
    assert tiles(4, 14, 128, 1, 2) == (2, (2, 8, 8)), "and not a tile for each row of an image"
    assert tiles(2, 7, 128) == (1, (2, 8, 8))
    assert tiles(32, 7, 64) == (28, (8, 1, 8))
    assert tiles(32, 4, 128) == (4, (8, 4, 4))
    assert tiles(8, 64, 128) == (8 * 32, (16, 8)), "nothing is left empty already"


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        ((64, 60), (60, 64), "rows of 120 bytes"),
        ((64, 64), (64, 60), "columns of 120 bytes"),
        ((4, 64), (64, 64), "four rows"),
        (((1 << 31) + 1, 64), (64, 64), "more rows than a box's place can be numbered with"),
    ],
)
def test_what_it_leaves_to_others(x: tuple[int, int], y: tuple[int, int], why: str) -> None:
    g = tw.Graph("product")
    g.output(g.matmul(g.input("x", x, dtype="f16"), g.input("y", y, dtype="f16")), "z")
    graph, _ = run_pipeline(gpu_pipeline(), g.build())
    assert not GpuWgmma().matches(graph, graph.ops, graph.outputs), why


# --------------------------------------------------------------------------- seeded mistakes

ONE = Case(72, 40, 200, tile(64, 64, 2), processors=1)
PAIR = Case(136, 128, 128, tile(64, 128, 2, 2), processors=2)
IN_PARTS = Case(72, 40, 440, tile(64, 64, 2, parts=3), processors=2)
TWO_GROUPS = Case(128, 72, 256, tile(128, 64, 2), processors=1)

Mistakes = tuple[tuple[str, str], ...]
MISTAKES: Mistakes = (
    (r"mbarrier_wait\(ready, .*\)", "pass"),  # products do not wait for copies
    (r"mbarrier_wait\(free, .*\)", "pass"),  # copies do not wait for products
    (r"mbarrier_wait\(ready, stage, phase\)", "mbarrier_wait(ready, stage, 1 - phase)"),
    (r"mbarrier_wait\(free, stage, .*\)", "mbarrier_wait(free, stage, phase)"),
    (r"mbarrier_init_fence\(\)", "pass"),
    (r"\n    barrier\(\)", "\n    pass"),
    (r"proxy_fence\(\)", "pass"),
    (r"barrier_of\(.*\)", "pass"),
    (r"mbarrier_arrive(\w*)\(free, before", r"mbarrier_arrive\1(free, stage"),
    (r"mbarrier_arrive\w*\(.*\)", "pass"),
    (r"mbarrier_expect\(ready, stage, (\d+)\)", r"mbarrier_expect(ready, stage, \1 // 2)"),
    (r"mbarrier_expect\(ready, stage, (\d+)\)", r"mbarrier_expect(ready, stage, \1 * 2)"),
    (r"mbarrier_init\(free, k, (\d+)\)", r"mbarrier_init(free, k, \1 // 2)"),
    (r"mbarrier_init\(free, k, (\d+)\)", r"mbarrier_init(free, k, \1 + 1)"),
    (r"mbarrier_init\(ready, k, 1\)", "mbarrier_init(ready, k, 2)"),
    (r"tma_wait\((\d)\)", "pass"),
    (r"tma_commit\(\)", "pass"),
    (r"wgmma_wait\(sums, (\d+), 0\)", "pass"),
    (r"wgmma_wait\(sums, (\d+), 0\)", r"wgmma_wait(sums, \1, 1)"),
    (r"stage == (\d)", r"stage == \1 + 1"),
    (r"stage == (\d)", r"stage == \1 - 1"),
    (r"stage \* (\d+)", r"stage * (\1 // 2)"),  # stages overlap
    (r"(k_\d \* )64, ", r"\g<1>32, "),  # terms are taken twice
    (r"range\((\d+)\):\n( +)mbarrier", r"range(\1 - 1):\n\2mbarrier"),
    (r" < (\d+)\b", r" <= \1"),
    (r"umod\(thread, 32\) == 0", "umod(thread, 32) <= 1"),
    (r"(umod\(thread, 128\)) == 0(:\n +(?:v_\d+ = .*\n +)?tma_store)", r"\1 <= 1\2"),
    (r" \* 1024", " * 512"),  # warps write to the same rows
    (r"0 < (\w+), (\d)", r"True, \2"),  # sums of the tile before are added to
    (r"eight \* 4", "eight * 2"),
    (r"half \* 2", "pair * 2"),
    (r"eight \* 8 \+ pair", "eight * 4 + pair"),
)
OF_GROUPS: Mistakes = (
    (r"consumer \* (\d+)", r"consumer * (\1 // 2)"),  # groups write to the same places
    (r"barrier_of\(consumer \+ 1, ", "barrier_of(1, "),
    (r"barrier_of\(.*\)", "pass"),
    (r"mbarrier_arrive\(.*\)", "pass"),
    (r"mbarrier_init\(free, k, (\d+)\)", r"mbarrier_init(free, k, \1 // 2)"),
    (r"udiv\(thread, 128\)", "udiv(thread, 256)"),
)
OF_CLUSTERS: Mistakes = (
    (r"\n( +)cluster_barrier\(\)", r"\n\1pass"),
    (r"free, before, umod\(thread, 32\)", "free, before, 0"),
    (r"(tma_cast.*), 3\)", r"\1, 1)"),
    (r"umod\(block, 2\) \* 64", "umod(block, 2) * 32"),
    (r"umod\(thread, 32\) < 2", "umod(thread, 32) < 1"),
)
OF_PARTS: Mistakes = (
    (r"part = umod\(tile, 3\)", "part = 0"),
    (r"part \* 192", "part * 128"),  # rounds are taken twice
    (r"rounds = min\(3", "rounds = min(2"),
    (r"(part \* -3 \+) 7", r"\1 8"),
    (r"row = umod\(udiv\(tile, 3\), 2\)", "row = umod(tile, 2)"),
    (r"unknown\(6\)", "unknown(5)"),
    (r"0 < (\w+), (\d)", r"True, \2"),  # sums of the part before are added to
    (r"part \* 2880", "part * 0"),
    (r" < (72|40)\b", r" <= \1"),
    (r"half \* 2 \+ pair", "half * 2"),
    (r"item >= 720", "item >= 719"),
    (r"= f32\(0\.0\)\n    for part", "= f32(1.0)\n    for part"),
    (r"total\[v\] = total\[v\] \+ ", "total[v] = "),
    (r"umod\(item, 10\)", "umod(item, 5)"),
)


OF_IMAGES: Mistakes = (
    (r"\* 2 < 3\)", "* 2 < 4)"),  # an image that there is not
    (r" < 5\)", " < 6)"),
    (r"udiv\(row, 128\) \* 2\)", "udiv(row, 128))"),  # an image twice
    (r"(umod\(k_2, 3\) \+ .*) - 1, udiv", r"\1, udiv"),
    (r"udiv\(k_2, 3\)", "umod(k_2, 3)"),
    (r"udiv\((v_\d+), 64\) \* 900", r"udiv(\1, 64) * 180"),
    (r"umod\(udiv\((v_\d+), 8\), 8\) \* 180", r"udiv(\1, 8) * 180"),
)


def mutants(source: Source, mistakes: Mistakes) -> Iterator[tuple[str, Source]]:
    """The source with one mistake, at every place where one of the list fits; and descriptors that
    say something else."""
    for pattern, replacement in mistakes:
        for m in re.finditer(pattern, source.text):
            wrong = source.text[: m.start()] + m.expand(replacement) + source.text[m.end() :]
            yield f"{pattern} -> {replacement} at {m.start()}", replace(source, text=wrong)
    if mistakes is not MISTAKES:
        return
    (entry,) = source.entries
    for k, t in enumerate(entry.tensor_maps):
        inner, *outer = t.dims
        for what, wrong_map in {
            "swizzle": replace(t, swizzle=0),
            "stride": replace(t, strides=(t.strides[0] + 16, *t.strides[1:])),
            "box": replace(t, box=(t.box[0], t.box[1] // 2, *t.box[2:])),
            "dims": replace(t, dims=(inner - 8, *outer)),
            "rows": replace(t, dims=(inner, outer[0] - 1, *outer[1:])),
        }.items():
            maps = (*entry.tensor_maps[:k], wrong_map, *entry.tensor_maps[k + 1 :])
            entries = (replace(entry, tensor_maps=maps),)
            yield f"{what} of {t.name}", replace(source, entries=entries)


@pytest.mark.parametrize(
    ("case", "mistakes"),
    [(ONE, MISTAKES), (TWO_GROUPS, OF_GROUPS), (PAIR, OF_CLUSTERS), (IN_PARTS, OF_PARTS)],
    ids=["a block", "groups", "clusters", "parts"],
)
def test_seeded_mistakes_are_caught(
    case: Case, mistakes: Mistakes, capsys: pytest.CaptureFixture[str]
) -> None:
    """By an error or by a wrong result, in one of eight orders of threads and copies."""
    graph = prepared(case)
    launch, feeds = case.launch(graph), case.feeds(graph)
    expected = case.expected(feeds)
    source = kernel_source(launch.kernel)
    survivors, count = [], 0
    for what, made in mutants(source, mistakes):
        count += 1
        try:
            for seed in range(8):
                found = simulated(graph, launch, feeds, source=made, seed=seed)
                case.assert_close(found, expected)
        except (SimError, AssertionError):
            continue
        survivors.append(what)
    with capsys.disabled():
        print(f" {count - len(survivors)} of {count} mistakes caught", end="")
    assert count > 6
    assert not survivors


def test_seeded_mistakes_of_images_are_caught(capsys: pytest.CaptureFixture[str]) -> None:
    g = tw.Graph("images")
    rng = np.random.default_rng(8)
    w = rng.standard_normal((36, 8, 3, 3)).astype(np.float16)
    g.output(g.conv(g.input("x", (3, 8, 5, 5), "f16"), g.constant(w), pads=1), "y")
    graph = with_layouts(g.build(), {"x": Layout(1, 8), "y": Layout(1, 36)})
    feeds = {"x": rng.standard_normal((3, 8, 5, 5)).astype(np.float16)}
    expected = np.moveaxis(evaluate(graph, feeds)["y"], 1, -1).reshape(-1)
    stored = {"x": np.moveaxis(feeds["x"], 1, -1)}
    launch = GpuWgmma().instantiate(graph, graph.ops, graph.outputs, GPU, tile(128, 64, 2))
    right = kernel_source(launch.kernel)

    def found(made: Source) -> bool:
        try:
            got = simulated(graph, launch, stored, source=made).reshape(-1)
        except SimError:
            return False
        return bool(np.allclose(got, expected, 0, 2e-3 * np.abs(expected).max()))

    assert found(right)
    (entry,) = right.entries
    fewer = replace(entry.tensor_maps[0], box=(64, 8, 8, 1))
    entries = (replace(entry, tensor_maps=(fewer, *entry.tensor_maps[1:])),)
    tried = [*mutants(right, OF_IMAGES), ("one image", replace(right, entries=entries))]
    survivors = [what for what, made in tried if found(made)]
    with capsys.disabled():
        print(f" {len(tried) - len(survivors)} of {len(tried)} mistakes caught", end="")
    assert len(tried) > 8
    assert not survivors
