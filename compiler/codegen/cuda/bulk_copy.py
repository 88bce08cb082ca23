"""Copies of whole boxes between tensors and shared memory, by a unit of Hopper GPUs (TMA): PTX ISA,
"cp.async.bulk.tensor". See `kernels.tensor_map` for what they see of a tensor.

One thread asks for a copy. What is read is announced to an mbarrier; copies back to a tensor belong
to the group that the thread's next `tma_commit` closes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from .asm import address, asm, word
from .intrinsic import Body, Intrinsic, table
from .intrinsic import Intrinsic as I

AXES: Final = "xyzuv"
"""How the coordinates of a box's first element are called, innermost first."""


def _load(rank: int, cast: bool) -> Callable[[Body], None]:
    def write(b: Body) -> None:
        at = ", ".join(f"${3 + k}" for k in range(rank))
        cluster, mask = "", ""
        if cast:
            cluster, mask = ".multicast::cluster", f", {b.literals['ranks']}"
        text = (f"cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes"
                f"{cluster} [$0], [$1, {{{at}}}], [$2]{mask};")  # fmt: skip
        asm(b, text, address(b, "a", "i"), "ptr %tensor", address(b, "bars", "s"),
            *(word(b, AXES[k]) for k in range(rank)))  # fmt: skip

    return write


def _store(rank: int) -> Callable[[Body], None]:
    def write(b: Body) -> None:
        at = ", ".join(f"${2 + k}" for k in range(rank))
        text = (f"cp.async.bulk.tensor.{rank}d.global.shared::cta.bulk_group"
                f" [$0, {{{at}}}], [$1];")  # fmt: skip
        asm(b, text, "ptr %tensor", address(b, "a", "i"),
            *(word(b, AXES[k]) for k in range(rank)))  # fmt: skip

    return write


def _prefetch(b: Body) -> None:
    asm(b, "prefetch.tensormap [$0];", "ptr %tensor")


def _commit(b: Body) -> None:
    asm(b, "cp.async.bulk.commit_group;")


def _wait(b: Body) -> None:
    asm(b, f"cp.async.bulk.wait_group.read {b.literals['n']};")


def _copies() -> Iterator[Intrinsic]:
    for rank in range(2, len(AXES) + 1):
        at = "".join(f", index {AXES[k]}" for k in range(rank))
        taken = f"shared a, index i, map tensor, shared bars, index s{at}"
        yield I(f"tma_load_{rank}d", taken, _load(rank, False))
        yield I(f"tma_cast_{rank}d", f"{taken}, literal ranks", _load(rank, True))
        yield I(f"tma_store_{rank}d", f"map tensor, shared a, index i{at}", _store(rank))


TABLE: Final = table(
    *_copies(),
    I("tma_prefetch", "map tensor", _prefetch),
    I("tma_commit", "", _commit),
    I("tma_wait", "literal n", _wait),
)
"""tma_load_2d(a, i, tensor, bars, s, x, y): the box at (x, y) to a[i], its bytes announced to
mbarrier bars[s]. tma_cast_2d(..., ranks): to that place in all blocks of the cluster whose bits are
set in `ranks`, and announced to the barrier of each. tma_store_2d(tensor, a, i, x, y): a[i] to the
box, as far as it lies inside of the tensor. tma_wait(n): all but the last n groups of the thread
have read what they store, so that it may be overwritten. Boxes begin at multiples of 1024 bytes."""
