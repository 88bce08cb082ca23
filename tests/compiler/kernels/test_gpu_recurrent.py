"""Recurrent layers on GPUs: all steps in one kernel, weights in registers, several sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph

from ..codegen.cuda.programs import gpu_launches, run_graph

rng = np.random.default_rng(3)
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def layer(kind: str, batch: int, steps: int, units: int, **attrs: Any) -> Graph:
    directions = 2 if attrs.get("direction") == "bidirectional" else 1

    def array(*dims: int) -> Any:
        return rng.standard_normal((directions, *dims)).astype(np.float32) / 2

    g = tw.Graph(kind)
    n = GATES[kind]
    w, r, b = array(n * units, 5), array(n * units, units), array(2 * n * units)
    x = g.input("x", (steps, batch, 5))
    made = getattr(g, kind)(x, g.constant(w, name="w"), g.constant(r, name="r"),
                            g.constant(b, name="b"), hidden_size=units, **attrs)  # fmt: skip
    g.output(made[0], "y")
    g.output(made[1], "h")
    return g.build()


@pytest.mark.parametrize(
    ("kind", "attrs"),
    [
        ("gru", {"linear_before_reset": 1}),
        ("gru", {"direction": "bidirectional"}),
        ("lstm", {}),
        ("rnn", {"direction": "reverse"}),
    ],
)
def test_layers(kind: str, attrs: dict[str, Any]) -> None:
    graph = layer(kind, 2, 3, 7, **attrs)
    feeds = {"x": rng.standard_normal((3, 2, 5)).astype(np.float32)}
    expected = evaluate(graph, feeds)
    got = run_graph(graph, feeds)
    for name in ("y", "h"):
        np.testing.assert_allclose(got[name], expected[name], 1e-5, 1e-5)


def config(kind: str, batch: int, units: int) -> tuple[dict[str, Any], int, str]:
    """The config of a layer's kernel, its blocks, and its text."""
    _, launches = gpu_launches(layer(kind, batch, 4, units))
    (found,) = (x for x in launches if x.kernel.template == "gpu_recurrent")
    (phase,) = found.kernel.phases
    text = "held" if any("held" in str(s) for s in phase.body) else "read again"
    return dict(found.kernel.config), phase.items, text


def test_a_thread_for_every_column_and_a_block_for_every_sequence() -> None:
    """Weights stay in registers where a multiprocessor has as many."""
    assert config("gru", 1, 100) == ({"chunks": 1, "threads": 224}, 1, "held")
    assert config("lstm", 5, 64) == ({"chunks": 5, "threads": 256}, 5, "held")
    assert config("lstm", 1, 256) == ({"chunks": 1, "threads": 1024}, 1, "read again")
