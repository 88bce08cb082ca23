"""Asynchronous copies: they are on their way until the thread that asked for them waits for them,
and then land in random order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .simulated_arithmetic import SimError
from .simulated_memory import Block, Global, Piece

SIZES = (4, 8, 16)


@dataclass
class _Copy:
    to: Piece
    at: int
    source: Global
    place: int
    count: int
    inside: bool

    def land(self) -> None:
        x = self.source.array[self.place : self.place + self.count]
        self.to.land(self.at, x if self.inside else [0] * self.count)


class _Queue:
    """The groups of copies of one thread, and those that are not in a group yet."""

    def __init__(self) -> None:
        self.groups: list[list[_Copy]] = []
        self.loose: list[_Copy] = []


def copies(block: Block, rng: Any) -> dict[str, Callable[..., Any]]:
    """The intrinsics of `async_copy`."""
    queues: dict[tuple[int, int], _Queue] = {}

    def mine() -> _Queue:
        return queues.setdefault((block.number, block.thread), _Queue())

    def cp_async(a: Piece, i: int, x: Global, j: int, size: int, inside: bool = True) -> None:
        if size not in SIZES:
            raise SimError(f"no copy has {size} bytes")
        if a.dtype != x.dtype:
            raise SimError(f"{a.dtype} in shared memory is given {x.dtype}")
        count = size // a.dtype.itemsize
        if inside:
            x.read(j, count)
        a.expect(i, count)
        mine().loose.append(_Copy(a, i, x, j, count, inside))

    def cp_commit() -> None:
        q = mine()
        q.groups.append(q.loose)
        q.loose = []

    def cp_wait(n: int) -> None:
        q = mine()
        landing = [c for group in q.groups[: max(len(q.groups) - n, 0)] for c in group]
        q.groups = q.groups[len(q.groups) - n :] if n < len(q.groups) else q.groups
        q.groups = q.groups if n else []
        for k in rng.permutation(len(landing)):
            landing[k].land()

    def ended(thread: int) -> None:
        q = queues.pop((block.number, thread), _Queue())
        if q.loose or any(q.groups):
            raise SimError("a thread ends with copies on their way")

    block.ended.append(ended)
    return {"cp_async": cp_async, "cp_async_zero": cp_async, "cp_commit": cp_commit,
            "cp_wait": cp_wait}  # fmt: skip
