"""The sequential part of recurrent layers: `rnn_scan`, `gru_scan`, `lstm_scan`.

Their input is projected already (x W^T + bias, for all time steps at once, is a matrix product of
its own), so that a kernel has to do only what depends on the step before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .cells import CELLS, DIRECTIONS, Activation, Cell, Step
from .operator import REQUIRED, Recurrence, operator, require, require_same_dtype
from .pointwise import require_floats
from .samples import Case, Sampler
from .types import TensorType

Array = npt.NDArray[Any]
V = TypeVar("V")


def directions_of(direction: str) -> tuple[bool, ...]:
    """Whether each direction runs backward. Raises OperatorError."""
    require(direction in DIRECTIONS, f"direction {direction!r} is not one of "
                                     f"{', '.join(DIRECTIONS)}")  # fmt: skip
    return DIRECTIONS[direction]


def scan_activations(attrs: dict[str, Any]) -> tuple[Activation, ...]:
    """The activations of a scan's attributes, directions outermost."""
    lists = (attrs["activations"], attrs["alphas"], attrs["betas"])
    return tuple(Activation(n, a, b) for n, a, b in zip(*lists, strict=True))


def with_absent(values: tuple[V | None, ...], count: int) -> tuple[V | None, ...]:
    """The inputs with None for the optional ones left out at the end."""
    return (*values, *(None,) * (count - len(values)))


def check_state(
    cell: Cell, dims: tuple[int, int, int], lens: TensorType | None, *rest: TensorType | None
) -> None:
    """sequence_lens [B], initial states [D, B, H], peepholes [D, 3 H], for dims = (D, B, H)."""
    d, b, h = dims
    if lens is not None:
        whole = lens.dtype.name in ("i32", "i64")
        require(whole and lens.dims == (b,), f"sequence_lens must be i32[{b}], got {lens}")
    for name, t in zip(cell.optional, rest, strict=True):
        wanted = (d, 3 * h) if name == "p?" else dims
        require(t is None or t.dims == wanted, f"{name[:-1]} must be {list(wanted)}, got {t}")


def check_clip(clip: float | None) -> None:
    require(clip is None or clip > 0, f"clip must be positive, got {clip}")


def run_scan(cell: Cell, *tensors: Array | None, **attrs: Any) -> tuple[Array, ...]:
    """The reference of every scan: step by step in numpy."""
    gates, r, rb, lens, *rest = with_absent(tensors, 4 + len(cell.optional))
    assert gates is not None and r is not None
    peepholes = rest[cell.states] if cell.states > 1 else None
    (d, t, b, _), h = gates.shape, r.shape[-1]
    zero = np.zeros((d, b, h), gates.dtype)
    initial = [zero if s is None else s for s in rest[: cell.states]]
    ends = np.full(b, t) if lens is None else lens
    functions = np.reshape(np.array(scan_activations(attrs), object), (d, -1))
    y = np.zeros((t, d, b, h), gates.dtype)
    last = []
    for k, backward in enumerate(directions_of(attrs["direction"])):
        step = Step(
            r[k], 0 if rb is None else rb[k], None if peepholes is None else peepholes[k],
            tuple(functions[k]), attrs["clip"], attrs[cell.switch] if cell.switch else 0,
        )  # fmt: skip
        now = tuple(s[k] for s in initial)
        for at in reversed(range(t)) if backward else range(t):
            running = (at < ends)[:, None]  # past its end a sequence keeps its state
            new = cell.step(step, gates[k, at], now)
            now = tuple(np.where(running, p, q) for p, q in zip(new, now, strict=True))
            y[at, k] = np.where(running, now[0], 0)
        last.append(now)
    return (y, *(np.stack(s) for s in zip(*last, strict=True)))


def _declare(cell: Cell) -> None:
    n = cell.gates

    def infer(*types: TensorType | None, **attrs: Any) -> tuple[TensorType, ...]:
        gates, r, rb, lens, *rest = types
        assert gates is not None and r is not None
        require_floats(gates)
        require_same_dtype(gates, r, rb, *rest)
        d = len(directions_of(attrs["direction"]))
        require(gates.rank == 4, f"gates must be [directions, T, B, {n} H], got {gates}")
        _, t, b, width = gates.dims
        h = width // n
        require(gates.dims == (d, t, b, n * h), f"gates must be [{d}, T, B, {n} H], got {gates}")
        require(r.dims == (d, n * h, h), f"r must be [{d},{n * h},{h}], got {r}")
        require(rb is None or rb.dims == (d, n * h), f"rb must be [{d},{n * h}], got {rb}")
        check_state(cell, (d, b, h), lens, *rest)
        check_clip(attrs["clip"])
        count = len(cell.activations) * d
        for name in ("activations", "alphas", "betas"):
            require(len(attrs[name]) == count, f"{name} must have {count} entries")
        return (gates.with_shape((t, d, b, h)), *(gates.with_shape((d, b, h)),) * cell.states)

    def reference(*tensors: Array | None, **attrs: Any) -> tuple[Array, ...]:
        return run_scan(cell, *tensors, **attrs)

    def samples(s: Sampler) -> Iterator[Case]:
        f = s.floats

        def attrs(direction: str, *functions: Activation) -> dict[str, Any]:
            d = len(DIRECTIONS[direction])
            chosen = functions or tuple(map(Activation, cell.activations))
            return {
                "direction": direction,
                "activations": tuple(a.name for a in chosen) * d,
                "alphas": tuple(a.alpha for a in chosen) * d,
                "betas": tuple(a.beta for a in chosen) * d,
            }

        yield s.case(f(1, 5, 2, n * 3), f(1, n * 3, 3), constant=(1,), **attrs("forward"))
        yield s.case(f(1, 3, 1, n * 17), f(1, n * 17, 17) / 4, f(1, n * 17), constant=(1, 2),
                     **attrs("reverse"))  # fmt: skip
        states = [f(2, 3, 4) for _ in range(cell.states)] + [f(2, 12)] * (cell.states > 1)
        lens = s.ints(3, lo=0, hi=5, dtype="i32")
        yield s.case(f(2, 4, 3, n * 4), f(2, n * 4, 4), f(2, n * 4), lens, *states,
                     constant=(1, 2), **attrs("bidirectional"))  # fmt: skip
        odd = (Activation("hardsigmoid", 0.3, 0.4), Activation("elu", 0.7),
               Activation("softsign"))[: len(cell.activations)]  # fmt: skip
        more = {cell.switch: 1} if cell.switch else {}
        yield s.case(f(1, 4, 2, n * 5), f(1, n * 5, 5), f(1, n * 5), clip=0.6, constant=(1, 2),
                     **attrs("forward", *odd), **more)  # fmt: skip

    attrs = {
        "activations": REQUIRED, "alphas": REQUIRED, "betas": REQUIRED, "direction": "forward",
        "clip": None, **({cell.switch: 0} if cell.switch else {}),
    }  # fmt: skip
    parts: dict[str, Callable[..., Any] | str] = {
        "__doc__": _DOC.format(name=cell.name.upper(), n=n),
        "infer": infer, "reference": reference, "samples": samples,
    }  # fmt: skip
    inputs = ("gates", "r", "rb?", "sequence_lens?", *cell.optional)
    traits = (Recurrence(cell.name),)
    operator(f"{cell.name}_scan", inputs=inputs, attrs=attrs, traits=traits)(
        type(f"{cell.name}_scan", (), parts)
    )


_DOC = """The time loop of an {name} layer over projected inputs.

gates [D, T, B, {n} H], r [D, {n} H, H], rb [D, {n} H], sequence_lens [B], states [D, B, H]; D is 2
for direction "bidirectional". Results: y [T, D, B, H] and the last states [D, B, H]. activations
(lower-case), alphas and betas have one entry per function and direction. Beyond its length a
sequence yields 0 and keeps its state; backward, it starts at its end.
"""

for _cell in CELLS:
    _declare(_cell)
