"""Products on the tensor cores of Hopper GPUs, simulated: right for every way in which operands may
lie, and for sizes that are no multiples of anything; seeded mistakes are all caught."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.codegen.cuda.source import Source, kernel_source
from tilewright.compiler.graph.builder import Value
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels import gpu_wgmma
from tilewright.compiler.kernels.device import GPU
from tilewright.compiler.kernels.gpu_wgmma import GpuWgmma
from tilewright.compiler.kernels.ir import Launch
from tilewright.compiler.kernels.template import Config
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.pipeline import gpu_pipeline
from tilewright.ops.types import DType, bf16, f16

from .programs import simulated
from .simulate import SimError


@dataclass(frozen=True)
class Case:
    """relu(a @ b + c), m x k times k x n. a_across, b_across: whether an operand is stored with its
    rows, or columns, side by side. processors: blocks that run side by side."""

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
        g.output(g.relu(g.matmul(a, b) + g.input("c", (self.n,), dtype=self.dtype.name)), "y")
        return g.build()

    def launch(self, graph: Graph) -> Launch:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gpu_wgmma, "PROCESSORS", self.processors)
            given = graph, graph.ops, graph.outputs
            assert GpuWgmma().matches(*given)
            return GpuWgmma().instantiate(*given, GPU, self.config)

    def feeds(self, graph: Graph) -> dict[str, np.ndarray]:
        """As bits."""
        rng = np.random.default_rng(7)
        values = {n: rng.standard_normal(graph.type(n).dims).astype(np.float32)
                  for n in graph.inputs}  # fmt: skip
        return {n: self.bits(x) for n, x in values.items()}

    def bits(self, x: np.ndarray) -> np.ndarray:
        if self.dtype is f16:
            return x.astype(np.float16).view(np.uint16)
        return (x.view(np.uint32) + 0x8000 >> 16).astype(np.uint16)

    def numbers(self, bits: np.ndarray) -> np.ndarray:
        if self.dtype is f16:
            return bits.view(np.float16).astype(np.float64)
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)

    def expected(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        a, b, c = (self.numbers(feeds[n]) for n in "abc")
        a = np.swapaxes(a, -1, -2) if self.a_across else a
        b = b if self.b_across else np.swapaxes(b, -1, -2)
        return np.maximum(a @ b + c, 0)

    def assert_close(self, bits: np.ndarray, expected: np.ndarray) -> None:
        """Sums are rounded once, to half floats; those in f32 are as good as exact beside that."""
        unit = 2.0**-11 if self.dtype is f16 else 2.0**-8
        np.testing.assert_allclose(self.numbers(bits), expected, 1.1 * unit, 1e-3)


def tile(m: int, n: int, stages: int, cluster: int = 1) -> Config:
    return {"m": m, "n": n, "stages": stages, "cluster": cluster}


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
    "results without boxes": Case(70, 100, 72, tile(64, 64, 2), processors=1),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_products(case: Case) -> None:
    graph = prepared(case)
    launch, feeds = case.launch(graph), case.feeds(graph)
    source = kernel_source(launch.kernel)
    assert ("tma_store" in source.text) == (case.n % 8 == 0)
    case.assert_close(simulated(graph, launch, feeds), case.expected(feeds))


def prepared(case: Case) -> Graph:
    graph, _ = run_pipeline(gpu_pipeline(), case.graph())
    return graph


# --------------------------------------------------------------------------- seeded mistakes

ONE = Case(128, 72, 256, tile(64, 64, 2), processors=1)
PAIR = Case(136, 128, 256, tile(64, 128, 2, 2), processors=2)
TWO_GROUPS = Case(128, 64, 128, tile(128, 64, 2), processors=1)

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
    (r"mbarrier_init\(free, k, (\d+)\)", r"mbarrier_init(free, k, \1 - 1)"),
    (r"mbarrier_init\(free, k, (\d+)\)", r"mbarrier_init(free, k, \1 + 1)"),
    (r"mbarrier_init\(ready, k, 1\)", "mbarrier_init(ready, k, 2)"),
    (r"tma_wait\((\d)\)", "pass"),
    (r"tma_commit\(\)", "pass"),
    (r"wgmma_wait\(sums, (\d+), 0\)", "pass"),
    (r"wgmma_wait\(sums, (\d+), 0\)", r"wgmma_wait(sums, \1, 1)"),
    (r"stage == (\d)", r"stage == \1 + 1"),
    (r"stage == (\d)", r"stage == \1 - 1"),
    (r"stage \* (\d+)", r"stage * (\1 // 2)"),  # stages overlap
    (r"group \* (\d+)", r"group * (\1 // 2)"),  # groups do
    (r" \* 64, ", " * 32, "),  # terms are taken twice
    (r"range\((\d+)\):\n +mbarrier", r"range(\1 - 1):\n                    mbarrier"),
    (r" < (\d+)\b", r" <= \1"),
    (r"umod\(thread, 32\) == 0", "umod(thread, 32) <= 1"),
    (r"umod\(thread, 128\) == 0", "umod(thread, 128) <= 1"),
    (r" \* 1024", " * 512"),  # warps write to the same rows
    (r"0 < (\w+), (\d)", r"True, \2"),  # sums of the tile before are added to
    (r"eight \* 4", "eight * 2"),
    (r"half \* 2", "pair * 2"),
    (r"eight \* 8 \+ pair", "eight * 4 + pair"),
    (r"\n( +)cluster_barrier\(\)", r"\n\1pass"),
    (r"free, before, umod\(thread, 32\)", "free, before, 0"),
    (r"(tma_cast.*), 3\)", r"\1, 1)"),
    (r"umod\(block, 2\) \* 64", "umod(block, 2) * 32"),
    (r"umod\(thread, 32\) < 2", "umod(thread, 32) < 1"),
)


def mutants(source: Source) -> Iterator[tuple[str, Source]]:
    """The source with one mistake, at every place where one of the list fits; and descriptors that
    say something else."""
    for pattern, replacement in MISTAKES:
        for m in re.finditer(pattern, source.text):
            wrong = source.text[: m.start()] + m.expand(replacement) + source.text[m.end() :]
            yield f"{pattern} -> {replacement} at {m.start()}", replace(source, text=wrong)
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


@pytest.mark.parametrize("case", [ONE, PAIR, TWO_GROUPS], ids=["one block", "cluster", "groups"])
def test_seeded_mistakes_are_caught(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """By an error or by a wrong result."""
    graph = prepared(case)
    launch, feeds = case.launch(graph), case.feeds(graph)
    expected = case.expected(feeds)
    source = kernel_source(launch.kernel)
    survivors, count = [], 0
    for what, made in mutants(source):
        count += 1
        try:
            case.assert_close(simulated(graph, launch, feeds, source=made), expected)
        except (SimError, AssertionError):
            continue
        survivors.append(what)
    with capsys.disabled():
        print(f" {count - len(survivors)} of {count} mistakes caught", end="")
    assert count > 40
    assert not survivors
