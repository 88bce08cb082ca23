"""Graphs as files that people edit: the text, and beside it the arrays that it only has hashes of.

`net.tw.txt` is the text; `net.tw.npz` holds its arrays under their hashes (`sha256` of the bytes,
as `text.py` prints them), so that any text cut out of it, or made of it by passes, finds its
weights there. A text whose arrays are all written out needs no second file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ..errors import ModelError
from .ir import Graph
from .text import hashed, parse, to_text

Array = npt.NDArray[Any]
SUFFIX: Final = ".txt"


def is_text(path: object) -> bool:
    """Whether a path names a graph in text form."""
    return isinstance(path, (str, os.PathLike)) and Path(path).suffix == SUFFIX


def arrays_beside(path: Path) -> Path:
    """Where the arrays of a text are."""
    return path.with_suffix(".npz")


def write(graph: Graph, path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write the text to `path` (.txt), and its arrays beside it if there are any; the files.

    Raises ModelError for another ending, OSError.
    """
    file = Path(path)
    if not is_text(file):
        raise ModelError(f"graph text goes into a file that ends in {SUFFIX}, not {file.name!r}")
    arrays = {digest: b.value for digest, b in hashed(graph).items()}
    text = to_text(graph)
    written = [file]
    if arrays:
        beside = arrays_beside(file)
        np.savez(beside, allow_pickle=False, **arrays)  # type: ignore[arg-type]
        written.append(beside)
    file.write_text(text, encoding="utf-8")
    return tuple(written)


def read(path: str | os.PathLike[str]) -> Graph:
    """The graph that a file describes. Raises ModelError where it cannot be read, TextError on text
    that does not parse and where arrays are missing."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise ModelError(f"graph text {str(path)!r} cannot be read: {e}") from e
    beside = arrays_beside(file)
    if not beside.exists():
        return parse(text)
    try:
        arrays = np.load(beside, allow_pickle=False)
        names = arrays.files
    except (OSError, BadZipFile, ValueError, AttributeError) as e:
        raise ModelError(
            f"the arrays of {str(path)!r} cannot be read from {beside.name}: {str(e)[:80]}; "
            "`tilewright inspect MODEL --stage NAME --out FILE.txt` writes both anew"
        ) from e
    with arrays:
        return parse(text, by_digest=_Loaded(arrays, names))


class _Loaded(Mapping[str, Array]):
    """The arrays of an .npz file, each read once."""

    def __init__(self, arrays: Mapping[str, Array], names: Sequence[str]) -> None:
        self._arrays, self._names = arrays, frozenset(names)
        self._read: dict[str, Array] = {}

    def __getitem__(self, digest: str) -> Array:
        if digest not in self._read:
            try:
                self._read[digest] = self._arrays[digest]
            except (OSError, BadZipFile, ValueError) as e:
                raise ModelError(f"the array {digest} beside the text is damaged: {e}") from e
        return self._read[digest]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
