"""Which convolutions are marked for Winograd's algorithm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.graph.builder import GraphBuilder
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.pipeline import cpu_pipeline
from tilewright.compiler.passes.winograd import ChooseWinograd


def net(channels: int, places: int, out: int, *, kernel: int = 3, dtype: str = "float32",
        batch: int = 1, **attrs: Any) -> GraphBuilder:  # fmt: skip
    rng = np.random.default_rng(channels)
    g = GraphBuilder("net")
    x = g.input("x", (batch, channels, places, places), dtype)
    shape = (out, channels // attrs.get("group", 1), kernel, kernel)
    w = rng.standard_normal(shape).astype(dtype)
    g.output(g.relu(g.conv(x, w, pads=kernel // 2, **attrs)))
    return g


def chosen(graph: Graph) -> int:
    marked = ChooseWinograd(16).run(graph)
    return next(op.attr("winograd") for op in marked.ops if op.operator == "conv")


@pytest.mark.parametrize("case", [(64, 56, 64), (256, 28, 512), (512, 14, 512), (48, 13, 192)])
def test_layers_with_many_places_take_large_tiles(case: tuple[int, int, int]) -> None:
    assert chosen(net(*case).build()) == 4


def test_few_places_take_smaller_tiles_or_none() -> None:
    """At 8 x 8 places F(4) would read 36 / 9 of the weights for 4 tiles; at 4 x 4 even the 16 / 9
    of F(2) take longer than the sums they save."""
    assert chosen(net(512, 12, 512).build()) == 4
    assert chosen(net(128, 8, 128).build()) == 2
    assert chosen(net(512, 7, 512).build()) == 2
    assert chosen(net(512, 4, 512).build()) == 0
    assert chosen(net(512, 7, 512, batch=16).build()) == 4


@pytest.mark.parametrize(
    "attrs",
    [{"kernel": 5}, {"kernel": 1}, {"strides": 2}, {"dilations": 2}, {"group": 2},
     {"dtype": "float64"}],
)  # fmt: skip
def test_other_convolutions_are_left_alone(attrs: dict[str, Any]) -> None:
    assert chosen(net(64, 56, 64, **attrs).build()) == 0
    assert chosen(net(3, 224, 64).build()) == 0, "planar inputs"


@pytest.mark.parametrize("numerics", ["standard", "reduced", "reproducible"])
def test_numerics_decides(numerics: Any) -> None:
    final, _ = run_pipeline(cpu_pipeline(16, numerics), net(64, 56, 64).build())
    marked = [op.attr("winograd") for op in final.ops if op.operator == "conv"]
    assert marked == [0 if numerics == "reproducible" else 4]


def test_compile_passes_numerics_on() -> None:
    for numerics, template in (("standard", "winograd"), ("reproducible", "direct_conv")):
        exe = tw.compile(net(64, 28, 64).build(), numerics=numerics)
        assert [k.template for k in exe.kernels if k.flops > 1e6] == [template]


def test_a_choice_of_channels_stays_in_front() -> None:
    """Twice some channels of x: what no pass moves into the weights."""
    rng = np.random.default_rng(0)
    g = GraphBuilder()
    x = g.input("x", (1, 64, 28, 28))
    twice = g.gather(x, np.arange(64) // 2, axis=1)
    g.output(g.conv(twice, rng.standard_normal((64, 64, 3, 3)).astype("f4"), pads=1), name="y")
    graph = g.build()
    exe = tw.compile(graph)
    assert "winograd" in [k.template for k in exe.kernels]
    feed = rng.standard_normal((1, 64, 28, 28)).astype("f4")
    want = evaluate(graph, {"x": feed})["y"]
    assert np.abs(exe(feed) - want).max() <= 1e-5 * np.abs(want).max()
