"""Choose a memory layout for every blob: blocked channels around convolutions, else row-major.

Kernels for pointwise, injective and reducing operators read and write any layout, so only the
operators with templates of their own have wishes: convolutions want blocked channels, everything
opaque wants row-major. A `reformat` op stands where a wish and
the blob disagree; fusion makes most of them part of a neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ops.operator import ChannelLocal, Contraction, Elementwise, Opaque, Recurrence, View
from ...ops.types import ROW_MAJOR, Layout, TensorType
from ..graph.builder import Value
from ..graph.ir import Graph, Op
from .base import Pass
from .convolutions import Algorithm, algorithm, is_channel_choice
from .cuts import cuts, holds_whole_blocks
from .rewrite import SourceRewriter

PLANAR_CHANNELS = 4  # a convolution of so few channels reads row-major input directly


@dataclass(frozen=True, slots=True)
class AssignLayout(Pass):
    """block: channels per block, one vector of the target."""

    block: int

    def run(self, graph: Graph) -> Graph:
        rewriter = _Blocked(graph, self.block)
        return rewriter.run(rewriter.visit)


class Layouts(SourceRewriter):
    """A choice of layouts, op by op: `follow` says what an operator without wishes hands on,
    `convolution` what convolutions want."""

    def __init__(self, old: Graph) -> None:
        super().__init__(old)
        self._reformatted: dict[tuple[str, Layout], Value] = {}

    def follow(self, op: Op, inputs: tuple[Value | None, ...]) -> Layout:
        raise NotImplementedError

    def convolution(self, op: Op, inputs: tuple[Value | None, ...]) -> Value | tuple[Value, ...]:
        raise NotImplementedError

    def visit(self, op: Op, inputs: tuple[Value | None, ...]) -> Value | tuple[Value, ...] | None:
        contraction = op.definition.trait(Contraction)
        if contraction is not None and contraction.kind == "conv":
            return self.convolution(op, inputs)
        opaque = op.definition.trait(Opaque)
        rigid = contraction is not None or any(op.has(t) for t in (View, Recurrence))
        if rigid or (opaque is not None and opaque.kind != "concat"):
            return self.emit(op, tuple(self.to(v, ROW_MAJOR) for v in inputs), ROW_MAJOR)
        layout = self.follow(op, inputs)
        if op.has(Elementwise) and layout.is_blocked:
            inputs = tuple(self.alike(v, op, layout) for v in inputs)
        if op.has(ChannelLocal) and layout.is_blocked:
            return self.windowed(op, inputs, layout)
        return self.emit(op, inputs, layout)

    def windowed(
        self, op: Op, inputs: tuple[Value | None, ...], layout: Layout
    ) -> Value | tuple[Value, ...]:
        """Like emit, but results that the caller sees are made in `layout` first: windows slide
        best along blocked channels."""
        if not any(o in self.old.outputs for o in op.outputs):
            return self.emit(op, inputs, layout)
        names = tuple(self.fresh(f"{o}_b") if o in self.old.outputs else o for o in op.outputs)
        made = self.op(op.operator, *inputs, out=names,
                       layouts=(layout,) * len(names), **op.attributes)  # fmt: skip
        values = made if isinstance(made, tuple) else (made,)
        out = tuple(
            v if v.name == o
            else self.op("reformat", v, out=(o,))
            for v, o in zip(values, op.outputs, strict=True)
        )  # fmt: skip
        return out if len(out) > 1 else out[0]

    def emit(
        self, op: Op, inputs: tuple[Value | None, ...], layout: Layout
    ) -> Value | tuple[Value, ...]:
        outs = tuple(layout if o not in self.old.outputs else ROW_MAJOR for o in op.outputs)
        return self.op(op.operator, *inputs, out=op.outputs,
                       layouts=outs, **op.attributes)  # fmt: skip

    def to(self, v: Value | None, layout: Layout) -> Value | None:
        """v in another layout; constants and lists of scalars have only one."""
        if v is None or v.type.layout == layout or self.blobs[v.name].is_constant:
            return v
        key = (v.name, layout)
        if key not in self._reformatted:
            self._reformatted[key] = self.op(
                "reformat", v, layouts=(layout,), out=(self.fresh(f"{v.name}_r"),)
            )
        return self._reformatted[key]

    def alike(self, v: Value | None, op: Op, layout: Layout) -> Value | None:
        """An operand of the result's shape in the result's layout: read in another, it would be
        gathered element by element where the op runs behind a convolution."""
        same = v is not None and v.type.dims == self.old.type(op.outputs[0]).dims
        return self.to(v, layout) if same else v


class _Blocked(Layouts):
    def __init__(self, old: Graph, block: int) -> None:
        super().__init__(old)
        self.block = block
        self.blocked = Layout(1, block)

    def visit(self, op: Op, inputs: tuple[Value | None, ...]) -> Value | tuple[Value, ...] | None:
        opaque = op.definition.trait(Opaque)
        if opaque is not None and opaque.kind == "unpool" and self._keeps_channels(op, inputs):
            return self.windowed(op, tuple(self.to(v, self.blocked) for v in inputs), self.blocked)
        if self.is_read_by_convolution(op) and inputs[0] is not None:
            return self.emit(op, (self.to(inputs[0], self.blocked), *inputs[1:]), self.blocked)
        return super().visit(op, inputs)

    def is_read_by_convolution(self, op: Op) -> bool:
        """Whether one convolution kernel takes in this choice of channels."""
        users = self.old.consumers[op.outputs[0]]
        return (
            is_channel_choice(self.old, op)
            and op.outputs[0] not in self.old.outputs
            and len(users) == 1
            and algorithm(self.old, users[0], self.block) in (Algorithm.DIRECT, Algorithm.GROUPED)
        )

    def follow(self, op: Op, inputs: tuple[Value | None, ...]) -> Layout:
        """The layout that an operator without wishes hands on."""
        outs = self.old.output_types(op)
        present = [v for v in inputs if v is not None]
        if not present:
            return ROW_MAJOR
        if self._keeps_blocks(op, present[0].type):
            return present[0].type.layout
        if len({t.dims for t in outs}) != 1:
            return ROW_MAJOR
        out = outs[0]
        if op.has(Elementwise):
            for v in present:
                if v.type.layout.is_blocked and v.type.dims == out.dims:
                    return v.type.layout
        elif op.has(ChannelLocal):
            x = present[0].type
            if x.layout.is_blocked and x.rank == out.rank and x.dims[1] == out.dims[1]:
                return x.layout
        elif op.has(Opaque):  # concat
            stacked = op.attr("axis") % out.rank == 1
            blocked = stacked and all(v.type.layout == self.blocked for v in present)
            if blocked and all(v.type.dims[1] % self.block == 0 for v in present[:-1]):
                return self.blocked
        return ROW_MAJOR

    def _keeps_blocks(self, op: Op, x: TensorType) -> bool:
        """Whether a slice or split takes whole blocks, and may be a view of x."""
        found = cuts(self.old, op) if x.layout.is_blocked else None
        return found is not None and all(
            holds_whole_blocks(x.layout, c.axis, c.start, t.dims[c.axis], x.dims[c.axis])
            for c, t in zip(found, self.old.output_types(op), strict=True)
        )

    def _keeps_channels(self, op: Op, inputs: tuple[Value | None, ...]) -> bool:
        """Whether an unpooling gets blocked channels and hands on the same ones."""
        x = inputs[0]
        return (
            x is not None
            and x.type.layout == self.blocked
            and (x.type.dims[:2] == self.old.output_types(op)[0].dims[:2])
        )

    # ---------------------------------------------------------------- convolutions

    def convolution(self, op: Op, inputs: tuple[Value | None, ...]) -> Value | tuple[Value, ...]:
        x = inputs[0]
        assert x is not None
        kind = algorithm(self.old, op, self.block)
        if kind is Algorithm.DEPTHWISE and x.type.dims[1] >= self.block:
            return self.windowed(op, (self.to(x, self.blocked), *inputs[1:]), self.blocked)
        if kind not in (Algorithm.DIRECT, Algorithm.GROUPED):
            return self.emit(op, inputs, ROW_MAJOR)
        planar = kind is Algorithm.DIRECT and x.type.dims[1] <= PLANAR_CHANNELS
        x = self.to(x, ROW_MAJOR if planar else self.blocked)
        return self.windowed(op, (x, *inputs[1:]), self.blocked)
