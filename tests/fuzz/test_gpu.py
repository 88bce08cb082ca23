"""Random graphs compiled for GPUs, all numerics, simulated and compared with float64."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.compiler.graph.bfloat16 import values_of
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Array, Graph
from tilewright.compiler.kernels.gpu_templates import gpu_templates
from tilewright.compiler.options import Numerics

from ..compiler.codegen.cuda.programs import run_graph
from .gpu_graphs import gpu_feeds, gpu_graph
from .graphs import random_feeds, random_graph

NUMERICS: tuple[Numerics, ...] = ("standard", "reproducible", "reduced")
CAPABILITIES = ((8, 0), (9, 0))
ERRORS = {"f32": 3e-5, "f16": 1.5e-2, "bf16": 3e-2}
"""Of values of each type, as parts of the largest; for a few operators in a row."""
TF32 = 5e-3
LEAST = 0.1  # that the largest counts for: half floats may cancel to less


def check(graph: Graph, feeds: dict[str, Array], seed: int) -> None:
    numerics, capability = NUMERICS[seed % 3], CAPABILITIES[seed // 3 % 2]
    expected = evaluate(graph, feeds)
    got = run_graph(graph, feeds, seed, numerics, gpu_templates(numerics, capability))
    kinds = {b.type.dtype.name for b in graph.blobs.values() if b.type.dtype.is_float}
    limit = max([ERRORS[k] for k in kinds] + [TF32] * (numerics == "reduced"), default=0.0)
    for name, y in got.items():
        wanted = np.asarray(expected[name], np.float64)
        values = values_of(y) if graph.type(name).dtype.name == "bf16" else y
        error = np.abs(values.astype(np.float64) - wanted).max(initial=0)
        largest = np.abs(wanted).max(initial=LEAST)
        assert error <= limit * largest, f"{name} of seed {seed}: {error}"


@pytest.mark.parametrize("seed", range(24))
def test_random_kernels(seed: int) -> None:
    graph = gpu_graph(seed)
    check(graph, gpu_feeds(graph, seed), seed)


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(seed: int) -> None:
    graph = random_graph(seed, 4 + seed % 12)
    check(graph, random_feeds(graph, seed), seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(100, 700, 50))
def test_many_random_kernels(start: int) -> None:
    for seed in range(start, start + 50):
        graph = gpu_graph(seed)
        check(graph, gpu_feeds(graph, seed), seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(100, 1100, 100))
def test_many_random_graphs(start: int) -> None:
    for seed in range(start, start + 100):
        graph = random_graph(seed, 4 + seed % 12)
        check(graph, random_feeds(graph, seed), seed)
