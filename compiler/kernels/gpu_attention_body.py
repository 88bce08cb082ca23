"""The kernel of one attention: its scores never leave a block.

A block computes m rows of the result, in rounds of n keys. Its threads copy the keys and values of
the next `stages` - 1 rounds into a ring in shared memory while its warps compute this one, each
some rows. With one stage, a round's values are copied while its scores are computed, and the next
round's keys while values are multiplied, so that larger tiles fit.

In a round, scores are a first product; less the greatest so far and raised to powers they are the
left operand of a second, which is added to the result. Whenever a row's greatest score grows, what
was added up so far is scaled down (the online softmax of Milakov and Gimelshein 2018, "Online
normalizer calculation for softmax", in the order of loops of FlashAttention, Dao et al. 2022 and
Dao 2023). At the end sums of powers divide the result.

A row that is masked out altogether so far has the greatest score of minus infinity; it is taken for
0 there, so that its powers are zeros and not NaN. Without any key at the end its result is NaN, as
numpy's.

With few rows, `ways` groups of warps take each its part of every round's keys, and put their
results together in shared memory; where few rows are few blocks, rounds fall into `parts`, a block
each (see `gpu_attention_parts`).

How products are computed, and which thread holds which scores and sums, is for others to say: see
`gpu_attention_warps` and `gpu_attention_threads`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...ops.expr import (
    Expr,
    apply,
    binary,
    cast,
    compare,
    const,
    index,
    logical_and,
    minimum,
    select,
    unary,
    var,
)
from ...ops.traverse import substitute
from ...ops.types import HALF, DType, boolean, f32
from ..graph.ir import Graph
from .address import offset
from .gpu_attention_lines import Lines
from .gpu_attention_parts import LOWEST, Parts
from .gpu_attention_problem import Attention
from .gpu_mma_operands import numbered
from .gpu_mma_product import kept_wide
from .gpu_model import REGISTERS, WARP
from .gpu_parts import rounds_of
from .gpu_sharing import unflattened
from .ir import (
    Buffer,
    Call,
    Comment,
    Declare,
    If,
    Kernel,
    Launch,
    Let,
    Local,
    Phase,
    Set,
    Stmt,
    Store,
    loop,
)
from .pieces import Buffers, buffer_loads, trip_count
from .template import Config, traffic
from .vectors import aligned


@dataclass(frozen=True, slots=True)
class Held:
    """What a thread holds of scores or of the result, for every one of its rows: register[at],
    over loops, is column `column`, beside the row's number `r`. The last loop runs over neighbours.
    """

    register: Local
    loops: tuple[Expr, ...]
    at: Expr
    column: Expr

    @property
    def value(self) -> Expr:
        return self.register[self.at]

    def set(self, value: Expr) -> Set:
        return Set(self.register, (self.at,), value)

    def each(self, *body: Stmt) -> Stmt:
        """body for all columns of a row."""
        for v in reversed(self.loops):
            body = (loop(v, body, "unroll"),)
        return body[0]


class Attend:
    """The kernel for one config. rows: of a thread; r: counts them.

    Others say: `place`, the row of the tile that r is; `scores` and `results`, what is held; how
    far apart in lanes the others are that hold parts of a row, `distances`; `power`, the factor of
    scores and the function that raises them."""

    rows: int
    distances: tuple[int, ...]
    place: Expr
    scores: Held
    results: tuple[Held, ...]

    def __init__(
        self, graph: Graph, p: Attention, config: Config, group: int, units: tuple[int, int]
    ) -> None:
        """group: threads that share keys; units: pieces that lines of terms and of columns are
        multiples of."""
        self.graph, self.p, self.config = graph, p, config
        self.buffers = Buffers(graph)
        m, n = config["m"], config["n"]
        self.ways, self.stages = config["ways"], config["stages"]
        self.group, self.threads = group, group * self.ways
        self.own = n // self.ways  # keys of a warp
        self.rounds, self.down = -(-p.n // n), -(-p.m // m)
        given = self.threads, self.stages
        terms, columns = units
        self.queries = Lines(self.buffers, "q", p.q, p.rows, (p.term,), m, self.threads, 1, terms)
        self.keys = Lines(self.buffers, "k", p.k, (p.key,), (p.term,), n, *given, terms)
        self.values = Lines(self.buffers, "v", p.v, (p.key,), p.columns, n, *given, columns)
        self.each, self.parts = rounds_of(self.rounds, config["parts"])
        self.item = var("item", p.batch * self.down * self.parts)
        self.batch, part = self.item // (self.down * self.parts), self.item % self.parts
        self.split = Parts(p, self.parts, part) if self.parts > 1 else None
        self.start, self.end = index(0), index(self.rounds)
        if self.split is not None:
            self.start = var("first_round", self.each * (self.parts - 1) + 1)
            self.end = var("last_round", self.rounds + 1)
        self.thread, self.lane = var("thread", self.threads), var("lane", WARP)
        self.first, self.row = var("first_row", self.down * m), var("row", m)
        self.own_key = var("own_key", n)
        self.where = unflattened(self.batch, p.batches)
        self.high, self.base = Local("high", f32), Local("base", f32)
        self.scale, self.part = Local("scale", f32), Local("part", f32)

    # ---------------------------------------------------------------- what others say

    def named(self) -> tuple[Stmt, ...]:
        """Names for what a lane reads."""
        return ()

    def declared(self) -> tuple[Local, ...]:
        """Arrays beside those that are named here."""
        return ()

    def begun(self) -> tuple[Stmt, ...]:
        """What happens when the queries are there."""
        return ()

    def multiplied_by_keys(self, stage: Expr) -> tuple[Stmt, ...]:
        """The products of the warp's queries and its keys of a stage are added to the scores."""
        raise NotImplementedError

    def given(self) -> tuple[Stmt, ...]:
        """Powers, which stand in place of the scores, are put where other lanes read them."""
        return ()

    def multiplied_by_values(self, stage: Expr) -> tuple[Stmt, ...]:
        """Powers times values are added to the results."""
        raise NotImplementedError

    log_base = 1.0
    """What a score is multiplied by before it is raised."""

    def raised(self, x: Expr) -> Expr:
        return unary("exp", x)

    # ---------------------------------------------------------------- the kernel

    @property
    def r(self) -> Expr:
        return var("r", self.rows)

    @property
    def top(self) -> Local:
        return Local("top", f32, (self.rows,))

    @property
    def total(self) -> Local:
        return Local("total", f32, (self.rows,))

    @property
    def share(self) -> Local:
        """What all ways but the first have to say."""
        each = sum(x.shape[0] for x in self._kept)
        return Local("share", f32, ((self.ways - 1) * each * self.group,), shared=True)

    @property
    def _kept(self) -> tuple[Local, ...]:
        return (*(x.register for x in self.results), self.top, self.total)

    def launch(self, name: str, version: int, registers: int) -> Launch:
        """registers: that a thread may take at least."""
        resident = max(REGISTERS // (self.threads * registers), 1)
        phase = Phase(self.item.payload[2], self.item, self._body(), self.threads, self.thread,
                      resident=resident)  # fmt: skip
        phases = [phase]
        scratch: tuple[Buffer, ...] = ()
        if self.split is not None:
            phases.append(self.split.added(*self._target, self._result, self.raised))
            scratch = self.split.scratch
        params, args = self.buffers.parameters()
        kernel = Kernel(
            name, version, tuple(sorted(self.config.items())), (*params, *scratch), tuple(phases),
            self.p.flops, traffic(self.graph, params, args),
        )  # fmt: skip
        return Launch(kernel, (*args, *(None for _ in scratch)), ())

    def _body(self) -> tuple[Stmt, ...]:
        round_, r = var("round", self.rounds), self.r
        warp, warps = self.thread // WARP, self.group // WARP
        lines = (s for x in (self.queries, self.keys, self.values) for s in x.declared())
        share = (self.share,) if self.ways > 1 else ()
        local = (*share, *self.declared(), self.scores.register, *self._kept, self.high, self.base,
                 self.scale, self.part)  # fmt: skip
        rounds: tuple[Stmt, ...] = ()
        if self.split is not None:
            last = minimum(self.start + self.each, index(self.rounds))
            rounds = Let(self.start, self.split.part * self.each), Let(self.end, last)
        return (
            *rounds,
            Let(self.first, self.item // self.parts % self.down * self.config["m"]),
            Let(self.lane, self.thread % WARP),
            Let(self.row, warp % warps * (self.config["m"] // warps)),
            Let(self.own_key, warp // warps * self.own),
            *self.named(), *lines, *map(Declare, local),
            self.queries.copied(self.thread, index(0), self.first, self.where),
            *self._ahead(),
            *self.begun(),
            *(_zeroed(x.register) for x in self.results),
            loop(r, (Set(self.top, (r,), _f32(LOWEST)), Set(self.total, (r,), _f32(0))), "unroll"),
            loop(round_, self._round(round_), lo=self.start, hi=self.end),
            *self._together(),
        )  # fmt: skip

    # ---------------------------------------------------------------- the rounds

    def _copied(self, round_: Expr, *what: Lines) -> tuple[Stmt, ...]:
        """The keys and values of a round, or one of them."""
        stage, first = self._stage(round_), round_ * self.config["n"]
        return tuple(x.copied(self.thread, stage, first, self.where)
                     for x in what or (self.keys, self.values))  # fmt: skip

    def _stage(self, round_: Expr) -> Expr:
        return round_ % self.stages if self.stages > 1 else index(0)

    def _ahead(self) -> tuple[Stmt, ...]:
        """The copies of the first rounds, one group each; of one stage, of the first keys."""
        if self.stages == 1:
            return (*self._copied(self.start, self.keys), Call("cp_commit"))
        s = var("ahead", self.stages - 1)
        first = self.start + (s if self.stages > 2 else 0)
        copies = self._copied(first)
        if self.stages - 1 > self.rounds - self.each * (self.parts - 1):
            copies = (If(first < self.end, copies),)
        body = (*copies, Call("cp_commit"))
        return (loop(s, body, "unroll"),) if self.stages > 2 else body

    def arrived(self) -> tuple[Stmt, ...]:
        """What was copied for this round is there, for all threads."""
        return Call("cp_wait", (max(self.stages - 2, 0),)), Call("barrier")

    def _round(self, round_: Expr) -> tuple[Stmt, ...]:
        stage, between = self._stage(round_), self.given()
        if self.stages == 1:
            before = self._copied(round_, self.values)
            between = (*between, *self.arrived(), *self._later(round_ + 1, self.keys))
        else:
            before = self._later(round_ + (self.stages - 1))
            between = (*between, Call("barrier")) if between else ()
        return (
            *self.arrived(), *before, Call("cp_commit"),
            Comment("scores: queries times keys"),
            _zeroed(self.scores.register),
            *self.multiplied_by_keys(stage),
            *self._scored(round_),
            Comment("their powers, less the greatest so far"),
            self._powers(),
            *between,
            Comment("powers times values"),
            *self.multiplied_by_values(stage),
        )  # fmt: skip

    def _later(self, round_: Expr, *what: Lines) -> tuple[Stmt, ...]:
        """The copies of another round, if there is one; with one stage, as a group."""
        ahead = max(self.stages - 1, 1)
        copies = self._copied(round_, *what)
        found = (If(round_ < self.end, copies),) if self.each > ahead else ()
        return (*found, Call("cp_commit")) if self.stages == 1 else found

    def _scored(self, round_: Expr) -> tuple[Stmt, ...]:
        """What the softmax reads, of every product; minus infinity beyond the last key."""
        p, held = self.p, self.scores
        row = self.first + self.row + self.place
        key = round_ * self.config["n"] + self.own_key + held.column
        value = _kept_wide(self.buffers, p.score, p.product)
        inside = const(True, boolean)
        if p.n % self.config["n"]:
            inside = logical_and(inside, key < p.n)
        if p.m % self.config["m"] and buffer_loads(value):
            inside = logical_and(inside, row < p.m)
        value = numbered(numbered(value, p.rows, row), (p.key,), key)
        value = substitute(value, {**self.where, _WHOLE: held.value})
        if not inside.is_const:
            value = select(inside, value, _f32(LOWEST))
        same = value is held.value
        return () if same else (loop(self.r, (held.each(held.set(value)),), "unroll"),)

    def _powers(self) -> Stmt:
        high, base, scale, part, r = self.high, self.base, self.scale, self.part, self.r
        score, factor = self.scores.value, _f32(self.log_base)
        plain = self.log_base == 1
        less = score - base.value if plain else apply("fma", (score, factor, -base.value), f32)
        return loop(r, (
            Set(high, (), _f32(LOWEST)),
            self.scores.each(Set(high, (), binary("max", high.value, score))),
            *(Set(high, (), binary("max", high.value, _other(high.value, d)))
              for d in self.distances),
            Set(high, (), binary("max", self.top[r],
                                 high.value if plain else high.value * factor)),
            Set(base, (), _finite(high.value)),
            Set(scale, (), self.raised(self.top[r] - base.value)),
            Set(self.top, (r,), high.value),
            Set(part, (), _f32(0)),
            self.scores.each(
                self.scores.set(self.raised(less)), Set(part, (), part.value + score)
            ),
            Set(self.total, (r,), self.total[r] * scale.value + part.value),
            *self.scaled(),
        ), "unroll")  # fmt: skip

    def scaled(self) -> tuple[Stmt, ...]:
        """What was added up so far in a row, by what its greatest score has grown."""
        return tuple(x.each(x.set(x.value * self.scale.value)) for x in self.results)

    # ---------------------------------------------------------------- the result

    def _together(self) -> tuple[Stmt, ...]:
        """Sums of powers of whole rows, of all ways, and the results."""
        r, total = self.r, self.total
        whole = loop(r, (Set(total, (r,), total[r] + _other(total[r], d)) for d in self.distances),
                     "unroll")  # fmt: skip
        if self.ways == 1:
            return whole, *self._stored()
        way = self.thread // self.group
        puts = []
        for x in self._kept:
            k = var("kept", x.shape[0])
            put = Set(self.share, (self._shared(way - 1, x, k),), x[k])
            puts.append(loop(k, (put,), "unroll"))
        other = var("other", self.ways - 1)
        joined = loop(other, (self._joined(other),), "unroll")
        return (whole, If(way > 0, tuple(puts)), Call("barrier"),
                If(way < 1, (joined, *self._stored())))  # fmt: skip

    def _shared(self, way: Expr, x: Local, k: Expr) -> Expr:
        """Where a register of another way's thread is."""
        kept = self._kept
        before = sum(y.shape[0] for y in kept[: kept.index(x)])
        each = sum(y.shape[0] for y in kept)
        return (way * each + before + k) * self.group + self.thread % self.group

    def _joined(self, way: Expr) -> Stmt:
        """Another way's part of the sums is added to this one's."""
        r, high, base, mine, its = self.r, self.high, self.base, self.scale, self.part

        def of(x: Local, k: Expr) -> Expr:
            return self.share[self._shared(way, x, k)]

        def added(x: Local, k: Expr) -> Set:
            return Set(x, (k,), x[k] * mine.value + of(x, k) * its.value)

        return loop(r, (
            Set(high, (), binary("max", self.top[r], of(self.top, r))),
            Set(base, (), _finite(high.value)),
            Set(mine, (), self.raised(self.top[r] - base.value)),
            Set(its, (), self.raised(of(self.top, r) - base.value)),
            Set(self.top, (r,), high.value),
            added(self.total, r),
            *(x.each(added(x.register, x.at)) for x in self.results),
        ), "unroll")  # fmt: skip

    def _stored(self) -> tuple[Stmt, ...]:
        """The epilogue of every element that exists; or what a part of the keys leaves of it."""
        r = self.r
        parts = (s for x in self.results for s in self._part_stored(x))
        if self.split is None:
            return (loop(r, (Set(self.scale, (), 1.0 / self.total[r]), *parts), "unroll"),)
        held = self.results[0]
        row = self.first + self.row + self.place
        first = substitute(held.column, {v: index(0) for v in held.loops})
        scaled = self.split.scaled(self.batch, row, self.top[r], self.total[r])
        once = If(compare("eq", first, 0), self._inside(row, first, scaled))
        return (loop(r, (*parts, once), "unroll"),)

    @property
    def _target(self) -> tuple[Buffer, DType]:
        """Where results go, and their type."""
        return self.buffers.write(self.p.out), self.graph.type(self.p.out).dtype

    def _result(
        self, where: Mapping[Expr, Expr], row: Expr, column: Expr, total: Expr
    ) -> tuple[Expr, Expr]:  # fmt: skip
        """What becomes of an element of the second product, and its place."""
        p = self.p
        plain = _kept_wide(self.buffers, p.value, p.mixed)
        value, to = (
            substitute(numbered(numbered(x, p.rows, row), p.columns, column), dict(where))
            for x in (plain, offset(self.graph.type(p.out), p.at))
        )
        return cast(substitute(value, {_WHOLE: total}), self._target[1]), to

    def _part_stored(self, held: Held) -> tuple[Stmt, ...]:
        """What a thread holds, neighbours at once where they are neighbours in memory."""
        p, e = self.p, held.loops[-1]
        count, first = trip_count(e), {e: index(0)}
        row, column = self.first + self.row + self.place, held.column
        if self.split is None:
            out, kind = self._target
            value, to = self._result(self.where, row, column, held.value * self.scale.value)
        else:
            out, kind, value = self.split.sums, f32, held.value
            to = self.split.place(self.batch, row, column)
        if aligned(to, e) and p.width % count == 0 and count * kind.bytes <= 16:
            word = Local(f"word{count}", kind, (count,))
            put = Call("store_vector", (out, substitute(to, first), word, index(0), count))
            filled = loop(e, (Set(word, (e,), value),), "unroll")
            body = (Declare(word), *self._inside(row, substitute(column, first), (filled, put)))
        else:
            put_one = (Store(out, to, value),)
            body = (loop(e, self._inside(row, column, put_one), "unroll"),)
        for v in reversed(held.loops[:-1]):
            body = (loop(v, body, "unroll"),)
        return body

    def _inside(self, row: Expr, column: Expr, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        inside = const(True, boolean)
        if self.p.m % self.config["m"]:
            inside = logical_and(inside, row < self.p.m)
        if self.p.width < self.values.width:
            inside = logical_and(inside, column < self.p.width)
        return body if inside.is_const else (If(inside, body),)


_WHOLE: Final = apply("whole", (), f32)
"""Stands for a sum in float32 that is not rounded to its own type."""


def _kept_wide(buffers: Buffers, value: Expr, node: Expr) -> Expr:
    """What a value makes of a sum, `_WHOLE`, computed in float32 where it is so in half floats. A
    sum that is only rounded on its way need not be."""
    total = apply("sum", (), node.dtype)
    plain = buffers.lower(substitute(value, {node: total}), None)
    rounded = {cast(total, t): _WHOLE for t in HALF}
    if plain.dtype in HALF:
        plain = kept_wide(plain, {total: _WHOLE, **rounded}).args[0]
    wide = {cast(x, f32): _WHOLE for x in rounded}
    return substitute(substitute(plain, wide), {total: _WHOLE})


def _zeroed(x: Local) -> Stmt:
    return Call("fill", (x, _f32(0), x.shape[0]))


def _f32(value: float) -> Expr:
    return const(value, f32)


def _other(x: Expr, distance: int) -> Expr:
    """x of another lane of those that hold a row."""
    return apply("shuffle_xor", (x, index(distance)), f32)


def _finite(x: Expr) -> Expr:
    """x, and 0 where that is the greatest of no scores."""
    return select(_f32(LOWEST) < x, x, _f32(0))
