"""What recurrent operators share: activations, and the arithmetic of one step of each cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .errors import OperatorError
from .expr import Expr, const, exp, maximum, minimum, select, unary
from .operator import require

Array = npt.NDArray[Any]

DIRECTIONS: Final[dict[str, tuple[bool, ...]]] = {
    "forward": (False,), "reverse": (True,), "bidirectional": (False, True),
}  # fmt: skip

# Default alpha and beta by lower-case name; None where the function does not take it.
_DEFAULTS: Final[dict[str, tuple[float | None, float | None]]] = {
    "relu": (None, None), "tanh": (None, None), "sigmoid": (None, None), "softsign": (None, None),
    "softplus": (None, None), "affine": (1.0, 0.0), "leakyrelu": (0.01, None),
    "thresholdedrelu": (1.0, None), "scaledtanh": (1.0, 1.0), "hardsigmoid": (0.2, 0.5),
    "elu": (1.0, None),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Activation:
    """A scalar function by its lower-case ONNX name, with its parameters (0 where it has none)."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    def expr(self, x: Expr) -> Expr:
        """The function of an expression."""
        a, b = self.alpha, self.beta
        match self.name:
            case "relu":
                return maximum(x, 0)
            case "tanh":
                return unary("tanh", x)
            case "sigmoid":
                return 1 / (exp(-x) + 1)
            case "softsign":
                return x / (unary("abs", x) + 1)
            case "softplus":
                return maximum(x, 0) + unary("log1p", exp(-unary("abs", x)))
            case "affine":
                return x * a + b
            case "leakyrelu":
                return select(x < 0, x * a, x)
            case "thresholdedrelu":
                return select(x > a, x, 0)
            case "scaledtanh":
                return unary("tanh", x * b) * a
            case "hardsigmoid":
                return minimum(maximum(x * a + b, 0), 1)
            case _:
                return select(x < 0, unary("expm1", x) * a, x)

    def numpy(self, x: Array) -> Array:
        """The function of an array."""
        a, b = x.dtype.type(self.alpha), x.dtype.type(self.beta)
        table: dict[str, Callable[[], Any]] = {
            "relu": lambda: np.maximum(x, 0),
            "tanh": lambda: np.tanh(x),
            "sigmoid": lambda: 1 / (1 + np.exp(-x)),
            "softsign": lambda: x / (1 + np.abs(x)),
            "softplus": lambda: np.logaddexp(x, 0),
            "affine": lambda: a * x + b,
            "leakyrelu": lambda: np.where(x < 0, a * x, x),
            "thresholdedrelu": lambda: np.where(x > a, x, 0),
            "scaledtanh": lambda: a * np.tanh(b * x),
            "hardsigmoid": lambda: np.clip(a * x + b, 0, 1),
            "elu": lambda: np.where(x < 0, a * np.expm1(x), x),
        }
        return np.asarray(table[self.name](), x.dtype)


def clipped(x: Expr, clip: float | None) -> Expr:
    """x within [-clip, clip], or x."""
    if clip is None:
        return x
    return minimum(maximum(x, const(-clip, x.dtype)), const(clip, x.dtype))


def resolve_activations(
    names: tuple[str, ...],
    alphas: tuple[float, ...],
    betas: tuple[float, ...],
    default: tuple[str, ...],
    directions: int,
) -> tuple[Activation, ...]:
    """One activation per gate function and direction, directions outermost.

    alphas and betas are handed out in order to the functions that take one, then defaults apply.
    Raises OperatorError for an unknown name or a wrong number of them.
    """
    wanted = names or default * directions
    require(len(wanted) == len(default) * directions,
            f"activations {list(names)} must name {len(default) * directions} functions: "
            f"{len(default)} for each of {directions} directions")  # fmt: skip
    alpha_list, beta_list = list(alphas), list(betas)
    out = []
    for name in wanted:
        if not isinstance(name, str) or name.lower() not in _DEFAULTS:
            raise OperatorError(f"unknown activation {name!r} (known: {', '.join(_DEFAULTS)})")
        alpha, beta = _DEFAULTS[name.lower()]
        if alpha is not None and alpha_list:
            alpha = float(alpha_list.pop(0))
        if beta is not None and beta_list:
            beta = float(beta_list.pop(0))
        out.append(Activation(name.lower(), alpha or 0.0, beta or 0.0))
    return tuple(out)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step needs besides gates and states, for one direction: recurrent weights
    [gates * H, H], recurrent bias [gates * H] or 0, peepholes [3 * H] or None, activations, clip
    bound or None, and the cell's own switch (linear_before_reset, input_forget)."""

    r: Array
    rb: Any
    p: Array | None
    activations: tuple[Activation, ...]
    clip: float | None
    switch: int

    def act(self, k: int, x: Array) -> Array:
        bound = self.clip
        return self.activations[k].numpy(x if bound is None else np.clip(x, -bound, bound))


States = tuple[Array, ...]


def rnn_step(s: Step, gate: Array, states: States) -> States:
    """h' = f(gate + h R^T + rb)."""
    (h,) = states
    return (s.act(0, gate + h @ s.r.T + s.rb),)


def gru_step(s: Step, gate: Array, states: States) -> States:
    """z, r = f(..); n = g(..) of the reset state; h' = (1 - z) n + z h. Gates in order z, r, n."""
    (h,) = states
    size = h.shape[-1]
    rb = np.zeros(3 * size, h.dtype) + s.rb
    linear = h @ s.r.T + rb
    z = s.act(0, gate[:, :size] + linear[:, :size])
    reset = s.act(0, gate[:, size : 2 * size] + linear[:, size : 2 * size])
    if s.switch:
        inner = reset * linear[:, 2 * size :]
    else:
        inner = (reset * h) @ s.r[2 * size :].T + rb[2 * size :]
    n = s.act(1, gate[:, 2 * size :] + inner)
    return ((1 - z) * n + z * h,)


def lstm_step(s: Step, gate: Array, states: States) -> States:
    """i, o, f = f(..); c' = f c + i g(..); h' = o h(c'). Gates in order i, o, f, c; peepholes in
    order i, o, f; the switch couples the forget gate to the input gate. clip bounds what f and g
    see, not what h sees: ONNX leaves that open, and ONNX Runtime does so."""
    h, c = states
    gi, go, gf, gc = np.split(gate + h @ s.r.T + s.rb, 4, -1)
    pi, po, pf = (0, 0, 0) if s.p is None else np.split(s.p, 3)
    i = s.act(0, gi + pi * c)
    f = 1 - i if s.switch else s.act(0, gf + pf * c)
    c = f * c + i * s.act(1, gc)
    return s.act(0, go + po * c) * s.activations[2].numpy(c), c


@dataclass(frozen=True, slots=True)
class Cell:
    """A kind of recurrent cell; the first state is its output."""

    name: str
    gates: int
    states: int
    activations: tuple[str, ...]
    switch: str  # its own attribute, "" if it has none
    step: Callable[[Step, Array, States], States]

    @property
    def optional(self) -> tuple[str, ...]:
        """The inputs after sequence_lens."""
        return ("initial_h?",) if self.states == 1 else ("initial_h?", "initial_c?", "p?")


RNN: Final = Cell("rnn", 1, 1, ("tanh",), "", rnn_step)
GRU: Final = Cell("gru", 3, 1, ("sigmoid", "tanh"), "linear_before_reset", gru_step)
LSTM: Final = Cell("lstm", 4, 2, ("sigmoid", "tanh", "tanh"), "input_forget", lstm_step)
CELLS: Final = (RNN, GRU, LSTM)
