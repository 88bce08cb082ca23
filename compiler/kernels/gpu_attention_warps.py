"""Attention on tensor cores: powers are packed into fragments of the second product where they are.

Queries and keys are read by `ldmatrix`, values of 16 bits transposed by it, those in tf32 word by
word; see `codegen.cuda.fragments` for what a thread holds of scores and how it becomes an operand.
Powers are of 2, for which there is an instruction: scores are multiplied by log2(e) first.
"""

from __future__ import annotations

from math import log
from typing import Final

from ...ops.expr import Expr, apply, index, var
from ...ops.types import f32, u32
from ..graph.ir import Graph
from .gpu_attention_body import Attend, Held
from .gpu_attention_lines import STEP
from .gpu_attention_problem import Attention
from .gpu_model import WARP
from .ir import Call, Let, Local, Stmt, loop
from .template import Config

LOG2_E: Final = 1 / log(2)


class WarpAttend(Attend):
    """A warp computes 16 `tall` rows, in fragments of 16 x 8."""

    distances = (1, 2)
    log_base = LOG2_E

    def __init__(self, graph: Graph, p: Attention, config: Config) -> None:
        super().__init__(graph, p, config, config["m"] // config["wm"] * WARP, (STEP, STEP))
        self.kind = "tf32" if p.dtype is f32 else str(p.dtype)
        self.step = 2 * self.keys.chunk  # terms that an instruction takes
        self.steps = self.keys.width // self.step
        self.taken = 8 if p.dtype is f32 else 16  # keys that an instruction takes
        self.tall, self.wide = config["wm"] // 16, self.own // 8  # fragments of scores
        self.deep = self.values.width // 8  # and of the result
        self.rows = 2 * self.tall
        self.place = self.r // 2 * 16 + self.r % 2 * 8 + self.lane // 4
        self.scores = self._held("scores", self.wide)
        self.results = (self._held("sums", self.deep),)
        self.places = tuple(var(f"{x.name}_place", x.size)
                            for x in (self.queries, self.keys, self.values))  # fmt: skip
        self.q_held = Local("queries", u32, (self.tall * self.steps * 4,))
        self.a = Local("a", u32, (self.tall * 4,))
        self.b = Local("b", u32, (2 * max(self.wide, self.deep),))

    def _held(self, name: str, wide: int) -> Held:
        j, e = var("j", wide), var("e", 2)
        at = (self.r // 2 * wide + j) * 4 + self.r % 2 * 2 + e
        register = Local(name, f32, (self.tall * wide * 4,))
        return Held(register, (j, e), at, j * 8 + self.lane % 4 * 2 + e)

    def raised(self, x: Expr) -> Expr:
        return apply("near_exp2", (x,), f32)

    def named(self) -> tuple[Stmt, ...]:
        lane, q, k, v = self.lane, self.queries, self.keys, self.values
        in_v = (lane % 16 * v.pitch + lane // 16 * 8 if self.taken == 16
                else lane % 4 * 2 * v.pitch + lane // 4)  # fmt: skip
        in_k = (lane % 8 + lane // 16 * 8) * k.pitch + lane // 8 % 2 * k.chunk
        in_q = lane % 16 * q.pitch + lane // 16 * q.chunk
        return (
            Let(self.places[0], self.row * q.pitch + in_q),
            Let(self.places[1], self.own_key * k.pitch + in_k),
            Let(self.places[2], self.own_key * v.pitch + in_v),
        )

    def declared(self) -> tuple[Local, ...]:
        return (*((self.q_held,) if self.config["held"] else ()), self.a, self.b)

    def begun(self) -> tuple[Stmt, ...]:
        """The warp's queries stay in registers, if there are enough."""
        if not self.config["held"]:
            return ()
        q = self.queries
        loads = (
            Call("ldmatrix", (self.q_held, 4 * self.steps * i, q.held,
                              self.places[0] + i * 16 * q.pitch, self.steps, self.step))
            for i in range(self.tall)
        )  # fmt: skip
        return (*self.arrived(), *loads, *self._rounded(self.q_held))

    def _rounded(self, x: Local, count: int = 0) -> tuple[Stmt, ...]:
        return (Call("round_tf32", (x, count or x.shape[0])),) if self.kind == "tf32" else ()

    def multiplied_by_keys(self, stage: Expr) -> tuple[Stmt, ...]:
        q, k, step = self.queries, self.keys, var("step", self.steps)
        at = stage * k.size + self.places[1] + step * self.step
        body: list[Stmt] = [
            Call("ldmatrix", (self.b, 0, k.held, at, self.wide // 2, 16 * k.pitch)),
            *self._rounded(self.b, 2 * self.wide),
        ]
        left: tuple[Local, Expr, int] = (self.q_held, step * 4, 4 * self.steps)
        if not self.config["held"]:
            left = self.a, index(0), 4
            body += [
                Call("ldmatrix", (self.a, 0, q.held, self.places[0] + step * self.step, self.tall,
                                  16 * q.pitch)),
                *self._rounded(self.a),
            ]  # fmt: skip
        body.append(Call(f"mma_{self.kind}_at", (self.scores.register, *left, self.b, self.tall,
                                                 self.wide)))  # fmt: skip
        return (loop(step, body, "unroll"),)

    def multiplied_by_values(self, stage: Expr) -> tuple[Stmt, ...]:
        v, step = self.values, var("some", self.own // self.taken)
        at = stage * v.size + self.places[2] + step * (self.taken * v.pitch)
        loaded = (
            Call("ldmatrix_t", (self.b, 0, v.held, at, self.deep // 2, 16)) if self.taken == 16
            else Call("load_pairs", (self.b, v.held, at, v.pitch, self.deep))
        )  # fmt: skip
        packed = Call(f"pack_{self.kind}", (self.a, self.scores.register, step * (self.taken // 2),
                                            self.tall, 4 * self.wide))  # fmt: skip
        product = Call(f"mma_{self.kind}_at", (self.results[0].register, self.a, index(0), 4,
                                               self.b, self.tall, self.deep))  # fmt: skip
        return (loop(step, (packed, loaded, product), "unroll"),)
