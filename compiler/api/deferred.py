"""Programs for models with open dimensions: built at the first call, once per set of shapes."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...ops.types import SymDim
from ..errors import GraphError, InputError, OptionError
from ..runtime.arrays import TensorSpec, as_array, by_name, is_on_device
from .executable import Executable

Shapes = Mapping[str, Sequence[int] | int]
"""Sizes by the name of an input, or one size by the name of a dimension."""


def checked_shapes(shapes: Any) -> dict[str, tuple[int, ...] | int] | None:
    """Shapes as a user gives them, with plain ints. Raises OptionError for what is none."""
    if shapes is None:
        return None
    try:
        return {
            str(name): tuple(map(operator.index, s)) if np.iterable(s) else operator.index(s)
            for name, s in shapes.items()
        }
    except (AttributeError, TypeError) as e:
        raise OptionError(
            f"shapes={shapes!r}: expected sizes by input, such as {{'x': (1, 3, 224, 224)}}"
        ) from e


class DeferredExecutable:
    """Calls like an `Executable`; each set of input shapes is compiled once and kept.

    `exe.specialise(shapes)` gives the executable for known shapes. `ir`, `plan`, `kernels`,
    `outputs` and the rest of an executable are those of the shapes used last; before the first call
    there are none, and asking for them raises OptionError.
    """

    def __init__(
        self, inputs: Sequence[Any], build: Callable[[Mapping[str, Sequence[int]]], Executable]
    ) -> None:
        self.inputs = tuple(TensorSpec.of(v.name, v.dims, v.dtype) for v in inputs)
        self._build = build
        self._made: dict[tuple[tuple[int, ...], ...], Executable] = {}
        self._latest: Executable | None = None
        self._building = threading.Lock()

    def specialise(self, shapes: Mapping[str, Sequence[int]]) -> Executable:
        """The executable for these input shapes, compiled now if it is new.

        Raises InputError when an input is missing or unknown, else as `tw.compile` does.
        """
        sizes = by_name(self.inputs, checked_shapes(shapes) or {})
        key = tuple((s,) if isinstance(s, int) else s for s in sizes)
        made = self._made.get(key)
        if made is None:  # calls with shapes that are known don't wait for this
            with self._building:
                made = self._made.get(key)
                if made is None:
                    bound = {s.name: k for s, k in zip(self.inputs, key, strict=True)}
                    made = self._made[key] = self._built(bound)
        self._latest = made
        return made

    def _built(self, bound: Mapping[str, Sequence[int]]) -> Executable:
        try:
            return self._build(bound)
        except GraphError as e:
            sizes = ", ".join(f"{n}={list(k)}" for n, k in bound.items())
            raise GraphError(
                f"{e} (with {sizes}; exporters may write sizes of the example that they trace into "
                "nodes: where other sizes compile, export the model again with these open)"
            ) from e

    def __getattr__(self, name: str) -> Any:
        public = hasattr(Executable, name) or name in ("outputs", "stats", "close", "launching")
        if name.startswith("_") or not public:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if self._latest is None:
            sizes = ", ".join(f"{s.name!r}: {tuple(map(str, s.shape))}" for s in self.inputs)
            raise OptionError(
                f"{name} depends on sizes that the model leaves open: give shapes={{{sizes}}} to "
                f"compile, or call the program once"
            )
        return getattr(self._latest, name)

    def _for(self, arrays: Sequence[Any]) -> Executable:
        if len(arrays) != len(self.inputs):
            listed = ", ".join(map(str, self.inputs))
            raise InputError(f"{len(arrays)} arrays for {len(self.inputs)} inputs: {listed}")
        shapes = {}
        for spec, a in zip(self.inputs, arrays, strict=True):
            shape = tuple(a.shape) if is_on_device(a) else as_array(spec.name, a).shape
            fits = len(shape) == len(spec.shape) and all(
                isinstance(d, SymDim) or d == n for d, n in zip(spec.shape, shape, strict=True)
            )
            if not fits:
                wanted = ", ".join(map(str, spec.shape))
                raise InputError(
                    f"input {spec.name!r} must have shape [{wanted}], got {list(shape)}"
                )
            shapes[spec.name] = shape
        return self.specialise(shapes)

    def __call__(self, /, *arrays: Any, out: Any = None, **named: Any) -> Any:
        """Run once. Raises InputError when arrays do not fit the inputs or outputs."""
        more = _stream(self.inputs, named)
        given = [*arrays, *by_name(self.inputs[len(arrays) :], named)] if named else list(arrays)
        return self._for(given)(*given, out=out, **more)

    def run(
        self, feeds: Mapping[str, Any], out: Mapping[str, Any] | None = None, **more: Any
    ) -> dict[str, Any]:
        """Run once, by names. Raises InputError when arrays do not fit the inputs or outputs."""
        return self._for(by_name(self.inputs, feeds)).run(feeds, out, **more)

    def __repr__(self) -> str:
        return f"<tilewright.DeferredExecutable ({', '.join(map(str, self.inputs))})>"


def _stream(inputs: Sequence[TensorSpec], named: dict[str, Any]) -> dict[str, Any]:
    """The stream of a call to a program for a GPU, taken out of arguments by name."""
    is_input = any(s.name == "stream" for s in inputs)
    return {} if is_input or "stream" not in named else {"stream": named.pop("stream")}
