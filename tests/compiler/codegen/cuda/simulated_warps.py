"""What threads do together: functions that are called with the arguments of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .simulated_arithmetic import SimError
from .simulated_memory import Block

WARP = 32


@dataclass(frozen=True)
class Collective:
    """together: from the block, the numbers of the threads and the arguments of each of them to
    what each gets. threads: how many neighbours it takes."""

    together: Callable[[Block, Sequence[int], Sequence[tuple[Any, ...]]], Sequence[Any]]
    threads: int = WARP


def _shuffle_xor(
    block: Block, numbers: Sequence[int], args: Sequence[tuple[Any, ...]]
) -> list[Any]:  # fmt: skip
    if len({d for _, d in args}) != 1:
        raise SimError("threads of a warp shuffle by different distances")
    return [args[k ^ d][0] for k, (_, d) in enumerate(args)]


WARPS = {"shuffle_xor": Collective(_shuffle_xor)}
