"""Winograd convolution on GPUs: simulated, and compared with float64 within what its matrices
allow."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.codegen.cuda.assemble import assembled, can_assemble, disassembly
from tilewright.compiler.codegen.cuda.frontend import lowered
from tilewright.compiler.codegen.cuda.ptx import kernel_ptx
from tilewright.compiler.codegen.cuda.source import kernel_source
from tilewright.compiler.codegen.cuda.target import CudaTarget
from tilewright.compiler.codegen.cuda.toolkit import part
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.device import GPU, gpu_device
from tilewright.compiler.kernels.gpu_nest import GpuNest
from tilewright.compiler.kernels.gpu_templates import gpu_templates
from tilewright.compiler.kernels.gpu_tiles import GpuTiles
from tilewright.compiler.kernels.gpu_winograd import GpuWinograd, _group
from tilewright.compiler.kernels.gpu_winograd_phases import Extents
from tilewright.compiler.kernels.ir import Launch, Prepared
from tilewright.compiler.kernels.select import live_outputs, select
from tilewright.compiler.kernels.template import Config, required
from tilewright.compiler.kernels.winograd_transforms import transforms
from tilewright.compiler.options import Numerics
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.pipeline import gpu_pipeline
from tilewright.compiler.tuning.problem import problem_of
from tilewright.compiler.tuning.reference import Reference

from ..codegen.cuda.programs import gpu_launches, run_graph, simulated
from ..codegen.cuda.simulate import SimError, run_source
from .support import remembered

WINOGRAD = GpuWinograd()
ROUNDOFF = 2.0**-24
SMALL = {"rows": 32, "columns": 32, "k": 16, "tm": 4, "tn": 4, "stages": 3}
rng = np.random.default_rng(5)


def array(*dims: int) -> Any:
    return rng.standard_normal(dims).astype(np.float32)


def conv(
    x: tuple[int, ...], channels: int, pads: Any = 1, bias: bool = True, relu: bool = False,
    residual: bool = False,
) -> Graph:  # fmt: skip
    g = tw.Graph("conv")
    b = (g.constant(array(channels), name="b"),) if bias else ()
    w = g.constant(array(channels, x[1], 3, 3), name="w")
    y = g.conv(g.input("x", x), w, *b, pads=pads)
    y = y + g.input("r", y.shape) if residual else y
    g.output(g.relu(y) if relu else y, "y")
    graph, _ = run_pipeline(gpu_pipeline(), g.build())
    return graph


CASES: dict[str, tuple[int, Graph]] = {
    "four at once": (4, conv((1, 8, 12, 16), 8, relu=True, residual=True)),
    "two at once": (4, conv((2, 4, 10, 6), 9, residual=True)),
    "one by one": (4, conv((2, 4, 9, 11), 9, relu=True)),
    "two columns": (2, conv((1, 6, 8, 10), 8, pads=0, bias=False, residual=True)),
    "odd": (2, conv((1, 19, 5, 7), 11, relu=True)),
    "wide padding": (2, conv((1, 4, 4, 3), 8, pads=(3, 0, 2, 4))),
    "row": (2, conv((2, 7, 1, 21), 10)),
}
"""The size of a tile, and a problem: all ways of reading and storing rows."""


def made(graph: Graph, config: Config) -> Launch:
    given = graph, graph.ops, graph.outputs, GPU
    assert WINOGRAD.matches(*given[:3])
    launch = WINOGRAD.instantiate(*given, config)
    return remembered(launch, WINOGRAD, graph, graph.outputs, GPU)


def check(graph: Graph, config: Config, run: Callable[..., Any]) -> Launch:
    """Within `Transforms.error` for results of up to 4 standard deviations; where results may lie
    in an operand's memory, they do."""
    feeds = {n: array(*graph.type(n).dims) for n in graph.inputs}
    expected = evaluate(graph, feeds)["y"]
    launch = made(graph, config)
    depth = graph.type("x").dims[1]
    limit = transforms(config["m"]).error(depth) * ROUNDOFF * 4 * np.sqrt(9 * depth)
    for alias in launch.kernel.inplace or (None,):
        got = run(graph, launch, feeds, alias)
        np.testing.assert_allclose(got, expected, 4 * ROUNDOFF, limit, err_msg=str(alias))
    return launch


def transformed(
    graph: Graph, launch: Launch, feeds: dict[str, Any], alias: tuple[int, int] | None = None,
    texts: Sequence[str] = (),
) -> Any:  # fmt: skip
    """The result, with products by numpy: those are tiles, which have tests of their own, and take
    most of the time. texts: of both transforms, in the place of the kernel's own."""
    source, k = kernel_source(launch.kernel), launch.kernel
    arrays = [np.full(b.elements, np.nan, np.float32) for b in k.params]
    for n, (arg, b) in enumerate(zip(launch.args, k.params, strict=True)):
        if isinstance(arg, Prepared):
            arrays[n] = np.asarray(arg.make(*(graph.blobs[x].content for x in arg.blobs)))
        elif arg is not None and b.role != "out":
            given = feeds[arg] if arg in feeds else graph.blobs[arg].content
            arrays[n] = np.array(given, np.float32).reshape(-1)
    if alias is not None:
        arrays[alias[0]] = arrays[alias[1]]
    buffers = [(b.name, a, b.is_written) for b, a in zip(k.params, arrays, strict=True)]
    by_name = {name: a for name, a, _ in buffers}
    first, _, last = source.text.split("\n\n\n")
    first, last = texts or (first, last)
    run_source(first, source.entries[:1], buffers)
    p = required(_group(graph, graph.ops, graph.outputs), "Winograd", graph.ops)
    e = Extents.of(p, dict(k.config)["m"])
    u = by_name["w0"].reshape(e.points, e.depth, e.width).astype(np.float64)
    v = by_name["s0"].reshape(e.points, e.depth, e.pitch)
    by_name["s1"][:] = np.einsum("pco,pct->pot", u, v).reshape(-1)
    run_source(last, source.entries[2:], buffers)
    return by_name["y0"].reshape(graph.type("y").dims)


@pytest.mark.parametrize("name", CASES)
def test_sizes(name: str) -> None:
    m, graph = CASES[name]
    launch = check(graph, {"m": m, **SMALL}, transformed)
    k, (images, depth, *_) = launch.kernel, graph.type("x").dims
    _, channels, height, width = graph.type("y").dims
    tiles = images * -(-height // m) * -(-width // m)
    assert k.flops == 2 * 9 * graph.type("y").size * depth
    assert k.own_flops == 2 * (m + 2) ** 2 * tiles * channels * depth
    assert [b.role for b in k.params[-2:]] == ["scratch"] * 2
    read = {b.name for b in k.params if b.role == "in" and b.nbytes == graph.type("y").nbytes}
    assert {k.params[x].name for _, x in k.inplace} == read, "results may lie in what was read"


@pytest.mark.slow
@pytest.mark.parametrize("m", [2, 4])
def test_other_configs(m: int) -> None:
    """Every sixth, the whole way; several blocks of them."""
    graph = conv((1, 9, 8, 34), 40, residual=True)
    space = WINOGRAD.space(graph, graph.ops, graph.outputs, GPU)
    for config in [c for c in space if c["m"] == m][3::6]:
        check(graph, config, simulated)


def test_results_that_two_others_read() -> None:
    """The sum, and what follows on it, which `gpu_tiles` does not compute together."""
    g = tw.Graph("two")
    y = g.conv(g.input("x", (1, 4, 8, 8)), g.constant(array(8, 4, 3, 3)), pads=1)
    g.output(y, "y")
    g.output(g.relu(y), "z")
    feeds = {"x": array(1, 4, 8, 8)}
    expected = evaluate(g.build(), feeds)
    found = run_graph(g.build(), feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, 1e-5, 1e-5 * np.abs(value).max())


def test_blocks_of_a_residual_network() -> None:
    """In an arena as planned, full of NaN before: scratch included."""
    g = tw.Graph("block")
    x = g.input("x", (1, 8, 9, 8))
    a = g.relu(g.conv(x, g.constant(array(8, 8, 3, 3)), g.constant(array(8)), pads=1))
    b = g.conv(a, g.constant(array(8, 8, 3, 3)), g.constant(array(8)), pads=1)
    g.output(g.relu(b + x), "y")
    feeds = {"x": array(1, 8, 9, 8)}
    templates = (GpuWinograd(), GpuNest())
    _, launches = gpu_launches(g.build(), templates=templates)
    assert [x.kernel.template for x in launches] == ["gpu_winograd"] * 2
    got = run_graph(g.build(), feeds, templates=templates)["y"]
    expected = evaluate(g.build(), feeds)["y"]
    np.testing.assert_allclose(got, expected, 0, 1e-5 * np.abs(expected).max())


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize("m", [2, 4])
def test_typical_error(m: int) -> None:
    graph = conv((1, 16, 8, 4 * m), 8, bias=False)
    feeds = {"x": array(*graph.type("x").dims)}
    expected = evaluate(graph, feeds)["y"]
    got = simulated(graph, made(graph, {"m": m, **SMALL}), feeds)
    error = np.abs(got - expected).max() / np.abs(expected).max() / ROUNDOFF
    assert error <= transforms(m).error(16)
    assert error >= transforms(m).error(16) / 20, "the bound says nothing"


@pytest.mark.parametrize("m", [2, 4])
def test_worst_error(m: int) -> None:
    """Inputs of very different size: every result against its own bound, the roundings on the way
    to it times what the steps make of absolute values."""
    channels, size = 7, 8
    graph = conv((1, channels, size, 2 * size), 8, bias=False)
    x = array(1, channels, size, 2 * size) * np.exp2(rng.integers(-12, 13, (size, 2 * size)))
    feeds = {"x": x.astype(np.float32)}
    got = transformed(graph, made(graph, {"m": m, **SMALL}), feeds)
    off = np.abs(got - evaluate(graph, feeds)["y"])[0]
    t = transforms(m)
    b, g, a = (np.abs(np.array(x, np.float64)) for x in (t.data, t.weights, t.result))
    x = np.pad(np.abs(feeds["x"][0].astype(np.float64)), ((0, 0), (1, 1), (1, 1)))
    w = np.abs(graph.blobs[graph.ops[0].reads[1]].value.astype(np.float64))
    u = np.einsum("ki,ocij,lj->klco", g, w, g)
    roundings = 2 * 3 + 1 + 1 + 2 * 5  # of B, U, the sum (which is numpy's), and A
    for top in range(0, size, m):
        for left in range(0, 2 * size, m):
            v = np.einsum("ki,cij,lj->klc", b, x[:, top : top + m + 2, left : left + m + 2], b)
            y = np.einsum("ik,klo,jl->oij", a, np.einsum("klc,klco->klo", v, u), a)
            assert (off[:, top : top + m, left : left + m] <= roundings * ROUNDOFF * y).all()


# --------------------------------------------------------------------------- choice


def layer(channels: int, size: int, batch: int = 1) -> Graph:
    return conv((batch, channels, size, size), channels, relu=True)


def chosen(graph: Graph, arch: tuple[int, int], numerics: Numerics = "standard") -> str:
    device, templates = gpu_device(arch), gpu_templates(numerics, arch)
    (launch,) = select(graph, device, templates=templates, numerics=numerics)
    return launch.kernel.template


def test_the_model_chooses() -> None:
    assert chosen(layer(256, 56), (9, 0)) == chosen(layer(64, 56), (8, 0)) == "gpu_winograd"
    assert chosen(layer(32, 14), (9, 0)) == "gpu_tiles", "two more kernels begin"
    assert chosen(layer(512, 7), (8, 0)) == "gpu_tiles", "of every tile, few places are results"
    assert chosen(layer(256, 56), (9, 0), "reproducible") == "gpu_tiles"
    large = layer(256, 56)
    for arch in ((8, 0), (9, 0)):
        given = large, large.ops, large.outputs, gpu_device(arch)
        best = min(WINOGRAD.estimate(*given, c) for c in WINOGRAD.space(*given))
        tiles = min(GpuTiles().estimate(*given, c) for c in GpuTiles().space(*given))
        assert tiles / 4 < best < tiles / 1.25, "at most 4 times fewer products"
        assert WINOGRAD.estimate(*given, WINOGRAD.default(*given)) < 1.2 * best


@pytest.mark.parametrize("size", [7, 56])
def test_a_search_has_both(size: int) -> None:
    """Whichever goes first, and with an estimate of each candidate, which it is checked by."""
    graph = layer(256, size)
    p = problem_of(graph, graph.ops, graph.outputs, gpu_device((9, 0)), "standard")
    space, estimates = p.candidates()
    assert {c.template for c in space} == {"gpu_winograd", "gpu_tiles"}
    assert len(estimates) == len(space) and all(0 < e < 1 for e in estimates)
    exact = replace(p, numerics="reproducible")
    assert {c.template for c in exact.space()} == {"gpu_tiles"}
    reference = Reference(problem_of(CASES["odd"][1], CASES["odd"][1].ops, ("y",), GPU, "standard"))
    launch = made(CASES["odd"][1], {"m": 2, **SMALL})
    assert reference.roundoffs(launch) == pytest.approx(16 + 2 * transforms(2).error(19))


@pytest.mark.parametrize(
    "build",
    [
        lambda g: g.conv(g.input("x", (1, 8, 9, 9)), g.constant(array(8, 8, 3, 3)), strides=2),
        lambda g: g.conv(g.input("x", (1, 8, 9, 9)), g.constant(array(8, 8, 3, 3)), dilations=2),
        lambda g: g.conv(g.input("x", (1, 8, 9, 9)), g.constant(array(8, 4, 3, 3)), group=2),
        lambda g: g.conv(g.input("x", (1, 8, 9, 9)), g.constant(array(8, 8, 5, 5))),
        lambda g: g.conv(g.input("x", (1, 8, 9, 9)), g.input("w", (8, 8, 3, 3))),
        lambda g: g.conv(g.input("x", (1, 8, 9)), g.constant(array(8, 8, 3))),
        lambda g: g.conv(g.input("x", (1, 3, 9, 9)), g.constant(array(8, 3, 3, 3))),
        lambda g: g.matmul(g.input("x", (32, 32)), g.input("w", (32, 32))),
    ],
    ids=["strides", "dilations", "groups", "5x5", "weights", "1d", "few channels", "matmul"],
)
def test_declines(build: Callable[[Any], Any]) -> None:
    g = tw.Graph("other")
    g.output(build(g), "y")
    graph, _ = gpu_launches(g.build())
    assert not any(WINOGRAD.matches(graph, ops, live_outputs(graph, ops)) for ops in graph.groups)


# --------------------------------------------------------------------------- machine code


@pytest.mark.parametrize("m", [2, 4])
def test_transforms_are_in_registers(m: int) -> None:
    """Whole rows of inputs and results at once, one access for each place of a tile in V and M; few
    registers, so that many warps hide what memory takes."""
    pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
    if not can_assemble() or part("nvdisasm") is None:
        pytest.skip("nvJitLink or nvdisasm is not there")
    graph, target = conv((1, 64, 56, 56), 64, residual=True), CudaTarget("sm_90")
    kernel = made(graph, {"m": m, **SMALL}).kernel
    first, _, last = kernel_source(kernel).entries
    only = replace(kernel, phases=(kernel.phases[0], kernel.phases[2]))
    source = kernel_source(only)
    ptx = kernel_ptx(only, source.entries, lowered(source, kernel.params, target), target)
    code = assembled(ptx, target)
    usage = [code.usage[e.name] for e in source.entries]
    assert all(u.local_bytes == 0 and u.registers <= 64 for u in usage)
    assert (first.blocks, last.blocks) == tuple(e.blocks for e in source.entries)
    found = Counter(INSTRUCTION.findall(re.sub(r"/\*.*?\*/", "", disassembly(code.cubin))))
    points, wide = (m + 2) ** 2, {2: "64", 4: "128"}[m]
    assert found["STG.E"] == points and found[f"STG.E.{wide}"] == m
    loads = {k: n for k, n in found.items() if k.startswith("LDG")}
    assert loads[f"LDG.E.{wide}"] >= 2 * m, "rows of the residual, and of inputs that are inside"
    assert sum(loads.values()) <= points + m + 1 + 4 * (m + 2), "M, residual, bias, inputs"
    assert not [k for k in found if k.startswith(("LDL", "STL", "CALL", "I2F", "MUFU"))]


INSTRUCTION = re.compile(r"^\s+(?:\{\s+)?(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)", re.MULTILINE)


# --------------------------------------------------------------------------- seeded mistakes

MISTAKES = (
    (r"number < (\d+)", r"number < \1 + 1"),  # a thread too many
    (r"number < (\d+)", r"number < \1 - 4"),  # or too few
    (r"umod\(number, (\d+)\) < (\d+)", r"umod(number, \1) <= \2"),  # a tile that is none
    (r"umod\(number, (\d+)\) < (\d+)", r"umod(number, \1) < \2 - 1"),
    (r"(channel|tile|image|row|column) = u(div|mod)\((.*), (\d+)\)\n", r"\1 = u\2(\3, \4 + 1)\n"),
    (r"0 <= ", "-1 <= "),  # beyond an edge
    (r"0 <= ", "4 <= "),
    (r"(v\w* < )(\d+)", r"\1\2 + 4"),
    (r"(column[^<]* < )(\d+)", r"\1\2 + 4"),
    (r"(row \* \d+ < )(\d+)", r"\1\2 + 4"),
    (r"else f32\(0.0\)", "else f32(1.0)"),  # padding is not zero
    (r"range\((\d)\)", r"range(\1 - 1)"),  # a row or a column is left out
    (r"f32\(-?([\d.]+[1-9])\)", r"f32(\1 * 1.1)"),  # another matrix
    (r"t_(\d), t_(\d)\)", r"t_\2, t_\1)"),
    (r" - t_(\d)", r" + t_\1"),
    (r"(s[01]\[.*\d) ?\]", r"\1 + 4]"),  # a place of V or M is another's
    (r"\* 75264", "* 75263"),
    (r"(load_vector\(x\w*, 0, x\w*, .*), (\d)\)\n", r"\1 + 1, \2)\n"),  # neighbours
    (r"(store_vector\(y0, .*), out0", r"\1 + 2, out0"),
    (r"\[(u\w*)\]", r"[0]"),
    (r"x1\[channel\]", "x1[0]"),  # another channel's bias
)


def mutants(text: str, places: int) -> Iterator[tuple[str, str]]:
    """The source with one mistake, at the first places where each fits."""
    for pattern, replacement in MISTAKES:
        for found in islice(re.finditer(pattern, text), places):
            wrong = text[: found.start()] + found.expand(replacement) + text[found.end() :]
            if wrong != text:
                yield f"{pattern} at {found.start()}: {found[0]!r}", wrong


@pytest.mark.parametrize(
    ("name", "places"),
    [("one by one", 2), pytest.param("one by one", 99, marks=pytest.mark.slow),
     pytest.param("two at once", 99, marks=pytest.mark.slow)],
)  # fmt: skip
def test_seeded_mistakes_are_caught(
    name: str, places: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """By an error or by a wrong result, in both transforms; the products between them are numpy's
    here (mistakes in tiles are seeded in `test_simulate`)."""
    m, graph = CASES[name]
    launch = made(graph, {"m": m, **SMALL})
    feeds = {n: array(*graph.type(n).dims) for n in graph.inputs}
    expected = evaluate(graph, feeds)["y"]

    def right(texts: Sequence[str]) -> bool:
        try:
            got = transformed(graph, launch, feeds, texts=texts)
        except (SimError, IndexError):
            return False
        return bool(np.allclose(got, expected, 1e-4, 1e-4))

    first, _, last = kernel_source(launch.kernel).text.split("\n\n\n")
    assert right((first, last))
    tried = [(what, (wrong, last)) for what, wrong in mutants(first, places)]
    tried += [(what, (first, wrong)) for what, wrong in mutants(last, places)]
    survivors = [what for what, texts in tried if right(texts)]
    with capsys.disabled():
        print(f" {len(tried) - len(survivors)} of {len(tried)} mistakes caught", end="")
    assert len(tried) > 40
    assert not survivors
