"""A graph as networkx sees it, for algorithms and drawings that are not ours to write."""

from __future__ import annotations

import networkx

from .ir import Graph


def to_networkx(graph: Graph) -> networkx.DiGraph:
    """A bipartite view: nodes ("op", k) and ("blob", name), edges along the data flow.

    Op nodes carry `operator`, `name` and `op`; blob nodes `type` and `role`.
    """
    g = networkx.DiGraph(name=graph.name)
    for n, b in graph.blobs.items():
        g.add_node(("blob", n), type=b.type, role=b.role.value)
    for k, op in enumerate(graph.ops):
        g.add_node(("op", k), operator=op.operator, name=op.name, op=op)
        for n in op.reads:
            g.add_edge(("blob", n), ("op", k))
        for n in op.outputs:
            g.add_edge(("op", k), ("blob", n))
    return g
