"""The time loops of recurrent layers: rnn_scan, gru_scan, lstm_scan.

All steps of a direction and a chunk of the batch are one item: nothing waits for other threads
between steps. A step multiplies the states with the recurrent weights in register tiles (a few
batch rows x as many vectors of gate columns as there are registers for) and then runs through the
units in lanes. The weights are packed, so that a tile reads them as one stream: once, when the
program is linked, if they are constant, else in a phase before. States live in the outputs that
return them.

At batch 1 a step reads every weight for one multiply-add, so it is bound by the second-level cache,
but for what the first one still has of the step before (`ScanKernel.turn`); narrow layers are bound
by the latency of additions, so they keep several partial sums per column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...ops.cells import CELLS, DIRECTIONS, Cell, clipped
from ...ops.expr import Expr, apply, binary, cast, compare, const, index, select, var
from ...ops.operator import Recurrence
from ...ops.scans import scan_activations
from ...ops.types import DType, f32, f64, i64
from ..graph.ir import Graph, Op
from .device import Device
from .ir import Buffer, Declare, If, Launch, Local, Phase, Set, Stmt, Store, loop, seq
from .recipe import prepared, recipe
from .single import Parameters, is_row_major, rows
from .template import Config

UNROLL = 4  # states per round of a product
MOST_ROWS = 4  # batch rows of a register tile
_CELLS: Final = {c.name: c for c in CELLS}


@dataclass(frozen=True, slots=True)
class Product:
    """states [B, H] times columns first..first + count of the transposed weights.

    The columns are cut into `blocks` blocks of `vectors` vectors, of which the last multiplies only
    `rest`; chains: partial sums per column, chosen by the shape alone, so that results do not
    depend on the tile. at: where the results begin in a row of the buffer for sums. tag: makes
    names unique.
    """

    first: int
    count: int
    lanes: int
    blocks: int
    vectors: int
    chains: int
    at: int
    tag: str

    @classmethod
    def of(
        cls, first: int, count: int, at: int, rows: int, lanes: int, registers: int, tag: str
    ) -> Product:  # fmt: skip
        total = -(-count // lanes)
        chains = 1 if total >= 8 else 2 if total >= 4 else 4
        most = (registers - 2) // chains if rows == 1 else (registers - 1) // (rows * chains + 1)
        blocks = -(-total // max(1, most))
        return cls(first, count, lanes, blocks, -(-total // blocks), chains, at, tag)

    @property
    def width(self) -> int:
        """Columns of a block."""
        return self.vectors * self.lanes

    @property
    def rest(self) -> int:
        """Vectors of the last block that hold columns; the others are packed, but never read."""
        return -(-self.count // self.lanes) - (self.blocks - 1) * self.vectors

    @property
    def padded(self) -> int:
        return self.blocks * self.width

    @property
    def end(self) -> int:
        return self.at + self.padded


@recipe("columns")
def pack(
    r: npt.NDArray[Any], first: int, count: int, blocks: int, width: int
) -> npt.NDArray[Any]:  # fmt: skip
    """r [D, gates * H, H] as [D, blocks, H, width]: `count` columns of the transposed weights,
    zeros behind them."""
    d, _, h = r.shape
    out = np.zeros((d, h, blocks * width), r.dtype)
    out[..., :count] = r[:, first : first + count].transpose(0, 2, 1)
    return np.ascontiguousarray(out.reshape(d, h, blocks, width).transpose(0, 2, 1, 3))


def columns_of(op: Op, units: int) -> tuple[tuple[int, int], ...]:
    """(first, count) of the columns of every product of a step: all gates at once, but for the
    reset state of a GRU, which needs one of its own."""
    cell = _CELLS[op.definition.trait(Recurrence).kind]  # type: ignore[union-attr]
    if cell.name == "gru" and not op.attr(cell.switch):
        return (0, 2 * units), (2 * units, units)
    return ((0, cell.gates * units),)


class Recurrent:
    """Configs: chunks, into how many parts of the batch a direction is cut, and rows, the batch
    rows of a register tile."""

    name = "recurrent"
    version = 2

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        if len(ops) != 1:
            return False
        trait = ops[0].definition.trait(Recurrence)
        if trait is None or trait.kind not in _CELLS:
            return False
        return graph.type(ops[0].reads[0]).dtype in (f32, f64) and is_row_major(graph, ops[0])

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        batch = graph.type(ops[0].reads[0]).dims[2]
        best = self.default(graph, ops, outputs, device)
        chunks = {1, best["chunks"], min(max(1, batch), 2 * device.threads)}
        found = [{"chunks": c, "rows": n} for c in sorted(chunks)
                 for n in (1, 2, 3, 4, 6) if n <= max(1, batch // c)]  # fmt: skip
        return found if best in found else [best, *found]

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        """An item for every thread, and tiles of even height."""
        directions, _, batch, _ = graph.type(ops[0].reads[0]).dims
        chunks = max(1, min(batch, device.threads // directions))
        most = max(1, -(-batch // chunks))
        height = -(-most // -(-most // MOST_ROWS))
        return {"chunks": chunks, "rows": max(1, min(height, batch // chunks))}

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        scan = ScanKernel(graph, ops[0], outputs, device, config)
        return scan.params.launch(self.name, self.version, config, scan.phases(), scan.flops,
                                  scan.inplace())  # fmt: skip


class ScanKernel:
    """The kernel of one op. Everything is indexed by (direction, batch row): row n = d * B + b."""

    def __init__(
        self, graph: Graph, op: Op, outputs: Sequence[str], device: Device, config: Config
    ) -> None:
        self.graph, self.op, self.device, self.config = graph, op, device, config
        self.cell: Cell = _CELLS[op.definition.trait(Recurrence).kind]  # type: ignore[union-attr]
        self.lines = DIRECTIONS[op.attr("direction")]
        self.activations = scan_activations(op.attributes)
        self.switch = bool(op.attr(self.cell.switch)) if self.cell.switch else False
        wanted = 4 + len(self.cell.optional)
        inputs = (*op.inputs, *(None,) * (wanted - len(op.inputs)))
        assert inputs[0] is not None and inputs[1] is not None
        kind = graph.type(inputs[0])
        self.dtype: DType = kind.dtype
        self.directions, self.steps, self.batch, _ = kind.dims
        self.h = graph.type(inputs[1]).dims[2]
        self.lanes = self.lanes_of(device)
        self.params = p = Parameters(graph, outputs)
        self.gates = p.read(inputs[0])
        self.weights = inputs[1]
        self.bias, self.lens = p.optional(inputs[2]), p.optional(inputs[3])
        self.initial = tuple(p.optional(n) for n in inputs[4 : 4 + self.cell.states])
        self.peepholes = p.optional(inputs[6]) if self.cell.states > 1 else None
        self.products = self._products(device)
        self.states = tuple(p.write(n) for n in op.outputs[1:])
        self.y = p.write(op.outputs[0]) if op.outputs[0] in outputs else None
        self.flops = 2 * kind.size * self.h
        if not self.states[0].elements:
            return
        self.row_size = self.products[-1].end
        self.place_sums()
        self.packed = tuple(self._packed(q) for q in self.products)

    def lanes_of(self, device: Device) -> int:
        return device.lanes(self.dtype)

    def place_sums(self) -> None:
        """Where sums of products and reset states lie."""
        many = self.directions * self.batch
        self.sums = self.params.scratch(self.dtype, many * self.row_size)
        split = len(self.products) > 1
        self.reset = self.params.scratch(self.dtype, many * self.h) if split else self.sums

    def columns(self) -> tuple[tuple[int, int], ...]:
        return columns_of(self.op, self.h)

    def _products(self, device: Device) -> tuple[Product, ...]:
        out: list[Product] = []
        for k, (first, count) in enumerate(self.columns()):
            at = out[-1].end if out else 0
            out.append(Product.of(first, count, at, self.config["rows"], self.lanes,
                                  device.registers, str(k)))  # fmt: skip
        return tuple(out)

    def _packed(self, p: Product) -> Buffer:
        size = self.directions * self.h * p.padded
        if not self.graph.is_constant(self.weights):
            return self.params.scratch(self.dtype, size)
        made = prepared((self.weights,), "columns", first=p.first, count=p.count,
                        blocks=p.blocks, width=p.width)  # fmt: skip
        return self.params.prepared(made, self.dtype, size)

    def inplace(self) -> list[tuple[Buffer, Buffer]]:
        """A state's start may lie where its end will be, if nothing else reads it."""
        reads = [n for n in self.op.inputs if n is not None]
        found = []
        for y, x, name in zip(self.states, self.initial, self.op.inputs[4:], strict=False):
            if x is not None and name is not None and reads.count(name) == 1:
                found.append((y, x))
        return found

    @property
    def turn(self) -> bool:
        """Whether steps read the weights forwards and backwards in turn, so that the first cache,
        which does not hold all of them, still has those that the step before read last. Not where
        they come from beyond the second cache, which follows a stream better forwards; nor where a
        step has another product, whose weights come in between."""
        (_, count), *more = self.columns()  # of the shape alone: the order of a sum follows from it
        size = self.h * count * self.dtype.bytes
        return not more and self.steps > 1 and self.device.l1_bytes < size <= self.device.l2_bytes

    # ---------------------------------------------------------------- phases

    def phases(self) -> list[Phase]:
        if not self.states[0].elements:
            return []
        pack_first = [] if self.graph.is_constant(self.weights) else [
            self._pack(p, out) for p, out in zip(self.products, self.packed, strict=True)
        ]  # fmt: skip
        chunks = self.config["chunks"]
        item = var("item", chunks * self.directions)
        if self.directions == 1:
            body = self._line(0, self.lines[0], item)
        else:
            forward, backward = self._line(0, False, item), self._line(1, True, item - chunks)
            body = (If(item < chunks, forward, backward),)
        return [*pack_first, Phase(chunks * self.directions, item, body)]

    def _pack(self, p: Product, out: Buffer) -> Phase:
        """What `pack` does, for weights that are computed."""
        r, h = self.params.read(self.weights), self.h
        gates = self.cell.gates * h
        lane = var("lane", p.width)

        def line(row: Expr) -> tuple[Stmt, ...]:
            d, block, k = row // (p.blocks * h), row // h % p.blocks, row % h
            column = block * p.width + lane
            value = r[(d * gates + p.first + column) * h + k]
            value = select(column < p.count, value, const(0, self.dtype))
            put = Store(out, row * p.width + lane, value)
            return (loop(lane, (put,), "vector", lanes=self.lanes),)

        return rows(out.elements // p.width, out.elements, line, self.device)

    def _line(self, d: int, backward: bool, chunk: Expr) -> tuple[Stmt, ...]:
        """All steps of one direction for one chunk of the batch."""
        chunks = self.config["chunks"]
        lo, hi = chunk * self.batch // chunks, (chunk + 1) * self.batch // chunks
        b, s = var("b", self.batch), var("s", self.steps)
        at = self.steps - 1 - s if backward else s

        def each(body: tuple[Stmt, ...]) -> Stmt:
            return loop(b, body, lo=lo, hi=hi)

        cell = CellStep(self, d, at, b)
        body: list[Stmt] = []
        for k, (p, stage) in enumerate(zip(self.products, cell.stages(), strict=True)):
            source = self.reset if k else self.states[0]
            body += self._product(d, p, self.packed[k], source, s, lo, hi)
            body.append(each(cell.running(stage, last=k == len(self.products) - 1)))
        return seq(each(cell.start()), loop(s, body))

    # ---------------------------------------------------------------- products

    def _product(
        self, d: int, p: Product, packed: Buffer, source: Buffer, s: Expr, lo: Expr, hi: Expr
    ) -> tuple[Stmt, ...]:
        """Step s: tiles of a block after one another, so that its weights stay in the cache. The
        last tile of a chunk may overlap the one before it: it computes the same sums again.

        Steps that `turn` read the weights backwards every other time.
        """
        count, chunks = self.config["rows"], self.config["chunks"]
        h, lanes = self.h, self.lanes
        most = -(-self.batch // chunks)
        tile, nth = var("tile", -(-most // count)), var("block", p.blocks)
        first = lo + tile * count
        if self.batch % chunks or most % count:
            first = binary("min", first, hi - count)
        acc = Local(f"acc{p.tag}", self.dtype, (count, p.vectors, p.chains), lanes)
        weights = Local(f"w{p.tag}", self.dtype, (p.vectors,), lanes)
        state = Local("state", self.dtype)
        from_state, from_weights = Local("from_state", i64), Local("from_weights", i64)
        r, q = var("r", count), var("q", p.chains)
        lane, k = var("lane", lanes), var("k", h)

        def vector(*body: Stmt) -> Stmt:
            return loop(lane, body, "vector", lanes=lanes)

        def step(at: Expr, chain: Expr, j: Expr) -> tuple[Stmt, ...]:
            place = from_weights.value + at * p.width + j * lanes + lane
            add = apply("fma", (state.value, weights[j], acc[r, j, chain]), self.dtype)
            return (
                loop(j, (vector(Set(weights, (j,), packed[place])),), "unroll"),
                loop(r, (
                    Set(state, (), source[from_state.value + r * h + at]),
                    loop(j, (vector(Set(acc, (r, j, chain), add)),), "unroll"),
                ), "unroll"),
            )  # fmt: skip

        whole = h // UNROLL * UNROLL
        u = var("u", UNROLL)
        row = d * self.batch + first
        tiles = (hi - lo + count - 1) // count

        def multiplied(block: Expr, vectors: int, backwards: bool) -> tuple[Stmt, ...]:
            """A tile of so many vectors of a block."""
            j = var("j", vectors)

            def at(k: Expr) -> Expr:
                return (h - 1) - k if backwards else k

            total = acc[r, j, index(0)]
            for n in range(1, p.chains):
                total = total + acc[r, j, index(n)]
            clear = vector(Set(acc, (r, j, q), const(0, self.dtype)))
            rounds = loop(u, step(at(k + u), u % p.chains, j), "unroll")
            rest = loop(k, step(at(k), (k - whole) % p.chains, j), "unroll", lo=whole)
            place = (row + r) * self.row_size + p.at + block * p.width + j * lanes + lane
            store = loop(j, (vector(Store(self.sums, place, total)),), "unroll")
            return (
                Set(from_state, (), row * h),
                Set(from_weights, (), (d * p.blocks + block) * (h * p.width)),
                loop(r, (loop(j, (loop(q, (clear,), "unroll"),), "unroll"),), "unroll"),
                loop(k, (rounds,), hi=whole, step=UNROLL),
                *((rest,) if whole < h else ()),
                loop(r, (store,), "unroll"),
            )

        def walk(backwards: bool) -> Stmt:
            block = (p.blocks - 1) - nth if backwards else nth
            body = multiplied(block, p.vectors, backwards)
            if p.rest < p.vectors:
                less = multiplied(block, p.rest, backwards)
                body = (If(compare("lt", block, p.blocks - 1), body, less),)
            return loop(nth, (loop(tile, body, hi=tiles),))

        once = walk(backwards=False)
        if self.turn:
            once = If(compare("eq", s % 2, 0), (once,), (walk(backwards=True),))
        return (
            Declare(acc), Declare(weights), Declare(state), Declare(from_state),
            Declare(from_weights), once,
        )  # fmt: skip


class CellStep:
    """The elementwise part of a step: direction d, time `at`, batch row b, all units in lanes."""

    def __init__(self, scan: ScanKernel, d: int, at: Expr, b: Expr) -> None:
        self.scan, self.d, self.at, self.b = scan, d, at, b
        self.row = d * scan.batch + b
        self.u = var("u", scan.h)

    def start(self) -> tuple[Stmt, ...]:
        place = self.row * self.scan.h + self.u
        zero = const(0, self.scan.dtype)
        return (self.units(*(
            Store(y, place, zero if x is None else x[place])
            for y, x in zip(self.scan.states, self.scan.initial, strict=True)
        )),)  # fmt: skip

    def stages(self) -> tuple[Stmt, ...]:
        """What follows each product."""
        match self.scan.cell.name:
            case "rnn":
                return (self._rnn(),)
            case "gru":
                return (self._gru_linear(),) if self.scan.switch else self._gru()
            case _:
                return (self._lstm(),)

    def running(self, stage: Stmt, last: bool) -> tuple[Stmt, ...]:
        """The stage for sequences that have not ended; the others yield 0 and keep their state."""
        lens, y = self.scan.lens, self.scan.y
        if lens is None:
            return (stage,)
        zero = const(0, self.scan.dtype)
        ended = (self.units(Store(y, self._y(), zero)),) if y is not None and last else ()
        return (If(compare("lt", self.at, cast(lens[self.b], i64)), (stage,), ended),)

    # ---------------------------------------------------------------- parts of a step

    def units(self, *body: Stmt) -> Stmt:
        return loop(self.u, body, "vector", lanes=self.scan.lanes)

    def _y(self) -> Expr:
        s = self.scan
        return ((self.at * s.directions + self.d) * s.batch + self.b) * s.h + self.u

    def _local(self, name: str) -> Local:
        return Local(name, self.scan.dtype, (), self.scan.lanes)

    def _gate(self, g: int) -> Expr:
        """The projected input."""
        s = self.scan
        row = (self.d * s.steps + self.at) * s.batch + self.b
        return s.gates[(row * s.cell.gates + g) * s.h + self.u]

    def _sum_place(self, g: int) -> Expr:
        """Where the product with gate g's weights stands."""
        s = self.scan
        p = next(q for q in s.products if q.first <= g * s.h < q.first + q.count)
        return self.row * s.row_size + p.at + g * s.h - p.first + self.u

    def _recurrent(self, g: int) -> Expr:
        """The product, with its bias."""
        s = self.scan
        out = self._sum(g)
        if s.bias is None:
            return out
        return out + s.bias[(self.d * s.cell.gates + g) * s.h + self.u]

    def _function(self, k: int, x: Expr) -> Expr:
        s = self.scan
        return s.activations[self.d * len(s.cell.activations) + k].expr(x)

    def _act(self, k: int, x: Expr) -> Expr:
        """An activation of a gate, which is clipped before."""
        return self._function(k, clipped(x, self.scan.op.attr("clip")))

    def _state(self, k: int = 0) -> Expr:
        return self.scan.states[k][self.row * self.scan.h + self.u]

    def _keep_state(self, k: int, value: Expr) -> Stmt:
        return Store(self.scan.states[k], self.row * self.scan.h + self.u, value)

    def _sum(self, g: int) -> Expr:
        return self.scan.sums[self._sum_place(g)]

    def _keep_sum(self, g: int, value: Expr) -> Stmt:
        return Store(self.scan.sums, self._sum_place(g), value)

    def _keep_reset(self, value: Expr) -> Stmt:
        return Store(self.scan.reset, self.row * self.scan.h + self.u, value)

    def _finish(self, h: Expr) -> tuple[Stmt, ...]:
        """Store the new state, and the result."""
        s, new = self.scan, self._local("new")
        put = () if s.y is None else (Store(s.y, self._y(), new.value),)
        return (Declare(new), Set(new, (), h), self._keep_state(0, new.value), *put)

    # ---------------------------------------------------------------- cells

    def _rnn(self) -> Stmt:
        return self.units(*self._finish(self._act(0, self._gate(0) + self._recurrent(0))))

    def _gru(self) -> tuple[Stmt, Stmt]:
        """z replaces its own sum until the new state is there."""
        z, r = self._local("z"), self._local("reset")
        first = self.units(
            Declare(z),
            Declare(r),
            Set(z, (), self._act(0, self._gate(0) + self._recurrent(0))),
            Set(r, (), self._act(0, self._gate(1) + self._recurrent(1))),
            self._keep_sum(0, z.value),
            self._keep_reset(r.value * self._state()),
        )
        n = self._local("n")
        second = self.units(
            Declare(z), Declare(n),
            Set(n, (), self._act(1, self._gate(2) + self._recurrent(2))),
            Set(z, (), self._sum(0)),
            *self._finish(self._mixed(z, n)),
        )  # fmt: skip
        return first, second

    def _gru_linear(self) -> Stmt:
        z, r, n = self._local("z"), self._local("reset"), self._local("n")
        return self.units(
            Declare(z), Declare(r), Declare(n),
            Set(z, (), self._act(0, self._gate(0) + self._recurrent(0))),
            Set(r, (), self._act(0, self._gate(1) + self._recurrent(1))),
            Set(n, (), self._act(1, self._gate(2) + r.value * self._recurrent(2))),
            *self._finish(self._mixed(z, n)),
        )  # fmt: skip

    def _mixed(self, z: Local, n: Local) -> Expr:
        return (1 - z.value) * n.value + z.value * self._state()

    def _lstm(self) -> Stmt:
        """Gates i, o, f, c."""
        s = self.scan
        old, i, f, c = map(self._local, ("old", "i", "f", "c"))

        def gate(g: int, seen: Local) -> Expr:
            x = self._gate(g) + self._recurrent(g)
            if s.peepholes is None:
                return self._act(0, x)
            return self._act(0, x + s.peepholes[(self.d * 3 + g) * s.h + self.u] * seen.value)

        forget = 1 - i.value if s.switch else gate(2, old)
        fresh = i.value * self._act(1, self._gate(3) + self._recurrent(3))
        return self.units(
            Declare(old), Declare(i), Declare(f), Declare(c),
            Set(old, (), self._state(1)),
            Set(i, (), gate(0, old)),
            Set(f, (), forget),
            Set(c, (), f.value * old.value + fresh),
            self._keep_state(1, c.value),
            *self._finish(gate(1, c) * self._function(2, c.value)),
        )  # fmt: skip
