"""Attention: softmax(q @ k) @ v without the matrix of scores.

An item takes some rows of one matrix of queries at a time. Their scores, as many as there are keys,
rest in a sheet of its own, which stays in the nearest caches: a first product writes it, its rows
become powers there, and a second product reads it. Sums of powers divide the result, not the
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from ...ops.expr import (
    Expr,
    apply,
    binary,
    const,
    floordiv,
    index,
    load,
    maximum,
    minimum,
    unary,
    var,
)
from ...ops.expr import compare as compared
from ...ops.operator import Contraction
from ...ops.traverse import substitute
from ..graph.ir import Graph, Op
from ..passes.attention import attention_from
from .compose import Indices
from .device import Device
from .epilogue import Params, lowered, place, results
from .ir import Declare, For, If, Kernel, Launch, Local, Phase, Set, Stmt, Store, loop, seq
from .matmul_group import MatmulGroup, matmul_group, matmul_results, variable
from .matmul_operands import PAGE, Left, Operands, where_it_lies
from .microkernel import Level, MicroKernel, Panel, Rows, Segment, issue_slots, most_rows
from .template import Config, each_once, required

ITEM_FLOPS = 500_000  # an item takes at least about 5 microseconds
MAX_ITEMS = 32
PACK_ROWS = 32  # fewer rows read keys and values where they lie


Write = Callable[[Expr, Expr, Expr, dict[Expr, Expr]], list[Store]]
"""What happens to (row of the tile, column, sum); the last says where in the problem that is."""


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """scores: the first product, up to what the softmax reads. mix: the second, with what runs on
    its result."""

    scores: MatmulGroup
    mix: MatmulGroup


def attention_group(
    graph: Graph, ops: Sequence[Op], outputs: Sequence[str]
) -> AttentionGroup | None:
    products = [op for op in ops if op.definition.trait(Contraction) is not None]
    found = attention_from(graph, products[0]) if len(products) == 2 else None
    if found is None or found.second is not products[1] or found.cast is not None:
        return None
    made = {o: op for op in ops for o in op.outputs}
    before: set[int] = set()
    todo = [found.softmax.scores]
    while todo:
        op = made.get(todo.pop())
        if op is not None and id(op) not in before:
            before.add(id(op))
            todo += op.reads
    softmax = set(map(id, found.softmax.ops))
    first = [op for op in ops if id(op) in before]
    second = [op for op in ops if id(op) not in before and id(op) not in softmax]
    scores = matmul_group(graph, first, (found.softmax.scores,))
    mix = matmul_group(graph, second, outputs)
    if scores is None or mix is None:
        return None
    alike = (scores.batch, scores.m, scores.n) == (mix.batch, mix.m, mix.k)
    return AttentionGroup(scores, mix) if alike else None


class _Writer:
    """Writes the kernel of one problem for one config."""

    def __init__(self, p: AttentionGroup, device: Device, config: Config) -> None:
        self.p, self.config, self.rows = p, config, config["mr"]
        self.dtype, self.lanes = p.mix.dtype, device.lanes(p.mix.dtype)
        self.params = Params(p.mix.graph)
        self.tiles = -(-p.mix.m // self.rows)
        total = prod(p.mix.batch) * self.tiles
        self.share = -(-total // config["items"])
        self.item = var("item", -(-total // self.share))
        self.tile = var("t", total)
        self.stride = -(-p.scores.n // self.lanes) * self.lanes
        self.sheet_rows = min(self.rows, p.mix.m)
        items = self.item.payload[2]
        self.sheet = self.params.scratch(self.dtype, items * self.sheet_rows * self.stride)
        self.scores = Operands(p.scores, device, config, self.params, item=self.item, whole=True)
        self.mix = Operands(p.mix, device, {**config, "nb": config["mix"]}, self.params,
                            Left(self.sheet, index(0), self.stride, 1), item=self.item,
                            whole=True)  # fmt: skip
        self.own = self.scores.fill is not None or self.mix.fill is not None
        self.at = (
            (variable("b", prod(p.mix.batch)), variable("s", self.tiles)) if self.own
            else (floordiv(self.tile, self.tiles), self.tile % self.tiles)
        )  # fmt: skip
        self.score = self._score()
        found = matmul_results(p.mix)
        assert found is not None
        self.stores = lowered(self.params, found, p.mix.result)
        self.count = 0

    def _score(self) -> Expr:
        """What the softmax reads, in terms of an element of the first product."""
        p = self.p.scores
        at = p.result_at(self.scores.q, self.scores.m, self.scores.n)
        found = results(p.graph, p.after, p.result, p.outputs, at)
        assert found is not None
        here = load(p.result, at, p.dtype)
        return self.params.lower(found[0].value, lambda b, _: here if b == p.result else None)

    # ---------------------------------------------------------------- one tile of rows

    def body(self, matrix: Expr, m0: Expr, rows: int) -> tuple[Stmt, ...]:
        """Some rows of one matrix, from their scores to the result."""
        self.count += 1
        sheet = self.item * (self.sheet_rows * self.stride)
        scale = Local(f"scale{self.count}", self.dtype, (rows,))

        def product(x: Operands, a: Rows, step: int, write: Write) -> tuple[Stmt, ...]:
            g = var("g", x.panels + (x.rest_blocks > 0))

            def panel(at: Expr, blocks: int, tail: int) -> tuple[Stmt, ...]:
                self.count += 1
                micro = MicroKernel(self.dtype, self.lanes, (rows,), blocks, tag=str(self.count))
                first = at * x.width
                base = substitute(x.right.base, {x.q: matrix} if x.q.op == "var" else {})
                b = (Panel(x.right.buffer, base + first * x.p.k, blocks * self.lanes)
                     if x.right.packed else
                     Panel(x.right.buffer, base + first, x.right.step, tail))  # fmt: skip

                def finish(r: Indices, j: Expr, lane: Expr, value: Expr) -> Sequence[Store]:
                    column = first + j * self.lanes + lane
                    swap = {x.q: matrix, x.m: m0 + r[0], x.n: column}
                    swap = {v: e for v, e in swap.items() if v.op == "var"}
                    return write(r[0], column, value, swap)

                return seq(micro.start(),
                           micro.accumulate(a, b, [Segment((Level(x.p.k, step),))]),
                           micro.finish(finish, tail))  # fmt: skip

            return (loop(g, x.either(g, panel)),)

        def to_sheet(r: Expr, column: Expr, value: Expr, swap: dict[Expr, Expr]) -> list[Store]:
            p = self.p.scores
            at = p.result_at(self.scores.q, self.scores.m, self.scores.n)
            value = substitute(self.score, {**swap, load(p.result, at, p.dtype): value})
            return [Store(self.sheet, sheet + r * self.stride + column, value)]

        def to_result(r: Expr, column: Expr, value: Expr, swap: dict[Expr, Expr]) -> list[Store]:
            p = self.p.mix
            at = p.result_at(self.mix.q, self.mix.m, self.mix.n)
            acc = load(p.result, at, p.dtype)
            return [place(s, {**swap, acc: value * scale[r]}) for s in self.stores]

        left = self.scores.left
        base = substitute(left.base, {self.scores.q: matrix} if self.scores.q.op == "var" else {})
        queries = Rows(left.buffer, base + m0 * left.row, (left.row,))
        weights = Rows(self.sheet, sheet, (self.stride,))
        return seq(
            product(self.scores, queries, left.step, to_sheet),
            self.powers(sheet, rows, scale),
            product(self.mix, weights, 1, to_result),
        )

    def powers(self, sheet: Expr, rows: int, scale: Local) -> tuple[Stmt, ...]:
        """Scores to powers, less the greatest of each row; scale: one over their sum. All rows go
        on together, so that none waits for its own last step."""
        tag, kind = self.count, self.dtype
        top = Local(f"top{tag}", kind, (rows,), self.lanes)
        total = Local(f"total{tag}", kind, (rows,), self.lanes)
        limit = Local(f"limit{tag}", kind, (rows,))
        power = Local(f"power{tag}", kind, (), self.lanes)
        r, c = var("r", rows), var("c", self.p.scores.n)
        at = sheet + r * self.stride + c

        def each(*body: Stmt) -> For:
            return loop(r, body, "unroll")

        def along(*body: Stmt) -> For:
            return loop(c, (each(*body),), "vector", lanes=self.lanes)

        lane = var("l", self.lanes)
        first = each(loop(lane, (Set(top, (r,), const(float("-inf"), kind)),
                                 Set(total, (r,), const(0, kind))),
                          "vector", lanes=self.lanes))  # fmt: skip
        return (
            Declare(top), Declare(total), Declare(limit), Declare(power), Declare(scale),
            first,
            along(Set(top, (r,), binary("max", top[r], self.sheet[at]))),
            each(Set(limit, (r,), apply("hmax", (top[r],), kind))),
            along(
                Set(power, (), unary("exp", self.sheet[at] - limit[r])),
                Store(self.sheet, at, power.value),
                Set(total, (r,), total[r] + power.value),
            ),
            each(Set(scale, (r,), const(1, kind) / apply("hsum", (total[r],), kind))),
        )  # fmt: skip

    # ---------------------------------------------------------------- loops around it

    def by_matrix(self, lo: Expr, hi: Expr, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        """body for an item's tiles lo..hi, matrix by matrix; in front of each matrix what the item
        packs of its keys and values."""
        matrix, s = self.at
        first = matrix * self.tiles
        packing: list[Stmt] = []
        for x in (self.scores, self.mix):
            if x.fill is not None:
                g = var("g", x.panels + (x.rest_blocks > 0))
                packing.append(loop(g, x.fill(matrix, g)))
        tiles = body
        if s.op == "var":
            tiles = (loop(s, body, lo=maximum(lo - first, 0), hi=minimum(hi - first, self.tiles)),)
        if matrix.op != "var":
            return seq(packing, tiles)
        return (loop(matrix, seq(packing, tiles), lo=lo // self.tiles,
                     hi=(hi + (self.tiles - 1)) // self.tiles),)  # fmt: skip

    def launch(self) -> Launch:
        m = self.p.mix.m
        matrix, s = self.at
        whole, rest = divmod(m, self.rows)
        full = self.body(matrix, s * self.rows, self.rows) if whole else ()
        body = full
        if rest:
            less = self.body(matrix, index(whole * self.rows), rest)
            body = (If(compared("lt", s, whole), full, less),) if whole else less
        lo = self.item * self.share
        total = self.tile.payload[2] if self.tile.op == "var" else 1
        hi = minimum(lo + self.share, total)
        body = self.by_matrix(lo, hi, body) if self.own else (loop(self.tile, body, lo=lo, hi=hi),)
        phase = Phase(self.item.payload[2], self.item, body)
        phases = (*self.scores.packing, *self.mix.packing, phase)
        kernel = Kernel(
            Attend.name, Attend.version, tuple(sorted(self.config.items())), self.params.buffers,
            phases, self.p.scores.flops + self.p.mix.flops, self.params.traffic,
        )  # fmt: skip
        return Launch(kernel, self.params.args, ())


class Attend:
    """softmax(q @ k) @ v with the ops around it.

    Config: mr (rows at a time), nb and mix (vectors per tile of the first and the second product),
    items, pack (of keys and values that are not constant, as in `Operands`).
    """

    name = "attention"
    version = 2

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return attention_group(graph, ops, outputs) is not None

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        p = _require(graph, ops, outputs)
        found = [_default(p, device, shape) for shape in _shapes(p, device)]
        found.append({**found[0], "pack": not found[0]["pack"]})
        if found[0]["items"] > 1:
            found.append({**found[0], "items": -(-found[0]["items"] // 2)})
        return each_once(found)

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        p = _require(graph, ops, outputs)
        return _default(p, device, _shapes(p, device)[0])

    def lean(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        """One sheet per thread, keys and values where they lie or one matrix of them at a time, low
        sheets, one sheet in all, and at last one row."""
        shapes = _shapes(_require(graph, ops, outputs), device)
        first = self.default(graph, ops, outputs, device)
        few = {**first, "items": min(first["items"], device.threads)}
        loose = {**few, "pack": "item"}
        low = {**loose, **min(shapes, key=lambda s: s["mr"])}
        found = [few, loose, low, {**loose, "items": 1}, {**low, "items": 1},
                 {**low, "items": 1, "mr": 1}]  # fmt: skip
        return each_once([first, *found])[1:]

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        return _Writer(_require(graph, ops, outputs), device, config).launch()


def _require(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> AttentionGroup:
    return required(attention_group(graph, ops, outputs), "attention", ops)


def _default(p: AttentionGroup, device: Device, shape: Config) -> Config:
    items = min(MAX_ITEMS, (p.scores.flops + p.mix.flops) // ITEM_FLOPS)
    crowded = p.mix.m >= PACK_ROWS and any(map(_crowded, (p.scores, p.mix)))
    return {**shape, "items": max(1, items), "pack": crowded}


def _crowded(p: MatmulGroup) -> bool:
    """Whether all rows of the right operand share a few sets of the nearest cache. Others are read
    where they lie in less time than packing takes."""
    there = where_it_lies(p, Params(p.graph))
    return there is not None and there.step * p.dtype.bytes % PAGE == 0


def _shapes(p: AttentionGroup, device: Device) -> list[Config]:
    """Register tiles, the pair that takes the fewest issue slots first. Both products have the same
    rows."""
    lanes = device.lanes(p.mix.dtype)
    found: list[tuple[float, Config]] = []
    vectors = [-(-x.n // lanes) for x in (p.scores, p.mix)]
    steps = [x.k * lanes * p.mix.dtype.bytes for x in (p.scores, p.mix)]

    def slots(k: int, rows: int, blocks: int) -> float:
        """Slots of product k for one tile of rows."""
        depth = (p.scores.k, p.mix.k)[k]
        whole, rest = divmod(vectors[k], blocks)
        return depth * (whole * issue_slots(rows, blocks, device, steps[k])
                        + (rest > 0) * issue_slots(rows, rest or 1, device, steps[k]))  # fmt: skip

    for mix in range(1, min(vectors[1], 4) + 1):
        rows = min(most_rows(mix, device.registers), p.mix.m)
        fitting = [b for b in range(1, min(vectors[0], 8) + 1)
                   if most_rows(b, device.registers) >= rows]  # fmt: skip
        nb = min(fitting, key=lambda b: slots(0, rows, b))
        cost = -(-p.mix.m // rows) * (slots(0, rows, nb) + slots(1, rows, mix))
        found.append((cost, {"mr": rows, "nb": nb, "mix": mix}))
    return [c for _, c in sorted(found, key=lambda f: f[0])]
