"""The networkx view has every op and blob, and the data flow between them."""

from __future__ import annotations

import networkx

from tilewright.compiler.graph.networkx_view import to_networkx

from ...fuzz.graphs import random_graph


def test_view_of_a_random_graph() -> None:
    graph = random_graph(3, 25)
    view = to_networkx(graph)
    assert networkx.is_directed_acyclic_graph(view)
    assert {n for kind, n in view if kind == "blob"} == set(graph.blobs)
    for k, op in enumerate(graph.ops):
        node = ("op", k)
        assert view.nodes[node]["operator"] == op.operator
        assert {n for _, n in view.predecessors(node)} == set(op.reads)
        assert {n for _, n in view.successors(node)} == set(op.outputs)
    for n in graph.outputs:
        assert view.nodes[("blob", n)]["type"] == graph.type(n)
