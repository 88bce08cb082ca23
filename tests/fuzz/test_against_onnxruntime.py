"""Random models of 5 to 60 nodes: compiled, they compute what onnxruntime computes, and what a
float64 execution of the same graph gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.frontends.onnx import read
from tilewright.compiler.graph.evaluate import evaluate, evaluate_op, narrow
from tilewright.compiler.graph.ir import Graph

from .graphs import in_float64, random_feeds, random_graph

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from .onnx_models import Array, Case, session
from .onnx_random import random_model

ALLOWED = 1e-5  # of the largest magnitude of an output
QUICK = range(32)
CHUNK = 50


def distance(y: Array, r: Array) -> float:
    """max |y - r| / max |r|; for integers the number of elements that differ."""
    assert y.shape == r.shape
    if y.dtype.kind != "f":
        return float(np.count_nonzero(y != r))
    if not np.isfinite(y).all():
        return float("inf")
    wide = r.astype(np.float64)
    return float(np.abs(y - wide).max() / max(np.abs(wide).max(), 1e-30)) if y.size else 0.0


def in_steps(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs where every op is exact, but for its results, which are rounded to their types."""
    values = dict(feeds)
    for op in graph.ops:
        ins = [
            None if n is None else values[n] if n in values else graph.blobs[n].value
            for n in op.inputs
        ]
        for n, y in zip(op.outputs, evaluate_op(op, ins), strict=True):
            values[n] = narrow(y, graph.type(n).dtype)
    return {n: np.asarray(values.get(n, graph.blobs[n].value)) for n in graph.outputs}


def check(case: Case, threads: int) -> list[str]:
    """What is wrong with the compiled model, by output."""
    feeds = case.feeds
    made = {o: n.op_type for n in case.model.graph.node for o in n.output}
    peer = dict(
        zip(
            [o.name for o in case.model.graph.output],
            session(case.model).run(None, feeds),
            strict=True,
        )
    )
    graph = read(case.model)
    truth, stepped = evaluate(graph, feeds), in_steps(graph, feeds)
    got = tw.compile(case.model, threads=threads).run(feeds)
    assert list(got) == list(peer)
    wrong = []
    for name, y in got.items():
        assert y.dtype == peer[name].dtype
        # Where float32 itself is not enough, no result is held against us that is as near the truth
        # as onnxruntime's, or as what rounding every blob leaves of it: by half a unit in the last
        # place, where functions such as tanh may be off by five.
        theirs = distance(peer[name], truth[name])
        steps = 10 * distance(stepped[name], truth[name])
        rounding = max(theirs, steps / 2)
        ours, apart = distance(y, truth[name]), distance(y, peer[name])
        if not (ours <= max(ALLOWED, 2 * rounding) and apart <= ALLOWED + 2 * rounding):
            wrong.append(
                f"{name} of {made[name]}: {ours:.1e} from float64, {apart:.1e} from onnxruntime, "
                f"which is {theirs:.1e} from float64"
            )
        elif theirs > max(1e-4, steps):
            wrong.append(f"{name} of {made[name]}: float64 is {theirs:.1e} from onnxruntime")
    return wrong


def compare(seeds: Iterable[int], large: bool = False) -> Counter[str]:
    """Check models; how often each operator was met."""
    used: Counter[str] = Counter()
    failures = []
    for seed in seeds:
        case = random_model(seed, 5 + seed * 17 % 56, large)
        used.update(n.op_type for n in case.model.graph.node)
        failures += [f"seed {seed}, {w}" for w in check(case, threads=1 + seed % 2)]
    assert not failures, "\n".join(failures)
    return used


def test_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")
    used = compare(QUICK) + compare(range(8), large=True)
    assert len(used) > 80 and sum(used.values()) > 900, used


@pytest.mark.slow
@pytest.mark.parametrize("start", range(QUICK.stop, QUICK.stop + 20 * CHUNK, CHUNK))
def test_many_models(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")
    compare(range(start, start + CHUNK))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(8, 8 + 6 * CHUNK, CHUNK))
def test_many_large_models(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")
    compare(range(start, start + CHUNK), large=True)


# What the generator has found, at its smallest.


def test_a_product_of_a_rearranged_value_with_itself() -> None:
    g = tw.Graph("square")
    y = g.transpose(g.input("x", (3, 5, 5)), perm=(0, 2, 1))
    g.output(g.matmul(y, y), name="y")
    x = np.random.default_rng(0).uniform(-1, 1, (3, 5, 5)).astype(np.float32)
    t = x.transpose(0, 2, 1).astype(np.float64)
    assert distance(tw.compile(g)(x), t @ t) < ALLOWED


def test_the_second_half_of_a_split_in_a_product() -> None:
    g = tw.Graph("second")
    a, b = g.split(g.input("x", (4, 10)), axis=1, split=(4, 6))
    g.output(g.matmul(a, g.transpose(b, perm=(0, 1))), name="y")
    x = np.random.default_rng(0).uniform(-1, 1, (4, 10)).astype(np.float32)
    wide = x.astype(np.float64)
    assert distance(tw.compile(g)(x), wide[:, :4] @ wide[:, 4:]) < ALLOWED


def test_a_grouped_convolution_with_borders_after_a_convolution() -> None:
    rng = np.random.default_rng(0)
    g = tw.Graph("groups")
    v, w = (g.constant(rng.uniform(-1, 1, s).astype("f4")) for s in [(4, 9, 3, 3), (16, 2, 1, 1)])
    h = g.conv(g.input("x", (2, 9, 4, 4)), v, pads=(1, 1, 1, 1))
    g.output(g.conv(h, w, pads=(0, 0, 2, 2), strides=(2, 2), group=2), name="y")
    graph = g.build()
    x = rng.uniform(-1, 1, (2, 9, 4, 4)).astype(np.float32)
    assert distance(tw.compile(graph)(x), evaluate(graph, {"x": x})["y"]) < ALLOWED


def graphs_against_float64(seeds: Iterable[int]) -> None:
    """In float32, then in float64, in which no mistake can pass for rounding."""
    for seed in seeds:
        graph = random_graph(seed, 5 + seed * 17 % 56)
        feeds = random_feeds(graph, seed)
        truth = evaluate(graph, feeds)
        doubles = {n: x.astype(np.float64) for n, x in feeds.items()}
        for g, given, allowed in ((graph, feeds, ALLOWED), (in_float64(graph), doubles, 1e-12)):
            got = tw.compile(g, threads=1 + seed % 2).run(given)
            for name, r in truth.items():
                assert distance(got[name], r) <= allowed, f"seed {seed}, {name}: {g.type(name)}"


def test_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")
    graphs_against_float64(range(15))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(25, 25 + 10 * CHUNK, CHUNK))
def test_many_graphs(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")
    graphs_against_float64(range(start, start + CHUNK))


@pytest.mark.parametrize("seed", [3, 11, 26])
def test_the_generator_repeats_itself(seed: int) -> None:
    a, b = random_model(seed, 30), random_model(seed, 30)
    assert a.model == b.model
    assert all(np.array_equal(a.feeds[n], b.feeds[n]) for n in a.feeds)
