"""Programs for models with open dimensions: built at the first call, once per set of shapes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from ...ops.types import SymDim
from ..errors import InputError
from ..runtime.program import TensorSpec, as_array, by_name
from .executable import Executable

Array = npt.NDArray[Any]


class DeferredExecutable:
    """Calls like an `Executable`. `exe.specialise(shapes)` gives the one for known shapes, with its
    plan, kernels and IR; each set of input shapes is compiled once and kept."""

    def __init__(
        self, inputs: Sequence[Any], build: Callable[[Mapping[str, Sequence[int]]], Executable]
    ) -> None:
        self.inputs = tuple(TensorSpec(v.name, v.dims, v.dtype.numpy) for v in inputs)
        self._build = build
        self._made: dict[tuple[tuple[int, ...], ...], Executable] = {}
        self._lock = threading.Lock()

    def specialise(self, shapes: Mapping[str, Sequence[int]]) -> Executable:
        """The executable for these input shapes, compiled now if it is new. Raises InputError when
        an input is missing or unknown, and what `tw.compile` raises."""
        key = tuple(tuple(s) for s in by_name(self.inputs, shapes))
        with self._lock:
            if key not in self._made:
                self._made[key] = self._build(
                    {s.name: k for s, k in zip(self.inputs, key, strict=True)}
                )
            return self._made[key]

    def _for(self, arrays: Sequence[Any]) -> Executable:
        if len(arrays) != len(self.inputs):
            listed = ", ".join(map(str, self.inputs))
            raise InputError(f"{len(arrays)} arrays for {len(self.inputs)} inputs: {listed}")
        shapes = {}
        for spec, a in zip(self.inputs, arrays, strict=True):
            shape = as_array(spec.name, a).shape
            fits = len(shape) == len(spec.shape) and all(
                isinstance(d, SymDim) or d == n for d, n in zip(spec.shape, shape, strict=True)
            )
            if not fits:
                raise InputError(f"input {spec.name!r} must have shape {list(map(str, spec.shape))}, "
                                 f"got {list(shape)}")  # fmt: skip
            shapes[spec.name] = shape
        return self.specialise(shapes)

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        """Run once. Raises InputError when arrays do not fit the inputs."""
        given = [*arrays, *by_name(self.inputs[len(arrays) :], named)] if named else list(arrays)
        return self._for(given)(*given)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Run once, by names. Raises InputError when arrays do not fit the inputs."""
        return self._for(by_name(self.inputs, feeds)).run(feeds)

    def __repr__(self) -> str:
        return f"<tilewright.DeferredExecutable ({', '.join(map(str, self.inputs))})>"
