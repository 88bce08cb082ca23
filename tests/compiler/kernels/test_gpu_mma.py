"""Products on tensor cores, simulated and compared with float64, and their machine code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.codegen.cuda.assemble import assembled, can_assemble, disassembly
from tilewright.compiler.codegen.cuda.frontend import lowered
from tilewright.compiler.codegen.cuda.ptx import kernel_ptx
from tilewright.compiler.codegen.cuda.source import Source, kernel_source
from tilewright.compiler.codegen.cuda.target import KNOWN, CudaTarget
from tilewright.compiler.codegen.cuda.toolkit import part
from tilewright.compiler.graph.bfloat16 import bits_of
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.device import GPU
from tilewright.compiler.kernels.gpu_mma import MOST_SHARED, GpuMma, shared_bytes
from tilewright.compiler.kernels.gpu_mma_operands import copied_by_element
from tilewright.compiler.kernels.gpu_mma_product import product_of
from tilewright.compiler.kernels.gpu_templates import gpu_templates
from tilewright.compiler.kernels.ir import Launch
from tilewright.compiler.kernels.template import Config
from tilewright.ops.types import Layout

from ..codegen.cuda.programs import gpu_launches, run_graph, simulated
from ..codegen.cuda.simulate import SimError
from .support import remembered, with_layouts

rng = np.random.default_rng(5)
SMALL: Config = {"m": 32, "n": 64, "k": 32, "wm": 16, "wn": 32, "stages": 3, "parts": 1}
WORDS: Config = {**SMALL, "k": 16}  # of 32 bits
TINY: Config = {**SMALL, "n": 32}  # of two warps
BYTES: Config = {**SMALL, "k": 64}


def product(
    equation: str, x: tuple[int, ...], w: tuple[int, ...], dtype: str = "f16", *,
    constant: bool = False,
) -> Graph:  # fmt: skip
    """relu(einsum) of two matrices."""
    g = tw.Graph("product")
    right: Any = g.input("w", w, dtype)
    if constant:
        kind = np.float16 if dtype == "f16" else np.float32
        right = g.constant(rng.standard_normal(w).astype(kind), name="w")
    g.output(g.relu(g.einsum(g.input("x", x, dtype), right, equation=equation)), "y")
    return gpu_launches(g.build())[0]


def integers(left: str, right: str, m: int, n: int, k: int) -> Graph:
    g = tw.Graph("integers")
    g.output(g.matmul_integer(g.input("x", (m, k), left), g.input("w", (k, n), right)), "y")
    return gpu_launches(g.build())[0]


def dense(m: int, n: int, k: int, dtype: str = "f16") -> Graph:
    """relu(x w + bias) + residual."""
    g = tw.Graph("dense")
    kind = np.float16 if dtype == "f16" else np.float32
    w = g.constant(rng.standard_normal((k, n)).astype(kind), name="w")
    b = g.constant(rng.standard_normal(n).astype(kind), name="b")
    y = g.relu(g.matmul(g.input("x", (m, k), dtype), w) + b) + g.input("r", (m, n), dtype)
    g.output(y, "y")
    return gpu_launches(g.build())[0]


def fed(graph: Graph) -> dict[str, Any]:
    feeds: dict[str, Any] = {}
    for n in graph.inputs:
        kind = graph.type(n)
        if kind.dtype.is_integer:
            info = np.iinfo(kind.dtype.numpy)
            feeds[n] = rng.integers(info.min, info.max, kind.dims, kind.dtype.numpy, endpoint=True)
        else:
            feeds[n] = rng.standard_normal(kind.dims).astype(kind.dtype.numpy)
    return feeds


def made(graph: Graph, config: Config, tf32: bool = False) -> Launch:
    template = GpuMma(tf32)
    given = graph, graph.ops, graph.outputs
    assert template.matches(*given)
    launch = template.instantiate(*given, GPU, config)
    return remembered(launch, template, graph, graph.outputs, GPU)


def check(graph: Graph, config: Config = SMALL, tf32: bool = False) -> None:
    feeds = fed(graph)
    expected = evaluate(graph, feeds)["y"]
    got = simulated(graph, made(graph, config, tf32), feeds)
    if got.dtype.kind == "i":
        np.testing.assert_array_equal(got, expected)
        return
    limit = 1e-3 if tf32 else 2.0**-10  # of the largest: a rounding to half, sums in float32
    np.testing.assert_allclose(got, expected, 0, limit * np.abs(expected).max())


@pytest.mark.parametrize(
    "graph",
    [
        product("mk,kn->mn", (32, 64), (64, 64)),
        product("mk,nk->mn", (32, 64), (64, 64)),
        product("km,kn->mn", (64, 32), (64, 64)),
        product("km,nk->mn", (64, 32), (64, 64)),
        product("mk,kn->mn", (40, 40), (40, 72)),  # pieces of 16 bytes, but no whole tiles
        product("mk,kn->mn", (33, 37), (37, 65)),  # no pieces
        product("mk,kn->mn", (33, 37), (37, 65), constant=True),
        product("mk,nk->mn", (32, 40), (65, 40), constant=True),
        product("bmk,bkn->bmn", (2, 32, 32), (2, 32, 64)),
        product("bmk,kn->bmn", (2, 8, 32), (32, 64), constant=True),
        product("mk,kn->mn", (32, 16), (16, 64)),  # fewer rounds than stages
        dense(33, 66, 48),
    ],
    ids=lambda g: "-".join(str(g.type(n)) for n in g.inputs),
)
def test_half_floats(graph: Graph) -> None:
    check(graph)


@pytest.mark.parametrize(
    "graph",
    [
        product("mk,kn->mn", (32, 32), (32, 64), "f32"),
        product("mk,nk->mn", (33, 33), (65, 33), "f32"),
        product("mk,kn->mn", (32, 36), (36, 64), "f32", constant=True),
        dense(32, 64, 32, "f32"),
    ],
    ids=lambda g: "-".join(str(g.type(n)) for n in g.inputs),
)
def test_single_floats_rounded_to_tf32(graph: Graph) -> None:
    check(graph, WORDS, tf32=True)


@pytest.mark.parametrize(
    ("left", "right"), [("i8", "i8"), ("u8", "i8"), ("i8", "u8"), ("u8", "u8")]
)
def test_integers_are_exact(left: str, right: str) -> None:
    check(integers(left, right, 33, 65, 96), BYTES)


def test_no_config_changes_a_bit() -> None:
    graph = product("mk,kn->mn", (32, 128), (128, 64))
    feeds = fed(graph)
    configs = (SMALL, {**SMALL, "stages": 2, "k": 64}, {**SMALL, "m": 64, "wm": 32, "stages": 4},
               {**SMALL, "m": 64, "n": 32, "wm": 32, "wn": 16})  # fmt: skip
    results = [simulated(graph, made(graph, c), feeds) for c in configs]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_what_it_leaves_to_others() -> None:
    def found(graph: Graph, tf32: bool = False) -> bool:
        return GpuMma(tf32).matches(graph, graph.ops, graph.outputs)

    single = product("mk,kn->mn", (32, 32), (32, 64), "f32")
    assert not found(single) and found(single, tf32=True)
    assert not found(product("mk,kn->mn", (4, 32), (32, 64)))
    assert not found(product("mk,kn->mn", (64, 32), (32, 4)))
    assert not found(product("mk,kn->mn", (32, 32), (32, 64), "f64"), tf32=True)
    kinds = [[t.name for t in gpu_templates(n)] for n in ("standard", "reduced")]
    assert kinds[0] == kinds[1] and kinds[0][0] == "gpu_mma"
    assert [gpu_templates(n)[0].tf32 for n in ("reproducible", "standard", "reduced")] == [
        False, False, True,
    ]  # fmt: skip


def test_every_config_fits_every_device() -> None:
    for graph in (product("mk,kn->mn", (512, 512), (512, 512)), integers("i8", "i8", 64, 64, 64)):
        given = graph, graph.ops, graph.outputs
        found = product_of(*given, False)
        assert found is not None
        space = GpuMma().space(*given, GPU)
        assert GpuMma().default(*given, GPU) in space and len(space) > 20
        for c in space:
            assert shared_bytes(found, c) <= MOST_SHARED
            assert c["m"] % c["wm"] == c["n"] % c["wn"] == 0
        for c in space[::9]:
            entry, *added = kernel_source(made(graph, c).kernel).entries
            assert entry.shared_bytes == shared_bytes(found, c)
            assert len(added) == (c["parts"] > 1) and not any(e.shared_bytes for e in added)


def test_a_default_wastes_little() -> None:
    graph = dense(4096, 64, 256)
    assert GpuMma().default(graph, graph.ops, graph.outputs, GPU)["n"] == 64


# --------------------------------------------------------------------------- sums in parts


@pytest.mark.parametrize("parts", [2, 3, 4, 8])
@pytest.mark.parametrize(
    "graph",
    [
        product("mk,kn->mn", (40, 768), (768, 72)),
        product("bmk,nk->bmn", (2, 9, 760), (33, 760), constant=True),  # zeros behind the terms
        dense(33, 66, 767),  # no neighbours in memory
    ],
    ids=lambda g: "-".join(str(g.type(n)) for n in g.inputs),
)
def test_sums_in_parts(graph: Graph, parts: int) -> None:
    """Of as many rounds each, added up by a second kernel, which makes the results."""
    check(graph, {**SMALL, "parts": parts})


@pytest.mark.parametrize(
    ("graph", "tile"),
    [(dense(3, 72, 264), (16, 128, 16, 32)),
     (product("mk,kn->mn", (72, 264), (264, 2)), (128, 16, 32, 16))],
    ids=["rows", "columns"],
)  # fmt: skip
def test_few_rows_and_long_sums(graph: Graph, tile: tuple[int, ...]) -> None:
    """A few rows are worth a tile: weights are read once, and not once for each."""
    (launch,) = gpu_launches(graph)[1]
    assert launch.kernel.template == "gpu_mma"
    space = GpuMma().space(graph, graph.ops, graph.outputs, GPU)
    (config,) = (c for c in space if (c["m"], c["n"], c["wm"], c["wn"]) == tile
                 and (c["stages"], c["parts"]) == (3, 1))  # fmt: skip
    check(graph, config)


@pytest.mark.parametrize("m", [1, 3])
def test_any_number_of_rows_where_all_add_in_one_order(m: int) -> None:
    """The bits of a row are those that it has among others."""
    template = GpuMma(one_order=True)
    small, large = dense(m, 40, 72), dense(20, 40, 72)
    shared = {n: b for n, b in large.blobs.items() if b.is_constant}
    small = replace(small, blobs={**small.blobs, **shared})
    feeds = fed(large)
    results = []
    for graph, rows in ((large, 20), (small, m)):
        given = graph, graph.ops, graph.outputs
        assert template.matches(*given)
        launch = template.instantiate(*given, GPU, SMALL)
        results.append(simulated(graph, launch, {n: x[:rows] for n, x in feeds.items()}))
    np.testing.assert_array_equal(results[0][:m], results[1])
    assert not GpuMma().matches(small, small.ops, small.outputs)


def test_sums_of_other_types_in_parts() -> None:
    check(product("mk,kn->mn", (32, 128), (128, 64), "f32"), {**WORDS, "parts": 2}, tf32=True)
    check(integers("i8", "u8", 33, 65, 512), {**BYTES, "parts": 4})


def test_windows_in_parts() -> None:
    """Rounds of one part may begin anywhere in a window."""
    graph = window(1, 32, 16, 5)
    feeds = fed(graph)
    (expected,) = evaluate(graph, feeds).values()
    stored = {n: np.moveaxis(x, 1, -1) for n, x in feeds.items()}
    for parts in (3, 9):
        launch = made(graph, {**TINY, "parts": parts})
        got = simulated(graph, launch, stored).reshape(-1)
        wanted = np.moveaxis(expected, 1, -1).reshape(-1)
        np.testing.assert_allclose(got, wanted, 0, 2.0**-10 * np.abs(expected).max())


def test_parts_are_added_in_order_whichever_block_is_first() -> None:
    graph = product("mk,kn->mn", (32, 512), (512, 32))
    launch, feeds = made(graph, {**TINY, "parts": 4}), fed(graph)
    results = [simulated(graph, launch, feeds, seed=k) for k in range(3)]
    assert all(np.array_equal(results[0], r) for r in results)


def test_long_sums_of_few_elements_fall_into_parts() -> None:
    def parts(template: GpuMma, m: int, n: int, k: int) -> tuple[int, set[int]]:
        graph = dense(m, n, k)
        given = graph, graph.ops, graph.outputs, GPU
        space = template.space(*given)
        default = template.default(*given)
        assert default in space
        return default["parts"], {c["parts"] for c in space}

    assert parts(GpuMma(), 64, 64, 8192)[0] > 4
    assert parts(GpuMma(), 8, 1000, 4096)[0] > 1
    assert parts(GpuMma(), 64, 64, 256)[0] == 1, "the second kernel would take longer"
    assert parts(GpuMma(), 2048, 2048, 2048) == (1, {1}), "there are tiles enough"
    assert parts(GpuMma(one_order=True), 64, 64, 8192) == (1, {1})
    (whole,) = (t for t in gpu_templates("reproducible") if t.name == "gpu_mma")
    assert whole.one_order


# --------------------------------------------------------------------------- convolutions


class Small(GpuMma):
    """With tiles that a simulator gets through."""

    def default(self, *given: Any) -> Config:
        return WORDS if self.tf32 else SMALL


def network(
    x: tuple[int, ...], w: tuple[int, ...], dtype: str = "f16", **attributes: Any
) -> Graph:  # fmt: skip
    """relu(conv(x) + bias), and a convolution of places after it."""
    g = tw.Graph("network")
    kind = np.float16 if dtype == "f16" else np.float32

    def constant(*dims: int) -> Any:
        return g.constant(rng.standard_normal(dims).astype(kind))

    y = g.relu(g.conv(g.input("x", x, dtype), constant(*w), constant(w[0]), **attributes))
    g.output(g.conv(y, constant(16, w[0], 1, 1) * np.asarray(0.1, kind)), "y")
    return g.build()


def window(batch: int, channels: int, results: int, size: int) -> Graph:
    """A 3x3 convolution of an image with channels last, which stay so."""
    g = tw.Graph("window")
    w = g.constant(rng.standard_normal((results, channels, 3, 3)).astype(np.float16))
    g.output(g.conv(g.input("x", (batch, channels, size, size), "f16"), w, pads=1), "y")
    graph = g.build()
    ops = graph.ops[:1]
    graph = Graph(graph.name, graph.inputs, ops[0].outputs, ops, graph.blobs)
    (out,) = graph.outputs
    return with_layouts(graph, {"x": Layout(1, channels), out: Layout(1, results)})


def templates(tf32: bool = False) -> tuple[Any, ...]:
    kept = gpu_templates("reduced" if tf32 else "standard")
    return (Small(tf32), *kept[1:])


def run(source: Graph, tf32: bool = False) -> list[str]:
    """The templates of the network's kernels, after comparing its result with float64."""
    numerics: Any = "reduced" if tf32 else "standard"
    feeds = fed(source)
    expected = evaluate(source, feeds)["y"]
    got = run_graph(source, feeds, numerics=numerics, templates=templates(tf32))["y"]
    np.testing.assert_allclose(got, expected, 0, 2e-3 * np.abs(expected).max())
    return [x.kernel.template for x in gpu_launches(source, numerics, templates(tf32))[1]]


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 16, 5, 7), (16, 16, 3, 3), {"pads": 1}),
        ((1, 16, 9, 9), (24, 16, 3, 3), {"pads": 2, "strides": 2, "dilations": 2}),
        ((1, 32, 5, 5), (32, 16, 3, 3), {"pads": 1, "group": 2}),
        ((1, 13, 6, 6), (20, 13, 3, 3), {"pads": 1}),  # no 16 bytes of channels
        ((1, 64, 4, 4), (16, 64, 1, 1), {}),
    ],
    ids=str,
)
def test_convolutions(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    source = network(x, w, **attributes)
    assert run(source) == ["gpu_nest", "gpu_mma", "gpu_mma", "gpu_nest"]  # the edges are reformats
    graph, launches = gpu_launches(source)
    assert str(graph.type(launches[1].args[-1])).endswith(f"@1x{w[0]}")


def test_an_image_is_read_as_it_comes() -> None:
    source = network((1, 3, 11, 11), (32, 3, 3, 3), strides=2)
    assert run(source) == ["gpu_mma", "gpu_mma", "gpu_nest"]
    first, second, _ = (x.kernel for x in gpu_launches(source)[1])
    assert [b.elements for b in copied_by_element(first)] == [3 * 11 * 11]
    assert not copied_by_element(second)


def test_bf16_from_end_to_end() -> None:
    """Stored and multiplied in bf16, everything between in float32, in the same kernels."""
    g = tw.Graph("mixed")

    def constant(*dims: int) -> Any:
        return g.cast(g.constant(0.2 * rng.standard_normal(dims).astype(np.float32)), to="bf16")

    x = g.conv(g.input("x", (1, 16, 5, 5), "bf16"), constant(16, 16, 3, 3), pads=1)
    h = g.cast(g.sigmoid(g.cast(x, to="f32")), to="bf16")
    h = g.cast(g.reduce_mean(g.cast(g.conv(h, constant(24, 16, 1, 1)), to="f32"), axes=(2, 3),
                             keepdims=0), to="bf16")  # fmt: skip
    y = g.cast(g.matmul(g.concat(*(h,) * 8, axis=0), constant(24, 32)), to="f32")
    g.output(g.relu(y) + 1.0, "y")
    source = g.build()
    feeds = {"x": bits_of(rng.standard_normal((1, 16, 5, 5)))}
    expected = evaluate(source, feeds)["y"]
    got = run_graph(source, feeds, templates=templates())["y"]
    np.testing.assert_allclose(got, expected, 0, 2.0**-8 * np.abs(expected).max())
    _, launches = gpu_launches(source, templates=templates())
    used = [x.kernel.template for x in launches]
    assert used.count("gpu_mma") == 3
    cpu = tw.compile(source)(feeds["x"])
    np.testing.assert_allclose(cpu, expected, 0, 2.0**-8 * np.abs(expected).max())


def test_networks_in_single_precision_use_tf32_under_reduced() -> None:
    source = network((1, 16, 5, 7), (16, 16, 3, 3), "f32", pads=1)
    assert run(source, tf32=True) == ["gpu_nest", "gpu_mma", "gpu_mma", "gpu_nest"]
    assert {x.kernel.template for x in gpu_launches(source)[1]} == {"gpu_tiles"}


def test_channels_stay_last_between_convolutions() -> None:
    """Windows, joins, sums and pointwise operators do not go back and forth."""
    g = tw.Graph("block")
    kind = np.float16
    a = g.conv(g.input("x", (1, 16, 6, 6), "f16"), g.constant(np.ones((16, 16, 1, 1), kind)))
    b = g.max_pool(g.relu(a), kernel_shape=3, strides=1, pads=1)
    c = g.conv(g.concat(a, b, axis=1), g.constant(np.ones((16, 32, 1, 1), kind)))
    d = g.conv(c, g.constant(np.ones((16, 1, 3, 3), kind)), group=16, pads=1)
    g.output(g.reduce_mean(d + a, axes=(2, 3)), "y")
    graph, _ = gpu_launches(g.build())
    assert sum(op.operator == "reformat" for op in graph.ops) == 1
    made = [graph.type(op.outputs[0]) for op in graph.ops if op.outputs[0] not in graph.outputs]
    assert all(t.layout.block == t.dims[1] for t in made)


# --------------------------------------------------------------------------- machine code


def machine_code(graph: Graph, arch: str, tf32: bool = False) -> str:
    """Its text with the default config, after checking that everything is in registers."""
    template, given = GpuMma(tf32), (graph, graph.ops, graph.outputs)
    kernel = made(graph, template.default(*given, GPU), tf32).kernel
    source, target = kernel_source(kernel), CudaTarget(arch)
    ptx = kernel_ptx(kernel, source.entries, lowered(source, kernel.params, target), target)
    assert ".local" not in ptx
    if not (can_assemble() and part("nvdisasm")):
        pytest.skip("nvJitLink or nvdisasm is not there")
    code = assembled(ptx, target)
    assert not any(usage.local_bytes for usage in code.usage.values())
    return disassembly(code.cubin)


LARGE = (8192, 8192, 512)


@pytest.mark.parametrize("arch", KNOWN)
def test_machine_code_of_half_floats(arch: str) -> None:
    pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
    found = machine_code(dense(*LARGE), arch)
    assert found.count("HMMA.16816.F32") == 2 * 32  # two steps of 4 by 8 fragments
    assert found.count("LDSM.16") == 2 * (4 + 4) + 8  # and those ahead of the first round
    assert found.count("STG.E.128") == 4 * 2 * 2  # eight half floats each
    assert "LDGSTS.E.BYPASS.LTC128B.128" in found or "LDGSTS.E.BYPASS.128" in found


def test_machine_code_of_parts() -> None:
    """Both kernels move 16 bytes at a time; a thread of the second asks for all parts at once."""
    pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
    graph = dense(64, 1024, 8192)
    parts = GpuMma().default(graph, graph.ops, graph.outputs, GPU)["parts"]
    _, *found = re.split(r"\.section\s+\.text\.", machine_code(graph, "sm_80"))
    first, second = sorted(found, key=lambda text: "HMMA" not in text)
    assert parts > 1 and "HMMA" in first and "STG.E.128" in first
    assert "HMMA" not in second and second.count("LDG.E.128") == parts


@pytest.mark.parametrize(
    ("graph", "tf32", "instruction"),
    [(dense(*LARGE, "f32"), True, "HMMA.1688.F32.TF32"),
     (integers("i8", "i8", 512, 512, 512), False, "IMMA.16832.S8.S8"),
     (window(2, 64, 64, 28), False, "HMMA.16816.F32")],
    ids=["tf32", "i8", "conv"],
)  # fmt: skip
def test_machine_code_of_others(graph: Graph, tf32: bool, instruction: str) -> None:
    pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
    found = machine_code(graph, "sm_80", tf32)
    assert instruction in found and "LDSM" in found and "LDGSTS" in found


# --------------------------------------------------------------------------- seeded mistakes

MISTAKES = (
    (r"\n +barrier\(\)", ""),  # a barrier is missing
    (r"cp_wait\((\d)\)", r"cp_wait(9)"),  # copies are not waited for
    (r"\n +cp_commit\(\)", ""),
    (r"\((\w_piece) \^ [^*]*\) \* 8", r"\1 * 8"),  # pieces are stored where nobody looks for them
    (r"\^ umod\(", "^ 1 + umod("),
    (r"(v_\d+ = \(.*?) < (\d+)", r"\1 <= \2"),  # an edge is not cut off
    (r"(v_\d+ = \(.*) < (\d+)", r"\1 <= \2"),
    (r"if k_round \+ (\d) <", r"if k_round + 1 + \1 <"),  # the last tile is not copied
    (r"(\w+_place\d = )", r"\g<1>8 + "),  # the wrong columns of a tile
    (r"umod\(k_round( \+ \d)?, (\d)\)", r"umod(k_round\1, \2 - 1)"),  # another stage
    (r"ldmatrix\(", "ldmatrix_t("),
    (r"ldmatrix_t\(", "ldmatrix("),
    (r"(mma_f16\(sums, a)(\d)", r"\g<1>0"),  # fragments of another step
    (r"(shared_f16\()(\d+), (\d+)", r"\1\2, \3 - 1024"),  # too little shared memory
    (r"shared_f16\([1-9]\d+,", "shared_f16(0,"),  # operands overlap
    (r"sums\[e \+", "sums[1 - e +"),
    (r"\n +turn_columns\([^\n]*", ""),  # a thread stores what others hold
    (r"\+ s\w* \* 4\]", "+ s * 3]"),
    (r"udiv\(lane, 4\)", "umod(lane, 4)"),
)  # fmt: skip


WINDOW_MISTAKES = (
    (r"0 <= (?=v|umod)", "-1 <= "),  # what is left of the image or above it is read
    (r" < 5\)\)", " < 6))"),  # what is right of it
    (r"(udiv\(v_\d+, 5\) \+ v_\d+) < 5", r"\1 < 6"),  # or below it
    (r"(v_\d+ [-+] )(\d+), 16,", r"\g<1>\2 + 16, 16,"),  # the next place
    (r", 5\) \* 16", ", 5) * 32"),
    (r"(cp_async)_zero(\([^\n]*), [^,]*\)\n", r"\1\2)\n"),  # no zeros
)  # fmt: skip


PARTS_MISTAKES = (
    (r"first_round = item \* (\d)", r"first_round = item * (\1 - 1)"),  # terms of another part
    (r" \+ first_round \* \d+", ""),
    (r"first_round \* (\d+)", r"first_round * (\1 // 2)"),
    (r"k_round \+ 2 < 4", "k_round + 2 < 5"),  # the next part's terms as well
    (r"k_round < 3", "k_round < 2"),
    (r"range\(unknown\(4\)\)", "range(unknown(3))"),
    (r"item \* 648", "item * 640"),  # parts overlap
    (r"store_vector\(s0, [^\n]*", "pass"),
    (r"v_18 \+ 4, word, 4", "v_18 + 4, word, 0"),
    (r"item >= 162", "item >= 160"),  # not all are added up
    (r"range\(2\)(:  # unrolled\n +for v)", r"range(1)\1"),  # one part is missing
    (r"part \* 648", "part * 324"),
    (r"total\[v\] = total\[v\] \+ ", "total[v] = "),
    (r"total\[v\] = f32\(0.0\)", "total[v] = f32(1.0)"),
    (r"y0\[item \* 4 \+ v\]", "y0[item * 4]"),
)  # fmt: skip


def mutants(source: Source, mistakes: Sequence[tuple[str, str]]) -> list[tuple[str, Source]]:
    """The source with one mistake, at every place where one fits."""
    found = []
    for pattern, replacement in mistakes:
        for m in re.finditer(pattern, source.text):
            text = source.text[: m.start()] + m.expand(replacement) + source.text[m.end() :]
            if text != source.text:
                found.append((f"{pattern} at {m.start()}: {m[0]!r}", Source(text, source.entries)))
    return found


@pytest.mark.parametrize(
    ("graph", "config", "mistakes", "least"),
    [(product("mk,kn->mn", (27, 136), (136, 24)), TINY, MISTAKES, 40),
     (product("mk,kn->mn", (27, 256), (256, 24)), {**TINY, "parts": 2}, PARTS_MISTAKES, 20),
     (window(1, 16, 16, 5), TINY, WINDOW_MISTAKES, 6)],
    ids=["product", "parts", "window"],
)  # fmt: skip
def test_seeded_mistakes_are_caught(
    graph: Graph, config: Config, mistakes: Sequence[tuple[str, str]], least: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """By an error or by a wrong result."""
    feeds = fed(graph)
    (expected,) = evaluate(graph, feeds).values()
    if graph.type(graph.outputs[0]).layout.is_blocked:  # both as they lie in memory
        feeds = {n: np.moveaxis(x, 1, -1) for n, x in feeds.items()}
        expected = np.moveaxis(expected, 1, -1)
    launch = made(graph, config)
    source = kernel_source(launch.kernel)

    def right(of: Source) -> bool:
        try:
            got = simulated(graph, launch, feeds, source=of)
        except (SimError, IndexError):
            return False
        limit = 2.0**-9 * np.abs(expected).max()
        return bool(np.allclose(got.reshape(-1), expected.reshape(-1), 0, limit))

    assert right(source)
    tried = mutants(source, mistakes)
    survivors = [what for what, m in tried if right(m)]
    with capsys.disabled():
        print(f" {len(tried) - len(survivors)} of {len(tried)} mistakes caught", end="")
    assert len(tried) >= least
    assert not survivors
