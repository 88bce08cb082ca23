"""Work that several threads share, as `map` does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


@contextmanager
def side_by_side(threads: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map`, in so many threads: for work that mostly does without Python's lock. With one, or
    none, it is done in the calling thread, as results are asked for."""
    if threads < 2:
        yield map
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool.map
