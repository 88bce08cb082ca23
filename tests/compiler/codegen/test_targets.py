"""Kernels compile for CPUs that this machine is not, to the instructions wanted."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.api.build import choose, optimise
from tilewright.compiler.codegen.cpu.assemble import assembly, build_object
from tilewright.compiler.codegen.cpu.llvm_text import Arithmetic
from tilewright.compiler.codegen.cpu.lower import module_text
from tilewright.compiler.codegen.cpu.target import NAMED, CpuTarget
from tilewright.compiler.codegen.cpu.vector_math import LIBRARY
from tilewright.compiler.kernels.ir import Kernel
from tilewright.compiler.kernels.printer import symbol
from tilewright.compiler.options import options
from tilewright.ops import library as _library  # noqa: F401  registers every operator
from tilewright.ops.errors import OperatorError
from tilewright.ops.operator import REGISTRY
from tilewright.ops.samples import Case, cases
from tilewright.ops.types import TensorType, dtype_of

from ...ops.test_compiled import build, compare
from ...ops.test_declarations import reference

CROSS = ("x86-64-avx2", "x86-64-sse", "aarch64-neon")
LIBM = {name + end for name in LIBRARY.values() for end in ("", "f")}
MEMORY = {"memcpy", "memset", "memmove"}
HALF = {"__truncdfhf2"}  # float64 to float16: no CPU before AVX-512-FP16 has it
HALF_WITHOUT_F16C = {"__extendhfsf2", "__truncsfhf2"}

every_target = pytest.mark.parametrize("name", CROSS)


def undefined(image: bytes) -> set[str]:
    """The symbols that an ELF object leaves to the linker."""
    (table,) = struct.unpack_from("<Q", image, 0x28)
    size, count = struct.unpack_from("<HH", image, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", image, table + k * size) for k in range(count)]
    found = set()
    for kind, offset, length, link in ((s[1], s[4], s[5], s[6]) for s in sections):
        if kind != 2:  # SHT_SYMTAB
            continue
        for at in range(offset, offset + length, 24):
            name, _, _, section = struct.unpack_from("<IBBH", image, at)
            if name and not section:
                start = sections[link][4] + name
                found.add(image[start : image.index(b"\0", start)].decode())
    return found


def kernels(graph: tw.Graph, target: CpuTarget) -> list[Kernel]:
    """What the graph becomes on that target."""
    chosen = options(threads=2)
    made = choose(optimise(graph.build(), target, chosen, 0.0), target, chosen)
    return list({symbol(x.kernel): x.kernel for x in made.launches}.values())


def listing(kernel: Kernel, target: CpuTarget) -> str:
    return assembly(module_text(kernel, target.arithmetic), target)


def first_case(name: str) -> Case | None:
    """The first sample that the operator takes."""
    op = REGISTRY[name]
    for case in cases(op):
        types = [None if x is None else TensorType(dtype_of(x.dtype), x.shape) for x in case.inputs]
        try:
            op.infer_types(types, op.bind(case.attrs))
        except OperatorError:
            continue
        return case
    return None


@every_target
def test_every_operator_compiles_and_calls_only_what_exists(name: str) -> None:
    target, failures = NAMED[name], []
    known = LIBM | MEMORY | HALF
    if name == "x86-64-sse":
        known |= HALF_WITHOUT_F16C
    machine = {"x86_64": 62, "aarch64": 183}[target.architecture]
    for operator in sorted(REGISTRY):
        case = first_case(operator)
        if case is None:
            continue
        for kernel in kernels(build(operator, case)[0], target):
            image = build_object(module_text(kernel, target.arithmetic), target)
            assert int.from_bytes(image[18:20], "little") == machine
            missing = undefined(image) - known
            if missing:
                failures.append(f"{operator} calls {', '.join(sorted(missing))}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("name", ["x86-64-avx2", "x86-64-sse"])
def test_every_operator_runs_on_lesser_cpus(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sample of each; `TILEWRIGHT_CPU=... pytest tests/ops/test_compiled.py` runs all."""
    if not NAMED[name].runs_here:
        pytest.skip(f"this machine cannot run code for {name}")
    monkeypatch.setenv("TILEWRIGHT_CPU", name)
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")
    for operator in sorted(REGISTRY):
        case = first_case(operator)
        if case is None:
            continue
        graph, feeds = build(operator, case)
        got = tw.compile(graph, threads=1).run(feeds)
        for k, want in enumerate(reference(REGISTRY[operator], list(case.inputs), case.attrs)):
            compare(got[f"y{k}"], np.asarray(want), case.tolerance, f"{operator}, output {k}")


def test_undefined_symbols_are_found() -> None:
    """The check above would notice: this kernel is told that there are multiply-adds."""
    target = NAMED["x86-64-sse"]
    kernel = max(kernels(convolution(), target), key=lambda k: k.flops)
    assert undefined(build_object(module_text(kernel, Arithmetic()), target)) == {"fmaf"}
    assert not undefined(build_object(module_text(kernel, target.arithmetic), target))


def convolution(size: int = 5) -> tw.Graph:
    """A direct convolution; size 3 makes one that Winograd's algorithm computes."""
    rng = np.random.default_rng(0)
    g = tw.Graph("convolution")
    x = g.input("x", (1, 32, 14, 14))
    w = rng.standard_normal((32, 32, size, size)).astype(np.float32)
    b = rng.standard_normal(32).astype(np.float32)
    g.output(g.relu(g.conv(x, w, b, pads=size // 2)))
    return g


def product() -> tw.Graph:
    g = tw.Graph("product")
    w = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    g.output(g.relu(g.matmul(g.input("x", (40, 64)), w)))
    return g


def pointwise() -> tw.Graph:
    g = tw.Graph("pointwise")
    x, y = g.input("x", (40, 96)), g.input("y", (40, 96))
    g.output(g.exp(x * y) * 0.5 + y)
    return g


def normal() -> tw.Graph:
    g = tw.Graph("normal")
    g.output(g.softmax(g.input("x", (40, 96)), axis=-1))
    return g


GRAPHS: dict[str, Callable[[], tw.Graph]] = {
    "conv": convolution, "winograd": partial(convolution, 3), "matmul": product,
    "pointwise": pointwise, "softmax": normal,
}  # fmt: skip

MULTIPLY_ADD = {
    "x86-64-avx512": r"vfmadd\w+ps\s.*%zmm\d+",
    "x86-64-avx2": r"vfmadd\w+ps\s.*%ymm\d+",
    "x86-64-sse": r"mulps\s.*%xmm\d+",
    "aarch64-neon": r"fmla\s+v\d+\.4s",
}
LOAD = {
    "x86-64-avx512": r"vmovups\s+[^%]*\(%r.*%zmm",
    "x86-64-avx2": r"vmovups\s+[^%]*\(%r.*%ymm",
    "x86-64-sse": r"movups\s+[^%]*\(%r.*%xmm",
    "aarch64-neon": r"ld[rp]\s+q\d+",
}
SPILL = {"x86_64": r"\(%rsp\)", "aarch64": r"\[sp\b"}


@pytest.mark.parametrize("name", MULTIPLY_ADD)
@pytest.mark.parametrize("graph", GRAPHS)
def test_hot_kernels_use_the_widest_vectors(graph: str, name: str) -> None:
    target = NAMED[name]
    text = "\n".join(listing(k, target) for k in kernels(GRAPHS[graph](), target))
    assert re.search(MULTIPLY_ADD[name], text), f"no {MULTIPLY_ADD[name]} in\n{text}"
    assert re.search(LOAD[name], text), f"no {LOAD[name]} in\n{text}"
    assert not re.search(r"^\s+(call\w*|bl)\s", text, re.M), f"calls out\n{text}"


@pytest.mark.parametrize("name", [n for n, t in NAMED.items() if t.has_fma])
@pytest.mark.parametrize("graph", ["conv", "matmul"])
def test_tiles_of_contractions_stay_in_registers(graph: str, name: str) -> None:
    """The loop that holds most multiply-adds touches no stack. (Products and sums apart, in
    instructions that overwrite an operand, need more registers than the tile leaves.)"""
    target = NAMED[name]
    kernel = max(kernels(GRAPHS[graph](), target), key=lambda k: k.flops)
    hot = hottest(listing(kernel, target), MULTIPLY_ADD[name])
    assert not [x for x in hot if re.search(SPILL[target.architecture], x)], "\n".join(hot)


def hottest(text: str, wanted: str) -> list[str]:
    """The lines of the basic block with most lines that match."""
    return max(blocks(text), key=lambda b: sum(bool(re.search(wanted, x)) for x in b))


def blocks(text: str) -> Iterator[list[str]]:
    block: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if line.startswith(".L") or (words and re.match(r"j\w+$|b\.\w+$|b$|cbn?z$", words[0])):
            yield [*block, line]
            block = []
        else:
            block.append(line)
    yield block
