"""Attention in float32 on ordinary units, in tiles of registers.

Of 32 lanes, 4 times 8 share a warp's rows and columns: a thread multiplies `tm` rows, 4 apart, by
keys that are 8 apart, and then by columns of the result, 4 neighbours of every 32. Powers go to the
lanes that need them through shared memory. Every sum is one chain of multiply-adds, in the order of
terms, and of keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...ops.expr import Expr, var
from ...ops.types import f32
from ..graph.ir import Graph
from .gpu_attention_body import Attend, Held
from .gpu_attention_lines import pitch_of
from .gpu_attention_problem import Attention
from .gpu_model import WARP
from .ir import Call, Let, Local, Set, Stmt, loop
from .template import Config

ACROSS: Final = 8  # lanes that share a row
DOWN: Final = WARP // ACROSS
WORD: Final = 4  # elements that are read at once
TERMS: Final = 1  # pieces that lines of terms are multiples of
COLUMNS: Final = ACROSS  # and lines of columns
PART: Final = 64  # columns that are multiplied at once
UNROLLED: Final = 4  # steps of four terms


def parts_of(width: int) -> list[int]:
    """Columns of the result, as many as are multiplied at once."""
    whole = -(-width // (WORD * ACROSS)) * WORD * ACROSS
    return [min(PART, whole - at) for at in range(0, whole, PART)]


class ThreadAttend(Attend):
    """A warp computes 4 `tm` rows."""

    distances = (1, 2, 4)

    def __init__(self, graph: Graph, p: Attention, config: Config) -> None:
        self.rows = config["tm"]
        warps = config["m"] // (DOWN * self.rows)
        super().__init__(graph, p, config, warps * WARP, (TERMS, COLUMNS))
        self.down_lane, self.across_lane = self.lane // ACROSS, self.lane % ACROSS
        self.place = self.r * DOWN + self.down_lane
        self.tn = self.own // ACROSS
        j = var("j", self.tn)
        self.scores = Held(Local("scores", f32, (self.rows * self.tn,)), (j,), self.r * self.tn + j,
                           j * ACROSS + self.across_lane)  # fmt: skip
        self.results = tuple(self._part(k, n) for k, n in enumerate(parts_of(p.width)))
        self.pitch = pitch_of(self.own, f32, TERMS)
        lines = warps * self.ways * DOWN * self.rows
        self.powers = Local("powers", f32, (lines * self.pitch,), shared=True)
        self.places = tuple(var(f"{name}_place", n) for name, n in (
            ("q", self.queries.size), ("k", self.keys.size), ("v", self.values.size),
            ("p", lines * self.pitch)))  # fmt: skip
        self.x = Local("x", f32, (self.rows * WORD,))
        self.w = Local("w", f32, (max(self.tn * WORD, PART // ACROSS * WORD),))

    def _part(self, k: int, n: int) -> Held:
        c, e = var("c", n // (WORD * ACROSS)), var("e", WORD)
        each = n // ACROSS
        column = k * PART + c * (WORD * ACROSS) + self.across_lane * WORD + e
        return Held(Local(f"sums{k}", f32, (self.rows * each,)), (c, e),
                    self.r * each + c * WORD + e, column)  # fmt: skip

    def named(self) -> tuple[Stmt, ...]:
        row, q, k, v = self.row + self.down_lane, self.queries, self.keys, self.values
        way = self.thread // self.group
        line = way * self.config["m"] + row
        return (
            Let(self.places[0], row * q.pitch),
            Let(self.places[1], (self.own_key + self.across_lane) * k.pitch),
            Let(self.places[2], self.own_key * v.pitch + self.across_lane * WORD),
            Let(self.places[3], line * self.pitch),
        )

    def declared(self) -> tuple[Local, ...]:
        return self.powers, self.x, self.w

    def multiplied_by_keys(self, stage: Expr) -> tuple[Stmt, ...]:
        q, k = self.queries, self.keys

        def step(at: Expr) -> tuple[Stmt, ...]:
            key = stage * k.size + self.places[1] + at
            return (
                Call("load_rows", (self.x, q.held, self.places[0] + at, self.rows, DOWN * q.pitch,
                                   1, 0, WORD)),
                Call("load_rows", (self.w, k.held, key, self.tn, ACROSS * k.pitch, 1, 0, WORD)),
                Call("multiply", (self.scores.register, self.x, self.w, self.rows, self.tn, WORD,
                                  0, 0)),
            )  # fmt: skip

        return _steps("term", self.keys.width // WORD, step)

    def given(self) -> tuple[Stmt, ...]:
        held = self.scores
        put = Set(self.powers, (self.places[3] + self.r * (DOWN * self.pitch) + held.column,),
                  held.value)  # fmt: skip
        return (loop(self.r, (held.each(put),), "unroll"),)

    def multiplied_by_values(self, stage: Expr) -> tuple[Stmt, ...]:
        v = self.values

        def step(at: Expr) -> tuple[Stmt, ...]:
            body: list[Stmt] = [
                Call("load_rows", (self.x, self.powers, self.places[3] + at, self.rows,
                                   DOWN * self.pitch, 1, 0, WORD))
            ]  # fmt: skip
            for k, part in enumerate(self.results):
                n = part.register.shape[0] // self.rows
                value = stage * v.size + self.places[2] + at * v.pitch + k * PART
                body += [
                    Call("load_rows", (self.w, v.held, value, WORD, v.pitch, n // WORD,
                                       WORD * ACROSS, WORD)),
                    Call("multiply", (part.register, self.x, self.w, self.rows, n, WORD, 0, 1)),
                ]  # fmt: skip
            return tuple(body)

        return _steps("some_key", self.own // WORD, step)


def _steps(name: str, count: int, body: Callable[[Expr], tuple[Stmt, ...]]) -> tuple[Stmt, ...]:
    """body(first element) of so many steps of four, a few of them one behind the other."""
    few = next(n for n in (UNROLLED, 3, 2, 1) if count % n == 0)
    outer, inner = var(f"{name}s", count // few), var(f"{name}", few)
    at = (outer * few + inner) * WORD
    made = loop(inner, body(at), "unroll")
    return (loop(outer, (made,)),)
