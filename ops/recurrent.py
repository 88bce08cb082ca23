"""Recurrent layers as ONNX has them: RNN, GRU and LSTM.

Each decomposes into one matrix product that projects the inputs of all time steps, and the scan
operator of its cell (`scans.py`), which is the loop over time; in f32 where elements are f16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .cells import CELLS, Cell, resolve_activations
from .operator import Builder, Value, operator, require, require_same_dtype
from .pointwise import require_floats
from .samples import Case, Sampler
from .scans import check_clip, check_state, directions_of, run_scan, with_absent
from .types import TensorType, f16

Array = npt.NDArray[Any]


def _scan_attrs(cell: Cell, attrs: dict[str, Any]) -> dict[str, Any]:
    """Attributes of the scan that the layer decomposes into. Raises OperatorError."""
    chosen = resolve_activations(
        attrs["activations"], attrs["activation_alpha"], attrs["activation_beta"],
        cell.activations, len(directions_of(attrs["direction"])),
    )  # fmt: skip
    out = {
        "activations": tuple(a.name for a in chosen),
        "alphas": tuple(a.alpha for a in chosen),
        "betas": tuple(a.beta for a in chosen),
        "direction": attrs["direction"],
        "clip": attrs["clip"],
    }
    return {**out, cell.switch: attrs[cell.switch]} if cell.switch else out


def _declare(cell: Cell) -> None:
    n = cell.gates
    inputs = ("x", "w", "r", "b?", "sequence_lens?", *cell.optional)

    def infer(*types: TensorType | None, **attrs: Any) -> tuple[TensorType, ...]:
        x, w, r, bias, lens, *rest = types
        assert x is not None and w is not None and r is not None
        require_floats(x)
        require_same_dtype(x, w, r, bias, *rest)
        layout, d = attrs["layout"], len(directions_of(attrs["direction"]))
        require(layout in (0, 1), f"layout must be 0 or 1, got {layout}")
        order = "[B, T, I]" if layout else "[T, B, I]"
        require(x.rank == 3, f"x must be {order}, got {x}")
        b, t, size = x.dims if layout else (x.dims[1], x.dims[0], x.dims[2])
        require(r.rank == 3, f"r must be [{d}, {n} H, H], got {r}")
        h = r.dims[2]
        require(r.dims == (d, n * h, h), f"r must be [{d},{n * h},{h}], got {r}")
        require(w.dims == (d, n * h, size), f"w must be [{d},{n * h},{size}] for x {x}, got {w}")
        require(bias is None or bias.dims == (d, 2 * n * h),
                f"b must be [{d},{2 * n * h}], got {bias}")  # fmt: skip
        wanted = attrs["hidden_size"]
        require(wanted in (None, h), f"hidden_size {wanted} does not fit r {r}")
        time_first = list(rest)
        for k in range(cell.states if layout else 0):
            state = rest[k]
            if state is not None and state.rank == 3:
                s0, s1, s2 = state.dims
                time_first[k] = state.with_shape((s1, s0, s2))
        check_state(cell, (d, b, h), lens, *time_first)
        check_clip(attrs["clip"])
        _scan_attrs(cell, attrs)
        y, last = ((b, t, d, h), (b, d, h)) if layout else ((t, d, b, h), (d, b, h))
        return (x.with_shape(y), *(x.with_shape(last),) * cell.states)

    def decompose(b: Builder, *values: Value | None, **attrs: Any) -> tuple[Any, ...]:
        x, w, r, bias, lens, *rest = with_absent(values, len(inputs))
        assert x is not None and w is not None and r is not None
        states = list(rest)
        if attrs["layout"]:
            x = b.op("transpose", x, perm=(1, 0, 2))
            for k in range(cell.states):
                if states[k] is not None:
                    states[k] = b.op("transpose", states[k], perm=(1, 0, 2))
        (d, width, size), (t, many, _) = w.type.dims, x.type.dims
        rows = b.op("reshape", x, shape=(t * many, size), allowzero=1)
        gates = b.op("matmul", rows, b.op("transpose", w, perm=(0, 2, 1)))
        rb, half = None, x.type.dtype is f16
        if half:  # states stay in float32 from step to step
            gates, r, bias, *states = (
                None if v is None else b.op("cast", v, to="f32") for v in (gates, r, bias, *states)
            )
        if bias is not None:
            wb = b.op("slice", bias, starts=(0,), ends=(width,), axes=(1,), steps=(1,))
            rb = b.op("slice", bias, starts=(width,), ends=(2 * width,), axes=(1,), steps=(1,))
            gates = b.op("add", gates, b.op("reshape", wb, shape=(d, 1, width)))
        gates = b.op("reshape", gates, shape=(d, t, many, width), allowzero=1)
        y, *last = b.op(f"{cell.name}_scan", gates, r, rb, lens, *states,
                        **_scan_attrs(cell, attrs))  # fmt: skip
        if half:
            y, *last = (b.op("cast", v, to="f16") for v in (y, *last))
        if attrs["layout"]:
            y = b.op("transpose", y, perm=(2, 0, 1, 3))
            last = [b.op("transpose", s, perm=(1, 0, 2)) for s in last]
        return (y, *last)

    def reference(*tensors: Array | None, **attrs: Any) -> tuple[Array, ...]:
        x, w, r, bias, lens, *rest = with_absent(tensors, len(inputs))
        assert x is not None and w is not None and r is not None
        states = list(rest)
        if attrs["layout"]:
            x = x.swapaxes(0, 1)
            for k in range(cell.states):
                state = states[k]
                states[k] = None if state is None else state.swapaxes(0, 1)
        gates, rb, half = np.einsum("tbi,dgi->dtbg", x, w, optimize=True), None, w.shape[1]
        if bias is not None:
            gates, rb = gates + bias[:, None, None, :half], bias[:, half:]
        y, *last = run_scan(cell, gates, r, rb, lens, *states, **_scan_attrs(cell, attrs))
        if attrs["layout"]:
            return (y.transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in last))
        return (y, *last)

    def samples(s: Sampler) -> Iterator[Case]:
        yield from _samples(s, cell)

    attrs = {
        "activations": (), "activation_alpha": (), "activation_beta": (), "clip": None,
        "direction": "forward", "hidden_size": None, "layout": 0,
        **({cell.switch: 0} if cell.switch else {}),
    }  # fmt: skip
    parts: dict[str, Callable[..., Any] | str] = {
        "__doc__": _DOC.format(name=cell.name.upper(), n=n, n2=2 * n),
        "infer": infer, "decompose": decompose, "reference": reference, "samples": samples,
    }  # fmt: skip
    operator(cell.name, inputs=inputs, attrs=attrs)(type(cell.name, (), parts))


def _samples(s: Sampler, cell: Cell) -> Iterator[Case]:
    n, f = cell.gates, s.floats
    lstm = cell.states > 1
    yield s.case(f(5, 2, 4), f(1, n * 3, 4), f(1, n * 3, 3), constant=(1, 2))
    yield s.case(f(3, 1, 7), f(1, n * 17, 7) / 3, f(1, n * 17, 17) / 4, f(1, 2 * n * 17),
                 direction="reverse", hidden_size=17, constant=(1, 2, 3))  # fmt: skip
    states: list[Any] = [f(2, 3, 4) for _ in range(cell.states)] + [f(2, 12)] * lstm
    lens = s.ints(3, lo=1, hi=7, dtype="i32")
    yield s.case(f(6, 3, 5), f(2, n * 4, 5), f(2, n * 4, 4), f(2, 2 * n * 4), lens, *states,
                 direction="bidirectional", constant=(1, 2, 3))  # fmt: skip
    states = [f(3, 2, 4) for _ in range(cell.states)] + [None] * lstm
    yield s.case(f(3, 4, 5), f(2, n * 4, 5), f(2, n * 4, 4), f(2, 2 * n * 4), None, *states,
                 direction="bidirectional", layout=1, constant=(1, 2, 3))  # fmt: skip
    if cell.switch:
        yield s.case(f(4, 2, 3), f(1, n * 5, 3), f(1, n * 5, 5), f(1, 2 * n * 5),
                     constant=(1, 2, 3), **{cell.switch: 1})  # fmt: skip
    several = ("HardSigmoid", "ScaledTanh", "Affine")[: len(cell.activations)]
    yield s.case(f(4, 2, 3), f(1, n * 2, 3), f(1, n * 2, 2), f(1, 2 * n * 2), clip=0.7,
                 activations=several, activation_alpha=(0.3, 0.9, 0.8),
                 activation_beta=(0.4, 1.1, 0.1), constant=(1, 2, 3))  # fmt: skip
    for chosen in (("Relu", "LeakyRelu", "Softsign"), ("Softplus", "Elu", "ThresholdedRelu")):
        yield s.case(f(3, 1, 3), f(1, n * 2, 3) / 2, f(1, n * 2, 2) / 2,
                     activations=chosen[: len(cell.activations)], constant=(1, 2))  # fmt: skip


_DOC = """An {name} layer over sequences. ONNX: {name}.

x [T, B, I], w [D, {n} H, I], r [D, {n} H, H], b [D, {n2} H] (input biases, then recurrent ones),
sequence_lens [B], initial states [D, B, H]; D is 2 for direction "bidirectional". Results: y
[T, D, B, H] and the last states [D, B, H]. layout 1: x [B, T, I], y [B, T, D, H], states [B, D, H].
"""

for _cell in CELLS:
    _declare(_cell)
