"""Faults for `test_bisect.py` to plant: in passes, the planner, code generation and templates.

Each is a function that breaks one thing through pytest's monkeypatch, so that nothing of it is in
the product, and nothing stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.codegen.cpu import arithmetic, lower, vector_math
from tilewright.compiler.codegen.cpu.llvm_text import Function
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels import compose
from tilewright.compiler.kernels.conv import DirectConv
from tilewright.compiler.kernels.depthwise import Depthwise
from tilewright.compiler.kernels.ir import For, If, Launch, Set, Stmt, Store
from tilewright.compiler.kernels.matmul import Gemm
from tilewright.compiler.kernels.nest import Nest
from tilewright.compiler.kernels.recipe import RECIPES
from tilewright.compiler.kernels.winograd import Winograd
from tilewright.compiler.memory import plan
from tilewright.compiler.passes import canonicalize, fold_constants, fold_scales
from tilewright.compiler.passes.channel_order import ChannelOrder
from tilewright.compiler.passes.cse import CommonSubexpressions
from tilewright.compiler.passes.fuse import Fuser
from tilewright.compiler.passes.layout import AssignLayout
from tilewright.compiler.passes.place import _Placer
from tilewright.compiler.runtime import program
from tilewright.ops.expr import const
from tilewright.ops.operator import REGISTRY

Plant = Callable[[pytest.MonkeyPatch], None]


def network() -> Graph:
    """A bit of everything that can be broken."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
        return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)

    g = tw.Graph("net")
    x = g.input("x", (1, 16, 8, 8))
    one = np.ones(32, np.float32)
    h = g.conv(x, weights(32, 16, 3, 3), weights(32), pads=1, name="conv1")
    h = g.relu(g.batch_normalization(h, one * 2, one, one, one, name="bn1"), name="relu1")
    a = g.relu(g.conv(h, weights(16, 32, 1, 1), name="left"), name="left_relu")
    b = g.hard_sigmoid(g.conv(h, weights(16, 32, 1, 1), name="right"), name="right_act")
    j = g.concat(a, b, axis=1, name="join")
    d = g.conv(j, weights(32, 1, 3, 3), group=32, pads=1, name="depth")
    d = g.max_pool(d, kernel_shape=(2, 2), strides=2, name="pool")
    f = g.reshape(d, shape=(32, 16), name="flat")
    scaled = g.mul(g.constant(weights(16, 40)), np.float32(3), name="double")
    m = g.matmul(f, scaled, name="dense")
    m = g.sub(m, np.float32(0.5), name="shift")
    s = g.softmax(m, axis=-1, name="prob")
    lower = g.reduce_max(m, axes=(-1,), name="first")
    upper = g.reduce_min(m, axes=(-1,), name="second")
    g.output(s, "y")
    g.output(g.mul(lower, upper, name="both"), "z")
    return g.build()


def spoil(
    monkeypatch: pytest.MonkeyPatch, template: type, when: Callable[[Any, dict], bool],
    held: str = "",
) -> None:  # fmt: skip
    """Let a template's kernels write half as much again, for some groups and configs. held: the
    local that results are put into first, where they are not stored one by one."""
    made = template.instantiate

    def instantiate(self: Any, graph: Graph, ops: Any, outputs: Any, device: Any, config: dict):
        launch = made(self, graph, ops, outputs, device, config)
        return spoiled(launch, held) if when(ops, config) else launch

    monkeypatch.setattr(template, "instantiate", instantiate)


def spoiled(launch: Launch, held: str = "") -> Launch:
    outs = [b for b in launch.kernel.params if b.role == "out"]

    def body(stmts: Sequence[Stmt]) -> tuple[Stmt, ...]:
        return tuple(map(one, stmts))

    def one(s: Stmt) -> Stmt:
        if isinstance(s, For):
            return replace(s, body=body(s.body))
        if isinstance(s, If):
            return replace(s, then=body(s.then), otherwise=body(s.otherwise))
        if isinstance(s, Store) and s.buffer in outs and s.value.dtype.is_float:
            return replace(s, value=s.value * const(1.5, s.value.dtype))
        if isinstance(s, Set) and s.local.name == held:
            return replace(s, value=s.value * const(1.5, s.value.dtype))
        return s

    phases = tuple(replace(p, body=body(p.body)) for p in launch.kernel.phases)
    return replace(launch, kernel=replace(launch.kernel, phases=phases))


def always(ops: Any, config: dict) -> bool:
    return True


# --------------------------------------------------------------------------- passes


def canonicalize_sign(m: pytest.MonkeyPatch) -> None:
    """x - c becomes x + c."""

    def subtract_constant(c: Any) -> Any:
        y = c.small_constant() if c.operator == "sub" else None
        return None if y is None else lambda: c.build.op("add", c.x, y)

    rules = tuple(subtract_constant if r.__name__ == "subtract_constant" else r
                  for r in canonicalize.RULES)  # fmt: skip
    m.setattr(canonicalize, "RULES", rules)


def folded_constant(m: pytest.MonkeyPatch) -> None:
    """Constants are folded to something a little larger."""
    narrow = fold_constants.narrow
    m.setattr(fold_constants, "narrow", lambda y, dtype: narrow(y * 1.25, dtype))


def forgotten_shift(m: pytest.MonkeyPatch) -> None:
    """Batch normalisation folds into weights without its mean and offset."""
    found = fold_scales._normalization

    def normalization(graph: Graph, op: Any) -> Any:
        both = found(graph, op)
        return None if both is None else (both[0], both[1] * 0)

    m.setattr(fold_scales, "_normalization", normalization)


def merged_too_much(m: pytest.MonkeyPatch) -> None:
    """Two reductions of one operand count as equal, whatever they reduce by."""
    run = CommonSubexpressions.run

    def merge(self: Any, graph: Graph, *fuel: Any) -> Graph:
        graph = run(self, graph, *fuel)
        budget = fuel[0] if fuel else None
        ops = list(graph.ops)
        first = next(k for k, op in enumerate(ops) if op.operator == "reduce_max")
        second = next((k for k, op in enumerate(ops) if op.operator == "reduce_min"), None)
        if second is None or (budget and not budget.take("cse: reduce_min")):
            return graph
        ops[second] = replace(ops[second], operator="reduce_max")
        assert ops[first].operator == "reduce_max"
        return replace(graph, ops=tuple(ops))

    m.setattr(CommonSubexpressions, "run", merge)


def wrong_decomposition(m: pytest.MonkeyPatch) -> None:
    """Softmax leaves its sum away."""
    definition = REGISTRY["softmax"]
    right = definition.decompose

    def decompose(b: Any, x: Any, **attrs: Any) -> Any:
        return b.op("exp", right(b, x, **attrs))

    _set(m, definition, "decompose", decompose)


def drops_what_is_read(m: pytest.MonkeyPatch) -> None:
    """A pass takes a living op with it."""
    m.setattr(ChannelOrder, "run", lambda self, graph, *fuel: replace(
        graph, ops=tuple(op for op in graph.ops if op.operator != "max_pool")))  # fmt: skip


def layout_gives_up(m: pytest.MonkeyPatch) -> None:
    def run(self: Any, graph: Graph) -> Graph:
        raise IndexError("no such axis")

    m.setattr(AssignLayout, "run", run)


def places_in_one_another(m: pytest.MonkeyPatch) -> None:
    """Both parts of a concatenation are put to where it begins."""
    parts = _Placer.parts

    def joined(self: Any, op: Any) -> Any:
        found = parts(self, op)
        return found and [(n, t, 0) for n, t, _ in found]

    m.setattr(_Placer, "parts", joined)


def groups_in_any_order(m: pytest.MonkeyPatch) -> None:
    """Fusion puts groups where they cannot run."""
    ordered = Fuser.ordered

    def turned(self: Fuser, groups: list[list[int]]) -> Graph:
        graph = ordered(self, groups)
        return replace(graph, ops=tuple(reversed(graph.ops)))

    m.setattr(Fuser, "ordered", turned)


# --------------------------------------------------------------------------- planner


def forgotten_read(m: pytest.MonkeyPatch) -> None:
    """The planner is not told that convolutions read what came in last."""
    step = program.memory_step

    def told(launch: Launch) -> Any:
        s = step(launch)
        late = launch.kernel.template in ("direct_conv",) and "right" in launch.label
        return replace(s, reads=(), inplace=()) if late else s

    m.setattr(program, "memory_step", told)


def all_at_zero(m: pytest.MonkeyPatch) -> None:
    """Everything lies at the start of the arena, and nobody verifies."""
    pack = plan.pack

    def packed(*args: Any, **kwargs: Any) -> Any:
        made = pack(*args, **kwargs)
        return replace(made, offsets=tuple(0 for _ in made.offsets))

    m.setattr(plan, "pack", packed)
    m.setattr(plan, "verify_all", lambda *args, **kwargs: None)


def in_place_of_what_lives(m: pytest.MonkeyPatch) -> None:
    """Results take the place of operands that others read later."""

    def choose(steps: Any, buffers: Any, keep: Any = ()) -> Any:
        return tuple(pair for s in steps for pair in s.inplace[:1])

    m.setattr(plan, "choose_inplace", choose)
    m.setattr(plan, "verify_all", lambda *args, **kwargs: None)
    step = program.memory_step

    def eager(launch: Launch) -> Any:
        s = step(launch)
        big = [n for n in s.reads if "left" in launch.label]
        pairs = tuple((w, r) for w in s.writes for r in big)
        return replace(s, inplace=pairs or s.inplace)

    m.setattr(program, "memory_step", eager)


def wrong_order(m: pytest.MonkeyPatch) -> None:
    """Launches are put into an order in which they cannot run."""
    order = plan.lower_order

    def turned(*args: Any, **kwargs: Any) -> Any:
        found = order(*args, **kwargs)
        return replace(found, order=tuple(reversed(found.order)))

    m.setattr(plan, "lower_order", turned)


def claims_in_place(m: pytest.MonkeyPatch) -> None:
    """Windows may overwrite what they slide over, a template says."""
    made = Depthwise.instantiate

    def instantiate(self: Any, *given: Any) -> Launch:
        launch = made(self, *given)
        role = [b.role for b in launch.kernel.params]
        pairs = ((role.index("out"), role.index("in")),)
        return replace(launch, kernel=replace(launch.kernel, inplace=pairs))

    m.setattr(Depthwise, "instantiate", instantiate)


# --------------------------------------------------------------------------- code generation


def max_is_min(m: pytest.MonkeyPatch) -> None:
    right = arithmetic.extremum
    other = {"max": "min", "min": "max"}
    m.setattr(arithmetic, "extremum", lambda f, op, a, b: right(f, other[op], a, b))


def fma_subtracts(m: pytest.MonkeyPatch) -> None:
    right = Function.fma

    def fma(self: Function, a: Any, b: Any, c: Any) -> Any:
        return right(self, a, b, self.make(f"fneg {c}", c.dtype, c.lanes))

    m.setattr(Function, "fma", fma)


def lanes_are_forgotten(m: pytest.MonkeyPatch) -> None:
    """A reduction over lanes takes the first half of them."""

    def first_half(f: Any, combine: str, x: Any) -> Any:
        n, half = x.lanes, x.lanes // 4
        while half:
            order = [(k + half) % n for k in range(n)]
            x = arithmetic._combine(f, combine, x, f.shuffle(x, None, order))
            half //= 2
        return f.extract(x, 0)

    m.setattr(lower, "lanes_reduce", first_half)


def wrong_exp(m: pytest.MonkeyPatch) -> None:
    exp = vector_math.VECTOR["exp"]

    def half(f: Any, x: Any) -> Any:
        return f.op("fadd", exp(f, x), f.const(0.125, x.dtype, x.lanes))

    m.setitem(vector_math.VECTOR, "exp", half)


# --------------------------------------------------------------------------- templates


def direct_conv(m: pytest.MonkeyPatch) -> None:
    spoil(m, DirectConv, always)


def direct_conv_config(m: pytest.MonkeyPatch) -> None:
    """One width of the tile is wrong: that of the default."""
    seen: list[Any] = []

    def default_width(ops: Any, config: dict) -> bool:
        seen.append(config["tw"])
        return config["tw"] == seen[0]

    spoil(m, DirectConv, default_width)


def gemm(m: pytest.MonkeyPatch) -> None:
    spoil(m, Gemm, always)


def gemm_config(m: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def the_default(ops: Any, config: dict) -> bool:
        seen.append(config)
        return config == seen[0]

    spoil(m, Gemm, the_default)


def winograd(m: pytest.MonkeyPatch) -> None:
    spoil(m, Winograd, always)


def depthwise(m: pytest.MonkeyPatch) -> None:
    spoil(m, Depthwise, always)


def nest_window(m: pytest.MonkeyPatch) -> None:
    spoil(m, Nest, lambda ops, config: any(op.operator == "max_pool" for op in ops))


def packed_weights(m: pytest.MonkeyPatch) -> None:
    """The weights of direct convolutions are packed too large."""
    pack = RECIPES["conv"]

    def packed(*arrays: Any, **given: Any) -> Any:
        made = pack(*arrays, **given)
        made *= np.float32(1.5)
        return made

    m.setitem(RECIPES, "conv", packed)


def fused_too_deep(m: pytest.MonkeyPatch) -> None:
    """Where expressions are composed, a difference counts half as much again."""
    inline = compose.Composer._expand

    def expand(self: Any, op: Any, tag: str) -> Any:
        found = inline(self, op, tag)
        if op.operator != "sub" or len(self.inside) < 2:
            return found
        return [(at, e + e * const(0.5, e.dtype)) for at, e in found]

    m.setattr(compose.Composer, "_expand", expand)


def operator_expression(m: pytest.MonkeyPatch) -> None:
    """An operator's expression is not what its reference computes."""
    definition = REGISTRY["hard_sigmoid"]
    right = definition.compute

    def compute(*args: Any, **attrs: Any) -> Any:
        e = right(*args, **attrs)
        return e * const(1.5, e.dtype)

    _set(m, definition, "compute", compute)


def _set(m: pytest.MonkeyPatch, frozen: Any, name: str, value: Any) -> None:
    """As monkeypatch.setattr, for a frozen dataclass."""

    class Holder(dict):
        def __setitem__(self, key: str, new: Any) -> None:
            object.__setattr__(frozen, key, new)

        def __getitem__(self, key: str) -> Any:
            return getattr(frozen, key)

        def get(self, key: str, default: Any = None) -> Any:
            return getattr(frozen, key, default)

        def __contains__(self, key: object) -> bool:
            return hasattr(frozen, str(key))

    m.setitem(Holder(), name, value)


@dataclass(frozen=True)
class Fault:
    """A fault, and what has to be named."""

    plant: Plant
    kind: str
    name: str

    def __str__(self) -> str:
        return self.plant.__name__


FAULTS = (
    Fault(canonicalize_sign, "pass", "canonicalize"),
    Fault(folded_constant, "pass", "fold_constants"),
    Fault(forgotten_shift, "pass", "fold_scales"),
    Fault(merged_too_much, "pass", "common_subexpressions"),
    Fault(wrong_decomposition, "pass", "decompose"),
    Fault(drops_what_is_read, "pass", "channel_order"),
    Fault(layout_gives_up, "pass", "assign_layout"),
    Fault(places_in_one_another, "pass", "place"),
    Fault(groups_in_any_order, "pass", "fuse"),
    Fault(forgotten_read, "memory plan", ""),
    Fault(all_at_zero, "memory plan", ""),
    Fault(in_place_of_what_lives, "memory plan", ""),
    Fault(wrong_order, "memory plan", ""),
    Fault(claims_in_place, "in place", "depthwise"),
    Fault(max_is_min, "code generation", ""),
    Fault(fma_subtracts, "code generation", ""),
    Fault(lanes_are_forgotten, "code generation", ""),
    Fault(wrong_exp, "code generation", ""),
    Fault(direct_conv, "template", "direct_conv"),
    Fault(direct_conv_config, "config", "direct_conv"),
    Fault(gemm, "template", "gemm"),
    Fault(gemm_config, "config", "gemm"),
    Fault(winograd, "template", "winograd"),
    Fault(depthwise, "template", "depthwise"),
    Fault(nest_window, "template", "nest"),
    Fault(packed_weights, "template", "direct_conv"),
    Fault(fused_too_deep, "fusion", "sub"),
    Fault(operator_expression, "operator", "hard_sigmoid"),
)
