"""Problems: a group's identity, which is text that any process makes the same kernels of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.autotune.task import Candidate
from tilewright.compiler.api.compile import analyse
from tilewright.compiler.errors import LoweringError, TextError
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Deferred
from tilewright.compiler.graph.verify import verify
from tilewright.compiler.inspect.views import Compilation
from tilewright.compiler.kernels.compose import only_element
from tilewright.compiler.kernels.device import gpu_device
from tilewright.compiler.kernels.printer import kernel_text
from tilewright.compiler.kernels.select import coded_groups, select
from tilewright.compiler.tuning.problem import Problem, parse, problem_of, problems_of

from ...fuzz.graphs import random_graph
from .nets import NETS, analysed, device, weights

each_net = pytest.mark.parametrize("name", NETS)


def problems(c: Compilation) -> list[Problem]:
    return [
        problem_of(c.graph, g.ops, None, device(c), c.options.numerics)
        for g in coded_groups(c.graph)
    ]


def one(build: Any, **options: Any) -> Problem:
    """The problem of a graph's first group."""
    g = tw.Graph(options.pop("name", "net"))
    build(g)
    return problems(analyse(g, tune=False, **options))[0]


def check_text(problem: Problem) -> None:
    back = parse(problem.text)
    assert back == problem and back.text == problem.text
    assert (back.device, back.numerics) == (problem.device, problem.numerics)
    assert back.candidates() == problem.candidates()
    assert kernel_text(back.instantiate(back.default()).kernel) == kernel_text(
        problem.instantiate(problem.default()).kernel
    )


@each_net
def test_text_is_all_that_is_needed(name: str) -> None:
    for problem in problems(analysed(name)):
        check_text(problem)


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_round_trip(seed: int) -> None:
    for problem in problems(analyse(random_graph(seed), tune=False)):
        check_text(problem)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12, 150))
def test_more_random_graphs_round_trip(seed: int) -> None:
    for problem in problems(analyse(random_graph(seed), tune=False)):
        check_text(problem)


@each_net
@pytest.mark.parametrize("numerics", ["standard", "reproducible"])
def test_the_default_is_what_a_compilation_runs(name: str, numerics: str) -> None:
    """The same kernel, letter for letter, bound to the same blobs in the same places."""
    c = analysed(name, numerics)
    for group, launch, problem in zip(
        coded_groups(c.graph), select(c.graph, device(c)), problems(c), strict=True
    ):
        made = problem.instantiate(problem.default())
        assert kernel_text(made.kernel) == kernel_text(launch.kernel)
        assert made.kernel.config == launch.kernel.config
        to = dict(zip(problem.names, group.names, strict=True))
        for mine, its in zip(made.args, launch.args, strict=True):
            if isinstance(mine, str) or mine is None:
                assert its == (mine and to[mine])
            else:
                assert its is not None and not isinstance(its, str)
                assert (tuple(to[b] for b in mine.blobs), mine.recipe) == (its.blobs, its.recipe)


@each_net
def test_problems_are_graphs_of_their_own(name: str) -> None:
    for problem in problems(analysed(name)):
        whole = all(b.type.layout.extent == 0 for b in problem.graph.blobs.values())
        if whole:  # a part of another blob stands alone here, which graphs of programs do not allow
            verify(problem.graph)
        results = evaluate(problem.graph, dict(problem.feeds()))
        assert set(results) == set(problem.outputs)
        for y in results.values():
            assert y.dtype.kind != "f" or (np.isfinite(y).all() and np.abs(y).max() < 100)


def convolution(g: Any, channels: int = 32, seed: int = 0, scale: float = 1.0) -> None:
    x = g.input("x", (1, channels, 8, 8))
    w = weights(32, channels, 3, 3) * np.float32(1 + seed)
    y = g.conv(x, w, weights(32), pads=1)
    g.output(g.relu(g.add(g.tanh(y), np.float32(scale))), name="y")


def conv_problem(**changes: Any) -> Problem:
    """The convolution's problem, which is behind a change of layout."""
    options = {k: changes.pop(k) for k in ("numerics", "threads", "name") if k in changes}
    g = tw.Graph(options.pop("name", "net"))
    convolution(g, **changes)
    c = analyse(g, tune=False, **options)
    (found,) = (p for p in problems(c) if any(op.operator == "conv" for op in p.ops))
    return found


def test_names_and_weights_do_not_matter() -> None:
    assert conv_problem(name="cats", seed=1) == conv_problem(name="dogs", seed=2)
    problem = conv_problem(name="cats")
    ops = tuple(replace(op, name="whiskers", source=("tail",)) for op in problem.ops)
    graph = replace(problem.graph, name="cats", ops=ops)
    same = problem_of(graph, ops, None, problem.device, problem.numerics)
    assert same == problem and not {"cats", "whiskers", "tail"} & set(same.text.split())


def test_what_matters_is_in_the_text() -> None:
    texts = [
        conv_problem().text, conv_problem(channels=48).text, conv_problem(scale=0.5).text,
        conv_problem(threads=1).text, conv_problem(threads=2, numerics="reproducible").text,
    ]  # fmt: skip
    assert len(set(texts)) == len(texts)
    assert "@1x" in texts[0], "layouts are part of it"
    assert "0.5" in texts[2], "kernels write that constant out"


@pytest.mark.parametrize(
    "value", [np.float32(-0.0), np.float32(np.inf), np.float32(np.nan), np.float64(1 / 3)]
)
def test_values_that_are_written_out_keep_every_bit(value: Any) -> None:
    def build(g: Any) -> None:
        x = g.input("x", (4, 5), value.dtype)
        g.output(g.div(x, np.broadcast_to(value, (4, 5))), name="y")

    problem = one(build)
    check_text(problem)
    held = [only_element(b) for b in parse(problem.text).graph.blobs.values()]
    (found,) = (x for x in held if x is not None)
    assert found.tobytes() == value.tobytes()


def test_constants_that_a_pass_computes_later_are_not_written_out() -> None:
    """Their one element is not known while kernels are made, in a program as in its problems."""

    def build(g: Any) -> None:
        g.output(g.mul(g.input("x", (4, 5)), g.constant(np.float32([3.0]))), name="y")

    problem = one(build)
    c = next(n for n in problem.graph.blobs if n.startswith("c"))
    blob = problem.graph.blobs[c]
    later = Deferred(blob.type.dtype.numpy, blob.type.dims, (),
                     lambda out, where: out.fill(3.0))  # fmt: skip
    blobs = {**problem.graph.blobs, c: replace(blob, content=later)}
    graph = replace(problem.graph, blobs=blobs)
    other = problem_of(graph, graph.ops, graph.outputs, problem.device, "standard")
    assert other.constants == ("w1",)
    check_text(other)
    assert kernel_text(other.instantiate(other.default()).kernel) != kernel_text(
        problem.instantiate(problem.default()).kernel
    )


def test_arguments_of_a_call_are_part_of_it() -> None:
    """Nobody has just written them. A view of one is one; a shape that other groups have too, which
    read what kernels wrote, has none."""
    g = tw.Graph("net")
    x, z = g.input("x", (4, 48)), g.input("z", (2, 2, 48))
    w = weights(48, 48)
    h = g.tanh(g.matmul(x, w))  # the same as the next one, but for where it reads
    g.output(g.tanh(g.matmul(h, w)), name="y")
    flat = g.reshape(z, shape=(4, 48))
    for k, size in enumerate((40, 48)):  # a view that two groups read is in a group of its own
        g.output(g.sigmoid(g.matmul(flat, weights(48, size))), name=f"s{k}")
    c = analyse(g, tune=False, threads=1)
    found = {p.label: p for p in problems_of(c.graph, device(c), "standard").values()}
    assert [p.arguments for p in found.values()] == [(), ("x0",), ("x0",)], list(found)
    for problem in found.values():
        check_text(problem)
        assert ("\narguments x0\n" in problem.text) == bool(problem.arguments)
        assert parse(problem.text).arguments == problem.arguments
    on_gpu = problems_of(c.graph, gpu_device((9, 0)), "standard")  # type: ignore[arg-type]
    assert not any(p.arguments for p in on_gpu.values()), "a call copies them to the device"


@pytest.mark.parametrize("named", ["x9", "w1", "x0 y3"])
def test_arguments_are_inputs(named: str) -> None:
    text = replace(conv_problem(), arguments=("x0",)).text
    assert parse(text).arguments == ("x0",)
    with pytest.raises(TextError, match="arguments"):
        parse(text.replace("arguments x0", f"arguments {named}"))


def test_what_passes_suggest_is_not_part_of_it() -> None:
    """Which convolutions Winograd's algorithm is for is an estimate: candidates are all of them."""
    c = analysed("residual")
    marks = [op.attr("winograd") for op in c.graph.ops if op.operator == "conv"]
    assert any(marks) and not any("winograd" in p.text for p in problems(c))
    problem = conv_problem()
    space, estimates = problem.candidates()
    tiles = {c.config.get("m") for c in space}
    assert tiles == {None, 2, 4} and len(estimates) == len(space)
    assert min(estimates) > 0
    templates = {c.template for c in conv_problem(numerics="reproducible").candidates()[0]}
    assert templates == {"direct_conv"}


def test_made_up_values() -> None:
    """The same in every process, other ones for every constant, and any part of one alone."""
    problem = conv_problem()
    again = parse(problem.text)
    arrays = []
    for n in problem.constants:
        blob, other = problem.graph.blobs[n], again.graph.blobs[n]
        np.testing.assert_array_equal(blob.value, other.value)
        assert isinstance(blob.content, Deferred)
        whole = blob.content.make()
        where = tuple(slice(1, d - 1, 2) for d in whole.shape[:2])
        part = np.empty_like(whole[where])
        blob.content.write(part, where)
        np.testing.assert_array_equal(part, whole[where])
        arrays.append(whole.reshape(-1)[:32])
    assert not np.array_equal(*arrays)
    first, second = problem.feeds(0), problem.feeds(1)
    assert all(not np.array_equal(first[n], second[n]) for n in first)


def test_integers_are_valid_indices() -> None:
    def build(g: Any) -> None:
        x, at = g.input("x", (5, 40)), g.input("at", (300,), np.int64)
        g.output(g.gather(x, at, axis=0), name="y")

    problem = one(build)
    at = next(v for v in problem.feeds().values() if v.dtype == np.int64)
    assert (at.min(), at.max()) == (0, 4)


def test_features_are_numbers_that_tell_problems_apart() -> None:
    found = conv_problem().features()
    assert found["flops"] == 2 * 32 * 32 * 22**2
    assert (found["in0.1"], found["in1.2"], found["pads.0"]) == (32, 3, 1)
    assert found["threads"] >= 1
    assert all(v >= 0 for v in found.values())
    assert found != conv_problem(channels=48).features()


def test_candidates_of_elsewhere_are_refused() -> None:
    problem = conv_problem()
    good = problem.default()
    for bad in (
        Candidate("gemm", 1, {}), Candidate(good.template, good.version + 1, good.config),
        Candidate(good.template, good.version, {}),
    ):  # fmt: skip
        with pytest.raises(LoweringError, match=bad.template):
            problem.instantiate(bad)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tilewright problem 1", "tilewright problem 2"), ("numerics standard", "numerics exact"),
        ("threads=2", "threads=two"), ("threads=2", "cores=2"), ("constants w1", "constants x0"),
        ("constants w1", "constants q"), ("conv(", "convolve("), ("graph group", "graph"),
    ],
)  # fmt: skip
def test_what_is_no_problem_is_refused(old: str, new: str) -> None:
    text = conv_problem(threads=2).text
    assert old in text
    with pytest.raises(TextError):
        parse(text.replace(old, new))
