"""The kernel of `gpu_attention_wgmma`: what every thread of a block does.

All groups of four warps but the last are consumers: each takes 64 rows of the block's queries. One
thread of the last group, the producer, has queries copied into shared memory, and keys and values
round by round into a ring of `stages` places for each. Barriers `keys_ready[s]` and
`values_ready[s]` say that a place is filled, `keys_free[s]` and `values_free[s]` that nobody reads
it any more. The producer hands most of its registers to the consumers; it is a whole group because
only those can, and because the four parts of a multiprocessor's registers are then used alike.

Scores of a round are multiplied while powers of the round before are multiplied with its values,
and become powers themselves before those products have to be done (as in FlashAttention-3, Shah et
al. 2024). So sums are scaled down late, by a factor that is kept; powers are packed into registers
of their own, which nobody touches until their product is done.

Which thread holds which scores, and what happens to them, is as in `gpu_attention_warps`: for a
warp with 16 rows.
"""

from __future__ import annotations

from typing import Final

from ...ops.expr import Expr, apply, compare, const, index, var
from ...ops.types import f32, i64, u32, u64
from ..graph.ir import Graph
from .gpu_attention_boxes import Operands
from .gpu_attention_warps import WarpAttend
from .gpu_model import REGISTERS, WARP
from .gpu_wgmma_shape import GROUP, TILE
from .ir import Call, Comment, Declare, If, Let, Local, Set, Stmt, loop, seq
from .pieces import Buffers
from .template import Config

REGISTER_STEP: Final = 8
LOWEST: Final = float("-inf")
ROWS: Final = 16  # of a warp
STEP: Final = 16  # keys that an instruction takes
KEPT: Final = 40  # registers of a thread of the producer


def resident(groups: int) -> int:
    """Blocks that have the registers of a multiprocessor among them."""
    return 2 if groups == 1 else 1


def begun_with(groups: int) -> int:
    """Registers of every thread of a block with so many groups of consumers when it begins."""
    return REGISTERS // (resident(groups) * (groups + 1) * GROUP) // REGISTER_STEP * REGISTER_STEP


def taken(groups: int) -> int:
    """Of a thread of the consumers, when they have the producer's."""
    return begun_with(groups) + (begun_with(groups) - KEPT) // groups


class GroupAttend(WarpAttend):
    """Of an attention whose operands are boxes. buffers: what those lie in."""

    def __init__(self, graph: Graph, given: Operands, config: Config, buffers: Buffers) -> None:
        one = {"wm": ROWS, "ways": 1, "held": 0, "parts": 1}  # warps share no keys
        super().__init__(graph, given.p, {**config, **one})
        self.config, self.buffers = config, buffers
        self.groups, self.stages = config["m"] // TILE, config["stages"]
        self.consumers = self.groups * GROUP
        self.threads = self.consumers + GROUP
        self.thread, self.number = var("thread", self.threads), var("group", self.groups + 1)
        self.own_key = index(0)
        self.boxes = given.boxes(config["m"], config["n"], self.stages)
        self.weights = Local("weights", u32, (config["n"] // STEP * 4,))
        self.scales = Local("scales", f32, (self.rows,))
        self.queries_ready = Local("queries_ready", u64, (1,), shared=True)
        self.ready = self._ring("keys_ready"), self._ring("values_ready")
        self.free = self._ring("keys_free"), self._ring("values_free")

    def _ring(self, name: str) -> Local:
        return Local(name, u64, (self.stages,), shared=True)

    # ---------------------------------------------------------------- the whole

    def _body(self) -> tuple[Stmt, ...]:
        k, first = var("k", self.stages), compare("eq", self.thread, 0)
        start = loop(k, (
            *(Call("mbarrier_init", (x, k, 1)) for x in self.ready),
            *(Call("mbarrier_init", (x, k, self.consumers // WARP)) for x in self.free),
        ))  # fmt: skip
        prepare = If(first, seq(
            [Call("tma_prefetch", (x.tensor,)) for x in self.boxes],
            Call("mbarrier_init", (self.queries_ready, index(0), 1)), start,
            Call("mbarrier_init_fence"),
        ))  # fmt: skip
        return (
            Let(self.first, self.item % self.down * self.config["m"]),
            *(x.declared() for x in self.boxes),
            *map(Declare, (self.queries_ready, *self.ready, *self.free)),
            prepare, Call("barrier"),
            Let(self.number, apply("uniform", (self.thread // GROUP,), i64)),
            If(self.number < self.groups, self._consumer(), self._producer()),
        )  # fmt: skip

    def _parity(self, round_: Expr) -> Expr:
        """Of the phase of a place's barriers in which it holds the round."""
        return round_ // self.stages % 2

    # ---------------------------------------------------------------- producer

    def _producer(self) -> tuple[Stmt, ...]:
        (queries, *others), round_ = self.boxes, var("round", self.rounds)
        stage, last = self._stage(round_), 1 - self._parity(round_)
        body: list[Stmt] = []
        for x, ready, free in zip(others, self.ready, self.free, strict=True):
            line = round_ * self.config["n"]
            body += [Call("mbarrier_wait", (free, stage, last)),
                     *x.copied(stage, line, self.where, ready, stage)]  # fmt: skip
        copies = (
            *queries.copied(index(0), self.first, self.where, self.queries_ready, index(0)),
            loop(round_, body),
        )
        one = compare("eq", self.thread, self.consumers)
        return Comment("the producer"), Call("fewer_registers", (KEPT,)), If(one, copies)

    # ---------------------------------------------------------------- consumers

    def _consumer(self) -> tuple[Stmt, ...]:
        round_, r, first = var("round", self.rounds), self.r, index(0)
        (sums,) = self.results
        local = (self.scores.register, *self._kept, self.weights, self.scales, self.high, self.base,
                 self.scale, self.part)  # fmt: skip
        return (
            Comment("consumers"), Call("more_registers", (taken(self.groups),)),
            Let(self.lane, self.thread % WARP),
            Let(self.row, self.thread // WARP * ROWS),
            *map(Declare, local),
            Call("fill", (sums.register, const(0, f32), sums.register.shape[0])),
            loop(r, (Set(self.top, (r,), const(LOWEST, f32)),
                     Set(self.total, (r,), const(0, f32))), "unroll"),
            Call("mbarrier_wait", (self.queries_ready, index(0), index(0))),
            *self._multiplied_by_keys(first),
            *self._become_powers(first, 0),
            self._packed(),
            *((loop(round_, self._round(round_), lo=1),) if self.rounds > 1 else ()),
            *self._multiplied_by_values(index(self.rounds - 1)),
            self._waited(),
            *self._together(),
        )  # fmt: skip

    def _round(self, round_: Expr) -> tuple[Stmt, ...]:
        (sums,), before = self.results, round_ - 1
        later = sums.each(sums.set(sums.value * self.scales[self.r]))
        return (
            *self._multiplied_by_keys(round_),
            *self._multiplied_by_values(before),
            *self._become_powers(round_, 1),
            self._waited(),
            self._released(self.free[1], before),
            loop(self.r, (later,), "unroll"),
            self._packed(),
        )

    def _multiplied_by_keys(self, round_: Expr) -> tuple[Stmt, ...]:
        queries, keys, _ = self.boxes
        group = self.number * (TILE * queries.terms)
        return (
            self._there(self.ready[0], round_),
            Call(f"wgmma_rows_{self.kind}", (
                self.scores.register, queries.held, group, keys.held,
                self._stage(round_) * keys.size, self.keys.width, keys.count, queries.count,
                keys.count,
            )),
        )  # fmt: skip

    def _become_powers(self, round_: Expr, behind: int) -> tuple[Stmt, ...]:
        """Scores, when they are there. behind: products that were begun after them."""
        scores = self.scores.register
        return (
            Call("wgmma_wait", (scores, scores.shape[0], behind)),
            self._released(self.free[0], round_),
            *self._scored(round_),
            self._powers(),
        )

    def scaled(self) -> tuple[Stmt, ...]:
        """Later: sums are being added to."""
        return (Set(self.scales, (self.r,), self.scale.value),)

    def _packed(self) -> Stmt:
        pieces = self.config["n"] // STEP
        return Call(f"pack_{self.kind}", (self.weights, self.scores.register, index(0), pieces, 8))

    def _multiplied_by_values(self, round_: Expr) -> tuple[Stmt, ...]:
        (sums,), values = self.results, self.boxes[2]
        return (
            self._there(self.ready[1], round_),
            Call(f"wgmma_held_{self.kind}", (
                sums.register, self.weights, values.held, self._stage(round_) * values.size,
                values.count, self.values.width,
            )),
        )  # fmt: skip

    def _waited(self) -> Stmt:
        """Until powers times values are added up."""
        (sums,) = self.results
        return Call("wgmma_wait_held", (sums.register, sums.register.shape[0], self.weights,
                                        self.weights.shape[0], 0))  # fmt: skip

    def _there(self, ready: Local, round_: Expr) -> Stmt:
        return Call("mbarrier_wait", (ready, self._stage(round_), self._parity(round_)))

    def _released(self, free: Local, round_: Expr) -> Stmt:
        """One thread of every warp says that the warp has read a place."""
        arrive = Call("mbarrier_arrive", (free, self._stage(round_)))
        return If(compare("eq", self.lane, 0), (arrive,))
