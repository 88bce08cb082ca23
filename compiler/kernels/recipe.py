"""How constants are brought into the forms that kernels read, as data.

A recipe is the name of a function and its arguments, so recipes compare, print and can be kept in
files: what packs weights never holds on to the graph that they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy.typing as npt

from ..graph.ir import Deferred
from .ir import Prepared
from .packing import Weights

Array = npt.NDArray[Any]
Argument = int | str | None | tuple["Argument", ...]
Function = TypeVar("Function", bound=Callable[..., Array])

RECIPES: Final[dict[str, Callable[..., Array]]] = {}
_IN_PARTS: Final[set[str]] = set()
_INTO: Final[set[str]] = set()


def recipe(
    name: str, *, in_parts: bool = False, into: bool = False
) -> Callable[[Function], Function]:
    """Function decorator: arrays in, then arguments by name; the packed array out. in_parts: it
    takes constants that are computed as they are and has them computed part by part. into: it takes
    memory for the packed array as `out`, flat, or makes its own if that is None."""

    def register(function: Function) -> Function:
        assert name not in RECIPES, name
        RECIPES[name] = function
        if in_parts:
            _IN_PARTS.add(name)
        if into:
            _INTO.add(name)
        return function

    return register


@dataclass(frozen=True, slots=True)
class Recipe:
    """A registered function with its arguments."""

    name: str
    arguments: tuple[tuple[str, Argument], ...]

    def __call__(self, *given: Weights, out: Array | None = None) -> Array:
        """The packed array. out: flat memory of its size, where it is to be."""
        if self.name not in _IN_PARTS:
            given = tuple(w.make() if isinstance(w, Deferred) else w for w in given)
        if self.name in _INTO:
            return RECIPES[self.name](*given, **dict(self.arguments), out=out)
        found = RECIPES[self.name](*given, **dict(self.arguments))
        if out is None:
            return found
        if (found.size, found.dtype) != (out.size, out.dtype):
            raise ValueError(f"{self} gives {found.dtype}[{found.size}], "
                             f"not {out.dtype}[{out.size}]")  # fmt: skip
        out[:] = found.reshape(-1)
        return out

    def __str__(self) -> str:
        return " ".join((self.name, *(f"{k}={v}" for k, v in self.arguments)))


def prepared(blobs: Sequence[str], name: str, **arguments: Argument) -> Prepared:
    """Constants packed by the recipe of that name."""
    assert name in RECIPES, name
    return following(blobs, Recipe(name, tuple(arguments.items())))


def following(blobs: Sequence[str], made: Recipe) -> Prepared:
    """Constants packed by a recipe."""
    return Prepared(tuple(blobs), str(made), made)
