"""The model of GPUs: occupancy as NVIDIA's calculator gives it, and what follows from the rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import tilewright as tw
from tilewright.compiler.kernels.device import gpu_device
from tilewright.compiler.kernels.gpu_mma import GpuMma
from tilewright.compiler.kernels.gpu_model import (
    CHIPS,
    LAUNCH,
    WAVE,
    Work,
    chip_of,
    occupancy,
    seconds,
    waves,
)
from tilewright.compiler.kernels.gpu_nest import GpuNest
from tilewright.compiler.kernels.gpu_templates import gpu_templates
from tilewright.compiler.kernels.template import Estimating
from tilewright.compiler.tuning.problem import problem_of

from ..codegen.cuda.programs import gpu_launches

A100, H100 = CHIPS[80], CHIPS[90]


@pytest.mark.parametrize(
    ("chip", "threads", "registers", "shared", "blocks", "limit"),
    [
        (A100, 256, 32, 0, 8, "registers"),
        (A100, 256, 33, 0, 6, "registers"),  # 33 x 32 is rounded up to 1280
        (A100, 256, 16, 0, 8, "threads"),
        (A100, 128, 128, 48 << 10, 3, "shared memory"),
        (A100, 32, 16, 0, 32, "blocks"),
        (A100, 1024, 64, 0, 1, "registers"),
        (A100, 1024, 65, 0, 0, "registers"),
        (A100, 128, 64, 164 << 10, 0, "shared memory"),
        (H100, 384, 168, 227 << 10, 1, "registers"),
        (H100, 128, 256, 0, 0, "registers"),
        (CHIPS[89], 1024, 32, 0, 1, "threads"),
    ],
)
def test_occupancy(
    chip: object, threads: int, registers: int, shared: int, blocks: int, limit: str
) -> None:
    found = occupancy(chip, threads, registers, shared)  # type: ignore[arg-type]
    assert (found.blocks, found.limit) == (blocks, limit)


def test_warps_and_waves() -> None:
    assert occupancy(A100, 256, 33, 0).warps == 6 * 8 / 64
    assert waves(A100, 108 * 6 * 2, 6) == 2.0


WORK = Work(132, 256, 128, 96 << 10, "half", 128 * 128 * 4096.0, 0.0, 0.0)


def test_seconds_are_the_slowest_parts() -> None:
    rate = 2048 * H100.clock
    assert seconds(H100, WORK) == pytest.approx(LAUNCH + WAVE + 128 * 128 * 4096 / rate)
    assert seconds(H100, replace(WORK, blocks=133)) > 1.5 * seconds(H100, WORK) - LAUNCH - WAVE
    moving = seconds(H100, replace(WORK, moved=3.35e9))
    assert moving == pytest.approx(LAUNCH + WAVE + 1e-3)
    assert seconds(H100, replace(WORK, copied=1e9)) == pytest.approx(
        LAUNCH + WAVE + 132e9 / H100.cache
    )
    assert seconds(H100, replace(WORK, threads=64)) > 2 * seconds(H100, WORK) - 2 * LAUNCH
    assert seconds(H100, replace(WORK, registers=256)) == float("inf")


def test_chips() -> None:
    """Peaks of the data sheets, TFLOP/s, dense."""
    for arch, kind, peak in ((80, "half", 312), (80, "f32", 19.5), (80, "tf32", 156),
                             (90, "half", 989), (89, "f32", 91.6), (89, "half", 362)):  # fmt: skip
        c = CHIPS[arch]
        assert 2e-12 * c.multiprocessors * c.clock * c.rates[kind] == pytest.approx(peak, rel=0.02)
    assert chip_of(gpu_device((8, 7))).name == "A10" and chip_of(gpu_device((12, 0))).name == "H100"
    assert chip_of(gpu_device((7, 0))).name == "A100"


@pytest.mark.parametrize("arch", [(8, 0), (8, 9), (9, 0)])
@pytest.mark.parametrize(("kind", "numerics"), [("f16", "standard"), ("f32", "standard"),
                                                ("f32", "reduced")])  # fmt: skip
@pytest.mark.parametrize("n", [64, 200, 4096])
def test_every_candidate_of_a_product_has_an_estimate(
    arch: tuple[int, int], kind: str, numerics: str, n: int
) -> None:
    """So that a search knows where to begin."""
    g = tw.Graph("g")
    g.output(g.matmul(g.input("x", (n, n), kind), g.input("w", (n, n), kind)), "y")
    graph, _ = gpu_launches(g.build())
    problem = problem_of(graph, graph.ops, graph.outputs, gpu_device(arch), numerics)  # type: ignore[arg-type]
    space, estimates = problem.candidates()
    assert len(estimates) == len(space) > 1
    assert all(0 < e < 1 for e in estimates)
    flops, chip = 2 * n**3, chip_of(gpu_device(arch))
    peak = 2 * chip.multiprocessors * chip.clock * max(chip.rates.values())
    assert min(estimates) > flops / peak
    assert estimates[0] <= 1.5 * min(estimates), "the default is among the best"


def test_large_products_get_large_tiles_and_small_ones_many() -> None:
    def chosen(m: int, n: int, arch: tuple[int, int] = (8, 0)) -> tuple[int, int]:
        g = tw.Graph("g")
        g.output(g.matmul(g.input("x", (m, 1024), "f16"), g.input("w", (1024, n), "f16")), "y")
        graph, _ = gpu_launches(g.build())
        c = GpuMma().default(graph, graph.ops, graph.outputs, gpu_device(arch))
        return c["m"], c["n"]

    assert chosen(8192, 8192) == (128, 128)
    assert chosen(128, 256)[0] < 128
    assert chosen(16, 4096)[0] == 32


NESTS: dict[str, Callable[[Any], Any]] = {
    "pointwise": lambda g: g.relu(g.input("x", (64, 256, 56, 56))),
    "sum": lambda g: g.reduce_sum(g.input("x", (1, 1_000_000)), axes=(1,)),
    "sums": lambda g: g.reduce_sum(g.input("x", (64, 1_000_000)), axes=(1,)),
    "long softmax": lambda g: g.softmax(g.input("x", (8, 50257)), axis=1),
    "softmax": lambda g: g.softmax(g.input("x", (64, 1024)), axis=1),
    "classes": lambda g: g.softmax(g.input("x", (8, 21, 64, 64)), axis=1),
    "columns": lambda g: g.reduce_sum(g.input("x", (512, 1024)), axes=(0,)),
    "long columns": lambda g: g.reduce_sum(g.input("x", (100_000, 64)), axes=(0,)),
    "transposed": lambda g: g.transpose(g.input("x", (8, 64, 56, 56)), perm=(0, 2, 3, 1)),
    "pool": lambda g: g.global_average_pool(g.input("x", (8, 2048, 7, 7))),
    "statistics": lambda g: g.reduce_mean(g.input("x", (32, 256, 14, 14)), axes=(0, 2, 3)),
    "vector": lambda g: g.matmul(g.input("x", (1, 4096)), g.input("w", (4096, 4096))),
}


@pytest.mark.parametrize("name", NESTS)
def test_defaults_of_nests_are_among_the_best_of_the_model(name: str) -> None:
    """And nothing is faster than memory."""
    g = tw.Graph("g")
    g.output(NESTS[name](g), "y")
    graph, _ = gpu_launches(g.build())
    problem = problem_of(graph, graph.ops, graph.outputs, gpu_device((9, 0)), "standard")
    _, estimates = problem.candidates()
    moved = sum(graph.type(n).nbytes for n in (*graph.inputs, *graph.outputs))
    assert estimates[0] <= 1.3 * min(estimates)
    assert LAUNCH + moved / H100.memory < min(estimates) < 60e-6 + 3 * moved / H100.memory


def test_who_reads_far_apart_waits_longer() -> None:
    """Rows by threads, columns by lanes."""
    g = tw.Graph("g")
    g.output(g.reduce_sum(g.input("x", (64, 4096)), axes=(1,)), "y")
    graph, _ = gpu_launches(g.build())
    given = graph, graph.ops, graph.outputs, gpu_device((9, 0))
    nest = GpuNest()
    row = nest.estimate(*given, {"per": "block", "threads": 128, "each": 1, "wide": 4})
    narrow = nest.estimate(*given, {"per": "block", "threads": 32, "each": 1, "wide": 1})
    thread = nest.estimate(*given, {"per": "thread", "each": 1})
    assert row < narrow < thread / 2


def test_templates_with_many_configs_are_estimated() -> None:
    named = {t.name for t in gpu_templates("reduced", (9, 0)) if isinstance(t, Estimating)}
    assert named == {"gpu_wgmma", "gpu_mma", "gpu_winograd", "gpu_tiles", "gpu_attention_mma",
                     "gpu_attention_wgmma", "gpu_attention_tiles", "gpu_strips",
                     "gpu_nest"}  # fmt: skip
