"""Moves permutations of channels towards the convolutions that read them, and into their weights.

A channel shuffle (reshape, transpose, reshape) is a permutation of whole channels. Ops that treat
every channel alone commute with it once their own constants are permuted, and a convolution over
all channels takes it in by the order of its weights. What arrives at a convolution with groups
stays a `gather` of channels in front of it: its kernel reads channels in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from ...ops.expr import Expr, index, load, var
from ...ops.operator import ChannelLocal, Contraction, Elementwise, Reduction, TensorArg
from ...ops.traverse import transform
from ..graph.builder import Value
from ..graph.ir import Array, Graph, Op
from .base import UNLIMITED, Fuel, OptionalPass
from .convolutions import is_channel_choice, is_depthwise
from .dce import DeadCode
from .rewrite import SourceRewriter

Order = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ChannelOrder(OptionalPass):
    """Shuffles become gathers along axis 1; gathers sink through ops that treat channels alone."""

    def run(self, graph: Graph, fuel: Fuel = UNLIMITED) -> Graph:
        shuffles = {op.outputs[0]: found for op in graph.ops
                    if (found := _shuffle(graph, op)) is not None}  # fmt: skip
        if not shuffles and not any(is_channel_choice(graph, op) for op in graph.ops):
            return graph
        sinker = _Sinker(graph, shuffles, fuel)
        return DeadCode().run(sinker.run(sinker.visit))


def _shuffle(graph: Graph, op: Op) -> tuple[str, Order] | None:
    """(x, order) where an op ends a reshape, transpose, reshape that picks channel order[c] of x
    for channel c."""
    turn = graph.producer.get(op.reads[0]) if op.operator == "reshape" else None
    split = graph.producer.get(turn.reads[0]) if turn and turn.operator == "transpose" else None
    if turn is None or split is None or split.operator != "reshape":
        return None
    x, parts = graph.type(split.reads[0]).dims, graph.type(split.outputs[0]).dims
    if len(x) < 3 or graph.type(op.outputs[0]).dims != x or parts[0] != x[0] or not prod(x):
        return None
    ends = [k for k in range(2, len(parts) + 1) if prod(parts[1:k]) == x[1]]
    perm = turn.attr("perm") or tuple(reversed(range(len(parts))))
    for end in ends:
        if perm[0] == 0 and perm[end:] == tuple(range(end, len(parts))):
            channels = np.arange(x[1]).reshape(parts[1:end])
            return split.reads[0], channels.transpose([p - 1 for p in perm[1:end]]).reshape(-1)
    return None


def _keeps_channels_apart(graph: Graph, op: Op) -> bool:
    """Whether channel c of an op's one result is made of channel c of its one input, and as every
    other channel is."""
    if op.definition.compute is None or not (op.has(ChannelLocal) or op.has(Reduction)):
        return False
    x, out = graph.type(op.reads[0]), graph.type(op.outputs[0])
    if min(x.rank, out.rank) < 2 or x.dims[1] != out.dims[1]:
        return False
    made = op.definition.compute(out, TensorArg(op.reads[0], x), **op.attributes)
    at = tuple(var(f"i{k}", d) for k, d in enumerate(out.dims))
    channel = at[1]

    def visit(n: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if n.op != "load" or args[1] is not channel:
            return None
        return load(n.payload, (args[0], index(0), *args[2:]), n.dtype)

    return channel not in transform(made(*at), visit).free


class _Sinker(SourceRewriter):
    def __init__(self, old: Graph, shuffles: dict[str, tuple[str, Order]], fuel: Fuel) -> None:
        super().__init__(old)
        self.shuffles = shuffles
        self.fuel = fuel

    def visit(self, op: Op, inputs: tuple[Value | None, ...]) -> Value | None:
        found = self.shuffles.get(op.outputs[0])
        if found is not None and self._may(op):
            return self.pick(self.value(found[0]), found[1])
        if len(op.outputs) != 1 or not any(self.picked(v) for v in inputs):
            return None
        for move in (self.merged, self.through_conv, self.through_pointwise, self.through_window):
            made = move(op, inputs)
            if made is not None:
                return made() if self._may(op) else None
        return None

    def _may(self, op: Op) -> bool:
        return self.fuel.take(f"channel_order: {op.operator} {op.outputs[0]!r}")

    # ---------------------------------------------------------------- picks of channels

    def pick(self, x: Value, order: Order) -> Value:
        if np.array_equal(order, np.arange(x.type.dims[1])):
            return x
        made: Value = self.op("gather", x, self.constant(order), axis=1)
        return made

    def picked(self, v: Value | None) -> tuple[Value, Order] | None:
        """(x, order) of a value that is channels of x, in another order or only some of them."""
        op = self.producer(v)
        if op is None or op.operator != "gather" or op.attr("axis") != 1:
            return None
        order, x = self.array(self.handle(op.reads[1])), self.handle(op.reads[0])
        if order is None or order.ndim != 1:
            return None
        return x, order.astype(np.int64) % x.type.dims[1]

    def permuted(self, v: Value | None) -> tuple[Value, Order] | None:
        """The same where every channel of x is there once."""
        found = self.picked(v)
        if found is None or len(found[1]) != found[0].type.dims[1]:
            return None
        return found if len(set(found[1].tolist())) == len(found[1]) else None

    # ---------------------------------------------------------------- what picks sink through

    def merged(self, op: Op, inputs: Sequence[Value | None]) -> Callable[[], Value] | None:
        """A pick of a pick is one."""
        found = self.picked(inputs[0])
        if found is None or not is_channel_choice(self.old, op):
            return None
        x, order = found
        outer = self.array(inputs[1])
        assert outer is not None
        return lambda: self.pick(x, order[outer.astype(np.int64) % len(order)])

    def through_conv(self, op: Op, inputs: Sequence[Value | None]) -> Callable[[], Value] | None:
        """A depthwise convolution treats channels alone; one without groups reads them all."""
        trait = op.definition.trait(Contraction)
        if trait is None or trait.kind != "conv":
            return None
        found, w = self.permuted(inputs[0]), self.array(inputs[1])
        b = self.array(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else None
        if found is None or w is None or (b is None and len(op.reads) > 2):
            return None
        x, back = found[0], np.argsort(found[1])
        if op.attr("group") == 1:
            return lambda: self.again(op, x, self.moved(inputs[1], w[:, back]), *inputs[2:])
        if not is_depthwise(self.old, op) or w.shape[0] != len(back):
            return None
        bias = () if b is None else (self.moved(inputs[2], b[back]),)
        weights = w[back]
        return lambda: self.pick(self.again(op, x, self.moved(inputs[1], weights), *bias), found[1])

    def through_pointwise(
        self, op: Op, inputs: Sequence[Value | None]
    ) -> Callable[[], Value] | None:
        """Every input is a constant, or channels of something in one and the same order."""
        if not op.has(Elementwise):
            return None
        dims = self.old.type(op.outputs[0]).dims
        order: Order | None = None
        sources: list[Value | None] = []
        for v in inputs:
            found, held = self.permuted(v), self.array(v)
            if found is not None and found[0].type.dims == dims:
                if order is not None and not np.array_equal(order, found[1]):
                    return None
                order = found[1]
            elif v is not None and held is None:
                return None
            sources.append(v if found is None else found[0])
        if order is None:
            return None
        sunk, back = order, np.argsort(order)

        def constant(v: Value | None) -> Value | None:
            held = self.array(v)
            axis = 0 if held is None else held.ndim - len(dims) + 1
            if held is None or axis < 0 or held.shape[axis] == 1:
                return v
            return self.moved(v, np.take(held, back, axis))

        return lambda: self.pick(self.again(op, *map(constant, sources)), sunk)

    def through_window(self, op: Op, inputs: Sequence[Value | None]) -> Callable[[], Value] | None:
        """Pooling and the like, and reductions over spatial axes."""
        found = self.permuted(inputs[0])
        if found is None or any(v is not None for v in inputs[1:]):
            return None
        x, order = found
        if not _keeps_channels_apart(self.old, op):
            return None
        return lambda: self.pick(self.again(op, x), order)

    def moved(self, old: Value | None, array: Array) -> Value:
        """A constant of the elements of another one."""
        assert old is not None
        return self.constant(array, dtype=old.type.dtype)

    def again(self, op: Op, *inputs: Value | None) -> Value:
        """The op over other inputs."""
        made: Value = self.op(op.operator, *inputs, **op.attributes)
        return made
