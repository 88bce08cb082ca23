"""Choose a memory layout for every blob: blocked channels around convolutions, else row-major.

Kernels for pointwise, injective and reducing operators read and write any layout, so only the
operators with templates of their own have wishes: direct convolutions want blocked channels and
no padding of their own, everything opaque wants row-major. A `reformat` op stands where a wish and
the blob disagree; fusion makes most of them part of a neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...ops.operator import ChannelLocal, Contraction, Elementwise, Opaque, Recurrence, View
from ...ops.types import ROW_MAJOR, Layout, TensorType
from ...ops.windows import WINDOW_ATTRS, slide
from ..graph.builder import Value
from ..graph.ir import Graph, Op
from .base import Pass
from .convolutions import Algorithm, algorithm
from .rewrite import SourceRewriter

PLANAR_CHANNELS = 4  # a convolution of so few channels reads row-major input directly


@dataclass(frozen=True, slots=True)
class AssignLayout(Pass):
    """block: channels per block, one vector of the target."""

    block: int

    def run(self, graph: Graph) -> Graph:
        rewriter = _Layouts(graph, self.block)
        return rewriter.run(rewriter.visit)


class _Layouts(SourceRewriter):
    def __init__(self, old: Graph, block: int) -> None:
        super().__init__(old)
        self.block = block
        self.blocked = Layout(1, block)
        self._reformatted: dict[tuple[str, Layout], Value] = {}

    def visit(self, op: Op, inputs: tuple[Value | None, ...]) -> Value | tuple[Value, ...] | None:
        contraction = op.definition.trait(Contraction)
        if contraction is not None and contraction.kind == "conv":
            return self.convolution(op, inputs)
        rigid = contraction is not None or any(op.has(t) for t in (View, Recurrence))
        opaque = op.definition.trait(Opaque)
        if rigid or (opaque is not None and opaque.kind != "concat"):
            return self.emit(op, tuple(self.to(v, ROW_MAJOR) for v in inputs), ROW_MAJOR)
        layout = self.follow(op, inputs)
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

    def follow(self, op: Op, inputs: tuple[Value | None, ...]) -> Layout:
        """The layout that an operator without wishes hands on."""
        outs = self.old.output_types(op)
        present = [v for v in inputs if v is not None]
        if len({t.dims for t in outs}) != 1 or not present:
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
            if stacked and all(self._stackable(v.type) for v in present):
                return self.blocked
        return ROW_MAJOR

    def _stackable(self, t: TensorType) -> bool:
        return t.layout == self.blocked and t.dims[1] % self.block == 0

    # ---------------------------------------------------------------- convolutions

    def convolution(self, op: Op, inputs: tuple[Value | None, ...]) -> Value | tuple[Value, ...]:
        x, w = inputs[0], inputs[1]
        assert x is not None and w is not None
        kind = algorithm(self.old, op, self.block)
        if kind is Algorithm.DEPTHWISE and x.type.dims[1] >= self.block:
            return self.windowed(op, (self.to(x, self.blocked), *inputs[1:]), self.blocked)
        if kind is not Algorithm.DIRECT:
            return self.emit(op, inputs, ROW_MAJOR)
        planar = x.type.dims[1] <= PLANAR_CHANNELS
        x = self.to(x, ROW_MAJOR if planar else self.blocked)
        assert x is not None
        attrs = op.attributes
        window = slide(x.type.dims[2:], w.type.dims[2:], **{k: attrs[k] for k in WINDOW_ATTRS})
        if any(window.begin + window.end):
            x = self.op("pad", x, layouts=(x.type.layout,),
                        pads=(0, 0, *window.begin, 0, 0, *window.end))  # fmt: skip
        attrs |= {"pads": (0,) * (2 * window.rank), "auto_pad": "NOTSET",
                  "strides": window.strides, "dilations": window.dilations}  # fmt: skip
        direct = replace(op, attrs=tuple(attrs.items()))
        return self.windowed(direct, (x, *inputs[1:]), self.blocked)
