"""Names of values, and the order of nodes, in a graph, a branch or a function body."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ModelError
from ..graph.builder import Value
from .onnx_proto import Message, domain_of
from .onnx_tensors import Known


@dataclass(slots=True)
class Slot:
    """What is known of a named value: an array, a value of the graph, or why there is neither.

    foreign is the type of a value that is no tensor; "" when its producer is not supported, which
    has been reported already.
    """

    name: str  # of the blob, for values of the graph and constants
    known: Known | None = None
    value: Value | None = None
    foreign: str | None = None


@dataclass(frozen=True)
class Scope:
    """The values of one graph or function body. Branches of an If also see their parent's."""

    prefix: str = ""
    opsets: Mapping[str, int] = field(default_factory=dict)
    parent: Scope | None = None
    outer_attributes: Mapping[str, Any] | None = None  # of the call, in a function body
    blob_names: Mapping[str, str] = field(default_factory=dict)  # inner output -> outer name
    slots: dict[str, Slot] = field(default_factory=dict)
    depth: int = 0

    def declare(self, name: str) -> Slot:
        """A new name, without a value so far."""
        slot = self.slots[name] = Slot(self.blob_names.get(name, self.prefix + name))
        return slot

    def find(self, name: str) -> Slot | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.slots:
                return scope.slots[name]
            scope = scope.parent
        return None


@dataclass(frozen=True, slots=True)
class Node:
    """A node message with the names it reads, those of its subgraphs included."""

    proto: Message
    label: str  # the node's name, or a made-up one
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reads: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.op_type} node {self.label!r}"


def read_nodes(protos: Iterable[Message], prefix: str) -> list[Node]:
    """Wrap nodes; unnamed ones are called after their operator and position."""
    messages = list(protos)
    taken = {m.name for m in messages}
    nodes = []
    for k, m in enumerate(messages):
        label = m.name
        if not label:
            label = f"{m.op_type}_{k}"
            while label in taken:
                label += "_"
            taken.add(label)
        if not m.op_type:
            raise ModelError(f"node {label!r} has no operator type")
        nodes.append(
            Node(m, prefix + label, m.op_type, domain_of(m.domain), tuple(m.input),
                 tuple(m.output), tuple(dict.fromkeys([*filter(None, m.input), *captures(m)])))
        )  # fmt: skip
    return nodes


def captures(node: Message) -> list[str]:
    """Values that the subgraphs of a node read from outside."""
    out: list[str] = []
    for a in node.attribute:
        for graph in ([a.g] if a.HasField("g") else []) + list(a.graphs):
            inner = {v.name for v in graph.input} | {t.name for t in graph.initializer}
            inner |= {name for n in graph.node for name in n.output}
            used = [name for n in graph.node for name in [*n.input, *captures(n)]]
            used += [v.name for v in graph.output]
            out += [name for name in used if name and name not in inner]
    return out


def schedule(
    nodes: Sequence[Node], given: Collection[str], wanted: Iterable[str], outer: Scope | None,
    label: str,
) -> list[Node]:  # fmt: skip
    """The nodes that `wanted` values need, in an order in which they can run.

    given: names of inputs and initialisers. Raises ModelError for names made twice, undefined
    names, and cycles.
    """
    maker: dict[str, int] = {}
    for k, n in enumerate(nodes):
        for name in filter(None, n.outputs):
            if name in maker:
                other = nodes[maker[name]].where
                raise ModelError(f"{label}: the value {name!r} is made twice, "
                                 f"by {other} and by {n.where}")  # fmt: skip
            if name in given:
                raise ModelError(f"{label}: {n.where} makes the value {name!r}, which is also the "
                                 "name of an input or initializer")  # fmt: skip
            maker[name] = k
    for n in nodes:
        for name in n.reads:
            known = name in maker or name in given or (outer is not None and outer.find(name))
            if not known:
                raise ModelError(f"{label}: {n.where} reads {name!r}, which no node, input or "
                                 "initializer defines")  # fmt: skip
    needs = [sorted({maker[name] for name in n.reads if name in maker}) for n in nodes]
    _check_acyclic(nodes, needs, label)
    needed: set[int] = set()
    stack = [maker[name] for name in wanted if name in maker]
    while stack:
        k = stack.pop()
        if k not in needed:
            needed.add(k)
            stack.extend(needs[k])
    return [nodes[k] for k in _order(needs) if k in needed]


def _order(needs: Sequence[Sequence[int]]) -> list[int]:
    """Positions, each after those it needs; the given order wherever that is one already."""
    out: list[int] = []
    done = [False] * len(needs)
    for start in range(len(needs)):
        stack = [start]
        while stack:
            k = stack[-1]
            missing = [] if done[k] else [m for m in needs[k] if not done[m]]
            if missing:
                stack.extend(reversed(missing))
                continue
            stack.pop()
            if not done[k]:
                done[k] = True
                out.append(k)
    return out


def _check_acyclic(nodes: Sequence[Node], needs: Sequence[Sequence[int]], label: str) -> None:
    users: list[list[int]] = [[] for _ in nodes]
    for k, ms in enumerate(needs):
        for m in ms:
            users[m].append(k)
    waiting = [len(ms) for ms in needs]
    ready = [k for k, w in enumerate(waiting) if w == 0]
    done = 0
    while ready:
        done += 1
        for u in users[ready.pop()]:
            waiting[u] -= 1
            if waiting[u] == 0:
                ready.append(u)
    if done == len(nodes):
        return
    # Every node left waits for another one that is left: following those closes a cycle.
    k = next(k for k, w in enumerate(waiting) if w)
    path: list[int] = []
    while k not in path:
        path.append(k)
        k = next(m for m in needs[k] if waiting[m])
    cycle = [*path[path.index(k) :], k]
    names = " <- ".join(repr(nodes[m].label) for m in cycle[:8])
    names += " <- ..." if len(cycle) > 8 else ""
    raise ModelError(f"{label}: {len(cycle) - 1} nodes form a cycle: {names}")
