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
from tilewright.compiler.kernels.device import GPU
from tilewright.compiler.kernels.gpu_nest import GpuNest

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
    """Tiles in shared memory: one of rows and columns, four rounds of terms, of which three have
    places at a time."""
    g = tw.Graph("product")
    g.output(g.matmul(g.input("x", (9, 52)), g.input("w", (52, 28))), "y")
    return g.build()


def window() -> Graph:
    """Neighbours of a depthwise convolution, which share what they read."""
    g = tw.Graph("window")
    w = np.random.default_rng(4).standard_normal((2, 1, 3, 3)).astype(np.float32)
    x = g.input("x", (1, 2, 5, 8))
    g.output(g.relu(g.conv(x, g.constant(w, name="w"), group=2, pads=1)), "y")
    return g.build()


def recurrence() -> Graph:
    g = tw.Graph("recurrence")
    r = np.random.default_rng(4)
    gates, w = g.input("x", (1, 3, 2, 15)), r.standard_normal((1, 15, 5)).astype(np.float32)
    bias = r.standard_normal((1, 15)).astype(np.float32)
    made = g.gru_scan(gates, g.constant(w, name="w"), g.constant(bias, name="b"),
                      activations=("sigmoid", "tanh"), alphas=(0.0, 0.0), betas=(0.0, 0.0),
                      linear_before_reset=1)  # fmt: skip
    g.output(made[1], "y")
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
    (r"\n +barrier\(\)", ""),  # threads do not meet
    (r"cp_wait\(1\)", "cp_wait(2)"),  # or do not wait for their copies
    (r"\n +cp_commit\(\)", ""),
    (r" < (\d+)\b", r" <= \1"),  # an edge is not cut off, a stage begins behind the last one
    (r"writes \+ 1152 if", "writes + 1148 if"),  # stages overlap
    (r"reads \+ 1152 if", "reads + 1148 if"),
    (r"if 2 <= t", "if 1 <= t"),  # a round is multiplied before it is there
    (r"range\(6\)", "range(5)"),  # a round is left out
    (r"range\(2\)", "range(1)"),  # a part of an operand is not copied
    (r"shared_f32\(0, 3456\)", "shared_f32(0, 3450)"),
    (r"\* 20 \+ writes", "* 16 + writes"),  # the rows of a tile lie otherwise
    (r"4, 160, 4\)", "4, 80, 4)"),  # or are read so
    (r"(rows \+) (\d+)", r"\1 0"),  # a thread reads the same terms again
    (r"(reads \+) (\d+)", r"\1 0"),
    (r"0, 1\)", "1, 1)"),  # terms are taken for rows
    (r"umod\((thread), 4\) \* 4", r"umod(\1, 4) * 3"),  # threads share words
    (r"sums, 4, 4, 36, 1, 8, 4, 16", "sums, 4, 4, 36, 4, 32, 4, 16"),  # results of other rows
    (r"umod\(t, 4\) \* 16", "umod(t, 2) * 16"),  # rounds take the terms of others
)
WINDOW_MISTAKES = (
    (r"if item >= (\d+):", r"if item > \1:"),
    (r"\(v < 5\)", "(v <= 5)"),  # beyond an edge
    (r"\(v < 5\)", "(v < 4)"),
    (r"\(0 <= v\)", "(0 < v)"),
    (r"\(0 <= v\)", "(-1 <= v)"),
    (r"0 <= umod", "-9 <= umod"),
    (r"4 < 8", "4 <= 8"),
    (r"range\((\d)\)", r"range(\1 - 1)"),
    (r"window1\[(\d)\] = ", r"window1[\1 ^ 1] = "),  # a place is read for another
    (r"window1\[(r2_2|r1_2) \+ u\]", r"window1[\1]"),  # all neighbours read the same
    (r"udiv\(item, (\d+)\)", r"udiv(item, \1 - 1)"),
    (r"y0\[item \* 4", "y0[item * 3"),  # results overlap
)
STEP_MISTAKES = (
    (r"\n {8}cuda\.syncthreads\(\)", "\n        pass"),
    (r"range\(unknown\(3\)\)", "range(unknown(2))"),  # a step is left out
    (r"(if u < )5", r"\1 4"),  # a unit
    (r"held0\[block, k \+ u_2\], ", "held0[block, k], "),  # all terms take one weight
    (r"state0\[u_2 \+ 4\]", "state0[u_2 + 3]"),
    (r"ahead\[1\] =", "ahead[0] ="),  # a gate takes another's input
    (r"sums\[u \+ 5\]", "sums[u]"),
    (r"state0\[u\] = new", "state0[u] = n"),
    (r"s \* 30", "s * 15"),  # steps read the inputs of others
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
    [
        (normalization(), MISTAKES),
        (convolution(), MISTAKES),
        (product(), TILE_MISTAKES),
        (window(), WINDOW_MISTAKES),
        (recurrence(), STEP_MISTAKES),
    ],
    ids=["normalization", "convolution", "product", "window", "recurrence"],
)
def test_seeded_mistakes_are_caught(
    graph: Graph, mistakes: Mistakes, capsys: pytest.CaptureFixture[str]
) -> None:
    """By an error or by a wrong result."""
    graph, (launch,) = gpu_launches(graph)
    if mistakes is WINDOW_MISTAKES:  # by default only if there are more threads
        four = {"per": "thread", "each": 4}
        launch = GpuNest().instantiate(graph, graph.ops, graph.outputs, GPU, four)
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
