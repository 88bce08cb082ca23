"""What callers hand over: arrays to read, and arrays to write results into, checked."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...ops.types import DType, bf16
from ..errors import InputError
from ..graph.arrays import aligned_empty
from .fields import address

Array = npt.NDArray[Any]
Bounds = tuple[int, int]

REUSABLE_ALIGNMENT: Final = 16
"""Bytes that the start of a donated array must be a multiple of, as numpy's own allocations are:
enough for an element of any dtype, which is all that kernels ask for."""

_ON_HOST: Final = (1, 3)
"""DLPack's kinds of devices whose memory is the host's: its own, and what is pinned for CUDA."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of an executable.

    dtype: of the arrays that hold it. is_bf16: they hold the bits of bfloat16 values, which numpy
    has no type for; an input may also be an array of `ml_dtypes.bfloat16`.
    """

    name: str
    shape: tuple[Any, ...]
    dtype: np.dtype
    is_bf16: bool = False

    @classmethod
    def of(cls, name: str, shape: tuple[Any, ...], dtype: DType) -> TensorSpec:
        return cls(name, shape, dtype.numpy, dtype is bf16)

    def __str__(self) -> str:
        bits = " (bits of bfloat16)" if self.is_bf16 else ""
        return f"{self.name}: {self.dtype}{list(map(str, self.shape))}{bits}".replace("'", "")


def is_on_device(given: Any) -> bool:
    """Whether an array is in a GPU's memory, as far as one can ask without taking it."""
    if type(given) is np.ndarray:
        return False
    where = getattr(given, "__dlpack_device__", None)
    if where is not None and hasattr(given, "__dlpack__"):
        return int(where()[0]) not in _ON_HOST
    return hasattr(given, "__cuda_array_interface__")


def as_array(name: str, given: Any) -> Array:
    """What was given for an input, as numpy sees it. Raises InputError."""
    if isinstance(given, Mapping):
        raise InputError(
            f"input {name!r}: a {type(given).__name__} is no array; call run() with arrays by "
            "name, or give them one by one"
        )
    if given is None:
        raise InputError(f"input {name!r}: None is no array")
    try:
        return np.asarray(given)
    except Exception as e:  # whatever the object's own conversion raises
        raise InputError(
            f"input {name!r}: a {type(given).__name__} cannot be read as an array: {e}"
        ) from e


def fitted(spec: TensorSpec, a: Array) -> Array:
    """An array whose dtype or shape are not an input's, as one that fits. Raises InputError."""
    if spec.is_bf16 and a.shape == spec.shape and a.dtype.name == "bfloat16":
        return a.view(spec.dtype)
    raise misfit(spec, a)


def misfit(spec: TensorSpec, a: Array) -> InputError:
    """Why an array does not fit an input."""
    if spec.is_bf16 and a.dtype != spec.dtype and a.dtype.name != "bfloat16":
        return InputError(
            f"input {spec.name!r} must be bfloat16, or uint16 with its bits, got "
            f"{a.dtype}{list(a.shape)}; convert it with .astype(ml_dtypes.bfloat16)"
        )
    if a.dtype != spec.dtype and not spec.is_bf16:
        return InputError(
            f"input {spec.name!r} must be {spec.dtype}, got {a.dtype}{list(a.shape)}; "
            f"convert it with .astype({str(spec.dtype)!r})"
        )
    return InputError(
        f"input {spec.name!r} must have shape {list(spec.shape)}, got {list(a.shape)}"
    )


def by_name(specs: Sequence[TensorSpec], feeds: Mapping[str, Any]) -> list[Any]:
    """Arrays in input order. Raises InputError for a missing or an unknown name."""
    known = [s.name for s in specs]
    if not isinstance(feeds, Mapping):
        raise InputError(f"expected arrays by name, not a {type(feeds).__name__}; the inputs are "
                         f"{known}")  # fmt: skip
    missing = [n for n in known if n not in feeds]
    if missing or len(feeds) != len(known):
        unknown = [n for n in feeds if n not in known]
        what = {"no array for": missing, "there is no input": unknown}
        wrong = ", and ".join(f"{text} {names}" for text, names in what.items() if names)
        raise InputError(f"{wrong}; the inputs are {known}")
    return [feeds[n] for n in known]


def in_order(
    specs: Sequence[TensorSpec], arrays: Sequence[Any], named: Mapping[str, Any]
) -> list[Any]:
    """Arrays by position, then by name, in input order. Raises InputError."""
    first = {s.name: a for s, a in zip(specs, arrays, strict=False)}
    twice = sorted(set(first) & set(named))
    if twice or len(arrays) > len(specs):
        raise InputError(f"input {twice or list(first)} is given by position and by name")
    return by_name(specs, {**first, **named})


# --------------------------------------------------------------------------- results


def results_in_order(specs: Sequence[TensorSpec], out: Any) -> list[Any]:
    """`out` of a call as one entry per output, None where the result is to be a new array.

    out: an array for the only output, or one entry per output in a tuple or list. Raises
    InputError for anything else.
    """
    if any(hasattr(out, p) for p in ("__dlpack_device__", "__cuda_array_interface__")):
        out = (out,)
    if not isinstance(out, (tuple, list)) or len(out) != len(specs):
        what = f"{len(out)} of them" if isinstance(out, (tuple, list)) else type(out).__name__
        listed = ", ".join(map(str, specs))
        raise InputError(f"out: an array for each of {len(specs)} outputs ({listed}), not {what}")
    return list(out)


def results_by_name(specs: Sequence[TensorSpec], out: Any) -> list[Any]:
    """`out` of a call by names; outputs without an array become new ones. Raises InputError."""
    if not isinstance(out, Mapping):
        raise InputError(f"out: arrays by the outputs' names, not a {type(out).__name__}")
    known = [s.name for s in specs]
    unknown = [n for n in out if n not in known]
    if unknown:
        raise InputError(f"out: there is no output {unknown}; the outputs are {known}")
    return [out.get(n) for n in known]


def check_result(spec: TensorSpec, a: Any) -> None:
    """Raise InputError unless kernels can write an output straight into `a`."""
    if not isinstance(a, np.ndarray):
        raise InputError(f"out for output {spec.name!r} must be a numpy array, not {type(a)}")
    if a.dtype != spec.dtype or a.shape != spec.shape:
        raise InputError(
            f"out for output {spec.name!r} must be {spec.dtype}{list(spec.shape)}, "
            f"got {a.dtype}{list(a.shape)}"
        )
    flags = a.flags
    if not flags.writeable:
        raise InputError(f"out for output {spec.name!r} is read-only")
    if not (flags.c_contiguous and flags.aligned):
        raise InputError(
            f"out for output {spec.name!r} must be C-contiguous and aligned: results are written "
            f"without a copy, and its strides are {list(a.strides)}. Leave it out and copy: "
            "target[...] = exe(...)"
        )


def bounds(a: Array) -> Bounds:
    """First byte of a contiguous array, and the byte behind its last."""
    start = address(a)
    return start, start + a.nbytes


def meet(a: Bounds, b: Bounds) -> bool:
    """Whether two stretches of memory share a byte."""
    return max(a[0], b[0]) < min(a[1], b[1])


def shared_result(spec: TensorSpec, what: str) -> InputError:
    """Why an array cannot be written into."""
    return InputError(
        f"out for output {spec.name!r} shares memory with {what}; give an array of its own, or "
        "leave it out to get a new one"
    )


class Stretches:
    """The memory of contiguous arrays, to be asked often whether another one lies there too."""

    def __init__(self, arrays: Iterable[Array]) -> None:
        self._lows: list[int] = []
        self._highs: list[int] = []
        for low, high in sorted(map(bounds, arrays)):
            if self._highs and low <= self._highs[-1]:
                self._highs[-1] = max(high, self._highs[-1])
            else:
                self._lows.append(low)
                self._highs.append(high)

    def meet(self, other: Bounds) -> bool:
        """Whether some array shares a byte with these."""
        last = bisect_left(self._lows, other[1]) - 1
        return last >= 0 and other[0] < self._highs[last]


def aligned_copy(a: Array) -> Array:
    """A copy on a cache line."""
    made = aligned_empty(a.shape, a.dtype)
    made[...] = a
    return made


def reusable(arrays: Sequence[Array], k: int) -> bool:
    """Whether a program may write into contiguous array number k: nobody else reads it, and it
    starts as numpy's own arrays do."""
    a = arrays[k]
    own = bounds(a)
    return (
        a.flags.writeable
        and own[0] % REUSABLE_ALIGNMENT == 0
        and not any(meet(own, bounds(b)) for j, b in enumerate(arrays) if j != k)
    )
