"""Times of launches rolled up to what a model is written in: its nodes, and their operators.

A launch may compute several nodes, and a node may take several launches, so that the time of one
node is not always known. What is known is the time of the smallest sets of nodes that share no
launch with any other: those are the parts, and their times add up to the program's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..graph.ir import Graph
from ..text import printable
from .profile import ProfileRow, Totals, totals_table


@dataclass(frozen=True, slots=True)
class Part:
    """Nodes of a model and the launches, by number, that compute them and nothing else. Launches
    that compute no node of the model are parts without nodes."""

    nodes: tuple[str, ...]
    launches: tuple[int, ...]


def parts(nodes: Sequence[Sequence[str]]) -> tuple[Part, ...]:
    """The parts of a program whose launches compute these nodes, in order of their first launch."""
    root: dict[object, object] = {}

    def find(x: object) -> object:
        root.setdefault(x, x)
        while root[x] != x:
            root[x] = root[root[x]]
            x = root[x]
        return x

    for number, mine in enumerate(nodes):
        for node in mine:
            root[find(node)] = find(number)
    found: dict[object, tuple[dict[str, None], list[int]]] = {}
    for number, mine in enumerate(nodes):
        names, launches = found.setdefault(find(number), ({}, []))
        names |= dict.fromkeys(mine)
        launches.append(number)
    return tuple(Part(tuple(names), tuple(launches)) for names, launches in found.values())


@dataclass(frozen=True, slots=True)
class RollupRow(Totals):
    """Launches taken together, and what they stand for."""

    what: str


def by_node(rows: Sequence[ProfileRow]) -> tuple[RollupRow, ...]:
    """One row per part, longest first."""
    found = parts([r.nodes for r in rows])
    return _rolled((" + ".join(p.nodes) or rows[p.launches[0]].label or rows[p.launches[0]].kernel,
                    [rows[k] for k in p.launches]) for p in found)  # fmt: skip


def by_operator(rows: Sequence[ProfileRow], model: Graph) -> tuple[RollupRow, ...]:
    """One row per combination of the model's own operators that a part has, longest first. model:
    the graph as it was imported."""
    operators: dict[str, dict[str, None]] = {}
    for op in model.ops:
        for node in op.source:
            operators.setdefault(node, {})[op.operator] = None

    def name(p: Part) -> str:
        mine = dict.fromkeys(o for n in p.nodes for o in operators.get(n, ()))
        return " + ".join(mine or rows[p.launches[0]].operators)

    return _together(rows, name)


def by_scope(rows: Sequence[ProfileRow], depth: int) -> tuple[RollupRow, ...]:
    """One row per scope that nodes' names begin with, `depth` names of it at most ("/a/b" has two),
    longest first. A part belongs to what all of its nodes have in common."""

    def name(p: Part) -> str:
        scopes = [[w for w in node.split("/")[:-1] if w] for node in p.nodes]
        common: list[str] = []
        for words in zip(*scopes, strict=False):
            if len(set(words)) > 1 or len(common) == depth:
                break
            common.append(words[0])
        return "/" + "/".join(common)

    return _together(rows, name)


def _together(rows: Sequence[ProfileRow], name: Callable[[Part], str]) -> tuple[RollupRow, ...]:
    groups: dict[str, list[ProfileRow]] = {}
    for p in parts([r.nodes for r in rows]):
        groups.setdefault(name(p), []).extend(rows[k] for k in p.launches)
    return _rolled(groups.items())


def _rolled(groups: Iterable[tuple[str, Sequence[ProfileRow]]]) -> tuple[RollupRow, ...]:
    found = (RollupRow.of(rows, what=what) for what, rows in groups)
    return tuple(sorted(found, key=lambda r: -r.seconds))


def rollup_table(rows: Sequence[RollupRow], title: str) -> str:
    """The rows for people. title: of the last column."""
    return totals_table([(printable(r.what), r) for r in rows], title)
