"""How an operator is declared, and the registry of all of them.

    @operator("silu", inputs=("x",), traits=(Elementwise(),))
    class Silu:
        '''x * sigmoid(x), elementwise.'''
        def infer(x): return same(x)
        def compute(x): return x / (1 + exp(-x))
        def reference(x): return x / (1 + np.exp(-x))
        def samples(s): yield s.case(s.floats(2, 3))

The class is only a namespace. What its functions receive:

* infer(*types, **attrs) -> TensorType or a tuple of them. None stands for an absent optional input.
* compute(*scalars, **attrs) -> Expr (or a tuple), for operators with the Elementwise trait: one
  output element from the (broadcast) input elements.
* compute(out, *tensors, **attrs) -> function from logical indices to Expr, for all others. `out` is
  what infer returned; tensors are TensorArg (index them to load). A tuple of functions for several
  outputs. May contain `reduce`.
* decompose(b, *values, **attrs) -> value(s): builds other operators instead; `b.op(name, ...)`.
* reference(*arrays, **attrs) -> array(s): numpy, the truth, in the precision of its inputs.
* samples(s): yields cases, from which the tests are generated.

An operator has `compute`, or `decompose`, or a trait that kernel templates match (Contraction,
Recurrence, Opaque). It may have several: templates are preferred, then compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from .errors import OperatorError
from .expr import Expr, load
from .types import HALF, TensorType

# --------------------------------------------------------------------------- traits


@dataclass(frozen=True, slots=True)
class Trait:
    """A property that passes and templates ask for, instead of asking for operator names."""


@dataclass(frozen=True, slots=True)
class Elementwise(Trait):
    """Output element i depends on input elements i only, with numpy broadcasting."""


@dataclass(frozen=True, slots=True)
class Injective(Trait):
    """Every output element copies (or selects) at most one element of each input."""


@dataclass(frozen=True, slots=True)
class View(Trait):
    """A row-major result has the same bytes in the same order as input 0: no code is needed."""


@dataclass(frozen=True, slots=True)
class Relayout(Trait):
    """The result is input 0, perhaps in another layout: no code is needed where both layouts have
    the same bytes in the same order."""


@dataclass(frozen=True, slots=True)
class Reduction(Trait):
    """Elements are combined over axes or windows."""


@dataclass(frozen=True, slots=True)
class ChannelLocal(Trait):
    """Output channel c (axis 1) depends on input 0's channel c only, or on a few beside it: a
    blocked layout of input 0 may be kept for the output (pooling, normalisation with given
    statistics or over neighbouring channels, resize, depthwise)."""


@dataclass(frozen=True, slots=True)
class Contraction(Trait):
    """A sum of products with a kernel template of its own; kind is "conv" or "matmul"."""

    kind: str


@dataclass(frozen=True, slots=True)
class Recurrence(Trait):
    """A loop over time steps with a kernel template of its own; kind names the cell."""

    kind: str


@dataclass(frozen=True, slots=True)
class Opaque(Trait):
    """Has a kernel template of its own, found by kind: "sort", "scatter", "scan", ..."""

    kind: str


@dataclass(frozen=True, slots=True)
class Inplace(Trait):
    """The output may take the memory of this input when nothing else needs it."""

    input: int


# --------------------------------------------------------------------------- declaration


T = TypeVar("T", bound=Trait)


class Value(Protocol):
    """What decompositions pass around: anything with a type."""

    @property
    def type(self) -> TensorType: ...


class Builder(Protocol):
    """The part of the graph builder that decompositions use."""

    def op(self, operator: str, *inputs: Any, **attrs: Any) -> Any: ...

    def constant(self, value: npt.ArrayLike) -> Any: ...


@dataclass(frozen=True, slots=True)
class TensorArg:
    """A tensor input as `compute` sees it: `x[i, j]` is a load at logical indices."""

    source: Any
    type: TensorType

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.dims

    @property
    def rank(self) -> int:
        return len(self.type.shape)

    def __getitem__(self, where: Expr | tuple[Expr, ...]) -> Expr:
        at = where if isinstance(where, tuple) else (where,)
        if len(at) != self.rank:
            raise OperatorError(f"{len(at)} indices for a tensor of rank {self.rank}")
        return load(self.source, at, self.type.dtype)


class Required:
    """Marks an attribute that has no default."""

    def __repr__(self) -> str:
        return "required"


REQUIRED: Final = Required()
REMEMBERED: Final = 4096
"""How many inferred types an operator keeps."""

Types = TensorType | tuple[TensorType, ...]


@dataclass(frozen=True, slots=True)
class Operator:
    """A declaration. `inputs` are names; "b?" is optional, a last "xs*" takes any number."""

    name: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    traits: tuple[Trait, ...]
    infer: Callable[..., Types]
    reference: Callable[..., Any]
    compute: Callable[..., Any] | None = None
    decompose: Callable[..., Any] | None = None
    samples: Callable[..., Iterator[Any]] | None = None
    doc: str = ""
    _trait_table: dict[type, Trait] = field(default_factory=dict, repr=False, compare=False)
    _inferred: dict[tuple[Any, ...], tuple[TensorType, ...]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def trait(self, kind: type[T]) -> T | None:
        return self._trait_table.get(kind)  # type: ignore[return-value]

    def has(self, kind: type[Trait]) -> bool:
        return kind in self._trait_table

    @property
    def min_inputs(self) -> int:
        return sum(1 for n in self.inputs if n[-1] not in "?*")

    @property
    def max_inputs(self) -> int | None:
        return None if self.inputs and self.inputs[-1].endswith("*") else len(self.inputs)

    def bind(self, attrs: Mapping[str, Any]) -> dict[str, Any]:
        """Attributes with defaults filled in and values normalised to hashable ones.

        Raises OperatorError for an unknown or a missing attribute.
        """
        if not attrs.keys() <= self.attrs.keys():
            unknown = sorted(set(attrs) - set(self.attrs))
            known = ", ".join(self.attrs) or "none"
            raise OperatorError(f"{self.name} has no attribute {unknown[0]!r} (it has: {known})")
        out = {}
        for name, default in self.attrs.items():
            value = normalise(attrs.get(name, default))
            if value is REQUIRED:
                raise OperatorError(f"{self.name} needs the attribute {name!r}")
            out[name] = value
        return out

    def infer_types(
        self, types: Iterable[TensorType | None], attrs: Mapping[str, Any]
    ) -> tuple[TensorType, ...]:
        """Output types. Raises OperatorError where inputs or attributes do not fit."""
        given = tuple(types)
        # passes ask the same again and again; repr tells 1 from 1.0 and True
        key = (given, repr(attrs))
        found = self._inferred.get(key)
        if found is None:
            if len(self._inferred) >= REMEMBERED:
                self._inferred.clear()
            found = self._inferred[key] = self._infer_types(given, attrs)
        return found

    def _infer_types(
        self, types: Iterable[TensorType | None], attrs: Mapping[str, Any]
    ) -> tuple[TensorType, ...]:
        ins = list(types)
        most = self.max_inputs
        if len(ins) < self.min_inputs or (most is not None and len(ins) > most):
            wanted = (
                f"{self.min_inputs}"
                if most == self.min_inputs
                else (f"{self.min_inputs} to {most if most is not None else 'any number'}")
            )
            raise OperatorError(f"{self.name} takes {wanted} inputs, got {len(ins)}")
        for k, n in enumerate(self.inputs):
            if n[-1] not in "?*" and ins[k] is None:
                raise OperatorError(f"{self.name} needs its input {n!r}")
        if most is not None:
            ins += [None] * (most - len(ins))
        out = self.infer(*ins, **attrs)
        return out if isinstance(out, tuple) else (out,)


_PLAIN: Final = frozenset((int, float, bool, str, type(None)))


def normalise(value: Any) -> Any:
    """Attribute values as plain hashable Python: lists and arrays to tuples, numpy scalars to ints
    and floats. Arrays of rank > 1 belong in constants and are refused."""
    kind = type(value)
    if kind in _PLAIN or (kind is tuple and all(type(v) in _PLAIN for v in value)):
        return value
    if isinstance(value, np.ndarray):
        if value.ndim > 1:
            raise OperatorError("an attribute cannot be an array of rank > 1; make it a constant")
        return normalise(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return tuple(normalise(v) for v in value)
    return value


REGISTRY: Final[dict[str, Operator]] = {}


def operator(
    name: str,
    *,
    inputs: Iterable[str] = ("x",),
    attrs: Mapping[str, Any] | None = None,
    traits: Iterable[Trait] = (),
) -> Callable[[type], Operator]:
    """Class decorator that turns a namespace of functions into a registered `Operator`.

    Raises OperatorError when the name is taken or infer or reference is missing.
    """

    def declare(space: type) -> Operator:
        if name in REGISTRY:
            raise OperatorError(f"the operator {name!r} is declared already")
        parts = {k: space.__dict__.get(k) for k in
                 ("infer", "reference", "compute", "decompose", "samples")}  # fmt: skip
        missing = [k for k in ("infer", "reference") if parts[k] is None]
        if missing:
            raise OperatorError(f"the operator {name!r} declares no {' and no '.join(missing)}")
        found = tuple(traits)
        op = Operator(
            name=name,
            inputs=tuple(inputs),
            attrs=dict(attrs or {}),
            traits=found,
            doc=(space.__doc__ or "").strip(),
            _trait_table={type(t): t for t in found},
            **parts,  # type: ignore[arg-type]
        )
        REGISTRY[name] = op
        return op

    return declare


def get(name: str) -> Operator:
    """The operator of that name. Raises OperatorError."""
    try:
        return REGISTRY[name]
    except KeyError:
        raise OperatorError(f"there is no operator {name!r}") from None


# --------------------------------------------------------------------------- helpers for decompose


def widened(b: Builder, *values: Value | None) -> tuple[Any, ...]:
    """Half floats as float32, in which sums of them are computed; anything else as it is."""
    return tuple(
        v if v is None or v.type.dtype not in HALF else b.op("cast", v, to="f32") for v in values
    )


def narrowed(b: Builder, y: Any, x: Value) -> Any:
    """y in the element type of x."""
    return y if y.type.dtype is x.type.dtype else b.op("cast", y, to=x.type.dtype.name)


# --------------------------------------------------------------------------- helpers for infer


def same(x: TensorType) -> TensorType:
    """Row-major or not: an elementwise result looks like its input."""
    return x


def require(condition: bool, why: str) -> None:
    if not condition:
        raise OperatorError(why)


def require_float(*types: TensorType | None) -> None:
    for t in types:
        if t is not None and not t.dtype.is_float:
            raise OperatorError(f"needs a float tensor, got {t}")


def require_same_dtype(*types: TensorType | None) -> None:
    seen = {t.dtype for t in types if t is not None}
    if len(seen) > 1:
        listed = " and ".join(str(t) for t in types if t is not None)
        raise OperatorError(f"inputs must have one element type, got {listed}")


def normal_axis(axis: int, rank: int, what: str = "axis") -> int:
    """A possibly negative axis as 0 <= axis < rank. Raises OperatorError."""
    if not isinstance(axis, int):
        raise OperatorError(f"{what} {axis!r} is no integer")
    if not -rank <= axis < rank:
        raise OperatorError(f"{what} {axis} is out of range for rank {rank}")
    return axis % rank


def normal_axes(axes: Iterable[int], rank: int, what: str = "axis") -> tuple[int, ...]:
    """Axes made non-negative and checked to be distinct."""
    out = tuple(normal_axis(a, rank, what) for a in axes)
    if len(set(out)) != len(out):
        raise OperatorError(f"an {what} is repeated in {list(out)}")
    return out
