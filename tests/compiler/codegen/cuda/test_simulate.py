"""The simulator finds what must not happen: seeded mistakes in generated source are all caught."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.codegen.cuda.entry import Entry
from tilewright.compiler.codegen.cuda.source import Source, kernel_source
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph

from .programs import gpu_launches, simulated
from .simulate import SimError, run_source


def one(text: str, blocks: int = 1, threads: int = 32, size: int = 64) -> np.ndarray:
    """A kernel `k(x, y)` on a row of numbers."""
    x, y = np.arange(size, dtype=np.float32), np.zeros(size, np.float32)
    run_source(text, [Entry("k", blocks, threads)], [("x", x, False), ("y", y, True)])
    return y


HEAD = "def k(x, y):\n    lane = i64(cuda.threadIdx.x)\n    item = i64(cuda.blockIdx.x)\n"


def test_a_sound_kernel_runs() -> None:
    y = one(HEAD + "    y[item * 32 + lane] = x[item * 32 + lane] + f32(1.0)\n", blocks=2)
    np.testing.assert_array_equal(y, np.arange(64) + 1)


def test_shuffles_exchange_within_warps() -> None:
    y = one(HEAD + "    y[lane] = shuffle_xor(x[lane], 5)\n", threads=64)
    np.testing.assert_array_equal(y, np.arange(64) ^ 5)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("    y[lane] = x[lane + 60]\n", r"thread \d+, line 4 .*x\[\d+\] is outside of its 64"),
        ("    y[lane - 1] = x[lane]\n", "outside"),
        ("    x[lane] = y[lane]\n", "x is read only"),
        ("    y[0] = x[lane]\n", "race: thread"),
        ("    y[lane] = x[lane]\n    y[lane ^ 1] = x[lane]\n", "race: thread"),
        ("    if lane < 7:\n        cuda.syncthreads()\n", "deadlock"),
        ("    if lane < 7:\n        cuda.syncthreads()\n    else:\n        cuda.syncthreads()\n",
         "deadlock"),
        ("    if lane < 7:\n        y[lane] = shuffle_xor(x[lane], 1)\n", "deadlock"),
        ("    y[lane] = x[lane] * 1.5\n    y[lane] = np.float64(1.0)\n", "which is float64"),
        ("    y[lane] = x[udiv(lane - 9, 2)]\n", "numbers from 0"),
        ("    s = cuda.shared.array(4, np.float32)\n    y[lane] = s[0]\n", "before anything"),
        ("    t = cuda.local.array(4, np.float32)\n    y[lane] = t[0]\n", "before it is set"),
    ],
)  # fmt: skip
def test_mistakes_are_found(body: str, what: str) -> None:
    with pytest.raises(SimError, match=what):
        one(HEAD + body)


def test_blocks_that_meet_are_found() -> None:
    with pytest.raises(SimError, match="blocks"):
        one(HEAD + "    y[lane] = x[lane]\n", blocks=2)


# --------------------------------------------------------------------------- seeded mistakes


def normalization() -> Graph:
    """Rows with mean 0 and variance 1: what a wrong mean or variance changes, shows."""
    g = tw.Graph("normalization")
    x = g.input("x", (3, 150))
    d = x - g.reduce_mean(x, axes=(1,))
    g.output(d / g.sqrt(g.reduce_mean(d * d, axes=(1,)) + 1e-5), "y")
    return g.build()


def convolution() -> Graph:
    g = tw.Graph("conv")
    x = g.input("x", (1, 3, 9, 9))
    w = np.random.default_rng(3).standard_normal((5, 3, 3, 3)).astype(np.float32)
    g.output(g.relu(g.conv(x, g.constant(w, name="w"), strides=2)), "y")
    return g.build()


def product() -> Graph:
    """Tiles in shared memory: one of rows, two of columns, two rounds of terms."""
    g = tw.Graph("product")
    g.output(g.matmul(g.input("x", (9, 20)), g.input("w", (20, 33))), "y")
    return g.build()


Mistakes = tuple[tuple[str, str], ...]
MISTAKES: Mistakes = (
    (r"\n +cuda\.syncthreads\(\)", "\n        pass"),  # a barrier is missing
    (r"(range\(lane, \d+)", r"\1 + 1"),  # a loop goes one too far
    (r"(range\(lane, \d+)", r"\1 - 1"),  # or not far enough
    (r"range\(lane, ", "range(lane + 1, "),
    (r"range\((\d+)\)", r"range(\1 + 1)"),
    (r"range\((\d+)\)", r"range(\1 - 1)"),
    (r"if lane == 0:", "if lane <= 1:"),  # two threads store
    (r"umod\(lane, 32\) == 0", "umod(lane, 32) == umod(lane, 64)"),  # some warps are left out
    (r"\[udiv\(lane, 32\)\]", "[udiv(lane, 64)]"),  # warps share a place in the table
    (r"\(16, 8, 4, 2, 1\)", "(16, 8, 4, 2)"),  # a step of the combination is missing
    (r"in range\(1, (\d+)\)", r"in range(1, \1 - 1)"),  # a warp is not counted
    (r"array\((\d+),", r"array(\1 - 1,"),  # shared memory is too small
    (r"if item >= (\d+):", r"if item > \1:"),  # one thread too many
    (r"item \* (\d+)", r"item * (\1 - 1)"),  # rows overlap
)
TILE_MISTAKES = (
    MISTAKES[0],
    (r" < (\d+)\b", r" <= \1"),  # an edge is not cut off
    (r"range\(16\)", "range(15)"),  # a term is left out
    (r"range\(8\)", "range(7)"),  # a part of an operand is not copied
    (r"array\(576,", "array(570,"),
    (r"\[term \* 36", "[term * 32"),  # the rows of a tile lie otherwise
    (r"(\d)\) \* 4\]", r"\1) * 3]"),  # threads share words
    (r"= sums\[i, j\]", "= sums[j, i]"),
    (r"start \+ ", ""),  # every round takes the first terms
)


def mutants(source: Source, mistakes: Mistakes) -> Iterator[tuple[str, Source]]:
    """The source with one mistake at every place where one of the list fits."""
    for pattern, replacement in mistakes:
        for m in re.finditer(pattern, source.text):
            wrong = source.text[: m.start()] + m.expand(replacement) + source.text[m.end() :]
            if pattern.startswith(r"\n"):  # at the depth of what it stands for
                indent = re.match(r"\n +", m[0])
                assert indent
                wrong = source.text[: m.start()] + indent[0] + "pass" + source.text[m.end() :]
            yield f"{pattern} at {m.start()}", Source(wrong, source.entries)


@pytest.mark.parametrize(
    ("graph", "mistakes"),
    [(normalization(), MISTAKES), (convolution(), MISTAKES), (product(), TILE_MISTAKES)],
    ids=["normalization", "convolution", "product"],
)
def test_seeded_mistakes_are_caught(
    graph: Graph, mistakes: Mistakes, capsys: pytest.CaptureFixture[str]
) -> None:
    """By an error or by a wrong result."""
    graph, (launch,) = gpu_launches(graph)
    source = kernel_source(launch.kernel)
    rng = np.random.default_rng(1)
    feeds = {n: rng.standard_normal(graph.type(n).dims).astype(np.float32) for n in graph.inputs}
    expected = evaluate(graph, feeds)["y"]

    def result(made: Source) -> np.ndarray:
        return simulated(graph, launch, feeds, source=made)

    np.testing.assert_allclose(result(source), expected, 1e-5, 1e-6)
    survivors, count = [], 0
    for what, made in mutants(source, mistakes):
        count += 1
        try:
            same = np.allclose(result(made), expected, 1e-4, 1e-5)
        except SimError:
            same = False
        if same:
            survivors.append(what)
    with capsys.disabled():
        print(f" {graph.name}: {count - len(survivors)} of {count} mistakes caught", end="")
    assert count > 3
    assert not survivors
