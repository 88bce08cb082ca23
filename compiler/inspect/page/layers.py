"""Where the nodes of a directed graph stand in a drawing from top to bottom.

In the manner of Sugiyama, Tagawa and Toda (IEEE Transactions on Systems, Man, and Cybernetics
11(2), 1981): every node goes into the layer below its lowest predecessor, edges over several layers
get a waypoint in each of those between, and the order within layers comes from barycentres, swept
down and up. All edges that leave one node share their waypoints. Then each layer is moved as near
to its neighbours as distances allow: the least squares of that, within the order, are an isotonic
regression, which pooling adjacent violators solves (Ayer et al., Annals of Mathematical Statistics
26(4), 1955).

Positions within a layer are in units of one node and its gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

Edge = tuple[int, int]

SWEEPS: Final = 6
"""Down and up, of the order and then of the positions."""
NARROW: Final = 0.16
"""Width of a waypoint."""
_BETWEEN: Final = 1e-3
"""What a wish weighs that is between a node and a waypoint: it must not push others aside."""
_LOOSE: Final = 1e-3
"""What the place of one without neighbours weighs."""
MOST_WAYPOINTS: Final = 20_000
"""Nodes whose edges would need more than are left go without, the longest edges first."""


@dataclass(frozen=True, slots=True)
class Layout:
    """layer: of every node, from 0 at the top. x: the middle of every node. ways: of the nodes that
    have edges over several layers, x in each layer from the one below the node on. An edge follows
    its node's way as far as it needs; it goes straight where there is none."""

    layer: tuple[int, ...]
    x: tuple[float, ...]
    ways: Mapping[int, tuple[float, ...]]


def layout(count: int, edges: Sequence[Edge]) -> Layout:
    """The drawing of a graph with nodes 0 to count - 1. Raises ValueError where it has a cycle."""
    layer = layers(count, edges)
    rows, links, ways = _with_waypoints(count, edges, layer)
    above, below = _neighbours(sum(map(len, rows)), links)
    _order(rows, above, below)
    x = _positions(rows, above, below, count)
    along = {node: tuple(x[w] for w in way) for node, way in ways.items()}
    return Layout(tuple(layer), tuple(x[:count]), along)


def layers(count: int, edges: Sequence[Edge]) -> list[int]:
    """The layer of each node: one below its lowest predecessor; nodes without any stand just above
    their first reader. Raises ValueError where there is a cycle."""
    after: list[list[int]] = [[] for _ in range(count)]
    waiting = [0] * count
    for source, target in edges:
        after[source].append(target)
        waiting[target] += 1
    layer = [0] * count
    heads = [k for k in range(count) if not waiting[k]]
    ready = list(heads)
    for node in ready:  # grows meanwhile
        for target in after[node]:
            layer[target] = max(layer[target], layer[node] + 1)
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    if len(ready) < count:
        raise ValueError("the graph has a cycle")
    for node in heads:
        layer[node] = min((layer[t] for t in after[node]), default=1) - 1
    return layer


def _with_waypoints(
    count: int, edges: Sequence[Edge], layer: Sequence[int]
) -> tuple[list[list[int]], set[Edge], dict[int, list[int]]]:
    """Nodes and waypoints of each layer, the links between adjacent layers, and the waypoints of
    each node that has some, from the top."""
    lowest: dict[int, int] = {}
    for source, target in edges:
        lowest[source] = max(lowest.get(source, 0), layer[target])
    rows: list[list[int]] = [[] for _ in range(max(layer, default=-1) + 1)]
    for node in _depth_first(count, edges, layer):
        rows[layer[node]].append(node)
    left, ways, links, fresh = MOST_WAYPOINTS, {}, set(), count
    for source, end in sorted(lowest.items(), key=lambda item: item[1] - layer[item[0]]):
        needed = end - layer[source] - 1
        if needed < 1 or needed > left:
            continue
        left -= needed
        ways[source] = way = list(range(fresh, fresh + needed))
        fresh += needed
        for k, w in enumerate(way):
            rows[layer[source] + 1 + k].append(w)
            links.add((way[k - 1] if k else source, w))
    for source, target in edges:
        span = layer[target] - layer[source]
        if span == 1:
            links.add((source, target))
        elif source in ways:
            links.add((ways[source][span - 2], target))
    return rows, links, ways


def _depth_first(count: int, edges: Sequence[Edge], layer: Sequence[int]) -> Iterator[int]:
    """Every node once; what hangs together comes together."""
    after: list[list[int]] = [[] for _ in range(count)]
    for source, target in edges:
        after[source].append(target)
    seen = [False] * count
    for root in sorted(range(count), key=lambda k: layer[k]):
        stack = [root]
        while stack:
            node = stack.pop()
            if not seen[node]:
                seen[node] = True
                yield node
                stack += reversed(after[node])


def _neighbours(count: int, links: Iterable[Edge]) -> tuple[list[list[int]], list[list[int]]]:
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for high, low in sorted(links):
        below[high].append(low)
        above[low].append(high)
    return above, below


def _order(rows: list[list[int]], above: list[list[int]], below: list[list[int]]) -> None:
    """Sort every layer by the mean places of its neighbours, down and up."""
    place = {node: k for row in rows for k, node in enumerate(row)}
    for sweep in range(2 * SWEEPS):
        down = sweep % 2 == 0
        near = above if down else below
        for row in rows if down else reversed(rows):
            mean = {n: sum(place[m] for m in near[n]) / len(near[n]) for n in row if near[n]}
            row.sort(key=lambda n, mean=mean: mean.get(n, place[n]))  # type: ignore[misc]
            for k, node in enumerate(row):
                place[node] = k


def _positions(
    rows: Sequence[Sequence[int]], above: Sequence[Sequence[int]], below: Sequence[Sequence[int]],
    count: int,
) -> list[float]:  # fmt: skip
    """Where everything stands in its layer: nodes below nodes and waypoints below waypoints, if
    there is room for both."""
    x = [0.0] * sum(map(len, rows))
    offsets = []
    for row in rows:
        at, row_offsets = 0.0, []
        for node in row:
            wide = 1.0 if node < count else NARROW
            at += wide / 2
            row_offsets.append(at)
            x[node] = at
            at += wide / 2
        offsets.append(row_offsets)
        for node in row:
            x[node] -= at / 2
    for sweep in range(2 * SWEEPS):
        down = sweep % 2 == 0
        for k in range(len(rows)) if down else reversed(range(len(rows))):
            wanted, weights = [], []
            for node, offset in zip(rows[k], offsets[k], strict=True):
                near = (above[node] if down else below[node]) or above[node] or below[node]
                same = [m for m in near if (m < count) == (node < count)]
                near = same or near
                mean = sum(x[m] for m in near) / len(near) if near else x[node]
                wanted.append(mean - offset)
                weights.append((1.0 if same else _BETWEEN) if near else _LOOSE)
            for node, offset, found in zip(
                rows[k], offsets[k], _ascending(wanted, weights), strict=True
            ):
                x[node] = found + offset
    first = min(x, default=0.0)
    return [at - first for at in x]


def _ascending(wanted: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The values nearest to those wanted, by weighted squares, of which none is less than the one
    before it."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for value, weight in zip(wanted, weights, strict=True):
        mean, total, many = value, weight, 1
        while pools and pools[-1][0] >= mean:
            before, more, others = pools.pop()
            mean = (mean * total + before * more) / (total + more)
            total, many = total + more, many + others
        pools.append((mean, total, many))
    return [mean for mean, _, many in pools for _ in range(many)]
